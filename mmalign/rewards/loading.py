"""Rewards by name: built-ins, plug-ins, a function of the user's own, an address, an ensemble."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mmalign import registry
from mmalign.errors import ConfigError, explain
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card

__all__ = ["card", "load", "names"]


def names() -> list[str]:
    """Names of all rewards, built in and installed; imports none."""
    return registry.names("rewards")


def card(name: str) -> Card:
    """What a reward is, without loading it.

    Raises:
        UnknownNameError: nobody provides it.
    """
    found: Card = registry.find("rewards", name).CARD
    return found


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    **options: Any,
) -> Reward:
    """A reward ready to score.

    Args:
        name: a name of `names()`; `module:function` for a function of yours, which takes samples and returns
            numbers; `http://...` or `https://...` for a server of `mmalign serve-reward`; a `.yaml` file that
            describes an ensemble.
        weights: folder with the model's files in their official layout; None = the hub's cache, or the hub.
        device: where the network stands.
        dtype: of the network: float32, bfloat16 or float16.
        options: what the card's `options` name.

    Raises:
        UnknownNameError: nobody provides it.
        ConfigError: an option the reward does not have; a dtype that is none.
        CheckpointError: weights are missing or do not fit.
    """
    if name.startswith(("http://", "https://")):
        from mmalign.rewards.remote import RemoteReward

        _require_options(name, options, ("token", "timeout", "retries", "pause", "connections"))
        return RemoteReward(name, **options)
    if name.endswith((".yaml", ".yml")):
        from mmalign.rewards.ensemble_file import load_ensemble

        _require_options(name, options, ())
        return load_ensemble(name, weights=weights, device=device, dtype=dtype)
    if ":" in name:
        from mmalign.rewards.functions import load_function

        _require_options(name, options, ("scale",))
        return load_function(name, **options)
    found = registry.find("rewards", name)
    _require_options(name, options, found.CARD.options)
    reward: Reward = found.build(weights=weights, device=device, dtype=_dtype(dtype), **options)
    return reward


def _require_options(name: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        listed = ", ".join(known) or "none"
        message = explain(f"reward {name} option", got=unknown[0], expected=f"one of its options ({listed})")
        raise ConfigError(message)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    found = known.get(short.get(dtype, dtype))
    if found is None:
        raise ConfigError(explain("reward dtype", got=dtype, expected="float32, bfloat16 or float16"))
    return found
