"""Released language models by their sizes, for plans where neither configs nor processor are at hand.

The language part is built on the meta device and called on a made-up dialogue: the visual tokens of a
photograph, a question, two answers behind it in one row. The vision tower is counted by its weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.likelihood.adapters import switched_off
from mmalign.train.adapters import attach
from mmalign.train.config import ResolvedRun
from mmalign.train.parts import DTYPES
from mmalign.train.plan import MemoryItem
from mmalign.train.planning.counted import Counted
from mmalign.train.planning.trace import Kernel, trace_pass
from mmalign.train.quantization import PER_WEIGHT
from mmalign.train.recomputing import recompute_layers
from mmalign.train.token_sections import tokens_of

__all__ = ["RELEASED", "ReleasedLanguage", "count_released", "empty_language"]

PROMPT, ANSWER = 50, 180
"""Tokens of the made-up question, and of each answer."""

_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ReleasedLanguage:
    """A released model.

    Args:
        architecture: "Llama" or "Qwen2".
        settings: of its language part that are not the class's own.
        visual: tokens of a photograph of 1280 x 960; 0 where it sees nothing.
        tower: weights of vision tower and projector.
        source: of the sizes.
        patches: that the tower sees of that photograph; None: as many as there are tokens of it.
        merger: weights of the tower that see tokens, not patches.
    """

    architecture: str
    settings: Mapping[str, int]
    visual: int
    tower: int
    source: str
    patches: int | None = None
    merger: int = 0

    @property
    def tower_flops(self) -> int:
        """Of the tower on the photograph, forward."""
        patches = self.visual if self.patches is None else self.patches
        return 2 * ((self.tower - self.merger) * patches + self.merger * self.visual)


def _sizes(width: int, inner: int, layers: int, heads: int, shared: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "vocab_size": vocabulary,
    }


_CLIP = 303_507_456
RELEASED: Mapping[str, ReleasedLanguage] = {
    "llava-hf/llava-1.5-7b-hf": ReleasedLanguage(
        "Llama", _sizes(4096, 11008, 32, 32, 32, 32064), 576, _CLIP + 20_979_712, "2310.03744, Vicuna 7B"
    ),
    "llava-hf/llava-1.5-13b-hf": ReleasedLanguage(
        "Llama", _sizes(5120, 13824, 40, 40, 40, 32064), 576, _CLIP + 31_467_520, "2310.03744, Vicuna 13B"
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": ReleasedLanguage(
        "Qwen2",
        _sizes(3584, 18944, 28, 28, 4, 152064),
        1564,
        676_550_144,
        "2502.13923, table 1",
        patches=4 * 1564,  # 2 x 2 of them become a token
        merger=5120 * 5120 + 5120 + 5120 * 3584 + 3584,
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": ReleasedLanguage(
        "Llama", _sizes(4096, 14336, 32, 32, 8, 128256), 0, 0, "2407.21783"
    ),
}
"""By hub id."""


def count_released(run: ResolvedRun, released: ReleasedLanguage, *, device_type: str) -> Counted:
    """Play a step of a released model through on shapes.

    Args:
        run: resolved, of a language model.
        released: its sizes.
        device_type: whose rules autocast follows.
    """
    train, full = run.config.train, run.config.adapter.kind == "none"
    half = DTYPES[train.mixed_precision]
    network = empty_language(released, torch.float32 if full else half)
    if run.config.model.gradient_checkpointing:
        recompute_layers(network, run.config.model.gradient_checkpointing)
    layers = sum(
        value.numel() for name, value in network.named_parameters() if "layers." in name and value.ndim > 1
    )
    width = next(network.parameters()).element_size()
    whole = sum(value.numel() for value in network.parameters()) + released.tower
    narrow = PER_WEIGHT.get(run.config.model.quantization or "", float(width))
    frozen = round(layers * narrow + (whole - layers) * width)
    trainables = attach(network, run.config.adapter, default_targets=_TARGETS, seed=train.seed)
    tokens = tokens_of(run.config)
    packed = tokens is None or tokens.packing != "plain"
    rows = train.batch_size * (1 if packed else 2)
    length = released.visual + PROMPT + ANSWER * (2 if packed else 1)
    scored = 2 * train.batch_size * ANSWER
    autocast = None if half is torch.float32 else half

    def forward(called: Any) -> Tensor:
        embedded = torch.empty(
            rows, length, network.config.hidden_size, dtype=torch.float32 if full else half, device="meta"
        )
        mask = torch.empty(rows, 1, length, length, dtype=torch.bool, device="meta") if packed else None
        states = called.model(
            inputs_embeds=embedded.requires_grad_(called.training),
            attention_mask=mask,
            position_ids=torch.empty(rows, length, dtype=torch.int64, device="meta"),
            use_cache=False,
        ).last_hidden_state
        kept: Tensor = states.flatten(0, 1)[:scored]
        return kept

    settings: dict[str, Any] = {"autocast": autocast, "device_type": device_type}
    keeps = not run.config.model.gradient_checkpointing
    policy = trace_pass(network.train(), forward, keeps_casts=keeps, **settings)
    with switched_off(trainables.layers):
        reference = trace_pass(network.eval(), forward, is_trained=False, keeps_casts=False, **settings)
    head = network.get_output_embeddings().weight
    is_half = half is not torch.float32
    size = head.numel() * head.element_size()
    logits = Kernel(2 * scored * head.numel(), size, is_half, "forward")
    back = logits._replace(moment="backward")
    # Made again, then the gradient of the states and, where the head trains, that of its weights.
    backs = [back] * (3 if head.requires_grad else 2)
    tower = Kernel(released.tower_flops * train.batch_size, 2 * released.tower, is_half, "forward")
    more = [
        MemoryItem("vision tower and projector", released.tower * width if full else 0),
        MemoryItem("logits, one tile", 2 * 2**26, "however long the answers are"),
        MemoryItem("attention masks", rows * length * length * (1 + half.itemsize) if packed else 0),
    ]
    note = (
        f"sizes of {run.config.model.source} as released ({released.source}), on a made-up dialogue: "
        f"{rows} rows of {length} tokens, {released.visual} of them a photograph; no file of it was read"
    )
    return Counted(
        trainables=trainables,
        rows=rows,
        policy=replace(policy, kernels=(*policy.kernels, logits, *backs)),
        reference=replace(reference, kernels=(*reference.kernels, logits)),
        encoding=None,
        more=[item for item in more if item.num_bytes],
        frozen_bytes=None if full else frozen,
        once=(tower,) if released.visual else (),
        notes=[note],
    )


def empty_language(released: ReleasedLanguage, dtype: torch.dtype) -> Any:
    """The language part of a released model on the meta device, frozen."""
    import transformers

    config = getattr(transformers, f"{released.architecture}Config")(
        **released.settings, max_position_embeddings=32768, tie_word_embeddings=False
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        network: nn.Module = getattr(transformers, f"{released.architecture}ForCausalLM")(config)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network.to("meta").requires_grad_(False)
