"""Plans for clips, carried out with makers and rewards that are functions: rows that training reads."""

import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from mmalign.data.check import check
from mmalign.data.config import DataConfig, VideoLimits
from mmalign.data.readers import open_rows
from mmalign.data.video_facts import look_at_clip
from mmalign.data.video_media import decode_clip
from mmalign.errors import ConfigError, RowError
from mmalign.testing.clip_pairs import ClipStub, brightness, drawn, frames_in, records
from mmalign.testing.video_families import moving_clip
from mmalign.video.clips import Clip
from mmalign.video.pair_making.commands import make_pairs

PROMPTS = ["a dog runs", "a red boat at sea", "waves on a beach"]


def made(plan, folder, tools):
    rows, counts = make_pairs(plan, folder, device="cpu", tools=tools)
    return records(rows), counts


# ------------------------------------------------------------------------------------------------ groups


def test_clips_of_every_prompt_are_scored_and_the_ends_meet(plan_of, tools_of, tmp_path):
    maker = ClipStub()
    found, counts = made(plan_of(), tmp_path / "out", tools_of(maker))
    assert (counts["rows"], counts["clips"]) == (3, 12)
    for record in found:
        clips = {n: drawn(f"{record['prompt']}|{record['made_from']}/{n}|0|50").frames for n in range(4)}
        light = {n: float(frames.float().mean()) / 255 for n, frames in clips.items()}
        best, worst = max(light, key=light.get), min(light, key=light.get)
        assert record["id"] == f"{record['made_from']}-{best}-{worst}"
        assert torch.equal(frames_in(tmp_path / "out", record["chosen"]), clips[best])
        assert torch.equal(frames_in(tmp_path / "out", record["rejected"]), clips[worst])
        assert record["light_chosen"] == record["score_chosen"] == pytest.approx(light[best], abs=1e-6)
        assert record["gap"] == pytest.approx(light[best] - light[worst], abs=1e-6)
        assert record["made_by"] == record["strategy"] == "groups"


def test_the_data_layer_reads_the_rows(plan_of, tools_of, tmp_path):
    rows, _ = make_pairs(plan_of(), tmp_path / "out", device="cpu", tools=tools_of(ClipStub()))
    assert check(DataConfig(source=str(rows))).ok
    read = list(open_rows(DataConfig(source=str(rows)), kind="pairs"))
    assert [row.prompt for row in read] == PROMPTS
    assert all(row.candidates[0].reward > row.candidates[1].reward for row in read)


def test_motion_of_both_sides_stands_in_rows_and_card(plan_of, tools_of, tmp_path):
    found, _ = made(plan_of(), tmp_path, tools_of(ClipStub()))
    for record in found:
        path = str(tmp_path / record["chosen"])
        assert record["motion_chosen"] == look_at_clip(path, where="x", limits=VideoLimits()).motion > 0
    motion = yaml.safe_load((tmp_path / "card.yaml").read_text())["motion"]
    assert motion["pairs"] == 3
    assert motion["chosen"] == pytest.approx(sum(record["motion_chosen"] for record in found) / 3, abs=1e-6)
    assert motion["verdict"]


def test_the_guard_of_motion_reads_what_was_measured(plan_of, tools_of, tmp_path):
    def calm(samples):
        return [-float(torch.stack(list(s.frames)).float().diff(dim=0).abs().mean()) for s in samples]

    free = plan_of(selection={"rule": "best_worst"})
    found, _ = made(free, tmp_path, tools_of(ClipStub(), light=calm))
    assert all(record["motion_chosen"] < record["motion_rejected"] for record in found)
    guarded = plan_of(selection={"rule": "best_worst", "motion_ratio_min": 1.0})
    found, counts = made(guarded, tmp_path, tools_of(ClipStub(), light=calm))
    assert (found, counts["moves_less"]) == ([], 3)


def test_failed_clips_and_scores_are_counted_and_explained(plan_of, tools_of, tmp_path):
    plan = plan_of(prompts=PROMPTS[:1])
    row_id = next(iter(open_rows(plan.data, kind="prompts"))).id

    def score(samples):
        return [math.nan if value > 0.1 else value for value in brightness(samples)]

    clips = [drawn(f"{PROMPTS[0]}|{row_id}/{n}|0|50").frames.float().mean() / 255 for n in (0, 1, 3)]
    _, counts = made(plan, tmp_path, tools_of(ClipStub(fails=[f"{row_id}/2"]), light=score))
    assert (counts["clips"], counts["failed_clips"]) == (3, 1)
    assert counts["not_scored"] == 1 + sum(float(value) > 0.1 for value in clips)
    errors = yaml.safe_load((tmp_path / "card.yaml").read_text())["first_errors"]
    assert f"{row_id}: making it failed" in errors


def test_what_is_no_clip_is_a_failure(plan_of, tools_of, tmp_path):
    class Broken(ClipStub):
        def __call__(self, prompts, keys, seed, num_steps):
            clips = super().__call__(prompts, keys, seed, num_steps)
            return [b"no clip", Clip(clips[1].frames[:0], 8.0), *clips[2:]]

    _, counts = made(plan_of(block_rows=8), tmp_path, tools_of(Broken()))
    assert (counts["failed_clips"], counts["clips"]) == (2, 10)


def test_a_maker_that_loses_clips_is_refused(plan_of, tools_of, tmp_path):
    class Short(ClipStub):
        def __call__(self, prompts, keys, seed, num_steps):
            return super().__call__(prompts, keys, seed, num_steps)[1:]

    with pytest.raises(ConfigError, match=r"maker: got \[7 clips\], expected 8, one per prompt"):
        made(plan_of(), tmp_path, tools_of(Short()))


def test_rankings_hold_all_scored_clips_best_first(plan_of, tools_of, tmp_path):
    plan = plan_of(make="rankings")
    rows, _ = make_pairs(plan, tmp_path, device="cpu", tools=tools_of(ClipStub()))
    for row in open_rows(DataConfig(source=str(rows))):
        assert row.kind == "lists"
        assert len(row.candidates) == 4
        assert list(row.relevance) == sorted(row.relevance, reverse=True)


def test_a_weighted_sum_of_two_scores_decides_and_stands_in_the_rows(plan_of, tools_of, tmp_path):
    def dark(samples):
        return [-3 * value for value in brightness(samples)]

    scorers = [{"name": "own:light", "title": "light"}, {"name": "own:dark", "title": "dark"}]
    plan = plan_of(scorers=scorers, selection={"weights": {"light": 1.0, "dark": 1.0}})
    found, _ = made(plan, tmp_path, tools_of(ClipStub(), dark=dark))
    for record in found:
        assert record["light_chosen"] < record["light_rejected"]
        total = (record["light_chosen"] + record["dark_chosen"]) / 2
        assert record["total_chosen"] == record["score_chosen"] == pytest.approx(total)
    assert set(yaml.safe_load((tmp_path / "card.yaml").read_text())["scores"]) == {"light", "dark", "total"}


def test_a_judge_of_two_clips_is_asked_in_both_orders(plan_of, tools_of, tmp_path):
    asked = []

    def judge(samples):
        asked.extend(samples)
        own = [float(torch.stack(list(s.frames)).float().mean()) for s in samples]
        other = [float(torch.stack(list(s.extras["other"])).float().mean()) for s in samples]
        return [float(one < two) for one, two in zip(own, other, strict=True)]  # likes dark ones

    plan = plan_of(judge={"name": "own:dark", "title": "dark"}, selection={"rule": "disjoint"})
    _, counts = made(plan, tmp_path, tools_of(ClipStub(), dark=judge))
    assert len(asked) == 2 * 2 * 3
    assert all(len(sample.frames) == len(sample.extras["other"]) == 8 for sample in asked)
    # It is blind to the score's opinion: winners are the darker ones, and score less.
    assert counts["rejected_scores_higher"] + counts["rows"] == 3
    assert counts["rejected_scores_higher"] > 0


def test_rewards_of_sounds_do_not_score_clips_and_of_single_clips_do_not_judge(plan_of, tools_of, tmp_path):
    from dataclasses import replace

    from mmalign.rewards.functions import FunctionReward
    from mmalign.video.pair_making.loading import Tools

    reward = FunctionReward(brightness, name="clap")
    reward._card = replace(reward.card, modality="audio")
    tools = Tools(model=lambda plan, device: ClipStub(), reward=lambda choice, device: reward)
    with pytest.raises(ConfigError, match=r"scorer clap: got \[a reward of audio\], expected one of video"):
        made(plan_of(scorers=[{"name": "clap"}]), tmp_path, tools)
    plan = plan_of(judge={"name": "light"}, selection={"rule": "disjoint"})
    with pytest.raises(ConfigError, match="judge light: got 'score', expected a pairwise judge"):
        made(plan, tmp_path, tools_of(ClipStub()))


def test_rewards_of_pictures_see_frames_at_even_distances(plan_of, tmp_path):
    from mmalign.rewards.functions import FunctionReward
    from mmalign.video.pair_making.loading import Tools

    seen = []

    def level(samples):
        seen.extend(samples)
        return [float(sample.image.float().mean()) / 255 for sample in samples]

    tools = Tools(
        model=lambda plan, device: ClipStub(),
        reward=lambda choice, device: FunctionReward(level, name="level"),
    )
    found, _ = made(plan_of(scorers=[{"name": "level"}], frames=3, prompts=PROMPTS[:1]), tmp_path, tools)
    assert len(seen) == 3 * 4
    frames = frames_in(tmp_path, found[0]["chosen"])[[0, 5, 10]]
    assert found[0]["score_chosen"] == pytest.approx(float(frames.float().mean()) / 255, abs=1e-6)


# ------------------------------------------------------------------------------------------------ resuming


def test_a_killed_run_goes_on_and_ends_like_another(plan_of, tools_of, tmp_path):
    whole, _ = make_pairs(plan_of(), tmp_path / "whole", device="cpu", tools=tools_of(ClipStub()))
    with pytest.raises(KeyboardInterrupt):
        make_pairs(plan_of(), tmp_path / "cut", device="cpu", tools=tools_of(ClipStub(killed_at=1)))
    assert not (tmp_path / "cut/rows.jsonl").exists()
    again = ClipStub()
    rows, _ = make_pairs(plan_of(), tmp_path / "cut", device="cpu", tools=tools_of(again))
    assert [len(keys) for keys in again.calls] == [4]
    assert rows.read_bytes() == whole.read_bytes()


def test_another_selection_makes_no_clip_and_no_score_again(plan_of, tools_of, tmp_path):
    make_pairs(plan_of(), tmp_path, device="cpu", tools=tools_of(ClipStub()))

    again = ClipStub()
    plan = plan_of(selection={"rule": "all_pairs"})
    found, _ = made(plan, tmp_path, tools_of(again))
    assert again.calls == []
    assert len(found) > 3


def test_another_seed_length_or_quality_makes_other_clips(plan_of, tools_of, tmp_path):
    make_pairs(plan_of(), tmp_path, device="cpu", tools=tools_of(ClipStub()))
    for settings in ({"seed": 3}, {"sampling": {"num_samples": 3}}, {"container": "webp"}):
        again = ClipStub()
        make_pairs(plan_of(**settings), tmp_path, device="cpu", tools=tools_of(again))
        assert len(again.calls) == 2


def test_a_clip_that_was_deleted_is_said(plan_of, tools_of, tmp_path):
    make_pairs(plan_of(), tmp_path, device="cpu", tools=tools_of(ClipStub()))
    next((tmp_path / "stages/clips").iterdir()).unlink()
    with pytest.raises(ConfigError, match=r"no such file\].*Remove .*clips.jsonl"):
        make_pairs(plan_of(), tmp_path, device="cpu", tools=tools_of(ClipStub()))


# ------------------------------------------------------------------------------------------------ existing


def test_existing_clips_meet_by_the_data_s_own_scores_and_broken_ones_are_counted(plan_of, tmp_path):
    names = []
    for number in range(5):
        names.append(f"{number}.png")
        (tmp_path / names[-1]).write_bytes(moving_clip(number, num_frames=7))
    (tmp_path / "cut.png").write_bytes(moving_clip(9, num_frames=7)[:-400])
    (tmp_path / "words.mp4").write_bytes(b"\x00\x00\x00\x18ftypisom nothing")
    (tmp_path / "empty.mp4").write_bytes(b"")
    lines = [
        {
            "prompt": "one",
            "samples": [
                {"video": name, "score": n}
                for n, name in enumerate([*names[:3], "cut.png", "words.mp4", "empty.mp4"])
            ],
        },
        {"prompt": "two", "samples": [{"video": name, "score": 3} for name in names[3:]]},
    ]
    path = tmp_path / "groups.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    plan = plan_of(
        "existing_clips", scorers=None, data={"source": str(path)}, selection={"rule": "best_rest"}
    )
    found, counts = made(plan, tmp_path / "out", None)
    assert [(r["data_chosen"], r["data_rejected"]) for r in found] == [(2.0, 0.0), (2.0, 1.0)]
    assert (counts["clips"], counts["failed_clips"]) == (5, 0)
    reasons = {name: count for name, count in counts.items() if "video" in name or "file" in name}
    assert sum(reasons.values()) == 3
    assert (counts["empty_file"], counts["tie"]) == (1, 1)


def test_clips_that_were_refused_are_looked_at_again_under_other_limits(plan_of, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(moving_clip(number, num_frames=7))
    samples = [{"video": f"{number}.png", "score": number} for number in range(2)]
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps({"prompt": "one", "samples": samples}))

    def run(**limits):
        data = {"source": str(path), "video": limits}
        return made(plan_of("existing_clips", scorers=None, data=data), tmp_path / "out", None)

    found, counts = run(max_frames=5)
    assert (found, counts["too_many_frames"]) == ([], 2)
    found, counts = run()
    assert (len(found), counts["too_many_frames"]) == (1, 0)


def test_of_a_block_of_existing_clips_those_that_could_not_be_read_are_read_again_alone(
    plan_of, tmp_path, monkeypatch
):
    from mmalign.video.pair_making import existing as module

    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(moving_clip(number, num_frames=7))
    lines = [
        {"prompt": "one", "samples": [{"video": f"{n}.png", "score": n} for n in (0, 1)]},
        {"prompt": "two", "samples": [{"video": f"{n}.png", "score": n} for n in (2, 3)]},
    ]
    path = tmp_path / "groups.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    plan = plan_of("existing_clips", scorers=None, data={"source": str(path)})
    asked, away = [], {"2.png"}

    def read(media, *rest, real=module.as_one_file):
        asked.append(Path(media).name)
        if asked[-1] in away:
            message = "Permission denied"
            raise RowError(message, reason="unreadable_file")
        return real(media, *rest)

    monkeypatch.setattr(module, "as_one_file", read)
    found, counts = made(plan, tmp_path / "out", None)
    assert ([record["prompt"] for record in found], counts["unanswered"]) == (["one"], 1)
    away.clear()
    asked.clear()
    found, counts = made(plan, tmp_path / "out", None)
    assert asked == ["2.png", "3.png"]
    assert ([record["prompt"] for record in found], counts["unanswered"]) == (["one", "two"], 0)


def test_clips_of_other_pictures_do_not_meet_and_pairs_keep_theirs(plan_of, tools_of, tmp_path):
    lines, clips = [], {"red": [], "blue": []}
    for number, colour in enumerate(("red", "blue", "red", "blue")):
        clips[colour].append(moving_clip(number, num_frames=7))
        (tmp_path / f"{number}.png").write_bytes(clips[colour][-1])
        Image.new("RGB", (32, 48), colour).save(tmp_path / f"{colour}.jpg")
        lines.append(json.dumps({"prompt": "same", "video": f"{number}.png", "image": f"{colour}.jpg"}))
    path = tmp_path / "clips.jsonl"
    path.write_text("\n".join(lines))
    source = {"path": str(path), "columns": {"candidate": "video"}}
    found, _ = made(plan_of("existing_clips", data={"source": source}), tmp_path / "out", tools_of(None))
    for record, colour in zip(found, ("red", "blue"), strict=True):
        sides = [(tmp_path / "out" / record[side]).read_bytes() for side in ("chosen", "rejected")]
        assert sorted(sides) == sorted(clips[colour])
        kept = (tmp_path / "out" / record["image"]).read_bytes()
        assert kept == (tmp_path / f"{colour}.jpg").read_bytes()


def test_another_picture_makes_other_clips_and_one_that_is_gone_fails_its_clips_alone(
    plan_of, tools_of, tmp_path
):
    path = tmp_path / "asked.jsonl"
    lines = [{"prompt": f"p{number}", "image": f"{number}.jpg"} for number in range(2)]
    path.write_text("\n".join(map(json.dumps, lines)))
    for number in range(2):
        Image.new("RGB", (32, 48), "red").save(tmp_path / f"{number}.jpg")
    plan = plan_of(data={"source": str(path)}, block_rows=1)

    def run(maker):
        made(plan, tmp_path / "out", tools_of(maker))
        return len(maker.calls)

    assert run(ClipStub()) == 2
    assert run(ClipStub()) == 0
    Image.new("RGB", (40, 48), "blue").save(tmp_path / "1.jpg")
    assert run(ClipStub()) == 1

    class Losing(ClipStub):
        def __call__(self, prompts, keys, seed, num_steps):
            (tmp_path / "1.jpg").unlink(missing_ok=True)
            return super().__call__(prompts, keys, seed, num_steps)

    found, counts = made(plan, tmp_path / "other", tools_of(Losing()))
    assert [record["prompt"] for record in found] == ["p0"]
    assert (counts["clips"], counts["failed_clips"]) == (4, 4)


# ------------------------------------------------------------------------------------------------ plans


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("groups", {"model": None}, "recipe groups needs model or maker, got neither"),
        ("groups", {"maker": "a:b"}, "got model and maker"),
        ("damage", {"maker": "a:b"}, "needs none of model and maker, got maker"),
        ("corrupt_and_denoise", {"model": None, "maker": "a:b"}, "needs a model, got maker"),
        ("groups", {"model": None, "maker": "a:b", "adapter": "x"}, "adapter is put on a model"),
        ("groups", {"scorers": None}, "scorers: got none"),
        ("corrupt_and_denoise", {}, "scorers: got none"),
        ("groups", {"damage": {"kinds": ["noised"]}}, "got damage, which recipe groups does not read"),
        ("groups", {"scorers": [{"name": "a"}, {"name": "a"}]}, "two scores are called a"),
        ("groups", {"scorers": [{"name": "motion"}]}, "two scores are called motion"),
        ("groups", {"selection": {"dimensions": ["mq"]}}, r"selection: got mq, expected a scorer \(light\)"),
        ("groups", {"selection": {"decides": "total"}}, "selection: got total"),
        ("groups", {"judge": {"name": "a"}}, "judge is asked by rule disjoint alone, got rule best_worst"),
        ("damage", {"make": "rankings"}, "rankings need scores"),
        ("segments", {}, "recipe segments needs the section segments"),
        (
            "segments",
            {"segments": {"annotator": {"name": "a"}, "seconds": 0.1}},
            "stretches of 0.1 s at 8 frames a second hold less than a frame",
        ),
        ("corrupt_and_denoise", {"corrupt": {"least": 0.9}}, "least 0.9 is above most 0.8"),
        ("corrupt_and_denoise", {"corrupt": {"members": 1}}, "one member alone makes no pair"),
        (
            "corrupt_and_denoise",
            {"segments": {"annotator": {"name": "a"}}, "corrupt": {"real": "chosen"}},
            "segments decide pairs in place of scores",
        ),
        (
            "corrupt_and_denoise",
            {"sampling": {"scheduler": "ddim"}, "corrupt": {"real": "chosen"}},
            "takes the model's own",
        ),
    ],
)
def test_plans_that_make_no_sense_are_refused(plan_of, recipe, settings, message):
    with pytest.raises(ValueError, match=message):
        plan_of(recipe, **settings)


class Unreachable:
    """A reward that cannot be reached for one prompt; the same reward when it can."""

    prompt = None

    def __call__(self, samples):
        if any(sample.prompt == Unreachable.prompt for sample in samples):
            message = "no answer"
            raise TimeoutError(message)
        return brightness(samples)


REFUSED = []


def refuse(samples):
    REFUSED.append(len(samples))
    return [math.nan for _ in samples]


def test_scores_that_could_not_be_had_are_asked_for_again_and_nan_is_not(plan_of, tools_of, tmp_path):
    REFUSED.clear()
    scorers = [{"name": "own:light", "title": "light"}, {"name": "own:other", "title": "other"}]
    plan, out = plan_of(scorers=scorers), tmp_path / "out"
    Unreachable.prompt = PROMPTS[2]
    tools = tools_of(ClipStub(), light=Unreachable(), other=refuse)
    found, counts = made(plan, out, tools)
    assert (len(found), counts["unanswered"]) == (2, 1)
    Unreachable.prompt, asked = None, len(REFUSED)
    again = ClipStub()
    _, counts = made(plan, out, tools_of(again, light=Unreachable(), other=refuse))
    assert (again.calls, len(REFUSED), counts["unanswered"]) == ([], asked, 0)
    stored = [json.loads(line) for line in (out / "stages/scores_light.jsonl").read_text().splitlines()]
    assert len(stored) == 3
    assert all(None not in record["scores"] for record in stored)


def test_a_made_clip_that_may_not_be_opened_is_no_refusal(plan_of, tools_of, tmp_path, monkeypatch):
    plan, out = plan_of(), tmp_path / "out"
    whole, _ = made(plan, tmp_path / "whole", tools_of(ClipStub()))
    closed = set()

    def opened(path, real=Path.open):
        name = "/".join(path.parts[-3:])
        if name.startswith("stages/clips/") and not closed:
            closed.add(name)
            raise PermissionError(13, "Permission denied")
        return real(path, "rb")

    with monkeypatch.context() as patched:
        patched.setattr(
            "mmalign.video.pair_making.scoring.require_readable", lambda path: opened(path).close()
        )
        found, counts = made(plan, out, tools_of(ClipStub()))
    assert (len(found), counts["unanswered"]) == (2, 1)
    found, _ = made(plan, out, tools_of(ClipStub()))
    assert [record["id"] for record in found] == [record["id"] for record in whole]


def test_a_folder_of_frames_that_changed_inside_is_read_again(plan_of, tools_of, tmp_path):
    for number in range(2):
        folder = tmp_path / f"f{number}"
        folder.mkdir()
        for place in range(6):
            Image.new("RGB", (48, 32), (40 + 20 * number + place, 0, 0)).save(folder / f"{place}.png")
    row = {"prompt": "x", "chosen": "f0", "rejected": "f1"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    plan = plan_of("existing_clips", data={"source": str(path)})

    def light():
        (record,), _ = made(plan, tmp_path / "out", tools_of(None))
        return record["light_chosen"]

    before = light()
    stat = (tmp_path / "f1").stat()
    for place in range(6):
        frame = tmp_path / "f1" / f"{place}.png"
        Image.new("RGB", (48, 32), (240, 240, 200 + place)).save(frame)
    os.utime(tmp_path / "f1", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = light()
    assert after > 2 * before
    path.write_text(json.dumps({**row, "fps": 24}))
    (record,), _ = made(plan, tmp_path / "out", tools_of(None))
    clip = decode_clip(str(tmp_path / "out" / record["chosen"]), where="x", limits=VideoLimits())
    assert clip.fps == pytest.approx(24.0)


class HeldStub(ClipStub):
    """A maker with a session; writes down when it is entered and left."""

    def __init__(self):
        super().__init__()
        self.told = []

    @contextmanager
    def session(self):
        self.told.append("in")
        yield
        self.told.append(f"out after {len(self.calls)}")


@pytest.mark.parametrize(("recipe", "calls"), [("groups", 2), ("corrupt_and_denoise", 3)])
def test_what_making_needs_is_held_for_all_blocks_and_freed_before_scoring(
    plan_of, tools_of, tmp_path, recipe, calls
):
    maker = HeldStub()

    def light(samples):
        assert maker.told[-1].startswith("out")
        return brightness(samples)

    scorers = [{"name": "own:light", "title": "light"}]
    made(plan_of(recipe, scorers=scorers), tmp_path / "out", tools_of(maker, light=light))
    assert maker.told == ["in", f"out after {calls}"]
