"""Rows of a micro-batch: a prompt and its images once, and behind them every answer that shares them.

    [prompt | answer 1 | answer 2 | ...]

An answer sees the prompt and its own tokens before; positions of every answer start behind the prompt. So a
row gives the hidden states that one row per answer would give, at the cost of one prompt: attention depends
on what is seen and on positions, not on where things lie. Answers under other images have other prompts and
go to rows of their own; answers that stand aside, through which nothing flows back, to rows that are read
without gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmalign.likelihood.stored_tokens import CONTENT_KEY
from mmalign.likelihood.token_table import content_key
from mmalign.vlm.inputs import AnswerTokens, MediaKind, Medium, PromptTokens, Visual, VlmInputs

__all__ = ["Join", "answers_of", "inputs_of", "lay_out", "padded", "visible"]

Join = Callable[[MediaKind, Sequence[Medium], bool], tuple[list[Mapping[str, Tensor]], list[int]]]
"""Media of one kind to the groups of tensors that a vision tower reads, and the place of each medium's
features among those of all, in the order the media were given. True wants one group, in that order."""

_KINDS: dict[MediaKind, int] = {"image": 1, "video": 2}

Example = Mapping[str, Any]
"""`prompts` and `answers` of one row, as `mmalign.vlm.reader` makes them."""


@dataclass
class _Rows:
    """Rows under construction."""

    ids: list[Tensor] = field(default_factory=list)
    kinds: list[Tensor] = field(default_factory=list)
    segment: list[Tensor] = field(default_factory=list)
    step: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    blocks: list[Tensor] = field(default_factory=list)
    media: list[tuple[Medium, ...]] = field(default_factory=list)

    def add(self, prompt: PromptTokens, answers: Sequence[AnswerTokens]) -> list[tuple[int, int]]:
        """A row of a prompt and answers: its number, and where each answer starts in it."""
        row, start, length = len(self.ids), prompt.ids.shape[0], prompt.ids.shape[0]
        axes = prompt.positions.shape[0]
        ids, kinds, segment = [prompt.ids], [prompt.kinds], [torch.zeros_like(prompt.ids)]
        step, positions = [torch.arange(length)], [prompt.positions]
        begins = []
        for number, answer in enumerate(answers, start=1):
            tokens = torch.arange(answer.ids.shape[0])
            begins.append((row, start))
            ids.append(answer.ids)
            kinds.append(torch.zeros_like(answer.ids))
            segment.append(torch.full_like(answer.ids, number))
            step.append(length + tokens)
            positions.append((prompt.following + tokens).expand(axes, -1))
            start += answer.ids.shape[0]
        self.ids.append(torch.cat(ids))
        self.kinds.append(torch.cat(kinds))
        self.segment.append(torch.cat(segment))
        self.step.append(torch.cat(step))
        self.positions.append(torch.cat(positions, dim=1))
        if prompt.blocks is not None:
            behind = torch.full((start - length,), -1)
            self.blocks.append(torch.cat([prompt.blocks, behind]))
        self.media.append(prompt.media)
        return begins


def padded(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    """Rows of different lengths as one tensor, filled up behind (the last axis)."""
    length = max(row.shape[-1] for row in rows)
    return torch.stack(
        [torch.nn.functional.pad(row, (0, length - row.shape[-1]), value=value) for row in rows]
    )


def lay_out(examples: Sequence[Example], join: Join, *, packed: bool, native: bool) -> dict[str, Any]:
    """One micro-batch as a flat dictionary: `clean`, `mask`, `recorded.*`, and what `inputs_of` reads.

    Args:
        examples: rows.
        join: puts media together.
        packed: answers of one prompt share its row.
        native: every row brings its own copy of its media, for the model's own forward.
    """
    if any(example.get("aside") for example in examples):
        return _parted(examples, join, packed=packed, native=native)
    rows = _Rows()
    sources: list[tuple[int, int, int]] = []  # (row, index of the prompt's last token, start) of every answer
    for example in examples:
        prompts, answers = example["prompts"], example["answers"]
        begins: dict[int, tuple[int, int]] = {}
        for number, prompt in enumerate(prompts):
            own = [place for place, answer in enumerate(answers) if answer.prompt == number]
            for together in [own] if packed else [[place] for place in own]:
                starts = rows.add(prompt, [answers[place] for place in together])
                begins.update(zip(together, starts, strict=True))
        for place, answer in enumerate(answers):
            row, start = begins[place]
            sources.append((row, prompts[answer.prompt].ids.shape[0] - 1, start))
    collated = _answers(examples)
    length = max(row.shape[0] for row in rows.ids)
    every = [answer for example in examples for answer in example["answers"]]
    collated["inputs.source"] = torch.cat(
        [_predictors(answer, place, length) for answer, place in zip(every, sources, strict=True)]
    )
    collated["inputs.ids"] = padded(rows.ids)
    collated["inputs.kinds"] = padded(rows.kinds)
    collated["inputs.segment"] = padded(rows.segment, -1)
    collated["inputs.step"] = padded(rows.step)
    if any(
        row.shape[0] > 1 or not torch.equal(row[0], step)
        for row, step in zip(rows.positions, rows.step, strict=True)
    ):
        collated["inputs.positions"] = padded(rows.positions).transpose(0, 1).contiguous()
    if rows.blocks:
        collated["inputs.blocks"] = padded(rows.blocks, -1)
    for kind in _KINDS:
        collated |= _media(kind, rows, collated["inputs.kinds"], join, native=native)
    collated["is_packed"] = any(bool((row > 1).any()) for row in rows.segment)
    collated["native"] = native
    # The prompt's last token predicts the first of every answer.
    shortest = min(int((row == 0).sum()) for row in rows.segment)
    collated["num_causal"] = 0 if rows.blocks else max(shortest - 1, 0)
    return collated


def _parted(examples: Sequence[Example], join: Join, *, packed: bool, native: bool) -> dict[str, Any]:
    """The same where answers stand aside: rows of the others, those rows under `aside.`, and the order."""
    sides: tuple[list[Example], list[Example]] = ([], [])
    numbers: tuple[list[Tensor], list[Tensor]] = ([], [])
    counted = 0
    for example in examples:
        aside = set(example["aside"])
        places = [
            [place for place in range(len(example["answers"])) if (place in aside) == side]
            for side in (False, True)
        ]
        for side, own in enumerate(places):
            if own:
                sides[side].append(answers_of(example, own))
        for place, answer in enumerate(example["answers"]):
            number = answer.ids.shape[0]
            numbers[place in aside].append(torch.arange(counted, counted + number))
            counted += number
    learnt, unlearnt = (lay_out(side, join, packed=packed, native=native) for side in sides)
    order = torch.cat([*numbers[False], *numbers[True]]).argsort()
    return {
        **learnt,
        **_answers(examples),
        **{f"aside.{name}": value for name, value in unlearnt.items()},
        "inputs.order": order,
    }


def answers_of(example: Example, places: Sequence[int]) -> dict[str, Any]:
    """The example with those answers, in that order, and the prompts they follow; none stands aside."""
    answers: list[AnswerTokens] = [example["answers"][place] for place in places]
    used = list(dict.fromkeys(answer.prompt for answer in answers))
    return {
        **example,
        "aside": (),
        "prompts": tuple(example["prompts"][number] for number in used),
        "answers": tuple(replace(answer, prompt=used.index(answer.prompt)) for answer in answers),
    }


def _predictors(answer: AnswerTokens, place: tuple[int, int, int], length: int) -> Int[Tensor, " token"]:
    """Flat index of the token before each token of an answer: the prompt's last one, then its own."""
    row, last, start = place
    own = start + torch.arange(answer.ids.shape[0] - 1)
    return row * length + torch.cat([torch.tensor([last]), own])


def _answers(examples: Sequence[Example]) -> dict[str, Any]:
    """Token ids `[prompt, candidate, token]`, their mask and places, and the numbers that the data give."""
    width = max(len(example["answers"]) for example in examples)
    length = max(answer.ids.shape[0] for example in examples for answer in example["answers"])
    shape = (len(examples), width, length)
    clean, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    keys = torch.zeros(shape[:2], dtype=torch.int64)
    recorded: dict[str, Tensor] = {CONTENT_KEY: keys}
    for row, example in enumerate(examples):
        for place, answer in enumerate(example["answers"]):
            number, prompt = answer.ids.shape[0], example["prompts"][answer.prompt]
            keys[row, place] = content_key(
                prompt.ids, *(medium.digest for medium in prompt.media), answer.ids
            )
            clean[row, place, :number], mask[row, place, :number] = answer.ids, 1.0
            for name, value in answer.per_answer.items():
                recorded.setdefault(name, torch.zeros(shape[:2]))[row, place] = value
            for name, values in answer.per_token.items():
                recorded.setdefault(name, torch.zeros(shape))[row, place, :number] = values
    return {
        "clean": clean,
        "mask": mask,
        "inputs.place": mask.flatten().nonzero().squeeze(1),
        **{f"recorded.{name}": value for name, value in recorded.items()},
    }


def _media(
    kind: MediaKind, rows: _Rows, kinds: Int[Tensor, "row position"], join: Join, *, native: bool
) -> dict[str, Any]:
    """Tensors of the distinct media of one kind, and where their features go."""
    shown = [medium for media in rows.media for medium in media if medium.kind == kind]
    if not shown:
        return {}
    distinct = list(
        {(medium.digest, number if native else 0): medium for number, medium in enumerate(shown)}.values()
    )
    groups, begins = join(kind, distinct, native)
    begin_of = {medium.digest: begin for medium, begin in zip(distinct, begins, strict=True)}
    source = [begin_of[medium.digest] + torch.arange(medium.num_tokens) for medium in shown]
    return {
        f"visual.{kind}.place": (kinds.flatten() == _KINDS[kind]).nonzero().squeeze(1),
        f"visual.{kind}.source": torch.cat(source),
        **{
            f"media.{kind}.{number}.{name}": value
            for number, group in enumerate(groups)
            for name, value in group.items()
        },
    }


def inputs_of(collated: Mapping[str, Any]) -> VlmInputs:
    """The inputs in a dictionary made by `lay_out`, wherever its tensors lie now."""
    visual: dict[MediaKind, Visual] = {}
    media: dict[MediaKind, tuple[Mapping[str, Tensor], ...]] = {}
    for kind in _KINDS:
        if f"visual.{kind}.place" in collated:
            visual[kind] = Visual(collated[f"visual.{kind}.place"], collated[f"visual.{kind}.source"])
            groups: dict[str, dict[str, Tensor]] = {}
            for key, value in collated.items():
                if key.startswith(f"media.{kind}."):
                    _, _, number, name = key.split(".", 3)
                    groups.setdefault(number, {})[name] = value
            media[kind] = tuple(groups.values())
    tensors = {
        key.removeprefix("inputs."): value for key, value in collated.items() if key.startswith("inputs.")
    }
    said = {name: collated[name] for name in ("is_packed", "native", "num_causal")}
    own = {key.removeprefix("aside."): value for key, value in collated.items() if key.startswith("aside.")}
    aside = inputs_of(own) if own else None
    return VlmInputs(**tensors, **said, visual=visual, media=media, aside=aside)


def visible(
    inputs: VlmInputs, *, window: int | None = None, first: int = 0
) -> Bool[Tensor, "row 1 query key"]:
    """True where a token (query) sees another (key).

    What comes before and is prompt or the same answer, and what shares a block. A window limits both: a key
    may lie at most `window - 1` tokens back. Tokens behind the end see themselves, so that no softmax is over
    nothing.

    Args:
        inputs: rows.
        window: of sliding attention.
        first: queries before this one are left out.
    """
    segment, length = inputs.segment, inputs.segment.shape[1]
    order = torch.arange(length, device=segment.device)
    later = order[first:].unsqueeze(1)
    query, key = segment[:, first:].unsqueeze(2), segment.unsqueeze(1)
    sees = (later >= order) & ((key == 0) | ((key == query) & (key > 0)))
    if inputs.blocks is not None:
        block = inputs.blocks.unsqueeze(1)
        sees = sees | ((inputs.blocks[:, first:].unsqueeze(2) == block) & (block >= 0))
    if window is not None:
        sees = sees & (inputs.step[:, first:].unsqueeze(2) - inputs.step.unsqueeze(1) < window)
    sees = sees | (later == order)
    return sees.unsqueeze(1)
