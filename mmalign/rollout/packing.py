"""Batches as named tensors and back, so that what a rollout has made survives in a checkpoint."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.errors import CheckpointError
from mmalign.files import under

__all__ = ["pack", "unpack"]

_PLAIN = ("clean", "weight", "valid", "element_mask", "reward")
_LABELS = ("probability", "desirable", "relevance", "valid")


def pack(batch: Batch) -> dict[str, Tensor]:
    """The batch as CPU tensors; texts become the bytes of one JSON object."""
    found: dict[str, Tensor | None] = {name: getattr(batch, name) for name in _PLAIN}
    found |= {f"labels.{name}": getattr(batch.labels, name) for name in _LABELS}
    found |= {f"shared.{name}": value for name, value in batch.conditioning.shared.items()}
    found |= {f"per_candidate.{name}": value for name, value in batch.conditioning.per_candidate.items()}
    found |= {f"recorded.{name}": value for name, value in batch.recorded.items()}
    found |= {"keys.key": batch.keys.key, "keys.stratum": batch.keys.stratum}
    facts = {
        "ids": batch.ids,
        "prompts": batch.prompts,
        "num_strata": batch.keys.num_strata,
        "certain": batch.labels.certain,
    }
    text = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    tensors = {name: value.detach().to("cpu") for name, value in found.items() if value is not None}
    return {**tensors, "facts": text}


def unpack(tensors: Mapping[str, Tensor]) -> Batch:
    """What `pack` was given, on the CPU.

    Raises:
        CheckpointError: tensors are missing.
    """
    lacking = sorted({"clean", "weight", "valid", "keys.key", "keys.stratum", "facts"} - tensors.keys())
    if lacking:
        message = (
            f"stored batch: {', '.join(lacking)} missing. The checkpoint is damaged; take an earlier one."
        )
        raise CheckpointError(message)
    facts = json.loads(bytes(tensors["facts"].tolist()).decode())
    labels = Labels(**{name: tensors.get(f"labels.{name}") for name in _LABELS})
    return Batch(
        clean=tensors["clean"],
        conditioning=Conditioning(under(tensors, "shared."), under(tensors, "per_candidate.")),
        labels=labels.known_certain() if facts["certain"] else labels,
        weight=tensors["weight"],
        valid=tensors["valid"],
        keys=RowKeys(tensors["keys.key"], tensors["keys.stratum"], int(facts["num_strata"])),
        element_mask=tensors.get("element_mask"),
        ids=tuple(facts["ids"]),
        reward=tensors.get("reward"),
        prompts=tuple(facts["prompts"]),
        recorded=under(tensors, "recorded."),
    )
