"""Aligning the toy language model with one objective of the catalogue, and measuring what came of it.

The objective is used as anyone would: scores of tokens, a mask and labels in, a loss per prompt out. What
else it reads (`row.needs`) is provided by name; `lacking` says what this world cannot provide.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign import objectives
from mmalign.batch import DataKind, Labels
from mmalign.errors import TrainingError
from mmalign.likelihood.token_statistics import normalised_entropy
from mmalign.objectives.tokenwise import shared_subset
from mmalign.seeding import generator_for
from mmalign.toy.token_model import answer_mask, load_base, sample, token_logits
from mmalign.toy.token_world import (
    CONDITIONS,
    FOREIGN_WRITER,
    Answer,
    Pair,
    Prompt,
    encode_answer,
    encode_prompt,
    flip_labels,
    judge,
    label_pairs,
    prompts,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

__all__ = [
    "Measured",
    "Setting",
    "View",
    "align",
    "base_measured",
    "lacking",
    "measure",
    "pairs_of",
    "view_of",
]

SEQUENCES_PER_STEP = 64
"""Answers per optimiser step, whatever the data look like: 32 pairs, 16 lists, 64 thumbs."""

PER_PROMPT = 4
"""Answers per prompt: as candidates, and when a model is judged."""


@dataclass(frozen=True)
class Setting:
    """One training run.

    Args:
        objective: name in the registry.
        arguments: of its builder.
        condition: name of the data's `Condition`.
        learning_rate: peak.
        steps: optimiser steps.
        seed: of the data and the order.
    """

    objective: str
    arguments: Mapping[str, float | int | str | bool]
    condition: str = "mixed"
    learning_rate: float = 1e-3
    steps: int = 80
    seed: int = 0


@dataclass(frozen=True)
class View:
    """One data set as one kind of rows, as tensors; the same answers in every kind.

    Args:
        prompt: tokens of the prompts.
        answer: tokens of the answers.
        mask: 1 for words and the end.
        reference: log-probability of each word under the base.
        worth: what the labellers thought of each answer.
        liked: unpaired rows: thumb up.
        kind: pairs, lists or unpaired.
    """

    prompt: Int[Tensor, "prompt word"]
    answer: Int[Tensor, "prompt candidate place"]
    mask: Float[Tensor, "prompt candidate place"]
    reference: Float[Tensor, "prompt candidate place"]
    worth: Float[Tensor, "prompt candidate"]
    liked: Float[Tensor, "prompt candidate"]
    kind: DataKind

    def rows(self, index: Int[Tensor, " row"]) -> "View":
        """Some of its rows, cut behind their longest answer."""
        longest = int(self.mask[index].sum(-1).max())
        return View(
            self.prompt[index],
            self.answer[index, :, :longest],
            self.mask[index, :, :longest],
            self.reference[index, :, :longest],
            self.worth[index],
            self.liked[index],
            self.kind,
        )

    def labels(self) -> Labels:
        """What the data say."""
        if self.kind == "pairs":
            return Labels.pairs(len(self.prompt))
        if self.kind == "lists":
            return Labels(relevance=self.worth)
        return Labels(desirable=self.liked > 0)


# ------------------------------------------------------------------------------------------------------- data


@functools.cache
def _base() -> "LlamaForCausalLM":
    return load_base().eval().requires_grad_(False)


@functools.cache
def pairs_of(condition: str, seed: int, split: str = "train") -> tuple[Pair, ...]:
    """Two labelled pairs of every prompt of a split, from four answers each.

    Flips are applied to the training split only: elsewhere a label means something.

    Args:
        condition: name of a `Condition`.
        seed: of the answers, the labels and the flips.
        split: "train", "validation" or "test".
    """
    chosen = CONDITIONS[condition]
    asked: Sequence[Prompt] = getattr(prompts(), split)
    own = sample(_base(), asked, seed=seed, per_prompt=PER_PROMPT)
    generator = generator_for(seed, "token_pairs", condition, split)
    pairs: list[Pair] = []
    for prompt, answers in zip(asked, own, strict=True):
        foreign = float(torch.rand((), generator=generator)) < chosen.foreign
        drawn = [FOREIGN_WRITER.answer(prompt, generator) for _ in answers] if foreign else answers
        pairs += label_pairs(prompt, drawn, chosen, generator)
    return tuple(flip_labels(pairs, chosen.flips if split == "train" else 0.0, generator))


@functools.cache
def view_of(condition: str, seed: int, kind: DataKind, split: str = "train") -> View:
    """The pairs of `pairs_of` as pairs, as lists of four, or as single answers with a thumb."""
    pairs = pairs_of(condition, seed, split)
    prompt = torch.tensor([encode_prompt(pair.prompt) for pair in pairs])
    answer = torch.tensor([[encode_answer(pair.chosen), encode_answer(pair.rejected)] for pair in pairs])
    worth = torch.tensor([pair.worth for pair in pairs])
    liked = torch.tensor([1.0, 0.0]).expand(len(pairs), 2)
    if kind == "lists":
        prompt = prompt[::2]
        answer, worth, liked = (value.unflatten(0, (-1, 2)).flatten(1, 2) for value in (answer, worth, liked))
    elif kind == "unpaired":
        prompt = prompt.repeat_interleave(2, dim=0)
        answer, worth, liked = (value.flatten(0, 1).unsqueeze(1) for value in (answer, worth, liked))
    with torch.no_grad():
        reference = _log_probs(_base(), prompt, answer)[0]
    return View(prompt, answer, answer_mask(answer), reference, worth, liked, kind)


def _log_probs(model: torch.nn.Module, prompt: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probability of each word [prompt, candidate, place], of the whole vocabulary there)."""
    rows, candidates = answer.shape[:2]
    logits = token_logits(model, prompt.repeat_interleave(candidates, dim=0), answer.flatten(0, 1))
    every = logits.log_softmax(-1).unflatten(0, (rows, candidates))
    return every.gather(-1, answer.unsqueeze(-1)).squeeze(-1), every


# ----------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class _Moment:
    """Everything an input can be computed from, in one step."""

    view: View
    model: torch.nn.Module
    policy: Float[Tensor, "prompt candidate place"]
    every: Float[Tensor, "prompt candidate place vocabulary"]
    generator: torch.Generator

    @functools.cached_property
    def reference_every(self) -> Float[Tensor, "prompt candidate place vocabulary"]:
        """Log-probabilities of the whole vocabulary under the base."""
        with torch.no_grad():
            return _log_probs(_base(), self.view.prompt, self.view.answer)[1]


def _divergence(moment: _Moment) -> Tensor:
    """KL(base || policy) at every place."""
    reference = moment.reference_every
    return (reference.exp() * (reference - moment.every)).sum(-1)


def _mismatched(moment: _Moment) -> Tensor:
    """Log-ratios of the answers to their neighbours' prompts, [prompt]."""
    view = moment.view
    moved = view.prompt.roll(1, dims=0)
    with torch.no_grad():
        difference = (
            _log_probs(moment.model, moved, view.answer)[0] - _log_probs(_base(), moved, view.answer)[0]
        )
    return (difference * view.mask).sum(-1).flatten()


def _changed(moment: _Moment) -> Tensor:
    """1 for the words of a pair's answer that its other answer does not have."""
    answer, real = moment.view.answer, moment.view.mask.flip(1) > 0
    same = answer.unsqueeze(3) == answer.flip(1).unsqueeze(2)
    return 1.0 - (same & real.unsqueeze(2)).any(-1).float()


def _unsure(moment: _Moment) -> Tensor:
    """The base's entropy as a share of the highest, mean over the words of both answers, [prompt]."""
    mask = moment.view.mask
    return (normalised_entropy(moment.reference_every) * mask).sum((1, 2)) / mask.sum((1, 2))


_FIELDS: Mapping[str, Callable[[_Moment], Tensor]] = MappingProxyType(
    {
        "reference": lambda moment: moment.view.reference,
        "reward": lambda moment: moment.view.worth,
        "length": lambda moment: moment.view.mask.sum(-1),
        "kl": _divergence,
    }
)
_EXTRAS: Mapping[str, Callable[[_Moment], Tensor]] = MappingProxyType(
    {
        "mismatched_log_ratio": _mismatched,
        "log_sum_squares": lambda moment: (2.0 * moment.every).logsumexp(-1),
        "changed": _changed,
        "reference_entropy": _unsure,
        "kept_positions": lambda moment: shared_subset(moment.view.mask, generator=moment.generator).float(),
    }
)


def lacking(name: str) -> list[str]:
    """What the objective reads and this world cannot provide, sorted; empty for those that can be run."""
    return sorted(objectives.row(name).needs - _FIELDS.keys() - _EXTRAS.keys())


def _scores(needs: frozenset[str], moment: _Moment) -> objectives.Scores:
    fields = {name: provide(moment) for name, provide in _FIELDS.items() if name in needs}
    return objectives.Scores(
        policy=moment.policy,
        mask=moment.view.mask,
        extras={name: provide(moment) for name, provide in _EXTRAS.items() if name in needs},
        likelihood="tokens",
        **fields,
    )


# --------------------------------------------------------------------------------------------------- training


def align(setting: Setting) -> "LlamaForCausalLM":
    """The base after training with one objective.

    Raises:
        TrainingError: the loss or its gradient stopped being finite.
    """
    objective = objectives.build(setting.objective, **setting.arguments)
    needs = objective.needs
    view = view_of(setting.condition, setting.seed, objectives.row(setting.objective).data)
    model = copy.deepcopy(_base()).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, functools.partial(_warm_cosine, steps=setting.steps)
    )
    state = objectives.ObjectiveState()
    generator = generator_for(setting.seed, "token_order")
    for index in _order(len(view.prompt), view.answer.shape[1], setting.steps, generator):
        batch = view.rows(index)
        policy, every = _log_probs(model, batch.prompt, batch.answer)
        scores = _scores(needs, _Moment(batch, model, policy, every, generator))
        optimizer.zero_grad(set_to_none=True)
        objective(scores, batch.labels(), state).loss.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            message = f"{setting.objective} {dict(setting.arguments)}: the gradient is not finite."
            raise TrainingError(message)
        optimizer.step()
        schedule.step()
    return model.eval()


def _warm_cosine(step: int, steps: int) -> float:
    return min(1.0, 10.0 * (step + 1) / steps) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _order(num: int, candidates: int, steps: int, generator: torch.Generator) -> Sequence[Tensor]:
    """Rows of each step: `SEQUENCES_PER_STEP` answers, every row once before any comes again."""
    wanted = SEQUENCES_PER_STEP // candidates
    rounds = [torch.randperm(num, generator=generator) for _ in range(-(-steps * wanted // num))]
    return list(torch.cat(rounds)[: steps * wanted].split(wanted))


# -------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Measured:
    """What an aligned model is like on held-out prompts.

    Args:
        gains: exact reward minus the base's with the same luck, mean over the answers of each prompt.
        reward: mean exact reward.
        facts: share of asked facts stated rightly.
        courtesy: share of polite endings.
        words: mean length.
        slips: share of words that are slips.
        distinct: different answers among four of a prompt, as a share.
        kl: mean log-ratio of its own answers to the base, in nats: KL(policy || base).
        chosen: mean change of log-probability of held-out chosen answers.
        rejected: the same of rejected ones.
        accuracy: share of held-out pairs, labelled by content, that its log-ratio to the base orders rightly.
    """

    gains: tuple[float, ...] = field(repr=False)
    reward: float
    facts: float
    courtesy: float
    words: float
    slips: float
    distinct: float
    kl: float
    chosen: float
    rejected: float
    accuracy: float


def base_measured(split: str) -> Measured:
    """The base itself, judged on the prompts of a split."""
    return measure(_base(), split=split)


@functools.cache
def _base_rewards(split: str) -> tuple[float, ...]:
    asked: Sequence[Prompt] = getattr(prompts(), split)
    return tuple(_rewards(asked, sample(_base(), asked, seed=1, per_prompt=PER_PROMPT)))


def _rewards(asked: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> list[float]:
    return [
        sum(judge(prompt, answer).reward for answer in given) / len(given)
        for prompt, given in zip(asked, answers, strict=True)
    ]


@torch.no_grad()
def measure(model: "LlamaForCausalLM", *, split: str = "test", condition: str = "clean") -> Measured:
    """Judge a model on the prompts of a split.

    Args:
        model: aligned.
        split: "validation" or "test".
        condition: whose held-out pairs say what happens to chosen and rejected answers.
    """
    asked: Sequence[Prompt] = getattr(prompts(), split)
    answers = sample(model, asked, seed=1, per_prompt=PER_PROMPT)
    rewards = _rewards(asked, answers)
    seen = [judge(prompt, answer) for prompt, given in zip(asked, answers, strict=True) for answer in given]
    own = torch.tensor([[encode_answer(answer) for answer in given] for given in answers])
    asked_tokens = torch.tensor([encode_prompt(prompt) for prompt in asked])
    ratio = _log_probs(model, asked_tokens, own)[0] - _log_probs(_base(), asked_tokens, own)[0]
    held_out = view_of(condition, 1, "pairs", split)
    moved = _log_probs(model, held_out.prompt, held_out.answer)[0] - held_out.reference
    u = (moved * held_out.mask).sum(-1)
    decided = held_out.worth[:, 0] > held_out.worth[:, 1]

    def mean(of: str) -> float:
        return float(sum(getattr(judgement, of) for judgement in seen)) / len(seen)

    return Measured(
        gains=tuple(new - old for new, old in zip(rewards, _base_rewards(split), strict=True)),
        reward=sum(rewards) / len(rewards),
        facts=mean("facts"),
        courtesy=mean("courtesy"),
        words=mean("words"),
        slips=mean("slips"),
        distinct=sum(len(set(given)) / len(given) for given in answers) / len(answers),
        kl=float((ratio * answer_mask(own)).sum(-1).mean()),
        chosen=float(u[:, 0].mean()),
        rejected=float(u[:, 1].mean()),
        accuracy=float((u[decided, 0] > u[decided, 1]).float().mean()),
    )
