"""What pair recipes need besides language models: painters, rewards, sentence encoders.

This floor knows painters that are functions. Image models are painters, too; `mmalign.evals.pairs.painter`
has them, and `mmalign pairs make` brings them along.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmalign.errors import ConfigError, explain
from mmalign.registry import own_function
from mmalign.rewards.base import Reward
from mmalign.vlm.pair_making.requests import Similarity
from mmalign.vlm.pair_making.scored_sections import PainterConfig, RewriteReward
from mmalign.vlm.prompt_writer import Painted, Painter

__all__ = ["FunctionPainter", "Tools"]

PaintFunction = Callable[[Sequence[str], Sequence[str], int], Sequence[Painted]]


@dataclass(frozen=True)
class FunctionPainter:
    """A function of (prompts, keys, seed) as a painter.

    Args:
        function: gives a picture, file, list of frames or None per prompt.
        name: `module:function`.
        source: text of its file: another text, other pictures.
    """

    function: PaintFunction
    name: str
    source: str = ""

    @classmethod
    def load(cls, name: str) -> "FunctionPainter":
        """The painter `module:function`.

        Raises:
            ConfigError: no such module or function.
        """
        function, source = own_function(name, what="painter")
        return cls(function, name, source)

    def identity(self) -> Mapping[str, Any]:
        """Its name and the hash of its file."""
        return {"function": self.name, "source": hashlib.sha256(self.source.encode()).hexdigest()}

    def __call__(self, prompts: Sequence[str], keys: Sequence[str], seed: int) -> Sequence[Painted]:
        """What the function makes of the prompts."""
        return self.function(prompts, keys, seed)


def _no_models(config: PainterConfig, device: torch.device) -> Painter:
    del device
    message = explain(
        "prompt_writer.painter.source",
        got=config.source,
        expected="module:function",
        do="Image models paint under `mmalign pairs make`, or with tools of mmalign.evals.pairs.painter.",
    )
    raise ConfigError(message)


def _reward(config: RewriteReward, *, device: torch.device) -> Reward:
    from mmalign.rewards import load

    if ":" in config.name:
        return load(config.name, **config.options)
    return load(config.name, weights=config.weights, device=device, dtype=config.dtype, **config.options)


def _similarity(source: str, device: torch.device) -> Similarity:
    from mmalign.vlm.pair_making.embedding import SentenceSimilarity

    return SentenceSimilarity.load(source, device=device)


@dataclass(frozen=True)
class Tools:
    """Loaders that a recipe calls when it needs what they load; give others to stand in for them.

    Args:
        models: an image model as a painter.
        reward: by its settings.
        similarity: a sentence encoder by folder or hub id.
    """

    models: Callable[[PainterConfig, torch.device], Painter] = _no_models
    reward: Callable[..., Reward] = _reward
    similarity: Callable[[str, torch.device], Similarity] = _similarity

    def painter(self, config: PainterConfig, device: torch.device) -> Painter:
        """The painter of a plan: a function by its name, else an image model.

        Raises:
            ConfigError: it is not there.
        """
        if ":" in config.source:
            return FunctionPainter.load(config.source)
        return self.models(config, device)
