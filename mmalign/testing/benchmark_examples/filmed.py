"""Benchmarks of clips in miniature; their tools look at the pixels themselves."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.data.video_writers import write_clip
from mmalign.evals.base import Answer, Item
from mmalign.evals.video.consistency import ConsistencyWatcher
from mmalign.evals.video.footage import Footage, read_footage
from mmalign.evals.video.pixels import PixelWatcher
from mmalign.evals.video.quality import ClipRewards
from mmalign.evals.video.watching import Watching
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample, to_pixels
from mmalign.testing.benchmark_examples.example import BenchmarkExample, write_lines

__all__ = ["FILMED", "BrightClips", "MeanColours", "StepWatcher", "brightness", "sliding"]

_PROMPTS = ("a fox runs", "waves", "a car passes", "snow falls", "a wheel turns")
_FPS = 8.0


def sliding(seed: int, *, frames: int = 5, step: int = 2) -> UInt8[Tensor, "frame 3 height width"]:
    """Patches of 8 pixels that move `step` pixels to the right with every frame, [frames, 3, 32, 48]."""
    generator = torch.Generator().manual_seed(seed)
    texture = torch.randint(0, 256, (3, 4, 6), generator=generator, dtype=torch.uint8)
    texture = texture.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    return torch.stack([texture.roll(step * place, dims=2) for place in range(frames)])


class MeanColours:
    """Encodes a frame as the mean colours of its quarters."""

    def __init__(self, name: str = "colours") -> None:
        self.name = name

    def __call__(self, frames: UInt8[Tensor, "frame 3 height width"]) -> Tensor:
        """Twelve numbers per frame."""
        return torch.nn.functional.adaptive_avg_pool2d(frames.float(), 2).flatten(1)

    def settings(self) -> Mapping[str, Any]:
        """Nothing moves it."""
        return {"weights": "none"}


class StepWatcher(Watching):
    """Takes the frame difference for a flow."""

    name = "steps"

    def provenance(self) -> Mapping[str, Any]:
        """Its name."""
        return {"name": self.name}

    def watch(self, clip: Footage) -> dict[str, Any]:
        """Dynamic where more than 20 of 255 change."""
        change = float((clip.frames[1:].float() - clip.frames[:-1].float()).abs().mean())
        return {"dynamic": change > 20.0, "mean": change / 10.0, "top": change / 5.0}


class BrightClips(ModelReward):
    """Mean brightness plus a hundredth of the prompt's length."""

    def __init__(self) -> None:
        card = Card(
            name="bright", title="how bright", modality="video", outputs=("bright", "red"), scale="0 to 1"
        )
        super().__init__(card, device="cpu", dtype=torch.float32)

    def prepare(self, sample: Sample) -> Prepared:
        """All frames."""
        assert sample.video is not None
        frames = read_footage(sample.video).frames
        return Prepared({"frames": frames.float() / 255.0, "words": len(sample.prompt)})

    def forward(self, batch: Sequence[Prepared]) -> Tensor:
        """Two values per sample."""
        rows = [(one.inputs["frames"], one.inputs["words"]) for one in batch]
        return torch.stack(
            [torch.stack([frames.mean() + 0.01 * words, frames[:, 0].mean()]) for frames, words in rows]
        )

    def settings(self) -> Mapping[str, Any]:
        """Nothing else moves it."""
        return {}


def brightness(samples: Sequence[Sample]) -> list[float]:
    """Mean of each picture in [0, 1], as a function of a user's."""
    return [float(to_pixels(sample.image).mean()) for sample in samples if sample.image is not None]


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mmalign-clips-")


def _answer(item: Item, copy: int) -> Answer:
    number = int(item.id.rpartition("/")[2])
    path = Path(_folder().name) / f"{number}_{copy}.gif"
    if not path.is_file():
        write_clip(path, sliding(100 + 10 * number + copy, step=1 + number), _FPS)
    return Answer(item, media=(path,), copy=copy)


def _write(folder: Path) -> None:
    write_lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in _PROMPTS])


def _scoring(folder: Path) -> Mapping[str, Any]:
    del folder
    return {
        "rewards": ClipRewards({"bright": BrightClips()}),
        "subject": ConsistencyWatcher(MeanColours()),
        "background": ConsistencyWatcher(MeanColours("quarters")),
        "flow": StepWatcher(),
        "pixels": PixelWatcher(),
    }


FILMED: Mapping[str, BenchmarkExample] = {
    "text_to_video": BenchmarkExample(
        write=_write, answer=_answer, scoring=_scoring, total=("clips", "failed")
    )
}
