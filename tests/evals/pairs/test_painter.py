"""Image models paint rewrites from noise that hangs on the prompt they rewrite."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmalign.errors import ConfigError
from mmalign.evals.pairs.painter import ImagePainter
from mmalign.testing.tiny import write_tiny_sd15
from mmalign.vlm.pair_making.scored_sections import PainterConfig

CPU = torch.device("cpu")


def test_equal_keys_start_from_equal_noise_whatever_is_painted_beside_them(tmp_path: Path) -> None:
    folder = write_tiny_sd15(tmp_path / "sd15")
    config = PainterConfig(source=str(folder), num_steps=2, guidance_scale=1.0, batch_size=3)
    painter = ImagePainter(config, CPU)
    identity = painter.identity()
    assert painter._loaded is None, "what it paints with is known before it is loaded"
    first, other, again = (
        np.asarray(one, dtype=np.int64) for one in painter(["a cat"] * 3, ["a/0", "b/0", "a/0"], 7)
    )
    assert abs(first - again).max() <= 1
    assert abs(first - other).max() > 1
    (alone,) = painter(["a cat"], ["b/0"], 7)
    assert abs(np.asarray(alone, dtype=np.int64) - other).max() <= 1
    assert ImagePainter(config.model_copy(update={"num_steps": 3}), CPU).identity() != identity
    assert ImagePainter(config.model_copy(update={"batch_size": 1}), CPU).identity() == identity


def test_a_model_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"painter: got .*none.* expected a hub id"):
        ImagePainter(PainterConfig(source=str(tmp_path / "none")), CPU)
