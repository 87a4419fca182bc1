"""Models of video paint rewrites: clips from noise that hangs on the prompt they rewrite, as files."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from mmalign.data.config import VideoLimits
from mmalign.data.video_media import decode_clip
from mmalign.errors import ConfigError
from mmalign.evals.pairs.clip_painter import ClipPainter
from mmalign.evals.pairs.painter import ImagePainter, model_painter
from mmalign.testing.tiny_video.wan import WAN_FPS, WAN_FRAMES, WAN_SIZE, write_tiny_wan
from mmalign.vlm.pair_making.scored_sections import PainterConfig
from mmalign.vlm.prompt_writer import _kept

CPU = torch.device("cpu")
SHAPE = {"num_frames": WAN_FRAMES, "height": WAN_SIZE[0], "width": WAN_SIZE[1], "fps": WAN_FPS}


def config_of(source: Path, **settings: object) -> PainterConfig:
    given = {"num_steps": 1, "guidance_scale": 1.0, "batch_size": 3, "medium": "videos", **SHAPE, **settings}
    return PainterConfig.model_validate({"source": str(source), **given})


def test_equal_keys_film_equal_clips_and_their_files_say_so(tmp_path: Path) -> None:
    folder = write_tiny_wan(tmp_path / "wan")
    painter = model_painter(config_of(folder), CPU)
    assert isinstance(painter, ClipPainter)
    identity = painter.identity()
    assert painter._loaded is None, "what it films with is known before it is loaded"
    first, other, again = painter(["a cat"] * 3, ["a/0", "b/0", "a/0"], 7)
    assert first == again != other
    clip = decode_clip(first, where="x", limits=VideoLimits())
    assert clip.frames.shape == (WAN_FRAMES, 3, *WAN_SIZE)
    assert clip.fps == pytest.approx(WAN_FPS)
    name = _kept(first, tmp_path, "painter")
    assert name.endswith(".mp4")
    assert (tmp_path / name).read_bytes() == first
    assert ClipPainter(config_of(folder, num_frames=WAN_FRAMES + 4), CPU).identity() != identity
    assert ClipPainter(config_of(folder, batch_size=1), CPU).identity() == identity


def test_models_that_go_on_from_pictures_paint_no_prompts(tmp_path: Path) -> None:
    painter = ClipPainter(config_of(write_tiny_wan(tmp_path / "i2v", variant="i2v")), CPU)
    with pytest.raises(ConfigError, match=r"prompt_writer.painter.source: got \[a model whose clips go on"):
        painter(["a cat"], ["a/0"], 7)


def test_the_medium_decides_who_paints_and_clips_alone_have_a_length(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    pictures = PainterConfig(source=str(tmp_path))
    assert isinstance(model_painter(pictures, CPU), ImagePainter)
    with pytest.raises(ValidationError, match="num_frames is of models that paint videos"):
        PainterConfig(source=str(tmp_path), num_frames=9)
