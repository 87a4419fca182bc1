"""Checklists: yes-or-no questions about a picture, each answer P(yes) - P(no), added up with linear weights.

The idea is VisionReward's (arXiv 2412.21059), with any chat model and with probabilities in place of +-1; its
weights are fitted by logistic regression on preference pairs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from mmalign.errors import ConfigError, HyperparameterError, ShapeError, explain
from mmalign.files import atomic_write
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample
from mmalign.rewards.vision_language import ChatModel, sample_media

__all__ = ["Check", "Checklist", "ChecklistReward", "fit_weights", "load_checklist", "save_checklist"]


class Check(BaseModel):
    """One question.

    Args (fields):
        id: short name, unique in its list.
        question: put to the model; `{}`, where it stands, is the prompt.
        weight: of its answer in the score.
        requires: id of an earlier question; where that one's answer leans to no, this one counts nothing (no
            hands, no malformed hands).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    question: str = Field(min_length=1)
    weight: float = 0.0
    requires: str | None = None


class Checklist(BaseModel):
    """Questions, their weights and an intercept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    intercept: float = 0.0
    yes: str = "yes"
    no: str = "no"
    questions: tuple[Check, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _agree(self) -> "Checklist":
        seen: set[str] = {"score"}  # the name of the sum
        for check in self.questions:
            if check.id in seen:
                raise ValueError(explain("questions id", got=check.id, expected="each id once"))
            if check.requires is not None and check.requires not in seen:
                raise ValueError(
                    explain(
                        f"{check.id} requires", got=check.requires, expected="the id of an earlier question"
                    )
                )
            seen.add(check.id)
        return self

    def sha256(self) -> str:
        """Hexadecimal hash of all fields."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def features(self, answers: Float[Tensor, "sample question"]) -> Float[Tensor, "sample question"]:
        """Answers P(yes) - P(no), zero where the question they require leans to no."""
        order = {check.id: place for place, check in enumerate(self.questions)}
        columns: list[Tensor] = []
        counts: list[Tensor] = []
        for place, check in enumerate(self.questions):
            column = answers[:, place]
            open_ = torch.ones_like(column, dtype=torch.bool)
            if check.requires is not None:
                before = order[check.requires]
                open_ = counts[before] & (answers[:, before] > 0)
            counts.append(open_)
            columns.append(torch.where(open_, column, torch.zeros_like(column)))
        return torch.stack(columns, dim=1)

    def score(self, features: Float[Tensor, "sample question"]) -> Float[Tensor, " sample"]:
        """Intercept + sum of weight * feature."""
        weights = features.new_tensor([check.weight for check in self.questions])
        return features @ weights + self.intercept

    def with_weights(self, weights: Sequence[float], intercept: float = 0.0) -> "Checklist":
        """The same questions with other weights.

        Raises:
            ShapeError: another number of weights than questions.
        """
        if len(weights) != len(self.questions):
            expected = f"{len(self.questions)}, one per question"
            raise ShapeError(explain("checklist weights", got=len(weights), expected=expected))
        questions = tuple(
            check.model_copy(update={"weight": float(weight)})
            for check, weight in zip(self.questions, weights, strict=True)
        )
        return self.model_copy(update={"questions": questions, "intercept": float(intercept)})


def load_checklist(path: str | Path) -> Checklist:
    """A checklist from a YAML (or JSON) file.

    Raises:
        ConfigError: it cannot be read, or a field is unknown or wrong.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = explain(
            f"checklist {path}", got=type(error).__name__, expected="a YAML file that can be read"
        )
        raise ConfigError(message) from error
    if not isinstance(content, dict):
        raise ConfigError(explain(f"checklist {path}", got=type(content).__name__, expected="a mapping"))
    try:
        return Checklist.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"{path} {'.'.join(str(part) for part in first['loc'])}".strip()
        message = explain(where, got=first.get("input"), expected=first["msg"])
        raise ConfigError(message) from error


def save_checklist(checklist: Checklist, path: str | Path) -> None:
    """Write it as YAML that `load_checklist` reads."""
    content = checklist.model_dump(mode="json", exclude_none=True)
    atomic_write(Path(path), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def fit_weights(
    chosen: Float[Tensor, "pair question"],
    rejected: Float[Tensor, "pair question"],
    *,
    ridge: float = 1e-3,
    steps: int = 100,
) -> Float[Tensor, " question"]:
    """Weights w that minimise mean(-log sigmoid(w . (chosen - rejected))) + ridge / 2 |w|^2, float64.

    Newton's method with halved steps; the problem is convex, so the answer does not depend on a start. An
    intercept cannot be told from pairs.

    Args:
        chosen: features of the preferred things (`Checklist.features`).
        rejected: features of the others.
        ridge: > 0; keeps weights finite where pairs are separable.
        steps: at most.

    Raises:
        HyperparameterError: ridge is not above 0.
        ShapeError: no pairs.
    """
    if not ridge > 0.0:
        raise HyperparameterError(explain("fit_weights ridge", got=ridge, expected="a number above 0"))
    if len(chosen) == 0:
        raise ShapeError(explain("fit_weights", got="[no pairs]", expected="at least one"))
    difference = (chosen - rejected).double()

    def cost(weights: Tensor) -> Tensor:
        return F.softplus(-(difference @ weights)).mean() + ridge / 2 * weights.square().sum()

    weights = torch.zeros(difference.shape[1], dtype=torch.float64, device=difference.device)
    unit = torch.eye(len(weights), dtype=torch.float64, device=difference.device)
    for _ in range(steps):
        wrong = torch.sigmoid(-(difference @ weights))
        slope = ridge * weights - difference.T @ wrong / len(difference)
        if float(slope.abs().max()) < 1e-12:
            break
        spread = wrong * (1 - wrong) / len(difference)
        move = torch.linalg.solve(difference.T @ (spread.unsqueeze(1) * difference) + ridge * unit, slope)
        size, before = 1.0, cost(weights)
        while size > 1e-10 and cost(weights - size * move) > before:
            size /= 2
        weights = weights - size * move
    return weights


class ChecklistReward(ModelReward):
    """A checklist answered by a chat model.

    Args:
        card: what it is; the outputs are score, then one per question.
        model: who is asked.
        checklist: questions and weights.
        rows_at_once: questions asked in one pass, 8; it changes memory, not values.

    Raises:
        ConfigError: yes or no is not one token.
    """

    def __init__(self, card: Card, model: ChatModel, checklist: Checklist, *, rows_at_once: int = 8) -> None:
        super().__init__(card, device=model.device, dtype=model.network.dtype)
        self.model, self.checklist, self.rows_at_once = model, checklist, rows_at_once
        self.yes, self.no = model.token(checklist.yes), model.token(checklist.no)

    def prepare(self, sample: Sample) -> Prepared:
        """All questions about a picture or clip.

        Raises:
            RowError: nothing is shown (`missing_media`), or it cannot be read.
        """
        shown = [self.model.shown(sample_media(sample), where="Sample.image")]
        prompt = self.model.safe(sample.prompt)
        asked = [
            self.model.question(check.question.replace("{}", prompt), shown)
            for check in self.checklist.questions
        ]
        return Prepared({"questions": asked})

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """(score, every question's feature)."""
        rows = [row for sample in batch for row in sample.inputs["questions"]]
        parts = [
            self.model.logits(rows[start : start + self.rows_at_once])[:, 0]
            for start in range(0, len(rows), self.rows_at_once)
        ]
        chances = torch.cat([part.softmax(dim=1)[:, [self.yes, self.no]] for part in parts]).double()
        answers = (chances[:, 0] - chances[:, 1]).reshape(len(batch), len(self.checklist.questions))
        features = self.checklist.features(answers)
        return torch.cat([self.checklist.score(features).unsqueeze(1), features], dim=1)

    def settings(self) -> Mapping[str, Any]:
        """The model's hashes, and the checklist's."""
        return {
            **self.model.settings(),
            "checklist": self.checklist.name,
            "templates": [self.checklist.sha256()],
        }
