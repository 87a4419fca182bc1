"""A judged arena: models' answers to the same prompts, pair against pair, into one table.

Which prompts a pair of models meets on follows from their names and the seed alone, so a model or a prompt
added later adds games and moves none. Every game is judged in both orders; judgements are stored one by one
and a run that was killed goes on where it stopped.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.judge_bias import Comparison, Judge
from mmalign.evals.shares import clustered_share
from mmalign.evals.statistics.games import Games, count_games
from mmalign.evals.statistics.results import Interval, Result, shown
from mmalign.evals.statistics.strengths import Strengths, bradley_terry_games
from mmalign.files import append_json_line, fingerprint, read_json_lines
from mmalign.rewards.sample import media_hash
from mmalign.rewards.swaps import PositionRates, Verdict, both_orders, position_rates, verdict_value
from mmalign.rewards.verdicts import Choice
from mmalign.seeding import derive_seed

__all__ = ["Judgement", "Match", "Standings", "play", "schedule", "standings"]


@dataclass(frozen=True)
class Match:
    """Two models on one prompt.

    Args:
        prompt_id: the prompt.
        first: one model; the names are in alphabetical order.
        second: the other.
    """

    prompt_id: str
    first: str
    second: str


@dataclass(frozen=True)
class Judgement:
    """One match, judged in both orders.

    Args:
        prompt_id: the prompt.
        first: one model.
        second: the other.
        forward: the choice with the first model's answer shown first; None = could not be read.
        swapped: the choice with it shown second.
        key: hash of judge, prompt and both answers; the same key is never judged twice.
        error: why there was nothing to judge, or None.
    """

    prompt_id: str
    first: str
    second: str
    forward: Choice | None
    swapped: Choice | None
    key: str
    error: str | None = None

    @property
    def verdict(self) -> Verdict:
        """What both orders say."""
        return both_orders(self.forward, self.swapped)


def schedule(
    prompt_ids: Sequence[str], models: Sequence[str], *, games_per_pair: int | None = None, seed: int = 0
) -> list[Match]:
    """The matches of all pairs of models, in an order that mixes the pairs.

    A pair meets on the prompts with the lowest hash of (seed, prompt, pair): a random choice that stays when
    prompts, models or games are added, apart from the games a new prompt wins a place in.

    Args:
        prompt_ids: different names.
        models: different names, two at least.
        games_per_pair: prompts each pair meets on; None = all.
        seed: of the choice.

    Raises:
        ConfigError: names that stand twice, fewer than two models, no prompts, more games than prompts.
    """
    for kind, names, least in (("prompts", prompt_ids, 1), ("models", models, 2)):
        if len(set(names)) != len(names) or len(names) < least:
            got = f"{len(names)} names, {len(set(names))} different"
            raise ConfigError(explain(f"arena {kind}", got=got, expected=f"at least {least}, all different"))
    count = len(prompt_ids) if games_per_pair is None else games_per_pair
    if not 1 <= count <= len(prompt_ids):
        expected = f"1 to {len(prompt_ids)}, the number of prompts"
        raise ConfigError(explain("arena games_per_pair", got=count, expected=expected))
    drawn: list[tuple[int, Match]] = []
    for first, second in combinations(sorted(models), 2):
        keyed = [(derive_seed(seed, "arena", p, first, second), Match(p, first, second)) for p in prompt_ids]
        drawn += sorted(keyed, key=lambda entry: entry[0])[:count]
    return [match for _, match in sorted(drawn, key=lambda entry: entry[0])]


def play(
    matches: Sequence[Match],
    *,
    prompts: Mapping[str, str],
    answers: Mapping[str, Mapping[str, Any]],
    judge: Judge,
    judge_id: str,
    store: str | Path | None = None,
    batch_size: int = 16,
) -> list[Judgement]:
    """A judgement of every match, in order; those in the store are not judged again.

    A match without an answer of one of its models is invalid, says why, and is not stored.

    Args:
        matches: from `schedule`.
        prompts: id to text.
        answers: model to prompt id to its answer: a text, or media (`mmalign.rewards.Media`).
        judge: see `mmalign.evals.judge_bias.Judge`.
        judge_id: what tells this judge from others: its fingerprint, or name and revision. Judgements stored
            under another one do not count.
        store: JSON-lines file that judgements are appended to after every batch.
        batch_size: matches per call of the judge, which gets two questions for each.

    Raises:
        ConfigError: a match names a prompt that is not there.
        ShapeError: the judge answered another number of questions than it was asked.
    """
    known = {} if store is None else _stored(Path(store))
    found: dict[Match, Judgement] = {}
    open_matches: list[tuple[Match, str]] = []
    for match in matches:
        if match.prompt_id not in prompts:
            raise ConfigError(
                explain("arena prompt", got=match.prompt_id, expected="an id of the prompts given")
            )
        missing = [m for m in (match.first, match.second) if answers.get(m, {}).get(match.prompt_id) is None]
        if missing:
            why = f"no answer of {' and '.join(missing)}"
            found[match] = Judgement(match.prompt_id, match.first, match.second, None, None, "", why)
            continue
        key = _key(match, prompts, answers, judge_id)
        if key in known:
            found[match] = known[key]
        else:
            open_matches.append((match, key))
    for start in range(0, len(open_matches), batch_size):
        for match, judgement in _judged(open_matches[start : start + batch_size], prompts, answers, judge):
            found[match] = judgement
            if store is not None:
                append_json_line(store, asdict(judgement))
    return [found[match] for match in matches]


def _stored(path: Path) -> dict[str, Judgement]:
    if not path.exists():
        return {}
    return {record["key"]: Judgement(**record) for record in read_json_lines(path)}


def _key(
    match: Match, prompts: Mapping[str, str], answers: Mapping[str, Mapping[str, Any]], judge_id: str
) -> str:
    given = [answers[model][match.prompt_id] for model in (match.first, match.second)]
    shown_answers = [answer if isinstance(answer, str) else media_hash(answer) for answer in given]
    return fingerprint(
        judge_id, match.prompt_id, match.first, match.second, prompts[match.prompt_id], shown_answers
    )


def _judged(
    batch: Sequence[tuple[Match, str]],
    prompts: Mapping[str, str],
    answers: Mapping[str, Mapping[str, Any]],
    judge: Judge,
) -> Iterator[tuple[Match, Judgement]]:
    """One batch asked in both orders."""
    forward = [
        Comparison(
            f"{match.prompt_id} {match.first} {match.second}",
            prompts[match.prompt_id],
            answers[match.first][match.prompt_id],
            answers[match.second][match.prompt_id],
        )
        for match, _ in batch
    ]
    choices = list(judge([*forward, *(question.swapped() for question in forward)]))
    if len(choices) != 2 * len(batch):
        expected = f"one per question, {2 * len(batch)}"
        raise ShapeError(explain("judge", got=f"{len(choices)} answers", expected=expected))
    both = zip(choices[: len(batch)], choices[len(batch) :], strict=True)
    for (match, key), (in_order, turned) in zip(batch, both, strict=True):
        yield match, Judgement(match.prompt_id, match.first, match.second, in_order, turned, key)


# -------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Standings(Result):
    """The table of an arena.

    Args:
        strengths: Bradley-Terry strengths; their errors allow for games on one prompt.
        games: wins and ties; inconsistent verdicts are ties, invalid ones no games.
        win_rate: model to its share of points, clustered by prompt.
        position: what the order did to the judge.
        num_inconsistent: matches with two different verdicts.
        num_invalid: matches without a verdict, answers that were missing included.
    """

    strengths: Strengths
    games: Games
    win_rate: Mapping[str, Interval]
    position: PositionRates
    num_inconsistent: int
    num_invalid: int

    def describe(self) -> str:
        """The table and how far the judge can be trusted."""
        return f"{self.to_markdown()}\n\n{self._trust()}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**super().as_dict(), "position": self.position.as_dict()}

    def _trust(self) -> str:
        rates = self.position
        return (
            f"{rates.num_pairs} matches judged in both orders: {shown(rates.consistency_rate)} consistent, "
            f"{shown(rates.first_position_rate)} of choices for what is shown first, "
            f"{self.num_invalid} invalid."
        )

    def to_markdown(self) -> str:
        """Models from strongest to weakest: Elo with its 95 % half width, share of points, games."""
        fitted = self.strengths
        half = 1.959963984540054 * 400 / math.log(10) * fitted.standard_error
        rows = ["| model | Elo | +- | points | games |", "|---|---:|---:|---:|---:|"]
        for place in sorted(range(len(fitted.names)), key=lambda place: -fitted.strength[place]):
            name = fitted.names[place]
            shown_name = name.replace("|", "\\|")
            rows.append(
                f"| {shown_name} | {fitted.elo[place]:.0f} | {half[place]:.0f} | {self.win_rate[name]} "
                f"| {fitted.games[place]:g} |"
            )
        return "\n".join(rows)


def standings(judgements: Sequence[Judgement], *, ridge: float = 0.0) -> Standings:
    """The table from judgements.

    Args:
        judgements: of any matches, in any order.
        ridge: see `bradley_terry`: 0 refuses an arena in which somebody won or lost everything; 1e-6 ranks
            it.

    Raises:
        ConfigError: no valid judgement, or strengths without a finite answer and no ridge.
    """
    points = [verdict_value(judgement.verdict) for judgement in judgements]
    if all(math.isnan(point) for point in points):
        got = f"{len(points)} judgements, none valid"
        raise ConfigError(explain("arena standings", got=got, expected="at least one valid judgement"))
    first = [judgement.first for judgement in judgements]
    second = [judgement.second for judgement in judgements]
    prompts = [judgement.prompt_id for judgement in judgements]
    played = {prompt for prompt, point in zip(prompts, points, strict=True) if not math.isnan(point)}
    return Standings(
        strengths=bradley_terry_games(
            first, second, points, prompts=prompts if len(played) > 1 else None, ridge=ridge
        ),
        games=count_games(first, second, points),
        win_rate={model: _points(model, judgements) for model in sorted({*first, *second})},
        position=position_rates((j.forward, j.swapped) for j in judgements if j.error is None),
        num_inconsistent=sum(judgement.verdict == "inconsistent" for judgement in judgements),
        num_invalid=sum(judgement.verdict == "invalid" for judgement in judgements),
    )


def _points(model: str, judgements: Sequence[Judgement]) -> Interval:
    mine = [judgement for judgement in judgements if model in (judgement.first, judgement.second)]
    points = [verdict_value(j.verdict) if j.first == model else 1 - verdict_value(j.verdict) for j in mine]
    return clustered_share(points, [judgement.prompt_id for judgement in mine])
