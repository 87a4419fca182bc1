"""Rows whose picture was dropped: told nothing of it, decided by the row's key for all candidates."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmalign import registry
from mmalign.errors import ConfigError
from mmalign.testing.network_conformance import encoded
from mmalign.testing.tiny_video.cogvideox import COGVIDEOX_FRAMES, COGVIDEOX_SIZE, write_tiny_cogvideox
from mmalign.testing.tiny_video.ltx import LTX_FRAMES, LTX_SIZE, write_tiny_ltx
from mmalign.testing.tiny_video.wan import WAN_FPS, WAN_FRAMES, WAN_SIZE, write_tiny_wan
from mmalign.testing.video_families import row_of_clips
from mmalign.train.config import ModelConfig
from mmalign.train.video_sections import VideoConfig

KINDS: dict[str, tuple[str, Callable[[Path], Any], int, tuple[int, int]]] = {
    "wan i2v": ("wan", lambda folder: write_tiny_wan(folder, variant="i2v"), WAN_FRAMES, WAN_SIZE),
    "wan ti2v": ("wan", lambda folder: write_tiny_wan(folder, variant="ti2v"), WAN_FRAMES, (64, 96)),
    "ltx": ("ltx", write_tiny_ltx, LTX_FRAMES, LTX_SIZE),
    "cogvideox": (
        "cogvideox",
        lambda folder: write_tiny_cogvideox(folder, version="5b", from_image=True),
        COGVIDEOX_FRAMES,
        COGVIDEOX_SIZE,
    ),
}
BOTH_WAYS = ("wan ti2v", "ltx")
"""Checkpoints that take a picture or leave it: without one they are models of text."""


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")

    def model(kind: str, **video: Any):
        family, write, frames, size = KINDS[kind]
        folder = place / kind.replace(" ", "_")
        if not folder.exists():
            write(folder)
        clip = {"num_frames": frames, "height": size[0], "width": size[1], "fps": WAN_FPS}
        section = VideoConfig(**{**clip, "conditioning": "image", **video})
        settings = ModelConfig(family=family, source=str(folder))
        return registry.find("families", family).load(settings, section, device="cpu", dtype=torch.float32)

    return model


def rows(kind: str, count: int = 1):
    _, _, frames, size = KINDS[kind]
    return [
        row_of_clips("waves", seed=number, num_frames=frames, size=size, fps=WAN_FPS)
        for number in range(count)
    ]


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("cogvideox", "wan ti2v") else pytest.param(kind, marks=pytest.mark.slow)
        for kind in KINDS
    ],
)
def test_a_row_without_its_picture_is_told_nothing_of_it(load, kind) -> None:
    model = load(kind, image_dropout=1.0)
    clean, conditioning = encoded(model, rows(kind), (3,))
    assert not conditioning.per_candidate["pictured"].any()
    told = conditioning.rows(2)  # the pictures of the two sides differ
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).expand_as(
        clean[0]
    )
    level = model.schedule.network_time(model.schedule.timestep_at(torch.tensor([0.5, 0.5])))
    with torch.no_grad():
        first, second = model.denoise(noise, level, told)
        kept = model.denoise(noise, level, {**told, "pictured": torch.ones(2, dtype=torch.bool)})
        plain = model.denoise(
            noise, level, {name: value for name, value in told.items() if name != "pictured"}
        )
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(kept[0], kept[1], atol=1e-5)
    assert torch.equal(kept, plain)
    if kind in BOTH_WAYS:
        of_text = load(kind, conditioning="text")
        alone, _ = encoded(of_text, rows(kind), (3,))
        torch.testing.assert_close(clean, alone)
        text = {name: value for name, value in told.items() if name.startswith("text")}
        with torch.no_grad():
            torch.testing.assert_close(of_text.denoise(noise, level, text)[0], first, rtol=1e-4, atol=1e-4)
    noised, _, inputs = model.meta_inputs(2)
    assert {name: (value.shape, value.dtype) for name, value in inputs.items()} == {
        name: (value.shape, value.dtype) for name, value in conditioning.rows(2).items()
    }
    assert noised.shape == clean[0].shape


def test_which_rows_lose_their_picture_is_decided_by_their_keys(load, tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), (10, 200, 30)).save(tmp_path / "own.png")
    model = load("wan ti2v", image_dropout=0.5)
    three = [replace(row, images=(str(tmp_path / "own.png"),)) for row in rows("wan ti2v", 3)]
    clean, conditioning = encoded(model, three, (3, 4, 5))
    kept = conditioning.per_candidate["pictured"]
    assert torch.equal(kept[:, 0], kept[:, 1])
    found = [
        bool(encoded(model, three[:1], (key,))[1].per_candidate["pictured"][0, 0]) for key in range(3, 15)
    ]
    assert found[:3] == kept[:, 0].tolist()
    assert 2 <= sum(found) <= 10
    # The first latent frame is the picture in rows that are told of it, and the clip's own in others.
    begins = (clean[:, :, :, :1] == conditioning.per_candidate["start"]).flatten(1).all(1)
    assert torch.equal(begins, kept[:, 0])
    assert "pictured" not in encoded(load("wan ti2v"), three[:1], (3,))[1].per_candidate


def test_pictures_are_dropped_only_where_clips_go_on_from_them(load) -> None:
    with pytest.raises(ConfigError, match=r"video.image_dropout: got 0.3, expected 0: clips of this run"):
        load("ltx", conditioning="text", image_dropout=0.3)
