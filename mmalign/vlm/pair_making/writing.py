"""A loaded vision-language model as pair makers ask for it: it writes, and judges by yes or no."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from mmalign.batch import PreferenceRow
from mmalign.errors import ConfigError, explain
from mmalign.seeding import derive_seed, generator_for
from mmalign.vlm.generation import stops
from mmalign.vlm.inputs import PromptTokens
from mmalign.vlm.network import bare
from mmalign.vlm.pair_making.requests import Request, Sampling

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["Begun", "VlmWriter", "VlmYesNo", "begin", "first_sentence", "model_inputs"]

_END = re.compile(r"[.!?](?=\s|$)")
_YES = ("Yes", "yes", "YES", " Yes", " yes")
_NO = ("No", "no", "NO", " No", " no")


def first_sentence(text: str) -> str:
    """The text up to its first full stop, exclamation or question mark."""
    found = _END.search(text)
    return text[: found.end()] if found else text


def _in_front(rows: Sequence[Tensor], value: int) -> Tensor:
    """Rows of different length, filled up in front."""
    length = max(row.shape[-1] for row in rows)
    return torch.stack([F.pad(row, (length - row.shape[-1], 0), value=value) for row in rows])


@dataclass(frozen=True, eq=False)
class Begun:
    """A prompt with the beginning of its answer.

    Args:
        prompt: with its media.
        ids: prompt and beginning.
        visible: False where attention is kept away.
    """

    prompt: PromptTokens
    ids: Int[Tensor, " position"]
    visible: Bool[Tensor, " position"]

    @property
    def num_begun(self) -> int:
        """Tokens of the beginning."""
        return self.ids.shape[0] - self.prompt.ids.shape[0]

    @property
    def kinds(self) -> Int[Tensor, " position"]:
        """0 for text, more for visual tokens."""
        return F.pad(self.prompt.kinds, (0, self.num_begun))

    @property
    def positions(self) -> Int[Tensor, "axis position"]:
        """Those of the whole prompt: what is hidden still takes its place."""
        known = self.prompt.positions
        further = self.prompt.following + torch.arange(self.num_begun)
        return torch.cat([known, further.expand(known.shape[0], -1)], dim=1)


def begin(model: "VlmModel", request: Request, seed: int = 0) -> Begun:
    """The prompt of a request with its prefix, and what of it may be seen.

    Args:
        model: of any family.
        request: what is asked for.
        seed: of the visual tokens that are hidden.
    """
    prompt = model.reader.prompt(request.row)
    prefix = model.reader.seam.lead + request.prefix if request.prefix else ""
    more = model.traits.tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    ids = torch.cat([prompt.ids, torch.tensor(more, dtype=torch.int64)])
    visible = torch.ones(ids.shape[0], dtype=torch.bool)
    if request.hidden > 0:
        drawn = torch.rand(prompt.ids.shape[0], generator=generator_for(seed, "visible"))
        visible[: prompt.ids.shape[0]] = (prompt.kinds == 0) | (drawn >= request.hidden)
    return Begun(prompt, ids, visible)


def model_inputs(model: "VlmModel", begun: Sequence[Begun]) -> dict[str, Tensor]:
    """Arguments of the model's own forward for rows that are written together."""
    traits = model.traits
    pad = traits.tokenizer.pad_token_id
    inputs = {
        "input_ids": _in_front(
            [one.ids for one in begun], traits.tokenizer.eos_token_id if pad is None else pad
        ),
        "attention_mask": _in_front([one.visible.long() for one in begun], 0),
        **traits.generation_arguments(_in_front([one.kinds for one in begun], 0)),
    }
    if not all(bool(one.visible.all()) for one in begun):
        # A model that counts positions along the mask would close the gaps that hidden tokens leave.
        places = _in_front([one.positions for one in begun], 0)
        inputs["position_ids"] = places[:, 0] if places.shape[1] == 1 else places.transpose(0, 1)
    for kind in ("image", "video"):
        shown = [medium for one in begun for medium in one.prompt.media if medium.kind == kind]
        if shown:
            inputs |= traits.together(kind, [medium.tensors for medium in shown])
    dtype = model.bare_network.dtype
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).to(model.device)
        for name, value in inputs.items()
    }


@dataclass(frozen=True)
class VlmWriter:
    """Writes answers by a loaded model, from a given beginning and with images hidden where asked.

    Args:
        model: of any family.
        batch_size: requests written together; draws depend on it.
    """

    model: "VlmModel"
    batch_size: int = 8

    def __call__(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[str]:
        """One text per request, without its prefix and the token that ends a turn.

        Raises:
            RowError: a prompt cannot be read.
        """
        begun = [
            begin(self.model, request, derive_seed(seed, "hidden", n)) for n, request in enumerate(requests)
        ]
        order = sorted(range(len(begun)), key=lambda number: begun[number].ids.shape[0])
        texts: dict[int, str] = {}
        for start in range(0, len(order), self.batch_size):
            members = order[start : start + self.batch_size]
            written = self._together(
                [begun[number] for number in members], sampling, derive_seed(seed, "answers", start)
            )
            texts.update(zip(members, written, strict=True))
        return [
            first_sentence(texts[number]) if request.stop_at_sentence else texts[number]
            for number, request in enumerate(requests)
        ]

    @torch.no_grad()
    def _together(self, begun: Sequence[Begun], sampling: Sampling, seed: int) -> list[str]:
        model, tokenizer = self.model, self.model.traits.tokenizer
        inputs = model_inputs(model, begun)
        network = bare(model.network).model
        ends = stops(model, network)
        drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature > 0:
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            tokens = network.generate(
                **inputs,
                max_new_tokens=sampling.max_new_tokens,
                repetition_penalty=sampling.repetition_penalty,
                eos_token_id=ends,
                pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                use_cache=True,
                **drawn,
            )
        texts: list[str] = tokenizer.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        lead = model.reader.seam.lead
        return [text.removeprefix(lead).rstrip() for text in texts]


@dataclass(frozen=True)
class VlmYesNo:
    """Judges by a loaded model: the probabilities of yes and no as the first token of its answer.

    Args:
        model: of any family.
        batch_size: questions judged together.
    """

    model: "VlmModel"
    batch_size: int = 8

    @torch.no_grad()
    def __call__(self, rows: Sequence[PreferenceRow]) -> list[tuple[float, float]]:
        """(of yes, of no) for every row's prompt, each over all ways of writing it.

        Raises:
            RowError: a prompt cannot be read.
            ConfigError: the tokenizer writes yes and no with the same first token.
        """
        words = self._words()
        network = bare(self.model.network).model
        found: list[tuple[float, float]] = []
        for start in range(0, len(rows), self.batch_size):
            prompts = [self.model.reader.prompt(row) for row in rows[start : start + self.batch_size]]
            begun = [Begun(one, one.ids, torch.ones_like(one.ids, dtype=torch.bool)) for one in prompts]
            ends = stops(self.model, network)
            # Generating one token lets the model count its positions along the filling in front.
            made = network.generate(
                **model_inputs(self.model, begun),
                max_new_tokens=1,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=ends,
                pad_token_id=ends[0],
                output_logits=True,
                return_dict_in_generate=True,
            )
            shares = made.logits[0].float().softmax(dim=-1)
            sums = {name: shares[:, ids].sum(dim=-1).tolist() for name, ids in words.items()}
            found += list(zip(sums["yes"], sums["no"], strict=True))
        return found

    def _words(self) -> Mapping[str, list[int]]:
        """First tokens of each word in all its spellings, those of both left out."""
        tokenizer, lead = self.model.traits.tokenizer, self.model.reader.seam.lead

        def first(words: Sequence[str]) -> set[int]:
            ids = (tokenizer(lead + word, add_special_tokens=False)["input_ids"] for word in words)
            skipped = len(tokenizer(lead, add_special_tokens=False)["input_ids"]) if lead else 0
            return {found[skipped] if skipped < len(found) else found[-1] for found in ids if found}

        yes, no = first(_YES), first(_NO)
        if not (yes - no and no - yes):
            message = explain(
                "yes and no", got="[the same first token]", expected="tokens that tell them apart"
            )
            raise ConfigError(message)
        return {"yes": sorted(yes - no), "no": sorted(no - yes)}
