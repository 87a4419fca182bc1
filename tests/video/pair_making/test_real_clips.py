"""Pairs that begin with real clips, corrupted by a stub or damaged: what is made and what is counted."""

import json

import pytest
import torch
from PIL import Image

from mmalign.data.config import DataConfig, VideoLimits
from mmalign.data.readers import open_rows
from mmalign.data.video_damage import damaged
from mmalign.data.video_media import decode_clip
from mmalign.data.video_writers import encode_clip
from mmalign.errors import RowError
from mmalign.seeding import generator_for
from mmalign.testing.clip_pairs import ClipStub, frames_in, records
from mmalign.testing.video_families import moving_clip
from mmalign.video.pair_making.commands import make_pairs
from mmalign.video.pair_making.real import noise_level

PROMPTS = ["a dog runs", "a red boat at sea", "waves on a beach"]


def made(plan, folder, tools):
    rows, counts = make_pairs(plan, folder, device="cpu", tools=tools)
    return records(rows), counts


def test_members_of_a_real_clip_share_one_level_of_noise(plan_of, tools_of, tmp_path):
    maker = ClipStub()
    plan = plan_of("corrupt_and_denoise", scorers=[{"name": "own:light", "title": "light"}], seed=7)
    found, counts = made(plan, tmp_path / "out", tools_of(maker))
    assert [len(keys) for keys in maker.calls] == [2, 2, 2]
    assert len(set(maker.levels)) == 3
    assert all(0.65 <= level <= 0.8 for level in maker.levels)
    assert [record["noise_level"] for record in found] == maker.levels
    assert maker.levels == [noise_level(plan, record["made_from"]) for record in found]
    assert (counts["clips"], counts["rows"]) == (6, 3)
    assert all(len(frames_in(tmp_path / "out", record["chosen"])) == 9 for record in found)


def test_levels_are_drawn_evenly_between_least_and_most(plan_of):
    plan = plan_of("corrupt_and_denoise", corrupt={"least": 0.2, "most": 0.4, "real": "chosen"})
    levels = torch.tensor([noise_level(plan, str(number)) for number in range(500)])
    assert 0.2 <= float(levels.min()) < 0.205
    assert 0.395 < float(levels.max()) <= 0.4
    assert float(levels.mean()) == pytest.approx(0.3, abs=0.01)


def test_the_real_clip_may_win_over_every_member(plan_of, tools_of, tmp_path):
    corrupt = {"real": "chosen", "members": 3}
    plan = plan_of("corrupt_and_denoise", corrupt=corrupt)
    found, counts = made(plan, tmp_path / "out", tools_of(ClipStub()))
    assert (counts["rows"], counts["clips"]) == (9, 12)
    assert {record["real"] for record in found} == {"chosen"}
    assert len({record["chosen"] for record in found}) == 3
    wanted = ClipStub().corrupt
    row = next(iter(open_rows(plan.data)))
    real, _ = wanted(row, 0.7, [], 0)
    assert torch.equal(frames_in(tmp_path / "out", found[0]["chosen"]), real.frames)


def test_a_real_candidate_is_scored_like_the_others(plan_of, tools_of, tmp_path):
    scorers = [{"name": "own:light", "title": "light"}]
    plan = plan_of("corrupt_and_denoise", corrupt={"real": "candidate"}, scorers=scorers)
    found, counts = made(plan, tmp_path / "out", tools_of(ClipStub()))
    assert counts["clips"] == 9
    assert all(record.get("real") in (None, "chosen", "rejected") for record in found)
    assert any("real" in record for record in found)


def test_real_clips_that_cannot_be_read_are_counted_and_the_rest_goes_on(plan_of, tools_of, tmp_path):
    plan = plan_of("corrupt_and_denoise", corrupt={"real": "chosen"}, prompts=[*PROMPTS, "refused", "cut"])
    whole = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    found, counts = made(plan, tmp_path / "out", tools_of(ClipStub()))
    assert (counts["rows"], counts["clips"], counts["too_short"]) == (6, 9, 1)
    assert {record["prompt"] for record in found} == set(PROMPTS)
    assert sum(n for name, n in counts.items() if name not in ("rows", "clips", "too_short")) == 1


def test_damaged_copies_lose_to_their_real_clip(plan_of, tmp_path):
    found, counts = made(plan_of("damage"), tmp_path / "out", None)
    assert (counts["rows"], counts["clips"]) == (9, 12)
    for record in found:
        real = frames_in(tmp_path / "out", record["chosen"])
        drawn_by = generator_for(0, "damage", record["made_from"], record["damage"])
        worse = damaged(real, record["damage"], drawn_by)
        assert torch.equal(frames_in(tmp_path / "out", record["rejected"]), worse)
        assert (record["real"], len(real)) == ("chosen", 11)
    assert [record["damage"] for record in found[:3]] == ["reversed", "shuffled", "noised"]


def test_clips_to_damage_are_counted_exactly_where_they_cannot_be(plan_of, tmp_path):
    plan = plan_of("damage", prompts=["good", "still", "two frames", "cut off", "empty", "lost"])
    (tmp_path / "1.png").write_bytes(still_clip())
    (tmp_path / "2.png").write_bytes(moving_clip(2, num_frames=2))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "4.png").write_bytes(b"")
    (tmp_path / "5.png").unlink()
    found, counts = made(plan, tmp_path / "out", None)
    assert {record["prompt"] for record in found} == {"good"}
    assert (counts["still"], counts["too_short"], counts["rows"], counts["clips"]) == (1, 1, 3, 4)
    others = {
        name: number
        for name, number in counts.items()
        if name not in ("still", "too_short", "rows", "clips", "failed_clips")
    }
    assert (others["empty_file"], others["missing_file"], sum(others.values())) == (1, 1, 3)


def still_clip() -> bytes:
    """A clip of seven times the same picture."""
    return encode_clip(torch.full((7, 3, 32, 48), 90, dtype=torch.uint8), 8.0, container="mkv")


def test_damage_keeps_the_wanted_part_size_and_rate(plan_of, tmp_path):
    video = {"num_frames": 5, "fps": 4.0, "height": 16, "width": 16, "start": "middle"}
    found, _ = made(plan_of("damage", video=video, damage={"kinds": ["reversed"]}), tmp_path / "out", None)
    assert len(found) == 3
    for record in found:
        path = str(tmp_path / "out" / record["chosen"])
        clip = decode_clip(path, where="x", limits=VideoLimits(min_side=1))
        assert (tuple(clip.frames.shape), clip.fps) == ((5, 3, 16, 16), 4.0)


def test_the_picture_of_a_row_goes_with_its_pairs(plan_of, tmp_path):
    source = {"path": str(tmp_path / "clips.jsonl"), "columns": {"candidate": "video"}}
    plan = plan_of("damage", prompts=PROMPTS[:1], damage={"kinds": ["reversed"]}, data={"source": source})
    Image.new("RGB", (32, 48), "red").save(tmp_path / "first.png")
    row = {"prompt": "x", "video": "0.png", "image": "first.png"}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row))
    found, _ = made(plan, tmp_path / "out", None)
    assert (tmp_path / "out" / found[0]["image"]).read_bytes() == (tmp_path / "first.png").read_bytes()
    read = next(iter(open_rows(DataConfig(source=str(tmp_path / "out/rows.jsonl")))))
    assert len(read.images) == 1


def test_of_a_block_the_clip_that_could_not_be_read_is_corrupted_alone_by_the_next_run(
    plan_of, tools_of, tmp_path
):
    class Away(ClipStub):
        def corrupt(self, row, level, keys, seed):
            if row.prompt == PROMPTS[1] and self.killed_at == 0:
                message = "Permission denied"
                raise RowError(message, reason="unreadable_file")
            return ClipStub.corrupt(self, row, level, keys, seed)

        def _called(self, keys):
            self.calls.append(keys)

    plan = plan_of("corrupt_and_denoise", corrupt={"real": "chosen"})
    whole, _ = made(plan, tmp_path / "whole", tools_of(ClipStub()))
    found, counts = made(plan, tmp_path / "out", tools_of(Away(killed_at=0)))
    assert {record["prompt"] for record in found} == {PROMPTS[0], PROMPTS[2]}
    assert counts["unanswered"] == 1
    again = Away()
    found, counts = made(plan, tmp_path / "out", tools_of(again))
    assert [{key.rpartition("/")[0] for key in keys} for keys in again.calls] == [{whole[2]["made_from"]}]
    assert (found, counts["unanswered"]) == (whole, 0)
