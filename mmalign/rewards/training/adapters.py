"""LoRA on a backbone that is trained with its head: features are then computed in every step."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.rewards.base import Prepared
from mmalign.rewards.training.backbones import Backbone
from mmalign.rewards.training.pairs import FeatureBatch, FeaturePairs
from mmalign.seeding import derive_seed

__all__ = ["ADAPTER", "LiveFeatures", "LivePairs", "adapter_tensors", "attach_adapter", "load_adapter"]

ADAPTER = "adapter"
"""Prefix of LoRA's weights among a head's."""

_TARGETS = r".*\.(q_proj|v_proj|query|value|qkv)"
"""Attention's queries and values by the names of CLIP, SigLIP, BLIP and chat models."""


def attach_adapter(
    backbone: Backbone, *, rank: int, alpha: float | None = None, targets: str = "", seed: int = 0
) -> dict[str, Any]:
    """Put LoRA into a backbone's network; it changes nothing until it is trained.

    Args:
        backbone: with a network.
        rank: of the update.
        alpha: scale of the update times rank; None = rank.
        targets: regular expression of module names; "" = queries and values of attention.
        seed: of the weights' start.

    Returns:
        The settings, for `reward.json`.

    Raises:
        ConfigError: a backbone without a network, or no module of that name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    network = backbone.network
    if network is None:
        message = explain(
            "adapter",
            got=f"[backbone {type(backbone).__name__}]",
            expected="a backbone with a network (clip, blip, chat)",
            do="Take the adapter section out.",
        )
        raise ConfigError(message)
    pattern = targets or _TARGETS
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not any(re.fullmatch(pattern, name) for name in names):
        expected = f"a pattern of linear layers, such as {names[0]}"
        raise ConfigError(explain("adapter.targets", got=pattern, expected=expected))
    settings = {"rank": rank, "alpha": float(alpha or rank), "targets": pattern}
    with torch.random.fork_rng(devices=[]):  # peft draws from torch's own generator
        torch.manual_seed(derive_seed(seed, "adapter"))
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=settings["alpha"], target_modules=pattern), network
        )
    network.eval()
    return settings


def adapter_tensors(backbone: Backbone) -> dict[str, nn.Parameter]:
    """LoRA's weights in a backbone, by names a module may hold."""
    if backbone.network is None:
        return {}
    named = backbone.network.named_parameters()
    return {name.replace(".", "__"): value for name, value in named if "lora_" in name}


def load_adapter(backbone: Backbone, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy trained weights into the LoRA of a backbone.

    Raises:
        CheckpointError: other names or shapes.
    """
    own = adapter_tensors(backbone)
    wrong = sorted(set(own) ^ set(tensors)) or sorted(
        name for name, value in own.items() if value.shape != tensors[name].shape
    )
    if wrong:
        got = f"[{wrong[0].replace('__', '.')} is missing, unexpected or of another shape]"
        raise CheckpointError(explain(where, got=got, expected="the adapter that reward.json describes"))
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
            value.requires_grad_(False)


# --------------------------------------------------------------------------------------------- features


@dataclass(frozen=True)
class LiveFeatures:
    """Features computed when they are asked for, with their graph.

    Args:
        backbone: with an adapter.
        item: what is prepared for a row of the table of items.
        prompts: the text of each row of the table of prompts.
        contexts: the text of each row of the table of contexts.
    """

    backbone: Backbone
    item: Callable[[int], Prepared]
    prompts: Sequence[str]
    contexts: Sequence[str]

    def items(self, rows: Int[Tensor, " sample"]) -> Float[Tensor, "sample width"]:
        """Features of items by their rows; equal ones are computed once."""
        return _once(rows, lambda row: self.item(row), self.backbone.items)

    def texts(
        self, rows: Int[Tensor, " sample"], kind: Literal["prompts", "contexts"]
    ) -> Float[Tensor, "sample width"]:
        """Features of texts by their rows."""
        texts = self.prompts if kind == "prompts" else self.contexts
        return _once(rows, lambda row: self.backbone.prepare_text(texts[row]), self.backbone.texts)


def _once(
    rows: Tensor, prepare: Callable[[int], Prepared], embed: Callable[[Sequence[Prepared]], Tensor]
) -> Tensor:
    different, places = rows.unique(return_inverse=True)
    return embed([prepare(row) for row in different.tolist()])[places]


@dataclass(frozen=True)
class LivePairs(FeaturePairs):
    """Pairs whose features follow the backbone as it is trained; the tables are those of its start.

    Args:
        live: computes them.
    """

    live: LiveFeatures | None = None

    chunk: ClassVar[int] = 32

    def side(self, side: Literal["first", "second"]) -> FeatureBatch:
        """One candidate of every pair, with the graph of its features."""
        if self.live is None:
            return super().side(side)
        device = self.first.device
        return FeatureBatch(
            self.live.items(getattr(self, side)).to(device),
            None if self.prompts is None else self.live.texts(self.prompt, "prompts").to(device),
            None if self.contexts is None else self.live.texts(self.context, "contexts").to(device),
            self.user,
        )
