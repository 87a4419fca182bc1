"""Pairs made with a tiny Wan: groups, corrupted and denoised clips, clips that go on from a picture."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mmalign.batch import Candidate, PreferenceRow
from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError
from mmalign.testing.tiny_video.cogvideox import COGVIDEOX_SIZE, write_tiny_cogvideox
from mmalign.testing.tiny_video.wan import WAN_FPS, WAN_FRAMES, WAN_SIZE
from mmalign.testing.video_families import moving_clip
from mmalign.video.pair_making.loading import ModelMaker
from mmalign.video.pair_making.plan import VideoPairPlan

VIDEO = {"num_frames": WAN_FRAMES, "height": WAN_SIZE[0], "width": WAN_SIZE[1], "fps": WAN_FPS}
EXACT = "mmalign.video.pair_making.exact:"
ROW = PreferenceRow("a boat", (Candidate(video=moving_clip(5, num_frames=11)),), id="r", source="test:0")


@pytest.fixture(scope="module")
def maker_of(wan_folder):
    """`maker_of()`: a maker with a tiny Wan, loaded once per settings."""
    found = {}

    def make(variant="t2v", **settings):
        name = json.dumps([variant, settings], sort_keys=True)
        if name not in found:
            content = {
                "recipe": "corrupt_and_denoise",
                "corrupt": {"real": "chosen"},
                "model": {"family": "wan", "source": str(wan_folder(variant))},
                "data": {"source": "clips.jsonl"},
                "sampling": {"num_steps": 3, "batch_size": 2},
                "video": VIDEO,
                "dtype": "float32",
                **settings,
            }
            found[name] = ModelMaker(VideoPairPlan.model_validate(content), torch.device("cpu"))
        return found[name]

    return make


def test_all_noise_equals_ordinary_sampling(maker_of):
    maker = maker_of()
    _, members = maker.corrupt(ROW, 1.0, ["r/0", "r/1"], 3)
    wanted = maker(["a boat"] * 2, ["r/0", "r/1"], 3, 3)
    for member, clip in zip(members, wanted, strict=True):
        assert int((member.frames.int() - clip.frames.int()).abs().max()) <= 1
    assert not torch.equal(members[0].frames, members[1].frames)


def test_little_noise_reproduces_the_input_as_the_vae_has_it(maker_of):
    maker = maker_of()
    real, (near, same) = maker.corrupt(ROW, 1e-4, ["r/0", "r/1"], 0)
    assert real.frames.shape == near.frames.shape == (WAN_FRAMES, 3, *WAN_SIZE)
    _, (none,) = maker.corrupt(ROW, 0.0, ["r/0"], 0)
    model = maker.model
    moments = model.cache_moments(model.clips.load(ROW).inputs)
    decoded = model.decode_clips(model.codec.scale(moments.mean))[0]
    assert torch.equal(none.frames, (decoded * 255).round().to(torch.uint8))
    for clip in (near, same):
        assert int((clip.frames.int() - none.frames.int()).abs().max()) <= 1


def test_noise_hangs_on_key_and_seed_and_not_on_the_batch(maker_of):
    maker = maker_of()
    _, both = maker.corrupt(ROW, 0.7, ["r/0", "r/1"], 0)
    _, (alone,) = maker.corrupt(ROW, 0.7, ["r/1"], 0)
    assert int((alone.frames.int() - both[1].frames.int()).abs().max()) <= 1
    _, (other,) = maker.corrupt(ROW, 0.7, ["r/1"], 1)
    assert not torch.equal(other.frames, alone.frames)


def test_clips_that_go_on_from_a_picture_need_one(maker_of):
    maker = maker_of("ti2v", video={**VIDEO, "height": 32, "width": 64, "conditioning": "image"})
    assert maker.goes_on_from_pictures
    pictured = PreferenceRow("a boat", (), images=(moving_clip(1, num_frames=1),), id="p")
    blind = PreferenceRow("a boat", (), id="b")
    broken = PreferenceRow("a boat", (), images=(b"no picture",), id="c")
    clips = maker.going_on([pictured, blind, broken], ["p/0", "b/0", "c/0"], 0, 2)
    assert [clip is None for clip in clips] == [False, True, True]
    real, (member,) = maker.corrupt(ROW, 0.7, ["r/0"], 0)
    assert real.frames.shape == member.frames.shape == (WAN_FRAMES, 3, 32, 64)


def test_latents_that_begin_with_copies_are_corrupted_and_denoised_too(maker_of, tmp_path):
    """CogVideoX 1.5 makes tokens of two latent frames: of nine pictures' three it takes four."""
    height, width = COGVIDEOX_SIZE
    maker = maker_of(
        model={"family": "cogvideox", "source": str(write_tiny_cogvideox(tmp_path / "new", version="1.5"))},
        video={"num_frames": 9, "height": height, "width": width, "fps": WAN_FPS},
    )
    assert maker.model.num_copies == 1
    real, (member,) = maker.corrupt(ROW, 0.7, ["r/0"], 0)
    assert real.frames.shape == member.frames.shape == (9, 3, height, width)


def test_an_adapter_that_is_not_there_is_said(maker_of, tmp_path):
    with pytest.raises(ConfigError, match=r"adapter: got .* expected a folder with pytorch_lora_weights"):
        maker_of(adapter=str(tmp_path)).identity()


def test_the_command_makes_groups_and_says_what_moves(wan_folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a boat\na dog\n")
    plan = {
        "recipe": "groups",
        "model": {"family": "wan", "source": str(wan_folder())},
        "video": VIDEO,
        "dtype": "float32",
        "data": {"source": str(tmp_path / "prompts.txt")},
        "sampling": {"num_samples": 3, "num_steps": 2},
        "scorers": [{"name": f"{EXACT}sharpness"}, {"name": f"{EXACT}steadiness"}],
        "selection": {"weights": {"sharpness": 1.0, "steadiness": 1.0}},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = ["pairs", "make", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "2 rows, 6 clips (nothing left out)" in shown
    assert "motion: chosen 0.0" in shown
    rows = list(open_rows(DataConfig(source=str(tmp_path / "out/rows.jsonl")), kind="pairs"))
    assert [row.prompt for row in rows] == ["a boat", "a dog"]
    assert all(row.extras["made_model"].startswith("wan:") for row in rows)


def test_a_family_of_pictures_makes_no_clips(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a boat\n")
    plan = {
        "recipe": "groups",
        "model": {"family": "sdxl", "source": "x"},
        "data": {"source": str(tmp_path / "prompts.txt")},
        "scorers": [{"name": f"{EXACT}sharpness"}],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = ["pairs", "make", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 2
    assert "expected a family of video models" in capsys.readouterr().err


OWN = """
import os, signal, torch
def make(prompts, keys, seed, num_steps):
    clips = []
    for key in keys:
        place = sum(key.encode()) % 30
        frames = torch.zeros(9, 3, 32, 48, dtype=torch.uint8)
        for number in range(9):
            frames[number, :, :, place : place + number] = 100 + place
        clips.append((frames, 8.0))
    with open("calls.txt", "a") as file:
        file.write(prompts[0] + "\\n")
    if os.environ.get("DIE_AT") == prompts[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return clips
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_and_ends_with_the_same_rows(tmp_path):
    (tmp_path / "own_clips.py").write_text(OWN)
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {number}\n" for number in range(5)))
    plan = {
        "recipe": "groups",
        "maker": "own_clips:make",
        "data": {"source": "prompts.txt"},
        "block_rows": 1,
        "scorers": [{"name": f"{EXACT}motion", "title": "moves"}],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))

    def run(output: str, die_at: str = "") -> int:
        command = [sys.executable, "-m", "mmalign", "pairs", "make", "plan.yaml", "--output", output]
        environment = {**os.environ, "DIE_AT": die_at, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[3])
        ended = subprocess.run(
            [*command, "--device", "cpu"], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        return ended.returncode

    assert run("cut", "prompt 2") == -signal.SIGKILL
    assert not (tmp_path / "cut/rows.jsonl").exists()
    assert run("cut") == 0
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert calls == [f"prompt {number}" for number in (0, 1, 2, 2, 3, 4)]
    assert run("whole") == 0
    assert (tmp_path / "cut/rows.jsonl").read_bytes() == (tmp_path / "whole/rows.jsonl").read_bytes()
    assert (tmp_path / "cut/card.yaml").read_bytes() == (tmp_path / "whole/card.yaml").read_bytes()
