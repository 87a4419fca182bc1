"""The reward protocol, and the base of rewards that run a model.

A reward never lets one sample's value depend on its batch mates, reports a failed sample as NaN with the
reason, counts prompts it had to cut, and has a fingerprint of everything that can move its numbers.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, RowError, ShapeError, explain
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample

__all__ = ["ModelReward", "Prepared", "Reward", "Scored"]


@dataclass(frozen=True)
class Scored:
    """Values of some samples, in their order.

    Args:
        values: float64 on the CPU, [sample, output]; NaN where a sample failed.
        outputs: names of the columns.
        errors: what went wrong with a sample, or None.
        truncated: whether a sample's prompt was cut.
        raw: what a generating judge wrote, or None.
    """

    values: Float[Tensor, "sample output"]
    outputs: tuple[str, ...]
    errors: tuple[str | None, ...]
    truncated: tuple[bool, ...]
    raw: tuple[str | None, ...]

    def first(self) -> Float[Tensor, " sample"]:
        """The first output, where one number is asked for."""
        return self.values[:, 0]


@runtime_checkable
class Reward(Protocol):
    """Anything that scores samples."""

    @property
    def card(self) -> Card:
        """What it is."""
        ...

    def fingerprint(self) -> str:
        """Hexadecimal hash of all that can change a value: weights, preprocessing, templates, dtype."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """What the fingerprint is made of, readable."""
        ...

    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        """Values of the samples; no value depends on `batch_size`, order or batch mates."""
        ...


@dataclass(frozen=True)
class Prepared:
    """One sample ready for the model: CPU tensors only, so that a worker process can make it.

    Args:
        inputs: whatever the reward's `forward` collates.
        truncated: whether the prompt was cut.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    truncated: bool = False


class ModelReward(ABC):
    """A reward that runs a network.

    Sub-classes set `card`, load the network in `__init__` (in evaluation mode, without gradients) and write
    `prepare` and `forward`. `score` does the rest: batches, failures, precision.

    Args:
        card: what it is.
        device: where the network stands.
        dtype: of the network; part of the fingerprint.
    """

    code_version = 1
    """Raised when a change of ours moves the values; part of the fingerprint."""

    def __init__(self, card: Card, *, device: str | torch.device, dtype: torch.dtype) -> None:
        self._card = card
        self.device = torch.device(device)
        self.dtype = dtype

    @property
    def card(self) -> Card:
        """What it is."""
        return self._card

    @abstractmethod
    def prepare(self, sample: Sample) -> Prepared:
        """Decode, resize, tokenise: deterministic, on the CPU, without the network.

        Raises:
            RowError: this sample cannot be scored; the others go on.
        """

    @abstractmethod
    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """Values of prepared samples, with gradients where they are switched on."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What can change values besides dtype: hashes of weights, preprocessing, templates, options.

        JSON types only. Weights stand as {"file": sha256}.
        """

    def provenance(self) -> Mapping[str, Any]:
        """What the fingerprint is made of, readable."""
        return {
            "name": self.card.name,
            "code": self.code_version,
            "dtype": str(self.dtype).removeprefix("torch."),
            **self.settings(),
        }

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of `provenance`."""
        text = json.dumps(self.provenance(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @torch.inference_mode()
    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        """Values of the samples, float64 on the CPU.

        A sample that cannot be read gets NaN and its error; the others are scored as if it were not there.

        Raises:
            ConfigError: a batch size below 1.
            ShapeError: the network's answer has another shape than its card says.
        """
        if batch_size < 1:
            raise ConfigError(explain(f"{self.card.name} batch_size", got=batch_size, expected="at least 1"))
        count = len(samples)
        outputs = self.card.outputs
        values = torch.full((count, len(outputs)), torch.nan, dtype=torch.float64)
        errors: list[str | None] = [None] * count
        truncated = [False] * count
        raw: list[str | None] = [None] * count
        for start in range(0, count, batch_size):
            ready: list[Prepared] = []
            places: list[int] = []
            for place in range(start, min(start + batch_size, count)):
                try:
                    prepared = self.prepare(samples[place])
                except RowError as error:
                    errors[place] = str(error)
                    continue
                ready.append(prepared)
                places.append(place)
                truncated[place] = prepared.truncated
            if not ready:
                continue
            found = self.forward(ready).detach().to("cpu", torch.float64)
            if found.shape != (len(ready), len(outputs)):
                expected = f"[{len(ready)}, {len(outputs)}], one row per sample and one column per output"
                message = explain(
                    self.card.name, got=f"[{', '.join(map(str, found.shape))}]", expected=expected
                )
                raise ShapeError(message)
            values[places] = found
            for place, text in zip(places, self.answers(len(ready)), strict=True):
                raw[place] = text
        for place in range(count):
            if errors[place] is None and not bool(torch.isfinite(values[place]).all()):
                errors[place] = self.unscored(raw[place])
        return Scored(values, outputs, tuple(errors), tuple(truncated), tuple(raw))

    def answers(self, count: int) -> Sequence[str | None]:
        """What a generating judge wrote for the batch `forward` has just seen; None for others."""
        return [None] * count

    def unscored(self, raw: str | None) -> str:
        """Why a value is not finite."""
        if raw is not None:
            return f"{self.card.name}: no verdict could be read from the answer {raw[:200]!r}"
        return f"{self.card.name}: the value is not finite"
