"""Pairs of answers that wait to be trained on, and how they survive an interruption.

A pair is kept as tokens, ready to be laid out. A checkpoint holds the number of its row, its key and what was
written; pictures are read again from the data: they would make it a thousand times larger.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from mmalign.batch import Batch, Candidate, Conditioning, Labels, PreferenceRow, RowKeys
from mmalign.errors import CheckpointError
from mmalign.vlm.answer_rounds import prompt_with_room
from mmalign.vlm.drawing import DrawnAnswer
from mmalign.vlm.inputs import AnswerTokens, PromptTokens

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["AnswerItem", "AnswerQueue", "data_pair", "drawn_pair", "restored_queue", "written_pair"]

_UNSCORED = (math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class AnswerItem:
    """One pair.

    Args:
        row: whose prompt it answers.
        key: of the row's visit.
        example: `prompts`, `answers` and `counts`, as `DialogueReader` makes them.
        recipe: what `example` is made of besides row and key, as JSON values.
        scores: of chosen and rejected; NaN where nobody scored.
        preference: probability that the chosen one is preferred.
    """

    row: PreferenceRow
    key: int
    example: Mapping[str, Any]
    recipe: Mapping[str, Any]
    scores: tuple[float, float] = _UNSCORED
    preference: float = 1.0


def drawn_pair(
    row: PreferenceRow,
    key: int,
    prompt: PromptTokens,
    answers: tuple[DrawnAnswer, DrawnAnswer],
    scores: tuple[float, float],
    *,
    room: int,
) -> AnswerItem:
    """Two answers of the policy, token by token as it drew them.

    Args:
        row: whose prompt it is.
        key: of the row's visit.
        prompt: what was answered.
        answers: the better one and the worse one.
        scores: of both.
        room: tokens that the prompt was fitted for.
    """
    recipe = {
        "ids": [list(answer.ids) for answer in answers],
        "ended": [answer.ended for answer in answers],
        "room": room,
    }
    return AnswerItem(row, key, _drawn(prompt, recipe), recipe, scores)


def _drawn(prompt: PromptTokens, recipe: Mapping[str, Any]) -> dict[str, Any]:
    answers = tuple(
        AnswerTokens(0, torch.tensor(ids, dtype=torch.int64), was_cut=not ended)
        for ids, ended in zip(recipe["ids"], recipe["ended"], strict=True)
    )
    counts = {"cut_answers": sum(answer.was_cut for answer in answers)}
    return {"prompts": (prompt,), "answers": answers, "counts": counts}


def written_pair(model: "VlmModel", row: PreferenceRow, key: int, rejected: str) -> AnswerItem:
    """The row's own first answer over a text.

    Raises:
        RowError: it does not fit.
    """
    pair = replace(row, kind="pairs", candidates=(row.candidates[0], Candidate(text=rejected)))
    return AnswerItem(row, key, model.reader(pair, key=key), {"rejected": rejected})


def data_pair(row: PreferenceRow, key: int, example: Mapping[str, Any]) -> AnswerItem:
    """The row's own pair, with its rewards where it has them."""
    first, second = (
        math.nan if candidate.reward is None else candidate.reward for candidate in row.candidates[:2]
    )
    return AnswerItem(row, key, example, {}, (first, second), row.preference)


def _again(model: "VlmModel", row: PreferenceRow, key: int, stored: Mapping[str, Any]) -> AnswerItem:
    """The item that a checkpoint tells of."""
    first, second = (math.nan if value is None else float(value) for value in stored["scores"])
    recipe = stored["recipe"]
    if "ids" in recipe:
        prompt, _ = prompt_with_room(model.reader, row, recipe["room"])
        return AnswerItem(row, key, _drawn(prompt, recipe), recipe, (first, second))
    if "rejected" in recipe:
        return written_pair(model, row, key, recipe["rejected"])
    return data_pair(row, key, model.reader(row, key=key))


@dataclass(frozen=True)
class AnswerQueue:
    """Pairs, first come, first trained on.

    Args:
        model: lays them out and encodes their pictures.
        items: the pairs.
    """

    model: "VlmModel"
    items: tuple[AnswerItem, ...]

    def __len__(self) -> int:
        """Pairs."""
        return len(self.items)

    def take(self, count: int) -> Batch:
        """The first `count` pairs as a micro-batch on the device, its pictures encoded."""
        model, items = self.model, self.items[:count]
        encoded = model.encode(model.collate([item.example for item in items]))
        device = encoded.clean.device
        unscored = all(math.isnan(score) for item in items for score in item.scores)
        sure = all(item.preference == 1.0 for item in items)
        labels = Labels(probability=torch.tensor([item.preference for item in items], device=device))
        keys = RowKeys(torch.tensor([item.key for item in items]), torch.zeros(len(items)), 1)
        return Batch(
            clean=encoded.clean,
            conditioning=Conditioning(),
            labels=labels.known_certain() if sure else labels,
            weight=torch.tensor([item.row.weight for item in items], dtype=torch.float32, device=device),
            valid=torch.ones(len(items), dtype=torch.bool, device=device),
            keys=keys.to(device),
            element_mask=encoded.element_mask,
            ids=tuple(item.row.id or str(item.row.index) for item in items),
            reward=None if unscored else torch.tensor([item.scores for item in items], device=device),
            prompts=tuple(item.row.prompt for item in items),
            recorded=encoded.recorded,
            context=encoded.context,
        )

    def after(self, count: int) -> "AnswerQueue":
        """Without the first `count` pairs."""
        return AnswerQueue(self.model, self.items[count:])

    def selected(self, index: Int[Tensor, " row"]) -> "AnswerQueue":
        """The pairs at `index`, in that order."""
        return AnswerQueue(self.model, tuple(self.items[number] for number in index.tolist()))

    def joined(self, later: "AnswerQueue") -> "AnswerQueue":
        """These pairs, then those."""
        return AnswerQueue(self.model, (*self.items, *later.items))

    def state_dict(self) -> dict[str, Tensor]:
        """What the pairs can be made of again, with the data: the bytes of one JSON list."""
        stored = [
            {
                "row": item.row.index,
                "id": item.row.id,
                "key": item.key,
                "recipe": dict(item.recipe),
                "scores": [None if math.isnan(score) else score for score in item.scores],
            }
            for item in self.items
        ]
        return {"items": torch.frombuffer(bytearray(json.dumps(stored).encode()), dtype=torch.uint8)}


def restored_queue(
    model: "VlmModel", row: Callable[[int], PreferenceRow], state: Mapping[str, Tensor]
) -> AnswerQueue:
    """The queue that gave a `state_dict`.

    Args:
        model: of the run.
        row: of the run's data by number.
        state: what `AnswerQueue.state_dict` gave.

    Raises:
        CheckpointError: it holds no pairs, or the data are others now.
        RowError: a row cannot be read any more.
    """
    if "items" not in state:
        message = "stored answers: items missing. The checkpoint is damaged; take an earlier one."
        raise CheckpointError(message)
    stored: Sequence[Mapping[str, Any]] = json.loads(bytes(state["items"].tolist()).decode())
    found = []
    for each in stored:
        own = row(int(each["row"]))
        if own.id != each["id"]:
            message = (
                f"stored answers: got row {own.id!r} as number {each['row']}, expected {each['id']!r}. The "
                "data have changed since the checkpoint: continue the run on those it was started with."
            )
            raise CheckpointError(message)
        found.append(_again(model, own, int(each["key"]), each))
    return AnswerQueue(model, tuple(found))
