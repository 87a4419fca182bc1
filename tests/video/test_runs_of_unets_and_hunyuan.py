"""Runs of HunyuanVideo, AnimateDiff, text-to-video-ms and VideoCrafter2: live, from a cache, exported."""

import json
from pathlib import Path

import pytest
import torch

from mmalign.cli.encoding import encode_run
from mmalign.cli.main import main
from mmalign.errors import CheckpointError
from mmalign.testing.tiny import write_tiny_sd15
from mmalign.testing.tiny_video.animatediff import write_tiny_motion_adapter
from mmalign.testing.tiny_video.hunyuan_video import write_tiny_hunyuan_video
from mmalign.testing.tiny_video.text_to_video import write_tiny_text_to_video
from mmalign.testing.tiny_video.videocrafter import write_tiny_videocrafter
from mmalign.train.config import ModelConfig, load_run
from mmalign.train.run import train
from mmalign.train.video_sections import VideoConfig
from mmalign.video.families.text_to_video import FAMILY
from mmalign.video.saving import renamed_tensors

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

SMALL = {"num_frames": 3, "height": 16, "width": 32}


def hunyuan(place: Path):
    source = write_tiny_hunyuan_video(place / "model")
    model = {"family": "hunyuan_video", "source": str(source), "gradient_checkpointing": True}
    return {"method": "flow_dpo", "model": model, "video": {"num_frames": 5, "height": 32, "width": 48}}


def animatediff(place: Path):
    source, motion = write_tiny_sd15(place / "model"), write_tiny_motion_adapter(place / "motion")
    model = {"family": "animatediff", "source": str(source), "motion_adapter": str(motion)}
    return {"method": "diffusion_dpo", "model": model, "video": SMALL}


def text_to_video(place: Path):
    source = write_tiny_text_to_video(place / "model")
    model = {"family": "text_to_video", "source": str(source), "gradient_checkpointing": True}
    return {"method": "diffusion_dpo", "model": model, "video": SMALL}


def videocrafter(place: Path):
    source = write_tiny_videocrafter(place / "model")
    return {
        "method": "diffusion_dpo",
        "model": {"family": "videocrafter", "source": str(source)},
        "video": SMALL,
    }


FAMILIES = [
    hunyuan,
    pytest.param(animatediff, marks=pytest.mark.slow),
    pytest.param(text_to_video, marks=pytest.mark.slow),
    pytest.param(videocrafter, marks=pytest.mark.slow),
]


def losses_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.mark.parametrize("made", FAMILIES)
def test_a_cached_run_equals_one_that_encodes_and_both_can_be_exported(write_run, tmp_path, made):
    sections = made(tmp_path)
    sections["video"] = {**sections["video"], "prompt_dropout": 0.3}
    folder = tmp_path / "latents"
    encode_run(write_run("cache", **sections), output=str(folder), dtype="float32")
    samples = {"prompts": ["waves"], "num_steps": 2}
    live = train(load_run(write_run("live", **sections, samples=samples)))
    sections["video"]["cache"] = str(folder)
    cached = train(load_run(write_run("cached", **sections)))
    found = losses_of(live.folder)
    assert found[0] == pytest.approx(0.693147, abs=1e-5)
    assert found == pytest.approx(losses_of(cached.folder), abs=2e-4)
    for name, value in live.trainables.parameters.items():
        torch.testing.assert_close(cached.trainables.parameters[name], value, rtol=0, atol=2e-4)
    assert list((live.folder / "samples/step-00000003").iterdir())
    for to in ("diffusers", "merged", *(["comfyui"] if made in (hunyuan, animatediff) else [])):
        assert main(["export", str(live.folder), "--to", to, "--output", str(tmp_path / to)]) == 0


def test_networks_that_comfyui_does_not_know_are_refused(tmp_path):
    source = write_tiny_text_to_video(tmp_path / "model")
    settings = ModelConfig(family="text_to_video", source=str(source))
    model = FAMILY.load(settings, VideoConfig(**SMALL), device="cpu", dtype=torch.float32)
    with pytest.raises(CheckpointError, match=r"an adapter of family text_to_video'.*that ComfyUI knows"):
        renamed_tensors(model)
