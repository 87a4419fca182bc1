"""From a round of prompts to pairs of answers: write by the policy as it stands, judge, choose.

Three ways: the best of several answers against the worst; the data's answer against what the policy writes
with the images hidden; and the data's own pairs, for methods that mix them with others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Batch, PreferenceRow
from mmalign.errors import ConfigError, explain
from mmalign.rollout.choices import best_and_worst
from mmalign.rollout.collectors import Collected, Stateless
from mmalign.rollout.sample_keys import sample_keys
from mmalign.seeding import derive_seed
from mmalign.train.model import AnswerMakers
from mmalign.train.online import AnswerReward
from mmalign.train.token_sections import AnswerRolloutConfig
from mmalign.vlm.answer_items import (
    AnswerItem,
    AnswerQueue,
    data_pair,
    drawn_pair,
    restored_queue,
    written_pair,
)
from mmalign.vlm.answer_rounds import rows_of
from mmalign.vlm.drawing import DrawnAnswer, draw_answers
from mmalign.vlm.pair_making.bias_driven import BiasConfig, guessed
from mmalign.vlm.pair_making.requests import Sampling, Similarity
from mmalign.vlm.pair_making.writing import VlmWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmalign.vlm.family import VlmModel

__all__ = ["BestAnswers", "BiasDriven", "DataPairs", "answer_makers"]


@dataclass(frozen=True)
class BestAnswers(Stateless):
    """Online DPO: of several answers to a prompt the one with the highest score against the lowest.

    Prompts whose answers score alike give no pair. An empty answer is not judged and meets none: whoever
    says nothing says nothing wrong.

    Args:
        model: the policy.
        reward: scores answers.
        sampling: of the answers.
        samples: per prompt, at least 2.
        threshold: the softmax difference of the two scores (as logits) must exceed it; in [0, 1).
        batch_size: answers written together.

    Source: arXiv 2402.04792.
    """

    model: "VlmModel"
    reward: AnswerReward
    sampling: Sampling
    samples: int = 4
    threshold: float = 0.0
    batch_size: int = 8
    facts: ClassVar[tuple[str, ...]] = (
        *("reward", "spread", "kept", "tied", "reward_failed", "empty", "unfinished", "tokens"),
    )

    @torch.no_grad()
    def collect(self, batch: Batch) -> Collected:
        """Pairs, with both scores."""
        examples = rows_of(batch)
        keys = sample_keys(batch.keys.key[batch.valid], self.samples).flatten()
        drawn = draw_answers(
            self.model,
            [example["prompt"] for example in examples for _ in range(self.samples)],
            keys,
            self.sampling,
            batch_size=self.batch_size,
        )
        rooms = [example["room"] for example in examples for _ in range(self.samples)]
        drawn = [_shortened(self.model, answer, room) for answer, room in zip(drawn, rooms, strict=True)]
        scores = self._scores([example["row"] for example in examples for _ in range(self.samples)], drawn)
        chosen = best_and_worst(scores.view(-1, self.samples), threshold=self.threshold)
        items: list[AnswerItem] = []
        for number, example in enumerate(examples):
            first, second = (number * self.samples + place for place in chosen.index[number].tolist())
            if not bool(chosen.valid[number]) or drawn[first].ids == drawn[second].ids:
                continue
            items.append(
                drawn_pair(
                    example["row"],
                    example["key"],
                    example["prompt"],
                    (drawn[first], drawn[second]),
                    (float(scores[first]), float(scores[second])),
                    room=self.sampling.max_new_tokens,
                )
            )
        return Collected(AnswerQueue(self.model, tuple(items)), self._facts(scores, drawn, len(items)))

    def _scores(
        self, rows: Sequence[PreferenceRow], drawn: Sequence[DrawnAnswer]
    ) -> Float[Tensor, " answer"]:
        """A score per answer; NaN where it is empty, or could not be judged."""
        scores = torch.full((len(drawn),), torch.nan)
        places = [place for place, answer in enumerate(drawn) if answer.text]
        if not places:
            return scores
        with torch.autocast(self.model.device.type, enabled=False):  # rewards decide their own precision
            found = self.reward.score_answers(
                [rows[place] for place in places], [drawn[place].text for place in places]
            )
        if len(found) != len(places):
            got = f"[{len(found)} numbers]"
            raise ConfigError(
                explain(f"reward {self.reward.name}", got=got, expected=f"{len(places)}, one per answer")
            )
        scores[places] = torch.tensor([float(value) for value in found])
        return scores

    def _facts(
        self, scores: Float[Tensor, " answer"], drawn: Sequence[DrawnAnswer], num_kept: int
    ) -> dict[str, Tensor]:
        together = scores.view(-1, self.samples)
        known = ~together.isnan()
        high = torch.where(known, together, -torch.inf).amax(1)
        low = torch.where(known, together, torch.inf).amin(1)
        several = known.sum(1) >= 2
        words = torch.tensor([bool(answer.text) for answer in drawn])
        kept = torch.zeros(len(together))
        kept[:num_kept] = 1.0
        facts = {
            "reward": scores,
            "spread": torch.where(several, high - low, torch.nan),
            "kept": kept,
            "tied": (several & (high == low)).float(),
            "reward_failed": scores.isnan()[words].float(),
            "empty": (~words).float(),
            "unfinished": torch.tensor([float(not answer.ended) for answer in drawn]),
            "tokens": torch.tensor([float(len(answer.ids)) for answer in drawn]),
        }
        return {name: value.to(self.model.device) for name, value in facts.items()}


def _shortened(model: "VlmModel", answer: DrawnAnswer, room: int) -> DrawnAnswer:
    """The answer in the room that its prompt leaves; most have it."""
    if len(answer.ids) <= room:
        return answer
    text: str = model.traits.tokenizer.decode(
        list(answer.ids[:room]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return DrawnAnswer(answer.ids[:room], text.removeprefix(model.reader.seam.lead).strip(), ended=False)


@dataclass(frozen=True)
class DataPairs(Stateless):
    """The pairs of the data as they are.

    Args:
        model: lays them out.
    """

    model: "VlmModel"

    def collect(self, batch: Batch) -> Collected:
        """The readable pairs."""
        items = [data_pair(example["row"], example["key"], example["pair"]) for example in rows_of(batch)]
        return Collected(AnswerQueue(self.model, tuple(items)))


@dataclass(frozen=True)
class BiasDriven(Stateless):
    """Online BDHS: the data's answer against what the policy writes behind its beginnings, images hidden.

    Args:
        model: the policy.
        similarity: of sentences; what comes out too similar is drawn again.
        config: of the hiding.
        sampling: of the sentences.
        seed: of the run.
        batch_size: sentences written together.

    Source: arXiv 2407.02477, Online-BDHS.
    """

    model: "VlmModel"
    similarity: Similarity
    config: BiasConfig
    sampling: Sampling
    seed: int
    batch_size: int = 8
    facts: ClassVar[tuple[str, ...]] = ("kept", "similarity", "rounds")

    @torch.no_grad()
    def collect(self, batch: Batch) -> Collected:
        """Pairs of the rows whose answer and guess differ."""
        examples = rows_of(batch)
        rows = [example["row"] for example in examples]
        records = guessed(
            rows,
            VlmWriter(self.model, self.batch_size),
            self.similarity,
            self.config,
            self.sampling,
            derive_seed(self.seed, "bias_driven", *(int(example["key"]) for example in examples)),
        )
        items = [
            written_pair(self.model, example["row"], example["key"], record["answer"])
            for example, record in zip(examples, records, strict=True)
            if record["answer"] and record["answer"] != (example["row"].candidates[0].text or "").strip()
        ]
        kept = torch.zeros(len(rows))
        kept[: len(items)] = 1.0
        facts = {
            "kept": kept,
            "similarity": _flat(records, "similarity"),
            "rounds": _flat(records, "rounds"),
        }
        return Collected(
            AnswerQueue(self.model, tuple(items)),
            {name: value.to(self.model.device) for name, value in facts.items()},
        )


def _flat(records: Sequence[Mapping[str, Any]], name: str) -> Float[Tensor, " sentence"]:
    return torch.tensor([float(value) for record in records for value in record[name]])


def _equal(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """1 where two texts hold the same words, else 0."""
    return [float(one.split() == other.split()) for one, other in zip(first, second, strict=True)]


def _similarity(source: str, device: torch.device) -> Similarity:
    """What compares sentences.

    Raises:
        ConfigError: no sentence encoder lies there.
    """
    if source == "equal":
        return _equal
    from mmalign.vlm.pair_making.embedding import SentenceSimilarity

    return SentenceSimilarity.load(source, device=device)


def answer_makers(
    model: "VlmModel",
    rollout: AnswerRolloutConfig,
    *,
    kind: str,
    reward: AnswerReward | None,
    row: "Callable[[int], PreferenceRow]",
    seed: int,
) -> AnswerMakers:
    """Who makes the pairs of a run; see `mmalign.train.model.WritingModel.collectors`.

    Raises:
        ConfigError: settings that were not resolved with the method's row, or no such rollout.
    """
    unresolved = explain("rollout", got=str(rollout), expected="settings that were resolved with the row")
    if rollout.max_new_tokens is None or rollout.temperature is None or rollout.top_p is None:
        raise ConfigError(unresolved)
    longest = min(rollout.max_new_tokens, model.reader.max_completion_length or rollout.max_new_tokens)
    sampling = Sampling(longest, rollout.temperature, rollout.top_p)
    restored = partial(restored_queue, model, row)
    if kind == "bias_driven":
        hidden, similar, rounds, swap = rollout.hidden, rollout.similar, rollout.hiding_rounds, rollout.swap
        if hidden is None or similar is None or rounds is None or swap is None:
            raise ConfigError(unresolved)
        similarity = _similarity(rollout.similarity, model.device)
        config = BiasConfig(hidden, similar, rounds, swap)
        maker = BiasDriven(model, similarity, config, sampling, seed, rollout.written_together)
        return AnswerMakers(maker, None, restored)
    if kind not in ("best_of_n", "mixed") or reward is None:
        got = f"{kind}, reward {reward}"
        expected = "best_of_n or mixed with a reward, or bias_driven"
        raise ConfigError(explain("rollout of a language model", got=got, expected=expected))
    best = BestAnswers(
        model, reward, sampling, rollout.samples or 2, rollout.threshold or 0.0, rollout.written_together
    )
    return AnswerMakers(best, DataPairs(model) if kind == "mixed" else None, restored)
