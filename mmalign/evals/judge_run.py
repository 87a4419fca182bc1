"""`mmalign judge`: judges by name, their answers stored one by one, probed for bias or set over an arena.

A judge is a function of the user's own (`module:function`, see `mmalign.evals.judge_bias.Judge`) or a reward:
a pairwise one says which of two it prefers, a pointwise one prefers what it scores higher.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.evals.judge_bias import BiasReport, Comparison, Judge, probe_judge
from mmalign.evals.labelled_rows import LabelledRows
from mmalign.evals.provenance import Run
from mmalign.evals.statistics import RULES, Agreement, pair_agreement
from mmalign.files import append_json_line, fingerprint, read_json_lines
from mmalign.rewards.base import Reward, Scored
from mmalign.rewards.functions import load_function
from mmalign.rewards.judge_models import order_choices
from mmalign.rewards.sample import Sample, media_hash
from mmalign.rewards.swaps import Orders, both_orders, verdict_value
from mmalign.rewards.verdicts import Choice

__all__ = [
    "RewardJudge",
    "StoredJudge",
    "comparisons_of",
    "judge_agreement",
    "load_judge",
    "probe_pairs",
    "read_entries",
]


class RewardJudge:
    """A reward as a judge of pairs.

    A probe's sentence beside the question goes behind the prompt.

    Args:
        reward: with the outputs `in_order` and `swapped` it is pairwise; otherwise it scores each one alone,
            and the higher score wins.
        batch_size: questions per forward.
    """

    def __init__(self, reward: Reward, *, batch_size: int = 16) -> None:
        self.reward, self.batch_size = reward, batch_size
        self.pairwise = {"in_order", "swapped"} <= set(reward.card.outputs)
        self._other: dict[str, Choice | None] = {}

    def __call__(self, questions: Sequence[Comparison]) -> list[Choice | None]:
        """Choices by position; None where there is no verdict or no score."""
        if self.pairwise:
            return self._both_orders(questions)
        asked = [_sample(q, thing) for q in questions for thing in (q.first, q.second)]
        sign = 1.0 if self.reward.card.higher_is_better else -1.0
        values = (sign * self._score(asked).first()).reshape(-1, 2).tolist()
        return [_higher(one, other) for one, other in values]

    def _both_orders(self, questions: Sequence[Comparison]) -> list[Choice | None]:
        """A pairwise reward answers both orders at once: the other order is kept until it is asked for."""
        found: list[Choice | None] = [None] * len(questions)
        asked: list[int] = []
        twins: list[tuple[int, int]] = []
        waiting: dict[str, int] = {}
        for place, question in enumerate(questions):
            key = _key(question)
            if key in self._other:
                found[place] = self._other.pop(key)
            elif key in waiting:
                twins.append((place, waiting.pop(key)))
            else:
                asked.append(place)
                waiting[_key(question.swapped())] = place
        orders = dict(zip(asked, self._orders([questions[place] for place in asked]), strict=True))
        for place, (forward, _) in orders.items():
            found[place] = forward
        for place, source in twins:
            found[place] = orders[source][1]
        self._other |= {key: orders[place][1] for key, place in waiting.items()}
        return found

    def _orders(self, questions: Sequence[Comparison]) -> list[Orders]:
        if not questions:
            return []
        scored = self._score([_sample(question, question.first, question.second) for question in questions])
        columns = [scored.outputs.index(name) for name in ("in_order", "swapped")]
        return [order_choices(*row) for row in scored.values[:, columns].tolist()]

    def _score(self, samples: Sequence[Sample]) -> Scored:
        return self.reward.score(samples, batch_size=self.batch_size)


def _sample(question: Comparison, own: Any, other: Any = None) -> Sample:
    prompt = f"{question.prompt}\n\n{question.note}" if question.note else question.prompt
    extras = {} if other is None else {"other": other}
    if isinstance(own, str):
        return Sample(prompt=prompt, text=own, extras=extras, id=question.id)
    return Sample(prompt=prompt, image=own, extras=extras, id=question.id)


def _key(question: Comparison) -> str:
    shown = [_content(thing) for thing in (question.first, question.second)]
    return fingerprint(question.id, question.prompt, question.note, *shown)


def _higher(one: float, other: float) -> Choice | None:
    if np.isnan(one) or np.isnan(other):
        return None
    return "one" if one > other else "two" if other > one else "tie"


def load_judge(name: str, load: Callable[[str], Reward], *, batch_size: int = 16) -> tuple[Judge, str]:
    """A judge by name, and what tells it from others.

    Args:
        name: `module:function`, or a reward.
        load: how a reward is made of its name.
        batch_size: questions per forward.

    Raises:
        ConfigError: no such function.
        UnknownNameError: no such reward.
    """
    if ":" in name and not name.startswith(("http://", "https://")):
        found = load_function(name)
        judge: Any = found.function  # takes comparisons here, samples elsewhere
        return judge, found.fingerprint()
    reward = load(name)
    return RewardJudge(reward, batch_size=batch_size), reward.fingerprint()


class StoredJudge:
    """A judge whose answers are kept in a file: a run that was killed asks nothing twice.

    A question that is asked again on purpose (to see the judge's own noise) is another question: its number
    is part of the key.

    Args:
        judge: who is asked.
        judge_id: what tells it from others; answers stored under another one do not count.
        store: JSON-lines file that answers are appended to.
        batch_size: questions per call of the judge.
        progress: called with the number of answers.
    """

    def __init__(
        self,
        judge: Judge,
        judge_id: str,
        store: Path,
        *,
        batch_size: int = 16,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.judge, self.judge_id, self.store = judge, judge_id, store
        self.batch_size, self.progress = batch_size, progress
        records = read_json_lines(store) if store.is_file() else []
        if not all({"key", "choice"} <= set(record) for record in records):
            message = f"{store}: holds something other than a judge's answers. Name another store."
            raise CheckpointError(message)
        self._known: dict[str, Choice | None] = {record["key"]: record["choice"] for record in records}
        self._asked: Counter[str] = Counter()
        self.fresh = 0

    def __call__(self, questions: Sequence[Comparison]) -> list[Choice | None]:
        """Choices by position."""
        keys = []
        for question in questions:
            plain = self._plain_key(question)
            keys.append(f"{plain}/{self._asked[plain]}")
            self._asked[plain] += 1
        missing = [place for place, key in enumerate(keys) if key not in self._known]
        self.progress(len(keys) - len(missing))
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            answers = list(self.judge([questions[place] for place in batch]))
            if len(answers) != len(batch):
                got = f"{len(answers)} answers"
                raise ConfigError(explain("judge", got=got, expected=f"one per question, {len(batch)}"))
            for place, choice in zip(batch, answers, strict=True):
                if choice not in ("one", "two", "tie", None):
                    expected = "one, two, tie, or None where the answer could not be read"
                    raise ConfigError(explain("judge's answer", got=choice, expected=expected))
                self._known[keys[place]] = choice
                append_json_line(
                    self.store, {"key": keys[place], "id": questions[place].id, "choice": choice}
                )
            self.fresh += len(batch)
            self.progress(len(batch))
        return [self._known[key] for key in keys]

    def answer(self, question: Comparison) -> Choice | None:
        """The first answer to a question that was asked."""
        return self._known[f"{self._plain_key(question)}/0"]

    def _plain_key(self, question: Comparison) -> str:
        return fingerprint(self.judge_id, _key(question))


def _content(thing: Any) -> str:
    """Texts by their words, media by their bytes."""
    if isinstance(thing, str):
        return hashlib.sha256(thing.encode("utf-8", "surrogatepass")).hexdigest()
    return media_hash(thing)


# --------------------------------------------------------------------------------------------------- bias


def comparisons_of(rows: LabelledRows) -> list[Comparison]:
    """One question per pair, candidates in the file's order.

    Raises:
        ConfigError: candidates are neither pictures nor texts.
    """
    things: list[Any] = []
    for row, _, candidate in rows.candidates():
        if candidate.text is not None:
            things.append(candidate.text)
        elif candidate.image is not None:
            # A path as text would be taken for an answer.
            things.append(Path(candidate.image) if isinstance(candidate.image, str) else candidate.image)
        else:
            expected = "pictures or texts, which judges are shown"
            raise ConfigError(explain(row.where, got="other candidates", expected=expected))
    pairs = rows.pairs()
    return [
        Comparison(f"{rows.rows[row].index}/{first}-{second}", prompt, things[first], things[second])
        for row, first, second, prompt in zip(
            pairs.row.tolist(), pairs.first.tolist(), pairs.second.tolist(), pairs.prompts, strict=True
        )
    ]


def judge_agreement(
    judge: StoredJudge, rows: LabelledRows, questions: Sequence[Comparison]
) -> Agreement | None:
    """How often the verdict of both orders is that of people; None where no pair counts.

    A verdict that depends on the order is a tie, which is half right; one that cannot be read is left out.

    Args:
        judge: was asked all questions in both orders.
        rows: with people's labels.
        questions: from `comparisons_of`.
    """
    pairs = rows.pairs()
    verdicts = [both_orders(judge.answer(asked), judge.answer(asked.swapped())) for asked in questions]
    gap = np.array([verdict_value(verdict) - 0.5 for verdict in verdicts], dtype=np.float64)
    if not (~np.isnan(gap) & (pairs.human != 0)).any():
        return None
    return pair_agreement(pairs.human, gap, RULES["half"], prompts=pairs.prompts)


def probe_pairs(
    judge: StoredJudge, rows: LabelledRows, *, probes: Sequence[str] = (), noun: str | None = None
) -> tuple[BiasReport, Agreement | None]:
    """Biases of a judge on labelled rows, and its agreement with people.

    Args:
        judge: whose answers are stored.
        rows: pairs or rankings; labels do not matter for the biases.
        probes: names; all by default.
        noun: what the question calls a candidate; "Image" for pictures and "Answer" for texts by default.

    Raises:
        UnknownNameError: no such probe.
    """
    questions = comparisons_of(rows)
    texts = isinstance(questions[0].first, str)
    report = probe_judge(judge, questions, probes=probes, noun=noun or ("Answer" if texts else "Image"))
    return report, judge_agreement(judge, rows, questions)


# -------------------------------------------------------------------------------------------------- arena


def read_entries(
    runs: Sequence[Run], files: Mapping[str, Path]
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Prompts by id, and every model's answers by prompt id.

    Args:
        runs: of `mmalign eval`; the first copy of every prompt's pictures plays.
        files: model to JSON lines with `prompt`, `answer` (text) or `image` (file beside it), and `id` where
            prompts repeat.

    Raises:
        ConfigError: a record lacks a field, an id has two prompts or two answers of one model.
        CheckpointError: a run has no samples.
    """
    prompts: dict[str, str] = {}
    answers: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.rows is None:
            message = f"{run.folder}: no samples.jsonl beside results.json. Run the report stage again."
            raise CheckpointError(message)
        for row in run.rows:
            if row["copy"] == 0:
                for model, entry in row["models"].items():
                    thing = None if entry["path"] is None else Path(entry["path"])
                    _enter(prompts, answers, model, row["item_id"], row["prompt"], thing, str(run.folder))
    for model, path in files.items():
        if not path.is_file():
            raise ConfigError(explain(f"arena {model}", got=str(path), expected="a file of JSON lines"))
        for number, record in enumerate(read_json_lines(path)):
            where = f"{path}:{number + 1}"
            thing = path.parent / record["image"] if "image" in record else record.get("answer")
            if thing is None or "prompt" not in record:
                expected = "prompt, and answer or image"
                raise ConfigError(explain(where, got=", ".join(record) or "nothing", expected=expected))
            name = str(record.get("id", record["prompt"]))
            _enter(prompts, answers, model, name, record["prompt"], thing, where)
    return prompts, answers


def _enter(
    prompts: dict[str, str],
    answers: dict[str, dict[str, Any]],
    model: str,
    name: str,
    prompt: str,
    thing: Any,
    where: str,
) -> None:
    if prompts.setdefault(name, prompt) != prompt:
        raise ConfigError(explain(f"{where} {name}", got=prompt, expected=f"the prompt {prompts[name]!r}"))
    mine = answers.setdefault(model, {})
    if thing is None or (name in mine and (mine[name] == thing or _content(mine[name]) == _content(thing))):
        return
    if name in mine:
        do = "Give the second model another name: NAME=FILE."
        raise ConfigError(explain(f"{where} {name}", got=f"two answers of {model}", expected="one", do=do))
    mine[name] = thing
