"""Tiny Wans, written once; rows of moving clips; short runs."""

import json

import pytest
import torch
import yaml

from mmalign.testing.tiny_video.wan import WAN_FPS, WAN_FRAMES, WAN_SIZE, write_tiny_wan
from mmalign.testing.video_families import moving_clip
from mmalign.train.sections import ModelConfig
from mmalign.train.video_sections import VideoConfig
from mmalign.video.families.wan import FAMILY

CLIP = {"num_frames": WAN_FRAMES, "height": WAN_SIZE[0], "width": WAN_SIZE[1], "fps": WAN_FPS}


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory):
    """`wan_folder("i2v")`: a tiny Wan of a variant, written once."""
    found = {}

    def folder(variant: str = "t2v"):
        if variant not in found:
            found[variant] = write_tiny_wan(tmp_path_factory.mktemp("wan") / variant, variant=variant)
        return found[variant]

    return folder


@pytest.fixture(scope="session")
def load_wan(wan_folder):
    """A tiny Wan with settings of its `model` and `video` sections."""

    def load(variant="t2v", *, model=None, dtype=torch.float32, **video):
        settings = ModelConfig(family="wan", source=str(wan_folder(variant)), **(model or {}))
        return FAMILY.load(settings, VideoConfig(**{**CLIP, **video}), device="cpu", dtype=dtype)

    return load


def _records(kind: str, number: int) -> dict[str, object]:
    row: dict[str, object] = {"prompt": f"waves {'slow ' * (number % 3)}{number}"}
    if kind == "unpaired":
        return {**row, "video": f"{number}.png", "label": number % 2}
    row |= {"chosen": f"{number}.png", "rejected": f"{number}r.png"}
    if kind == "segments":
        first = {"start": 0.0, "end": 0.5, "preference": "chosen"}
        row["segments"] = [first, {"start": 0.5, "chosen": 0.1, "rejected": number % 3}]
    return row


@pytest.fixture(scope="session")
def clip_rows(tmp_path_factory):
    """`clip_rows("pairs")`: seven rows of 11 frames: pairs, unpaired or segments."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(7):
        (folder / f"{number}.png").write_bytes(moving_clip(number, num_frames=11))
        (folder / f"{number}r.png").write_bytes(moving_clip(100 + number, num_frames=11))

    def rows(kind: str = "pairs"):
        path = folder / f"{kind}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps(_records(kind, number)) + "\n" for number in range(7)))
        return path

    return rows


@pytest.fixture
def _fresh_accelerator():
    """Accelerate keeps one state per process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def write_run(wan_folder, clip_rows, tmp_path):
    """`write_run(name, train={...}, ...)`: a YAML file of a short run of a tiny Wan."""

    def write(name: str = "run", *, kind: str = "pairs", variant: str = "t2v", **sections: object):
        content: dict[str, object] = {
            "method": "flow_dpo",
            "model": {"family": "wan", "source": str(wan_folder(variant))},
            "data": {"source": str(clip_rows(kind))},
            **sections,
        }
        content["video"] = {**CLIP, **sections.get("video", {})}
        content["log"] = {"every": 1, "trackers": [], **sections.get("log", {})}
        train = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "num_workers": 0, "device": "cpu"}
        content["train"] = {"output": str(tmp_path / name), **train, **sections.get("train", {})}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write
