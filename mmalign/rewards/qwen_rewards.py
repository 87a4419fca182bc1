"""Rewards with a head on Qwen2-VL's hidden states: HPSv3 (pictures) and VideoReward (clips).

Two traps of today's libraries are closed. Released checkpoints carry the key names of the class they were
trained with; they are renamed here by hand and every key must find its place, so that no part of the
language model stays random. And they were trained with plain positions 0, 1, 2, ... on all three rotary axes,
because the library of the time did not build the others in a direct forward pass; so that is the default
(`positions`).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmalign.errors import CheckpointError, ConfigError, RowError, explain
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.checkpoints import fill
from mmalign.rewards.vision_language import without_special_tokens

__all__ = [
    "BASE_FILES",
    "Positions",
    "QwenHeadReward",
    "QwenInputs",
    "at_tokens",
    "merge_adapters",
    "qwen_key",
    "rank_head",
    "standardise",
]

Positions = Literal["sequential", "mrope"]
"""Rotary positions: as the released weights were trained, or as today's library builds them."""

BASE_FILES = ("*.j*",)
"""What is needed of the base model: configuration, tokenizer, chat template, preprocessing; no weights."""


def rank_head(sizes: Sequence[int], *, dropout: float = 0.05) -> nn.Sequential:
    """Linear layers of these sizes, ReLU between them, dropout behind the first; the last has no activation.

    HPSv3's is (3584, 1024, 16, 2): mu and log sigma.

    Source: hpsv3 1.0.0, hpsv3/model/qwen2vl_trainer.py.
    """
    layers: list[nn.Module] = []
    for place, (inside, outside) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(inside, outside))
        if place < len(sizes) - 2:
            layers.append(nn.ReLU())
        if place == 0 and len(sizes) > 2:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def at_tokens(
    values: Float[Tensor, "row position column"],
    input_ids: Int[Tensor, "row position"],
    tokens: Sequence[int],
) -> Float[Tensor, "row read"]:
    """What stands at the reward tokens of every row, in the order of the tokens.

    With one token all columns at it are read. With several and one column, that column at each of them; with
    as many columns as tokens, column j at token j.

    Raises:
        RowError: a token stands never or several times in a row.
        ConfigError: the columns are neither one nor as many as tokens.
    """
    columns = values.shape[2]
    if len(tokens) > 1 and columns not in (1, len(tokens)):
        expected = f"1 or {len(tokens)}, one per reward token"
        raise ConfigError(explain("reward head outputs", got=columns, expected=expected))
    read: list[Tensor] = []
    rows = torch.arange(len(input_ids), device=input_ids.device)
    for number, token in enumerate(tokens):
        found = input_ids == token
        counts = found.sum(dim=1)
        if bool((counts != 1).any()):
            got = f"[{counts.tolist()} times]"
            raise RowError(explain(f"reward token {token}", got=got, expected="once in every row"))
        picked = values[rows, found.int().argmax(dim=1)]
        read.append(picked if len(tokens) == 1 else picked[:, [0 if columns == 1 else number]])
    return torch.cat(read, dim=1)


def standardise(
    values: Float[Tensor, "row dimension"], means: Sequence[float], deviations: Sequence[float]
) -> Float[Tensor, "row dimension"]:
    """(value - mean) / deviation, per column."""
    return (values - values.new_tensor(list(means))) / values.new_tensor(list(deviations))


# -------------------------------------------------------------------------------- checkpoints


def qwen_key(name: str) -> str | None:
    """Today's name of a tensor of Qwen2-VL as checkpoints before transformers 4.52 call it.

    `visual.*` stays, `model.*` becomes `language_model.*`; None for what is no part of the body.
    """
    if name.startswith("visual."):
        return name
    if name.startswith("model."):
        return "language_model." + name.removeprefix("model.")
    return None


def merge_adapters(state: Mapping[str, Tensor], *, scale: float, where: str) -> dict[str, Tensor]:
    """A PEFT-wrapped LoRA state as that of the plain model: W + scale B A, computed in float32.

    The prefix `base_model.model.` goes; of modules that were saved whole the trained copy is taken.

    Args:
        state: tensors by the wrapped model's names.
        scale: alpha / rank (alpha / sqrt(rank) for rank-stabilised adapters).
        where: file, for the message.

    Raises:
        CheckpointError: half an adapter is missing.
    """
    short = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    merged: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, value in short.items():
        if ".lora_" in name or ".original_module." in name:
            continue
        plain = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        root = name.removesuffix(".base_layer.weight")
        halves = [f"{root}.lora_{half}.default.weight" for half in "BA"]
        if name.endswith(".base_layer.weight"):
            absent = [half for half in halves if half not in short]
            if absent:
                message = f"{where}: the adapter of {root} is incomplete, {absent[0]} is missing."
                raise CheckpointError(message)
            up, down = (short[half].float() for half in halves)
            value = (value.float() + scale * (up @ down)).to(value.dtype)
            used.update(halves)
        merged[plain] = value
    alone = sorted(name for name in short if ".lora_" in name and name not in used)
    if alone:
        message = f"{where}: adapters of nothing: {', '.join(alone[:4])}."
        raise CheckpointError(message)
    return merged


# -------------------------------------------------------------------------------- the shared body


class QwenInputs:
    """Qwen2-VL's processor with reward tokens added, asked for one sample at a time.

    Args:
        folder: base model: configuration, tokenizer, preprocessing.
        reward_tokens: appended to the tokenizer in this order.
    """

    def __init__(self, folder: Path, reward_tokens: Sequence[str]) -> None:
        from transformers import AddedToken, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(str(folder))
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.add_tokens(
            [AddedToken(token, special=True, normalized=False) for token in reward_tokens],
            special_tokens=True,
        )
        self.reward_ids = [int(self.tokenizer.convert_tokens_to_ids(token)) for token in reward_tokens]
        self.size = len(self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self.pad = int(self.tokenizer.eos_token_id if pad is None else pad)

    def safe(self, prompt: str) -> str:
        """The prompt with special tokens, the reward's own among them, broken by a space."""
        return without_special_tokens(prompt, self.tokenizer)

    def tokens(self, text: str, kind: Literal["image", "video"], grid: Tensor) -> dict[str, Tensor]:
        """One user turn: what is shown, then `text`; the media token is repeated for every merged patch."""
        written = self.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        ids = torch.tensor(self.tokenizer(written, add_special_tokens=False)["input_ids"])
        token = self.tokenizer.convert_tokens_to_ids(getattr(self.processor, f"{kind}_token"))
        places = (ids == token).nonzero().flatten().tolist()
        if len(places) != 1:
            got = f"[{len(places)} places for a {kind}]"
            raise ConfigError(explain("chat template", got=got, expected="one"))
        (place,) = places
        count = int(grid.prod()) // self.processor.image_processor.merge_size**2
        ids = torch.cat([ids[:place], ids.new_full((count,), token), ids[place + 1 :]])
        shown = torch.zeros_like(ids)
        shown[place : place + count] = 1 if kind == "image" else 2
        return {"input_ids": ids, "mm_token_type_ids": shown}


class QwenHeadReward(ModelReward):
    """A Qwen2-VL body whose hidden states at reward tokens go through a float32 head.

    Sub-classes write `prepare` (input_ids, mm_token_type_ids, pixels, grid) and `settings`.

    Args:
        card: what it is.
        base: folder of the base model: configuration, tokenizer, preprocessing.
        body: tensors of the body by today's names, of the head by `rm_head.*`.
        head: from the width of the hidden states to the network that reads them.
        where: the checkpoint, for messages.
        reward_tokens: tokens that are read.
        kind: "image" or "video".
        positions: rotary positions.
        device: where the network stands.
        dtype: of the body.

    Raises:
        CheckpointError: a key is missing or left over, or the vocabulary is too small for the tokenizer.
        ConfigError: `positions` is neither.
    """

    def __init__(
        self,
        card: Card,
        *,
        base: Path,
        body: Mapping[str, Tensor],
        head: Callable[[int], nn.Module],
        where: str,
        reward_tokens: Sequence[str],
        kind: Literal["image", "video"],
        positions: str,
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(card, device=device, dtype=dtype)
        if positions not in ("sequential", "mrope"):
            where = f"reward {card.name} positions"
            raise ConfigError(explain(where, got=positions, expected="sequential or mrope"))
        self.kind, self.positions = kind, positions
        self.inputs = QwenInputs(base, reward_tokens)
        self.network, width = _body(base, body, self.inputs.size, where, dtype)
        self.network.to(self.device).eval().requires_grad_(False)
        with torch.device("meta"):  # no random numbers are drawn, all come from the file
            self.head = head(width)
        heads = {
            name.removeprefix("rm_head."): value
            for name, value in body.items()
            if name.startswith("rm_head.")
        }
        heads = {name: value.float() for name, value in heads.items()}
        fill(self.head, heads, where=f"{where} rm_head", assign=True)
        self.head.to(self.device).eval().requires_grad_(False)

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """Head outputs at the reward tokens, finished by `finish`."""
        rows = [sample.inputs for sample in batch]
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> Tensor:
            parts = [row[name] for row in rows]
            full = [nn.functional.pad(part, (0, longest - len(part)), value=value) for part in parts]
            return torch.stack(full).to(self.device)

        ids = padded("input_ids", self.inputs.pad)
        lengths = torch.tensor([len(row["input_ids"]) for row in rows], device=self.device)
        mask = (torch.arange(longest, device=self.device) < lengths.unsqueeze(1)).long()
        pixels = torch.cat([row["pixels"] for row in rows]).to(self.device, self.dtype)
        grid = torch.cat([row["grid"] for row in rows]).to(self.device)
        media = "pixel_values" if self.kind == "image" else "pixel_values_videos"
        states = self.network(
            input_ids=ids,
            attention_mask=mask,
            position_ids=self._positions(len(rows), longest),
            mm_token_type_ids=padded("mm_token_type_ids", 0),
            use_cache=False,
            **{media: pixels, f"{self.kind}_grid_thw": grid},
        ).last_hidden_state
        return self.finish(at_tokens(self.head(states.float()), ids, self.inputs.reward_ids))

    def _positions(self, rows: int, length: int) -> Tensor | None:
        """Plain positions on all three rotary axes; None lets the library build its own.

        Rows are padded on the right, so plain positions are those of a row that stands alone.
        """
        if self.positions == "mrope":
            return None
        return torch.arange(length, device=self.device).view(1, 1, -1).expand(3, rows, -1)

    def finish(self, read: Float[Tensor, "sample column"]) -> Float[Tensor, "sample output"]:
        """From what the head says at the tokens to the card's outputs."""
        return read


def _body(
    base: Path, state: Mapping[str, Tensor], vocabulary: int, where: str, dtype: torch.dtype
) -> tuple[Any, int]:
    """The network without its language head, filled; and the width of its hidden states."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, Qwen2VLModel

    config = AutoConfig.from_pretrained(str(base))
    renamed = {qwen_key(name): value.to(dtype) for name, value in state.items() if qwen_key(name)}
    embedding = renamed.get("language_model.embed_tokens.weight")
    if embedding is None:
        message = f"{where}: no model.embed_tokens.weight; its keys start with {sorted(state)[:3]}."
        raise CheckpointError(message)
    if len(embedding) < vocabulary:
        message = explain(
            f"{where} vocabulary",
            got=len(embedding),
            expected=f"at least the tokenizer's {vocabulary} tokens",
        )
        raise CheckpointError(message)
    config.text_config.vocab_size = len(embedding)
    with init_empty_weights(include_buffers=False):
        network = Qwen2VLModel(config)
    fill(network, {str(name): value for name, value in renamed.items()}, where=where, assign=True)
    left = sorted(
        name for name in state if not qwen_key(name) and not name.startswith(("rm_head.", "lm_head."))
    )
    if left:
        message = f"{where}: keys that belong to nothing: {', '.join(left[:6])}."
        raise CheckpointError(message)
    return network, int(config.text_config.hidden_size)
