"""Answers written by the model: prompts of rows, many at a time, filled up in front."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmalign.batch import PreferenceRow
from mmalign.seeding import derive_seed
from mmalign.sharded import is_sharded
from mmalign.vlm.inputs import Medium, PromptTokens
from mmalign.vlm.network import bare

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["generate", "stops"]


@torch.no_grad()
def generate(
    model: "VlmModel",
    rows: Sequence[PreferenceRow],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    network: nn.Module | None = None,
) -> list[str]:
    """Answers to the prompts of rows, in their order, without the token that ends a turn.

    Args:
        model: the loaded family.
        rows: their candidates are not looked at.
        max_new_tokens: of one answer.
        temperature: 0 takes the likeliest token.
        seed: of the draws; the answer of a row also depends on the rows it is written together with.
        batch_size: prompts written together.
        network: another network of the same kind, for example a frozen copy.

    Raises:
        RowError: a prompt cannot be read.
    """
    prompts = [model.reader.prompt(row) for row in rows]
    # Prompts of like length together: less to fill up.
    order = sorted(range(len(prompts)), key=lambda number: prompts[number].ids.shape[0])
    answers: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        texts = _together(
            model,
            [prompts[number] for number in members],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=derive_seed(seed, "answers", start),
            network=bare(model.network if network is None else network).model,
        )
        answers.update(zip(members, texts, strict=True))
    return [answers[number] for number in range(len(prompts))]


def _together(
    model: "VlmModel",
    prompts: Sequence[PromptTokens],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    network: Any,
) -> list[str]:
    """One batch."""
    traits, device = model.traits, model.device
    pad = traits.tokenizer.pad_token_id
    inputs = {
        "input_ids": _in_front(
            [prompt.ids for prompt in prompts], traits.tokenizer.eos_token_id if pad is None else pad
        ),
        "attention_mask": _in_front([torch.ones_like(prompt.ids) for prompt in prompts], 0),
        **traits.generation_arguments(_in_front([prompt.kinds for prompt in prompts], 0)),
        **_media(model, prompts),
    }
    ends = stops(model, network)
    drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        drawn = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        tokens = network.generate(
            **{name: value.to(device) for name, value in inputs.items()},
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0] if pad is None else pad,
            use_cache=True,
            # Every process takes part in every step of a sharded network, also when its answers are complete.
            **({"synced_gpus": True} if any(map(is_sharded, network.parameters())) else {}),
            **drawn,
        )
    written = tokens[:, inputs["input_ids"].shape[1] :]
    texts: list[str] = traits.tokenizer.batch_decode(
        written, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    lead = model.reader.seam.lead
    return [text.removeprefix(lead).rstrip() for text in texts]


def _in_front(rows: Sequence[Tensor], value: int) -> Tensor:
    length = max(row.shape[0] for row in rows)
    return torch.stack(
        [torch.nn.functional.pad(row, (length - row.shape[0], 0), value=value) for row in rows]
    )


def _media(model: "VlmModel", prompts: Sequence[PromptTokens]) -> dict[str, Tensor]:
    """Media of all prompts as the model's own forward takes them, each as often as it is shown."""
    made: dict[str, Tensor] = {}
    for kind in ("image", "video"):
        shown: list[Medium] = [medium for prompt in prompts for medium in prompt.media if medium.kind == kind]
        if shown:
            made |= model.traits.together(kind, [medium.tensors for medium in shown])
    return {name: _in_dtype(value, model) for name, value in made.items()}


def _in_dtype(value: Tensor, model: "VlmModel") -> Tensor:
    return value.to(model.bare_network.dtype) if value.is_floating_point() else value


def stops(model: "VlmModel", network: Any) -> list[int]:
    """Tokens that end an answer: the generation config's, and what training ends turns with."""
    own = network.generation_config.eos_token_id
    named = [own] if isinstance(own, int) else list(own or [])
    end = model.traits.tokenizer(model.reader.seam.end, add_special_tokens=False)["input_ids"]
    return list(dict.fromkeys([*named, *end[-1:]]))
