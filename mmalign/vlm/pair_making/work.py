"""A plan at work: its models, rows and stages, and what a recipe makes of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.batch import PreferenceRow
from mmalign.data.pair_making.stages import Stages
from mmalign.vlm.pair_making.baselines import best_answers, conditioned_answers
from mmalign.vlm.pair_making.loading import Models
from mmalign.vlm.pair_making.on_policy import OwnAnswers, own_answers
from mmalign.vlm.pair_making.output import MadeAnswer, MadePair
from mmalign.vlm.pair_making.painters import Tools
from mmalign.vlm.pair_making.plan import DialoguePairPlan
from mmalign.vlm.pair_making.requests import Sampling
from mmalign.vlm.pair_making.writing import VlmWriter

__all__ = ["Made", "Work"]


@dataclass
class Made:
    """What a recipe gives: pairs, or rows in a layout of their own, or a file that somebody has to write."""

    pairs: list[MadePair] | list[MadeAnswer] = field(default_factory=list)
    records: list[tuple[PreferenceRow, dict[str, Any]]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    waits_for: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """A plan with its models, rows and stages."""

    plan: DialoguePairPlan
    models: Models
    rows: list[PreferenceRow]
    stages: Stages
    tools: Tools = field(default_factory=Tools)

    @property
    def sampling(self) -> Sampling:
        """How the plan draws answers."""
        chosen = self.plan.sampling
        return Sampling(chosen.max_new_tokens, chosen.temperature, chosen.top_p, chosen.repetition_penalty)

    def own_answers(self) -> list[OwnAnswers]:
        """Answers of the policy to every row."""
        write = VlmWriter(self.models.policy, self.plan.batch_size)
        number = 1 if self.plan.recipe == "correct" else self.plan.sampling.num_answers
        return own_answers(self.rows, write, self.stages, num_answers=number, sampling=self.sampling)

    def imitated(
        self,
        answers: Sequence[OwnAnswers],
        scores: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ) -> Made:
        """Rows of scored answers to imitate: the best, or all under their marks."""
        if self.plan.rows == "best":
            best, counts = best_answers(answers)
            return Made(best, [], counts)
        missing = float("nan")
        name = self.plan.conditioned.name
        tables = scores or {name: [one.scores or (missing,) * len(one.texts) for one in answers]}
        made, counts, asked = conditioned_answers(answers, tables, self.plan.conditioned)
        return Made(made, [], counts, facts={"ask_for": asked})
