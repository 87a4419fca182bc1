"""What the training loop needs from a loaded model; image, audio and video families provide it.

The loop knows no modality: it asks for an example of a row (on the CPU, in a loader worker), collates,
encodes on the device and denoises. Saving and sampling are the family's, in its ecosystem's own formats.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmalign.batch import BatchContext, Conditioning, PreferenceRow, RowKeys
from mmalign.data.config import ImageLimits
from mmalign.errors import ConfigError, explain
from mmalign.likelihood.schedules import Prediction, Schedule
from mmalign.rollout.collectors import Collector
from mmalign.rollout.items import Queue

if TYPE_CHECKING:
    from mmalign.train.online import AnswerReward
    from mmalign.train.token_sections import AnswerRolloutConfig

__all__ = [
    "AnswerMakers",
    "Encoded",
    "Example",
    "PaintingModel",
    "PreferenceModel",
    "ReadsRows",
    "SoundingModel",
    "TimedModel",
    "TrainedModel",
    "WritingModel",
    "denoising",
    "in_time",
    "writing",
]

Example = Mapping[str, Any]
"""Tensors and texts of one row, before collation."""


@dataclass(frozen=True)
class Encoded:
    """A micro-batch as a language model's likelihood reads it, on the device.

    Args:
        clean: token ids of the answers, 0 behind their end.
        element_mask: 1 at their tokens.
        context: prompts and media.
        recorded: numbers that the data give.
        weight: of every row beside that of the data; None where all count alike.
    """

    clean: Shaped[Tensor, "prompt candidate token"]
    element_mask: Float[Tensor, "prompt candidate token"]
    context: BatchContext
    recorded: Mapping[str, Shaped[Tensor, "prompt ..."]] = field(default_factory=dict)
    weight: Float[Tensor, " prompt"] | None = None


@runtime_checkable
class ReadsRows(Protocol):
    """What a loader asks: rows to examples, examples to what a model encodes."""

    def example(self, row: PreferenceRow, *, key: int) -> Example:
        """Decoded media of a row; every random choice is decided by `key`. Raises RowError."""
        ...

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One micro-batch of readable examples."""
        ...


@runtime_checkable
class TrainedModel(Protocol):
    """A loaded model as the loop sees it, whether it denoises or writes.

    Attributes:
        family: name in the registry.
        network: the trained network. The loop replaces it by its prepared form (distributed, compiled); code
            here only calls it.
        adapter_targets: module name endings LoRA goes on by default, or one regular expression.
    """

    family: str
    network: nn.Module
    adapter_targets: tuple[str, ...] | str

    def limit_images(self, limits: ImageLimits) -> None:
        """Refuse media beyond these sizes."""
        ...

    def example(self, row: PreferenceRow, *, key: int) -> Example:
        """Decoded media of a row; every random choice is decided by `key`. Raises RowError."""
        ...

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One micro-batch of readable examples."""
        ...

    def encode(
        self, collated: Mapping[str, Any], keys: RowKeys
    ) -> tuple[Float[Tensor, "prompt candidate *event"], Conditioning] | Encoded:
        """Clean latents and conditioning on the device, without gradients; or a batch of dialogues."""
        ...

    def save_adapter(self, folder: str | Path) -> Path:
        """Write the adapter in the format the ecosystem's loaders read."""
        ...

    def save_model(self, folder: str | Path) -> Path:
        """Write the whole model in the format the ecosystem's loaders read."""
        ...


@runtime_checkable
class PreferenceModel(TrainedModel, Protocol):
    """A loaded model that denoises.

    Attributes:
        schedule: noise schedule.
        prediction: what the network predicts.
        latent_shape: event shape of one candidate at the configured resolution.
        scheduler_config: of the model's diffusers scheduler.
    """

    schedule: Schedule
    prediction: Prediction
    latent_shape: tuple[int, ...]
    scheduler_config: dict[str, Any]

    def prompt_conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of prompts without media, as at inference; tensors `[prompt, ...]`, all shared."""
        ...

    def guidance_conditioning(self) -> Conditioning:
        """What classifier-free guidance contrasts with, `[1, ...]`, all shared."""
        ...

    def denoise(
        self,
        noised: Float[Tensor, " row *event"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
        *,
        network: nn.Module | None = None,
    ) -> Float[Tensor, " row *event"]:
        """The prediction of `network` (default: the trained one), in its own space."""
        ...

    def meta_inputs(self, num_rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs of `denoise` on the meta device, for counting memory."""
        ...

    def release_encoders(self) -> None:
        """Free what only encodes; it is loaded again when something needs it."""
        ...

    def sample(
        self, prompts: Sequence[str], *, seed: int, num_steps: int, guidance_scale: float
    ) -> list[Any]:
        """Media for prompts; the noise of prompt i depends on (seed, i) only."""
        ...


@runtime_checkable
@runtime_checkable
class PaintingModel(PreferenceModel, Protocol):
    """A model whose samples are pictures."""

    def decode_pixels(
        self, latents: Float[Tensor, " row *event"]
    ) -> Float[Tensor, "row 3 picture_height picture_width"]:
        """Pictures in [0, 1] of latents, float32; differentiable where gradients are enabled."""
        ...


@runtime_checkable
class TimedModel(Protocol):
    """A model whose media have a time axis.

    Attributes:
        time_axis: of its latents, counted among the event axes.
        latent_shape: event shape of one candidate.
    """

    time_axis: int
    latent_shape: tuple[int, ...]

    @property
    def duration(self) -> float:
        """Seconds of its clips."""
        ...


@runtime_checkable
class SoundingModel(Protocol):
    """A model whose samples are heard.

    Attributes:
        sampling_rate: of its sound, Hz.
    """

    sampling_rate: int

    def decode_waveforms(
        self, latents: Float[Tensor, "row channel *size"]
    ) -> Float[Tensor, "row heard sample"]:
        """Waveforms in [-1, 1] of latents."""
        ...

    def make_room_for(self, prompts: Sequence[str]) -> None:
        """Give conditioning of all prompts the length of the longest of these."""
        ...


@runtime_checkable
class WritingModel(TrainedModel, Protocol):
    """A loaded model that writes answers, and can learn from its own."""

    def rounds(self, rollout: "AnswerRolloutConfig", *, kind: str) -> ReadsRows:
        """What reads the rows of a round, in a loader worker."""
        ...

    def collectors(
        self,
        rollout: "AnswerRolloutConfig",
        *,
        kind: str,
        reward: "AnswerReward | None",
        row: Callable[[int], PreferenceRow],
        seed: int,
    ) -> "AnswerMakers":
        """What makes training items of rounds.

        Args:
            rollout: how answers are written.
            kind: of rollout, a key of `mmalign.methods.row.ROLLOUTS`.
            reward: scores answers, where the kind wants one.
            row: a row of the run's data by number.
            seed: of the run.
        """
        ...


@dataclass(frozen=True)
class AnswerMakers:
    """Who makes the items of a run that learns from its own answers.

    Args:
        online: of rounds of prompts.
        offline: of the data's own pairs, for methods that mix both.
        restored: a queue of what its `state_dict` gave.
    """

    online: Collector
    offline: Collector | None
    restored: Callable[[Mapping[str, Tensor]], Queue]


def writing(model: TrainedModel) -> WritingModel:
    """The model as one that writes, where the run's configuration has decided that it does."""
    return cast("WritingModel", model)


def denoising(model: TrainedModel) -> PreferenceModel:
    """The model as one that denoises, where the run's configuration has decided that it does."""
    return cast("PreferenceModel", model)


def in_time(model: TrainedModel) -> TimedModel:
    """The model as one whose media have a time axis.

    Raises:
        ConfigError: they have none.
    """
    if not isinstance(model, TimedModel):
        expected = "a family whose media have a time axis: this method reads labels in time"
        raise ConfigError(explain("model.family", got=model.family, expected=expected))
    return model
