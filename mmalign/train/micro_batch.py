"""What a loader's worker hands over, and how it becomes a batch on the device."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.batch import Batch, Conditioning, Labels, PreferenceRow, RowKeys
from mmalign.errors import MmalignError
from mmalign.train.model import Encoded, TrainedModel, denoising, in_time
from mmalign.train.row_needs import RowFacts

__all__ = ["BadRow", "MicroBatch", "labels_of", "rewards_of", "to_batch"]


@dataclass(frozen=True)
class BadRow:
    """A row that could not be used, for the counts and the quarantine file; streams do not number rows."""

    index: int | None
    source: str
    reason: str
    message: str


@dataclass(frozen=True)
class MicroBatch:
    """What a loader worker hands over: CPU tensors, ready to be moved.

    Args:
        collated: the model's inputs.
        labels: preference data per prompt.
        weight: per prompt.
        valid: False where a row was unreadable (another row stands in, with no effect).
        keys: randomness per row.
        ids: row ids.
        bad: the unreadable rows.
        reward: of a reward model per candidate, NaN where the data have none.
        prompts: their texts.
        facts: what else the method reads of the rows.
        lanes: of a stream, where the lanes that these rows came from are now.
        dropped: of a stream, rows left out on purpose on the way, by reason.
        num_beside: how many of `bad` are records on the way to these rows, which are no rows themselves.
    """

    collated: Mapping[str, Any]
    labels: Labels
    weight: Tensor
    valid: Tensor
    keys: RowKeys
    ids: tuple[str, ...] = ()
    bad: tuple[BadRow, ...] = field(default=())
    reward: Tensor | None = None
    prompts: tuple[str, ...] = ()
    facts: RowFacts = field(default_factory=RowFacts)
    lanes: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    num_beside: int = 0

    def pin_memory(self) -> "MicroBatch":
        """Called by the loader when pinned memory is asked for."""
        pinned = {
            key: value.pin_memory() if isinstance(value, Tensor) else value
            for key, value in self.collated.items()
        }
        return replace(self, collated=pinned, weight=self.weight.pin_memory(), valid=self.valid.pin_memory())


def rewards_of(rows: Sequence[PreferenceRow], width: int, *, required: bool) -> Tensor | None:
    """Rewards per candidate: NaN where there is none, 0 where a list is padded.

    None when no row has any and none is required: an unreadable row has none, and may be alone.
    """
    found = [[candidate.reward for candidate in row.candidates] for row in rows]
    if not required and all(value is None for row in found for value in row):
        return None
    return torch.tensor(
        [_padded([math.nan if value is None else value for value in row], width) for row in found],
        dtype=torch.float32,
    )


def _padded(values: Sequence[float], width: int) -> list[float]:
    """The values with zeros after them; a row that could not be read may have more than its stand-in."""
    return [*values[:width], *(0.0 for _ in range(width - len(values)))]


def labels_of(rows: Sequence[PreferenceRow], valid: Tensor, width: int) -> Labels:
    """Labels of one micro-batch, all rows of one kind (the reader checked); lists are padded to `width`."""
    kind = rows[0].kind
    if kind == "pairs":
        labels = Labels(probability=torch.tensor([row.preference for row in rows], dtype=torch.float32))
        return labels.known_certain() if all(row.preference == 1.0 for row in rows) else labels
    if kind == "prompts":
        return Labels()
    if kind in ("unpaired", "chosen"):
        return Labels.unpaired(torch.tensor([bool(row.desirable) for row in rows]))
    relevance = [_padded(row.relevance or (), width) for row in rows]
    sizes = torch.tensor([len(row.candidates) for row in rows])
    return Labels(
        relevance=torch.tensor(relevance, dtype=torch.float32),
        valid=valid.unsqueeze(1) & (torch.arange(width) < sizes.unsqueeze(1)),
    )


def _of_all(micro: MicroBatch, num_candidates: int) -> tuple[Labels, Tensor | None]:
    """Labels and rewards where the model made further candidates: answers of the row beside other images.

    Those have no reward (NaN). One answer beside two images is a pair whose first is preferred.
    """
    labels, reward = micro.labels, micro.reward
    if reward is not None and reward.shape[1] < num_candidates:
        reward = torch.nn.functional.pad(reward, (0, num_candidates - reward.shape[1]), value=math.nan)
    if labels.desirable is not None and labels.desirable.shape[1] < num_candidates:
        labels = Labels.pairs(len(micro.valid))
    return labels, reward


def _over_frames(kept: Tensor, clean: Tensor, model: TrainedModel) -> Tensor:
    """Weights of latent frames as weights of every element."""
    axis = in_time(model).time_axis + 2
    shape = [1] * clean.ndim
    shape[0], shape[axis] = kept.shape
    return kept.view(shape).expand_as(clean)


def to_batch(micro: MicroBatch, model: TrainedModel, device: torch.device) -> Batch:
    """Move a micro-batch to the device and encode it there."""
    keys = micro.keys.to(device)
    collated = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in micro.collated.items()
    }
    more: dict[str, Any] = {}
    weight = micro.weight.to(device, non_blocking=True)
    if collated:
        encoded = model.encode(collated, keys)
        if isinstance(encoded, Encoded):
            clean, conditioning = encoded.clean, Conditioning()
            more = {name: getattr(encoded, name) for name in ("element_mask", "context", "recorded")}
            weight = weight if encoded.weight is None else weight * encoded.weight
        else:
            clean, conditioning = encoded
    else:  # prompts alone: candidates will be sampled
        conditioning = denoising(model).prompt_conditioning(micro.prompts)
        clean = torch.zeros(len(micro.valid), 0, *denoising(model).latent_shape, device=device)
    if clean.shape[0] != len(micro.valid):
        message = f"encode: got {clean.shape[0]} prompts, expected {len(micro.valid)}."
        raise MmalignError(message)
    recorded = dict(more.get("recorded", {}))
    facts = micro.facts
    if facts.preference is not None:
        label = facts.preference.to(device, non_blocking=True)
        recorded["preference"] = torch.stack([label, -label], dim=1)
    for name, value in facts.columns.items():
        recorded[name] = value.to(device, non_blocking=True).unsqueeze(1).expand(-1, clean.shape[1])
    if recorded:
        more["recorded"] = recorded
    if facts.apart is not None:
        more["element_mask"] = _over_frames(facts.apart.to(device, non_blocking=True), clean, model)
    labels, reward = _of_all(micro, clean.shape[1])
    moved = {
        name: value.to(device, non_blocking=True) if value is not None else None
        for name, value in vars(labels).items()
        if name != "certain"
    }
    valid = micro.valid.to(device, non_blocking=True)
    # A stand-in for an unreadable row must not enter statistics over the batch (KTO's zero point).
    real = valid.unsqueeze(1).expand(-1, clean.shape[1])
    moved["valid"] = real if moved["valid"] is None else moved["valid"] & real
    certain, labels = labels.certain, Labels(**moved)
    labels = labels.known_certain() if certain else labels
    return Batch(
        clean=clean,
        conditioning=conditioning,
        labels=labels,
        weight=weight,
        valid=valid,
        keys=keys,
        ids=micro.ids,
        reward=None if reward is None else reward.to(device, non_blocking=True),
        prompts=micro.prompts,
        **more,
    )
