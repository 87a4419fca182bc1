"""How each image method is run in the toy world: its data, its budget, the two settings it is tried with.

Every method gets two tries on seed 0, which is not measured, and the better one on the measured seeds.
Betas are what the toy recipes suggest; what is tried are two learning rates, for online DPO two betas.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from mmalign.toy.method_data import DataSpec

__all__ = ["BASELINE", "METHODS", "NUM_PROMPTS", "MethodSetting"]

NUM_PROMPTS = 64
"""Held-out prompts of each seed."""

BASELINE = "diffusion_dpo"
"""What network calls are counted against."""

Settings = Mapping[str, Any]
"""`section.key` of a run configuration to value."""

COMMON: Settings = MappingProxyType(
    {
        "train.steps": 96,
        "train.batch_size": 16,
        "train.learning_rate": 5e-4,
    }
)
"""Of every method that says nothing else; the rate rises over the first half of a run."""


@dataclass(frozen=True)
class MethodSetting:
    """One line of the table.

    Args:
        method: row of `mmalign methods`.
        tries: settings over `common`; the best is measured.
        common: settings over `COMMON`.
        data: what it learns from.
        view: "flow" sees the model as a rectified flow.
        reward: what scores samples: the exact one, the small step-aware model, or nothing.
        item: what one trained item is.
    """

    method: str
    tries: tuple[Settings, ...]
    common: Settings = field(default_factory=dict)
    data: DataSpec = field(default_factory=DataSpec)
    view: Literal["noise", "flow"] = "noise"
    reward: Literal["none", "exact", "step_aware"] = "none"
    item: str = "pair"

    def settings(self, number: int) -> dict[str, Any]:
        """Everything a try sets."""
        return {**COMMON, **self.common, **self.tries[number]}


def _tries(name: str, *values: float) -> tuple[Settings, ...]:
    return tuple(MappingProxyType({name: value}) for value in values)


def _rates(beta: float) -> tuple[Settings, ...]:
    """One beta, two learning rates."""
    return tuple(
        MappingProxyType({"objective.beta": beta, **rate}) for rate in ({}, {"train.learning_rate": 1e-3})
    )


def _offline(method: str, beta: float, data: DataSpec | None = None, **common: Any) -> MethodSetting:
    named = {name.replace("__", "."): value for name, value in common.items()}
    return MethodSetting(method, _rates(beta), MappingProxyType(named), data or DataSpec())


_LISTS = DataSpec("lists", 768)
_ONLINE: Settings = MappingProxyType(
    {"train.steps": 40, "train.batch_size": 8, "rollout.num_steps": 8, "rollout.guidance_scale": 4.0}
)


def _list_method(method: str) -> MethodSetting:
    return MethodSetting(
        method,
        _rates(1000.0),
        MappingProxyType({"train.batch_size": 8}),
        _LISTS,
        item="list of 4",
    )


def _online(method: str, tries: tuple[Settings, ...], item: str = "pair", **more: Any) -> MethodSetting:
    reward, view = more.pop("reward", "none"), more.pop("view", "noise")
    named = {name.replace("__", "."): value for name, value in more.items()}
    return MethodSetting(
        method, tries, MappingProxyType({**_ONLINE, **named}), view=view, reward=reward, item=item
    )


def _self_play(method: str) -> MethodSetting:
    return _online(
        method,
        _rates(1000.0),
        train__steps=96,
        rollout__refresh_every=16,
        rollout__capacity=4,
    )


_EMA: Settings = {"reference__kind": "ema", "reference__decay": 0.99}
_RATES = _tries("train.learning_rate", 5e-4, 1e-3)

METHODS: Mapping[str, MethodSetting] = MappingProxyType(
    {
        BASELINE: _offline("diffusion_dpo", 1000.0),
        "diffusion_sft": MethodSetting("diffusion_sft", _RATES),
        "diffusion_kto": MethodSetting("diffusion_kto", _rates(1000.0), item="picture"),
        "mapo": _offline("mapo", 0.1),
        "inpo": _offline("inpo", 1000.0, likelihood__inversion__eta=1.0),
        "smpo_diffusion": _offline(
            "smpo_diffusion",
            500.0,
            objective__low=0.0,
            objective__high=1.0,
            likelihood__inversion__num_steps=5,
        ),
        "diffusion_sdpo": _offline("diffusion_sdpo", 1000.0, safeguard__mu=0.6),
        "diffusion_dmpo": _offline("diffusion_dmpo", 1000.0),
        "dspo_sd15": _offline("dspo_sd15", 0.001),
        "dspo_sdxl": _offline("dspo_sdxl", 1000.0),
        "linear_dpo": _offline("linear_dpo", 1000.0, objective__floor=0.001, **_EMA),
        "rankdpo": _list_method("rankdpo"),
        "diffusion_lpo": _list_method("diffusion_lpo"),
        "instruct_engine": _offline(
            "instruct_engine", 1000.0, data=DataSpec("contrasts", 768), train__batch_size=32
        ),
        "flow_dpo": MethodSetting(
            "flow_dpo",
            _rates(100.0),
            view="flow",
        ),
        "flow_dpo_time": MethodSetting(
            "flow_dpo",
            _rates(1000.0),
            MappingProxyType({"objective.schedule": "one_minus_t_squared"}),
            view="flow",
        ),
        "online_diffusion_dpo": _online(
            "online_diffusion_dpo",
            _tries("objective.beta", 1000.0, 300.0),
            reward="exact",
            train__steps=128,
            train__learning_rate=1e-3,
            rollout__num_steps=6,
            rollout__spacing="trailing",
            rollout__guidance_scale=1.0,
            rollout__samples=8,
            rollout__prompts=8,
            rollout__threshold=0.1,
        ),
        "diffusion_dro": _online(
            "diffusion_dro",
            _RATES,
            item="picture",
            train__steps=80,
            train__batch_size=16,
            rollout__guidance_scale=1.0,
            rollout__capacity=64,
        ),
        "seppo": _self_play("seppo"),
        "sspo": _self_play("sspo"),
        "flow_grpo": _online(
            "flow_grpo",
            _tries("train.learning_rate", 1e-3, 5e-4),
            item="step",
            view="flow",
            reward="exact",
            train__steps=50,
            train__batch_size=256,
            rollout__num_steps=6,
            rollout__guidance_scale=1.0,
            rollout__samples=8,
            rollout__prompts=16,
            rollout__train_share=0.34,
        ),
        "spo": _online(
            "spo",
            _tries("train.learning_rate", 1e-3, 7e-4),
            item="step",
            reward="step_aware",
            train__steps=28,
            train__batch_size=32,
            rollout__num_steps=8,
            rollout__guidance_scale=1.0,
            rollout__samples=4,
            rollout__inner_steps=0,
            rollout__prompts=8,
            rollout__divert_start=0,
            rollout__threshold=0.3,
        ),
        "draft": _online(
            "draft",
            _tries("train.learning_rate", 5e-4, 2e-4),
            item="sample",
            reward="step_aware",
            train__steps=60,
            rollout__gradient_steps=4,
        ),
    }
)
"""Lines of the table, by name; the table's order is by gain."""
