"""Preferences in time: what a row may say, and which latent frame takes which label."""

import json
import math
from dataclasses import replace

import pytest
import torch

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.segments import FrameGrid, Stretch, frame_preferences, frames_apart, stretches_of
from mmalign.errors import RowError, ShapeError


def row(segments: object) -> PreferenceRow:
    sides = (Candidate(audio="a.wav"), Candidate(audio="b.wav"))
    return PreferenceRow(prompt="p", candidates=sides, extras={"segments": segments}, source="rows.jsonl:3")


def test_words_numbers_and_scores_say_the_same() -> None:
    words = [
        {"start": 0.0, "end": 1.0, "preference": "chosen"},
        {"start": 1.0, "end": 2.0, "preference": "rejected"},
        {"start": 2.0, "preference": "tie"},
    ]
    numbers = [{**item, "preference": value} for item, value in zip(words, (1, -1, 0), strict=True)]
    sides = ((0.7, 0.1), (-1, 3), (2, 2))
    scores = [
        {"start": item["start"], "end": item.get("end"), "chosen": chosen, "rejected": rejected}
        for item, (chosen, rejected) in zip(words, sides, strict=True)
    ]
    expected = (Stretch(0.0, 1.0, 1), Stretch(1.0, 2.0, -1), Stretch(2.0, math.inf, 0))
    for given in (words, numbers, scores, json.dumps(words)):
        assert stretches_of(row(given)) == expected


@pytest.mark.parametrize("given", [None, "", [], "[]"])
def test_a_row_without_stretches_says_what_is_missing(given: object) -> None:
    with pytest.raises(RowError, match=r"rows.jsonl:3.*'segments'") as caught:
        stretches_of(row(given))
    assert caught.value.reason == "no_segments"


@pytest.mark.parametrize(
    "given",
    [
        "not json",
        {"start": 0},
        [3],
        [{"start": 1.0, "end": 1.0, "preference": 1}],
        [{"start": -1.0, "end": 1.0, "preference": 1}],
        [{"start": "0", "end": 1.0, "preference": 1}],
        [{"start": 0.0, "end": float("nan"), "preference": 1}],
        [{"start": 0.0, "end": 1.0, "preference": "left"}],
        [{"start": 0.0, "end": 1.0, "preference": [1]}],
        [{"start": 0.0, "end": 1.0, "chosen": 1.0}],
        [{"start": 0.0, "end": 1.0, "chosen": float("nan"), "rejected": 0.0}],
        [{"start": 0.0, "end": 1.0}],
    ],
)
def test_stretches_that_cannot_be_understood_are_refused(given: object) -> None:
    with pytest.raises(RowError, match=r"segments: got .*, expected stretches like") as caught:
        stretches_of(row(given))
    assert caught.value.reason == "bad_segments"


def labels(*stretches: Stretch, count: int = 5, seconds: float = 1.0) -> list[float]:
    return frame_preferences(stretches, FrameGrid(count, seconds)).tolist()


def test_a_frame_takes_the_label_that_holds_most_of_it() -> None:
    # Frames of 0.2 s: the second is 0.06 s chosen and 0.14 s rejected, the fourth 0.11 s rejected.
    assert labels(Stretch(0.0, 0.26, 1), Stretch(0.26, 0.71, -1)) == [1, -1, -1, -1, 0]


def test_two_labels_that_hold_as_much_of_a_frame_leave_it_undecided() -> None:
    assert labels(Stretch(0.0, 0.5, 1), Stretch(0.5, math.inf, -1)) == [1, 1, 0, -1, -1]
    assert labels(Stretch(0.0, 0.1, 1)) == [0, 0, 0, 0, 0]


def test_ties_hold_time_of_their_own() -> None:
    assert labels(Stretch(0.0, 1.0, 0)) == [0, 0, 0, 0, 0]
    assert labels(Stretch(0.0, 0.27, 1), Stretch(0.27, 1.0, 0)) == [1, 0, 0, 0, 0]


def test_stretches_beyond_the_clip_are_cut_and_overlaps_add_up() -> None:
    assert labels(Stretch(0.9, 7.0, -1), count=2) == [0, 0]
    assert labels(Stretch(0.4, 7.0, -1), count=2) == [0, -1]
    assert labels(Stretch(0.0, 0.5, 1), Stretch(0.0, 0.3, -1), Stretch(0.0, 0.3, -1), count=2) == [-1, 0]


def test_turning_every_label_turns_every_frame() -> None:
    given = (Stretch(0.0, 0.26, 1), Stretch(0.3, 0.8, -1))
    turned = [Stretch(one.start, one.end, -one.preference) for one in given]
    grid = FrameGrid(7, 1.0)
    assert torch.equal(frame_preferences(given, grid), -frame_preferences(turned, grid))


def causal(step: int, latents: int, fps: float) -> FrameGrid:
    """Latent 0 holds picture 0 alone, every later one `step` pictures."""
    return FrameGrid.of_pictures(
        [range(1), *(range(step * (k - 1) + 1, step * k + 1) for k in range(1, latents))], fps
    )


@pytest.mark.parametrize(("step", "latents"), [(1, 23), (4, 6), (8, 3)])
@pytest.mark.parametrize("length", [3, 5, 7])
def test_frames_of_pictures_take_the_label_of_most_of_their_pictures(step, latents, length) -> None:
    fps, labels = 8.0, [1, -1, 1, 0, -1, -1, 1, 1]
    pictures = step * (latents - 1) + 1
    stretches = [
        Stretch(number * length / fps, (number + 1) * length / fps, label)
        for number, label in enumerate(labels)
    ]
    grid = causal(step, latents, fps)
    assert grid.seconds == pytest.approx(pictures / fps)
    found = frame_preferences(stretches, grid).tolist()
    of_picture = [labels[p // length] if p // length < len(labels) else 0 for p in range(pictures)]
    for latent, label in enumerate(found):
        held = of_picture[:1] if latent == 0 else of_picture[step * (latent - 1) + 1 : step * latent + 1]
        counts = {one: held.count(one) for one in (-1, 0, 1)}
        best = [one for one, count in counts.items() if count == max(counts.values())]
        assert label == (best[0] if len(best) == 1 else 0), (latent, held)


def test_a_tie_between_labels_of_a_frame_is_undecided_and_frames_may_overlap_or_be_empty() -> None:
    halves = [Stretch(0.0, 3.0, 1), Stretch(3.0, 9.0, -1)]
    assert frame_preferences(halves, causal(4, 3, 1.0)).tolist() == [1.0, 0.0, -1.0]
    copies = FrameGrid.of_pictures([range(1), range(1), range(1, 3), range(3, 3)], 1.0)
    assert frame_preferences([Stretch(0.0, 2.0, 1)], copies).tolist() == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ShapeError, match="FrameGrid spans"):
        FrameGrid(3, 1.0, ((0.0, 1.0),))


def prefixed(frames: object) -> PreferenceRow:
    sides = (Candidate(video="a.mp4"), Candidate(video="b.mp4"))
    return PreferenceRow("p", sides, extras={"shared_prefix_frames": frames}, source="rows.jsonl:3")


def test_latent_frames_count_where_one_of_their_pictures_is_not_shared() -> None:
    grid = causal(4, 4, 8.0)
    for shared, expected in [(0, [1, 1, 1, 1]), (1, [0, 1, 1, 1]), (4, [0, 1, 1, 1]), (5, [0, 0, 1, 1])]:
        assert frames_apart(prefixed(shared), grid).tolist() == expected
    assert frames_apart(prefixed(12), grid).tolist() == [0, 0, 0, 1]


def test_shared_frames_are_counted_at_the_rows_own_rate() -> None:
    """15 frames at 24 per second are those of the first five at 8 per second."""
    grid, row = causal(4, 4, 8.0), prefixed(15)
    at_24 = replace(row, extras={**row.extras, "fps": 24})
    assert frames_apart(at_24, grid).tolist() == frames_apart(prefixed(5), grid).tolist() == [0, 0, 1, 1]
    with pytest.raises(RowError, match="share 39 frames, all of the 39 that the model sees"):
        frames_apart(replace(at_24, extras={**at_24.extras, "shared_prefix_frames": 39}), grid)


@pytest.mark.parametrize(
    ("given", "reason"),
    [(None, "no_prefix"), (-1, "bad_prefix"), (2.5, "bad_prefix"), (True, "bad_prefix"), (13, "all_shared")],
)
def test_shared_beginnings_that_say_nothing_are_refused(given, reason) -> None:
    with pytest.raises(RowError, match=r"rows\.jsonl:3") as caught:
        frames_apart(prefixed(given), causal(4, 4, 8.0))
    assert caught.value.reason == reason
    with pytest.raises(RowError, match="a model without frames"):
        frames_apart(prefixed(2), FrameGrid(4, 2.0))
