"""What makes and scores clips: an audio model or a function of the user's own; registered rewards."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmalign import registry
from mmalign.audio.pair_making.making import ClipMaker, MadeClip
from mmalign.audio.pair_making.plan import AudioPairPlan
from mmalign.data.pair_making.functions import own_function
from mmalign.data.pair_making.sections import RewardChoice
from mmalign.errors import ConfigError, explain
from mmalign.rewards.base import Reward

__all__ = ["FunctionMaker", "ModelMaker", "Tools"]

Made = MadeClip | bytes | Path | None


@dataclass(frozen=True)
class FunctionMaker:
    """A function of (prompts, keys, seed, num_steps) as a maker of clips.

    Args:
        function: gives (samples, sampling rate), encoded bytes, a file or None per prompt.
        name: `module:function`.
        source: text of its file: another text, other clips.
    """

    function: Callable[[Sequence[str], Sequence[str], int, int], Sequence[Any]]
    name: str
    source: str = ""

    @classmethod
    def load(cls, name: str) -> "FunctionMaker":
        """The maker `module:function`.

        Raises:
            ConfigError: no such module or function.
        """
        function, source = own_function(name, what="maker")
        return cls(function, name, source)

    def identity(self) -> Mapping[str, Any]:
        """Its name and the hash of its file."""
        return {"function": self.name, "source": hashlib.sha256(self.source.encode()).hexdigest()}

    def __call__(
        self, prompts: Sequence[str], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Made]:
        """What the function makes of the prompts."""
        made = self.function(prompts, keys, seed, num_steps)
        return [MadeClip(*clip) if isinstance(clip, tuple) else clip for clip in made]


@dataclass
class ModelMaker:
    """An audio model as a maker of clips; loaded when it is asked for the first time.

    Args:
        plan: with the model and its sampler.
        device: where it runs.
    """

    plan: AudioPairPlan
    device: torch.device
    _loaded: Any = field(default=None, init=False, repr=False)

    def identity(self) -> Mapping[str, Any]:
        """Model, weights and sampler; the batch size moves no more than roundings."""
        sampler = self.plan.sampling.model_dump(
            mode="json", exclude={"batch_size", "num_samples", "num_steps"}
        )
        return {"model": self._model().name, "dtype": self.plan.dtype, **sampler}

    def __call__(
        self, prompts: Sequence[str], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Made]:
        """A clip per prompt; equal keys start from equal noise."""
        raise NotImplementedError

    def _model(self) -> Any:
        return self._loaded


def _model_maker(plan: AudioPairPlan, device: torch.device) -> ClipMaker:
    if plan.model is not None and registry.modality(plan.model.family) != "audio":
        message = explain("model.family", got=plan.model.family, expected="a family of audio models")
        raise ConfigError(message)
    return ModelMaker(plan, device)


def _reward(choice: RewardChoice, *, device: torch.device) -> Reward:
    from mmalign.rewards import load

    if ":" in choice.name:
        return load(choice.name, **choice.options)
    return load(choice.name, weights=choice.weights, device=device, dtype=choice.dtype, **choice.options)


@dataclass(frozen=True)
class Tools:
    """Loaders that a recipe calls when it needs what they load; give others to stand in for them.

    Args:
        model: an audio model as a maker of clips.
        reward: by its settings.
    """

    model: Callable[[AudioPairPlan, torch.device], ClipMaker] = _model_maker
    reward: Callable[..., Reward] = _reward

    def maker(self, plan: AudioPairPlan, device: torch.device) -> ClipMaker:
        """The maker of a plan: a function by its name, else a model.

        Raises:
            ConfigError: it is not there.
        """
        return self.model(plan, device) if plan.maker is None else FunctionMaker.load(plan.maker)
