"""Labels of every stretch of a pair: by a reward, by a judge in both orders, and what is kept of them."""

import json
import math
from collections import Counter

import pytest
import torch
import yaml
from PIL import Image

from mmalign.batch import PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.data.segments import stretches_of
from mmalign.data.video_writers import encode_clip
from mmalign.errors import ConfigError
from mmalign.rewards.functions import FunctionReward
from mmalign.testing.clip_pairs import ClipStub, brightness, records
from mmalign.video.pair_making.annotating import Labelled, cut_into, decided_pair, majority_of
from mmalign.video.pair_making.commands import make_pairs
from mmalign.video.pair_making.plan import SegmentsConfig


def clip_of(levels, *, each=8):
    """A clip at 8 frames a second, `each` of which have one level of grey."""
    frames = torch.cat([torch.full((each, 3, 32, 48), level, dtype=torch.uint8) for level in levels])
    frames[::2, :, 0, 0] += 5  # no frame equals its neighbour
    return encode_clip(frames, 8.0, container="mkv")


@pytest.fixture
def labelled_plan(plan_of, tmp_path):
    """A plan over pairs of (levels of the chosen clip, levels of the rejected one)."""

    def make(pairs, **segments):
        lines = []
        for number, (one, two) in enumerate(pairs):
            for side, levels in (("c", one), ("r", two)):
                (tmp_path / f"{number}{side}.mkv").write_bytes(clip_of(levels))
            lines.append({"prompt": f"p{number}", "chosen": f"{number}c.mkv", "rejected": f"{number}r.mkv"})
        path = tmp_path / "pairs.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        settings = {"annotator": {"name": "own:light", "title": "light"}, **segments}
        return plan_of("segments", data={"source": str(path)}, segments=settings)

    return make


def made(plan, folder, tools):
    rows, counts = make_pairs(plan, folder, device="cpu", tools=tools)
    return records(rows), counts, rows


def signs(record):
    return [stretch["preference"] for stretch in record["segments"]]


def test_frames_belong_to_the_second_they_stand_in():
    frames = torch.zeros(19, 3, 2, 2, dtype=torch.uint8)
    assert [len(part) for part in cut_into(frames, 8.0, 1.0)] == [8, 8, 3]
    assert [len(part) for part in cut_into(frames, 8.0, 0.3)] == [3, 2, 3, 2, 2, 3, 2, 2]
    assert [len(part) for part in cut_into(frames[:16], 8.0, 1.0)] == [8, 8]
    assert [len(part) for part in cut_into(frames[:3], 1.0, 0.5)] == [1, 1, 1]


def test_each_second_is_labelled_and_the_majority_is_chosen(labelled_plan, tools_of, tmp_path):
    plan = labelled_plan([((200, 50, 50), (100, 100, 100)), ((90, 90, 20), (40, 90, 90))])
    found, counts, rows = made(plan, tmp_path / "out", tools_of(None))
    # The second clip of the first pair is better in two of three seconds: sides change.
    assert signs(found[0]) == ["rejected", "chosen", "chosen"]
    assert found[0]["id"].endswith("-1-0")
    assert found[0]["majority"] == "chosen"
    # One to one: the order stays, and is called a tie.
    assert signs(found[1]) == ["chosen", "tie", "rejected"]
    assert found[1]["majority"] == "tie"
    assert found[1]["decided"] == pytest.approx(2 / 3)
    assert counts["sides_changed"] == counts["majority_tie"] == 1
    assert (counts["stretches"], counts["opposite_stretches"]) == (6, 2)
    # Methods of whole clips see one preference and one tie; labels in time stay in both.
    assert [row.prompt for row in open_rows(DataConfig(source=str(rows)), kind="pairs")] == ["p0"]
    read = list(open_rows(DataConfig(source=str(rows), tie_policy="soft"), kind="pairs"))
    assert [row.preference for row in read] == [1.0, 0.5]
    assert [stretch.preference for stretch in stretches_of(read[1])] == [1, 0, -1]
    assert [stretch.preference for stretch in stretches_of(read[0])] == [-1, 1, 1]
    assert stretches_of(read[0])[2].end == pytest.approx(3.0)


def test_only_pairs_with_more_than_a_fifth_decided_are_kept(labelled_plan, tools_of, tmp_path):
    same = (60, 60, 60, 60, 60)
    pairs = [((90, *same[1:]), same), ((90, 90, *same[2:]), same), (same, (*same[1:], 61))]
    found, counts, _ = made(labelled_plan(pairs), tmp_path / "out", tools_of(None))
    # One of five is a fifth, which is not more than a fifth.
    assert [record["prompt"] for record in found] == ["p1"]
    assert counts["too_few_decided"] == 2
    card = yaml.safe_load((tmp_path / "out/card.yaml").read_text())
    assert card["decided"] == pytest.approx(0.4)


def test_values_within_the_margin_are_ties(labelled_plan, tools_of, tmp_path):
    plan = labelled_plan([((100, 100), (90, 40))], margin=0.1)
    found, _, _ = made(plan, tmp_path / "out", tools_of(None))
    assert signs(found[0]) == ["tie", "chosen"]


def test_a_reward_that_fails_in_a_second_gives_no_verdict_there(labelled_plan, tools_of, tmp_path):
    def score(samples):
        return [math.nan if value > 0.7 else value for value in brightness(samples)]

    plan = labelled_plan([((200, 90), (90, 20))])
    found, counts, _ = made(plan, tmp_path / "out", tools_of(None, light=score))
    assert signs(found[0]) == ["tie", "chosen"]
    assert counts["stretches_without_verdict"] == 1


def test_a_judge_that_contradicts_itself_says_a_tie(labelled_plan, tools_of, tmp_path):
    asked = []

    def judge(samples):
        asked.extend(samples)
        found = []
        for sample in samples:
            own, other = (
                float(torch.stack(list(side)).float().mean())
                for side in (sample.frames, sample.extras["other"])
            )
            # Sure of large differences; of small ones it takes what it is shown first.
            found.append(float(own > other) if abs(own - other) > 30 else 0.9)
        return found

    plan = labelled_plan([((200, 100, 10), (100, 90, 90))], by="judge")
    found, _, _ = made(plan, tmp_path / "out", tools_of(None, light=judge))
    assert signs(found[0]) == ["chosen", "tie", "rejected"]
    assert len(asked) == 6
    assert all(len(sample.frames) == 8 for sample in asked)


def test_judges_of_the_catalogue_are_asked_once_and_their_orders_compared(labelled_plan, tmp_path):
    from dataclasses import replace

    from mmalign.rewards.base import Scored
    from mmalign.video.pair_making.loading import Tools

    class Judge(FunctionReward):
        def score(self, samples, *, batch_size=16):
            rows = [[1.0, 1.0, 1.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0], [math.nan, 1.0, math.nan]]
            none = (None,) * 4
            values = torch.tensor(rows, dtype=torch.float64)
            return Scored(values, self.card.outputs, none, (False,) * 4, none)

    judge = Judge(brightness, name="vlm_pairwise_judge")
    judge._card = replace(judge.card, outputs=("preference", "in_order", "swapped"))
    plan = labelled_plan([((9, 9, 9, 9), (8, 8, 8, 8))], by="judge", annotator={"name": "vlm_pairwise_judge"})
    found, counts, _ = made(plan, tmp_path / "out", Tools(reward=lambda choice, device: judge))
    assert signs(found[0]) == ["chosen", "tie", "rejected", "tie"]
    assert counts["stretches_without_verdict"] == 1


def test_a_reward_of_single_clips_is_no_judge(labelled_plan, tools_of, tmp_path):
    plan = labelled_plan([((9,), (8,))], by="judge", annotator={"name": "light"})
    with pytest.raises(ConfigError, match="judge light: got 'score', expected a pairwise judge"):
        made(plan, tmp_path / "out", tools_of(None))


def test_clips_of_other_lengths_and_broken_ones_are_counted(labelled_plan, tools_of, tmp_path):
    plan = labelled_plan([((90, 90), (80,)), ((90,), (80,)), ((90,), (80,))])
    (tmp_path / "1r.mkv").write_bytes((tmp_path / "1r.mkv").read_bytes()[:200])
    found, counts, _ = made(plan, tmp_path / "out", tools_of(None))
    assert [record["prompt"] for record in found] == ["p2"]
    assert (counts["other_length"], counts["no_pair"], counts["clips"]) == (1, 1, 5)


def test_members_of_a_real_clip_are_labelled_second_by_second(plan_of, tools_of, tmp_path):
    segments = {"seconds": 0.5, "annotator": {"name": "own:light", "title": "light"}}
    plan = plan_of("corrupt_and_denoise", segments=segments)
    found, counts, _ = made(plan, tmp_path / "out", tools_of(ClipStub()))
    assert counts["stretches"] == 9
    assert len(found) == 3
    for record in found:
        assert [stretch["end"] for stretch in record["segments"]] == [0.5, 1.0, 1.125]
        assert "score_chosen" not in record
        assert signs(record).count("chosen") > signs(record).count("rejected")


CALLS = []


def noted(samples):
    """A reward that is seen to be asked."""
    CALLS.append(len(samples))
    return brightness(samples)


def test_pairs_of_one_picture_keep_it(labelled_plan, tools_of, tmp_path):
    plan = labelled_plan([([90, 90], [30, 30])])
    Image.new("RGB", (32, 48), "red").save(tmp_path / "first.jpg")
    row = {"prompt": "p0", "chosen": "0c.mkv", "rejected": "0r.mkv", "image": "first.jpg"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    (record,), _, _ = made(plan, tmp_path / "out", tools_of(None))
    assert (tmp_path / "out" / record["image"]).read_bytes() == (tmp_path / "first.jpg").read_bytes()


class AwayOnce:
    """A function that cannot be reached at its first calls; the same reward before and after."""

    waiting = 0

    def __init__(self, function):
        self.function = function

    def __call__(self, samples):
        if AwayOnce.waiting:
            AwayOnce.waiting -= 1
            down(samples)
        return self.function(samples)


def away_once(function, waits=1):
    AwayOnce.waiting = waits
    return AwayOnce(function)


def test_labels_are_made_once(labelled_plan, tools_of, tmp_path):
    CALLS.clear()
    plan = labelled_plan([((90, 10), (80, 80))])
    made(plan, tmp_path / "out", tools_of(None, light=noted))
    before = len(CALLS)
    changed = plan.model_copy(update={"segments": plan.segments.model_copy(update={"min_decided": 0.9})})
    made(changed, tmp_path / "out", tools_of(None, light=noted))
    assert len(CALLS) == before > 0


def down(samples):
    """A judge or a reward that is not there."""
    del samples
    message = "the server hung up"
    raise ConnectionError(message)


@pytest.mark.parametrize("by", ["reward", "judge"])
def test_an_annotator_that_was_away_is_asked_again_and_only_then(labelled_plan, tools_of, tmp_path, by):
    def judge(samples):
        noted(samples)
        return [
            float(torch.stack(list(one.frames)).float().mean() > torch.stack(list(other)).float().mean())
            for one in samples
            for other in [one.extras["other"]]
        ]

    working = noted if by == "reward" else judge
    plan = labelled_plan([((90, 80), (10, 20)), ((90, 70), (30, 20))], by=by)
    found, counts, _ = made(plan, tmp_path / "out", tools_of(None, light=away_once(working)))
    assert [record["prompt"] for record in found] == ["p1"]
    assert counts["unanswered"] == 1
    card = yaml.safe_load((tmp_path / "out/card.yaml").read_text())
    assert card["unanswered"] == {"segments: ConnectionError: the server hung up": 1}
    CALLS.clear()
    found, counts, _ = made(plan, tmp_path / "out", tools_of(None, light=away_once(working, waits=0)))
    assert [record["prompt"] for record in found] == ["p0", "p1"]
    assert len(CALLS) == 2, "both sides, or both orders, of the pair that was not answered"
    assert not counts["unanswered"]


def test_a_pair_without_decided_stretches_is_left_out():
    counts = Counter()
    settings = SegmentsConfig(annotator={"name": "x"}, min_decided=0.0)
    assert decided_pair(Labelled([0, 0], 2.0, 1.0), settings, counts) is None
    assert decided_pair(None, settings, counts) is None
    assert counts["too_few_decided"] == 1
    assert [majority_of(labels) for labels in ([1, -1, 1], [-1, 0], [1, -1], [])] == [1, -1, 0, 0]


def test_stretches_end_with_the_clip():
    row = PreferenceRow("x", (), extras={"segments": Labelled([1, -1], 1.5, 1.0).stretches(turned=True)})
    assert [(one.start, one.end, one.preference) for one in stretches_of(row)] == [
        (0.0, 1.0, -1),
        (1.0, 1.5, 1),
    ]
