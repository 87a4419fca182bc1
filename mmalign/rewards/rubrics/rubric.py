"""One rubric: its fields, what must agree between them, its hash and how its answers are read."""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmalign.errors import ConfigError, explain
from mmalign.rewards import verdicts
from mmalign.rewards.verdicts import Choice

__all__ = ["OUTPUTS", "Output", "Rubric"]

Output = Literal["result", "final_score", "phrase", "answer_tag", "digit"]

OUTPUTS: dict[str, tuple[Output, ...]] = {
    "score": ("result", "final_score", "digit"),
    "compare": ("result", "phrase", "answer_tag", "digit"),
}
"""Output grammars of rubrics that score one thing and of rubrics that compare two."""

_LETTERS: dict[str, Choice] = {"A": "one", "B": "two"}
_DIGITS: dict[str, Choice] = {"1": "one", "2": "two"}


class Rubric(BaseModel):
    """What a judge is asked about one thing (`score`) or two (`compare`).

    Two rubrics with the same fields have the same hash, whatever their files' layout and comments.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="as users type it; lower case, digits, _")
    kind: Literal["score", "compare"] = Field(
        "score", description="one thing gets a score, or two are compared"
    )
    subject: Literal["image", "video", "answer"] = Field("answer", description="what is judged")
    instruction: str = Field(min_length=1, description="what to look at, and what not")
    low: int = Field(1, description="least score")
    high: int = Field(5, description="greatest score")
    levels: dict[int, str] = Field(
        default_factory=dict, description="score: what deserves it; none, or one for every score"
    )
    reference: str | None = Field(
        None, description="an answer that deserves the greatest score, where one fits every item"
    )
    images: int = Field(
        0, ge=0, le=64, description="pictures or clips shown before the text, judged ones last"
    )
    output: Output = Field("result", description="grammar of the answer")
    source: str = Field("", description="paper or repository the rubric follows")

    @model_validator(mode="after")
    def _agree(self) -> "Rubric":
        """Fields that exclude each other are an error where the file is read, not where it is scored."""
        if self.output not in OUTPUTS[self.kind]:
            expected = f"one of {', '.join(OUTPUTS[self.kind])} where kind is {self.kind}"
            raise ValueError(explain("output", got=self.output, expected=expected))
        if self.low >= self.high:
            raise ValueError(explain("high", got=self.high, expected=f"more than low, {self.low}"))
        if self.output == "digit" and self.kind == "score" and not (self.low >= 0 and self.high <= 9):
            got = f"{self.low} to {self.high}"
            raise ValueError(explain("low and high", got=got, expected="0 to 9 where output is digit"))
        if self.kind == "score" and self.levels and set(self.levels) != set(self.scale):
            missing = sorted(set(self.scale) ^ set(self.levels))
            expected = f"none, or one for every score from {self.low} to {self.high}"
            raise ValueError(
                explain("levels", got=sorted(self.levels), expected=expected, do=f"See {missing}.")
            )
        judged = self.num_candidates if self.subject != "answer" else 0
        if self.images < judged:
            expected = (
                f"at least the {judged} {self.subject}s that are judged" if judged > 1 else "at least 1"
            )
            raise ValueError(explain("images", got=self.images, expected=expected))
        return self

    @property
    def num_candidates(self) -> int:
        """How many things are judged at once: 1 or 2."""
        return 1 if self.kind == "score" else 2

    @property
    def scale(self) -> tuple[int, ...]:
        """Every score, least first."""
        return tuple(range(self.low, self.high + 1))

    @property
    def noun(self) -> str:
        """What a candidate is called in the text: Image, Video or Answer."""
        return self.subject.capitalize()

    @property
    def tokens(self) -> tuple[str, ...]:
        """What logit mode compares: the scores as digits, or the names of the two candidates.

        Raises:
            ConfigError: the rubric's answer does not start with them; only `digit` does.
        """
        if self.output != "digit":
            message = explain(
                f"rubric {self.name} output",
                got=self.output,
                expected="digit for logit mode",
                do="Other grammars reason before they decide: generate, then parse.",
            )
            raise ConfigError(message)
        return tuple(str(score) for score in self.scale) if self.kind == "score" else ("1", "2")

    def sha256(self) -> str:
        """Hexadecimal hash of all fields; part of a judge's fingerprint."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def read_score(self, text: str) -> float | None:
        """The score in an answer, or None where there is no valid one.

        Raises:
            ConfigError: the rubric compares.
        """
        self._require("score", "read_choice")
        if self.output == "final_score":
            return verdicts.final_score(text, low=self.low, high=self.high)
        if self.output == "result":
            found = verdicts.prometheus_score(text, low=self.low, high=self.high)
            return None if found is None else float(found)
        said = _alone(text)
        return float(said) if said in {str(score) for score in self.scale} else None

    def read_choice(self, text: str) -> Choice | None:
        """Which of the two an answer prefers, or None where it says nothing valid.

        Raises:
            ConfigError: the rubric scores one thing.
        """
        self._require("compare", "read_score")
        if self.output == "phrase":
            return verdicts.pair_choice(text, noun=self.noun)
        if self.output == "answer_tag":
            return verdicts.tagged_choice(text, noun=self.noun)
        if self.output == "result":
            return _LETTERS.get(verdicts.prometheus_choice(text) or "")
        return _DIGITS.get(_alone(text))

    def _require(self, kind: str, instead: str) -> None:
        if self.kind != kind:
            message = explain(
                f"rubric {self.name} kind", got=self.kind, expected=kind, do=f"Call {instead} instead."
            )
            raise ConfigError(message)


def _alone(text: str) -> str:
    """The answer without white space and one closing full stop: a digit must be all there is."""
    return text.strip().removesuffix(".")
