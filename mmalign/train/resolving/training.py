"""How a run trains, and what of the network: the sections `train` and `adapter`."""

from collections.abc import Mapping
from typing import Any

from mmalign.methods.row import Default
from mmalign.train.resolving.row_defaults import ALTERNATIVES
from mmalign.train.sections import AdapterConfig, RunConfig, TrainConfig

__all__ = ["resolve_adapter", "resolve_train"]


def resolve_train(
    config: RunConfig, defaults: Mapping[str, Default], filled: dict[str, Default]
) -> TrainConfig:
    """The training section with what the row recommends where the file leaves it open."""
    updates: dict[str, Any] = {}
    for name in ("steps", "epochs", "learning_rate", "optimizer", "warmup_steps", "warmup_ratio"):
        other = ALTERNATIVES.get(name)
        decided = other is not None and (getattr(config.train, other) is not None or other in updates)
        if getattr(config.train, name) is None and name in defaults and not decided:
            updates[name] = defaults[name].value
            filled[f"train.{name}"] = defaults[name]
    # These have a value of their own, which the row's goes before and the file's after.
    for name in _ROW_BEFORE_DEFAULT:
        if name in defaults and name not in config.train.model_fields_set:
            updates[name] = defaults[name].value
            filled[f"train.{name}"] = defaults[name]
    values = {**config.train.model_dump(), **updates}
    if values["optimizer"] is None:
        values["optimizer"] = "adamw"
    if values["warmup_steps"] is None and values["warmup_ratio"] is None:
        values["warmup_steps"] = 0
    return TrainConfig.model_validate(values)


_ROW_BEFORE_DEFAULT = ("schedule", "weight_decay", "adam_beta2", "max_grad_norm")


def resolve_adapter(
    config: RunConfig, defaults: Mapping[str, Default], filled: dict[str, Default]
) -> AdapterConfig:
    """The adapter with the row's rank and alpha where the file leaves them open.

    An alpha belongs to its rank: beside a rank of the file's own it stays what the section says, that rank.
    """
    adapter, rank = config.adapter, defaults.get("rank")
    if adapter.kind != "lora" or rank is None:
        return adapter
    updates: dict[str, object] = {}
    if "rank" not in adapter.model_fields_set:
        updates["rank"], filled["adapter.rank"] = rank.value, rank
    has_rank = updates.get("rank", adapter.rank) == rank.value
    if has_rank and adapter.alpha is None and "lora_alpha" in defaults:
        updates["alpha"], filled["adapter.alpha"] = defaults["lora_alpha"].value, defaults["lora_alpha"]
    return AdapterConfig.model_validate({**adapter.model_dump(), **updates})
