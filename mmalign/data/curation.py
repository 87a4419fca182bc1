"""What preference data are like: lengths, ties, repetitions, contradictions, score gaps; and a filter.

Pure functions on rows; `mmalign data audit` runs them over a file. Candidates are told apart by their
content (text or bytes), so the same response under two names is the same response.
"""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.rows import FieldError
from mmalign.data.statistics import Estimate, mean_of, share_of
from mmalign.data.video_stills import clip_contents, frame_files
from mmalign.errors import ConfigError, explain

__all__ = [
    "Consistency",
    "LengthBias",
    "ScoreGaps",
    "candidate_key",
    "consistency",
    "default_length",
    "keep_lowest",
    "length_bias",
    "score_gaps",
]


def candidate_key(candidate: Candidate) -> str:
    """What makes two candidates the same: a hash of the text, of the bytes, or of the file a path leads to.

    Raises:
        OSError: a path cannot be read.
        RowError: reason `empty_candidate`: nothing is there.
    """
    for media in ("text", "image", "audio", "video"):
        value = getattr(candidate, media)
        if value is None:
            continue
        if media == "video" and isinstance(value, str) and os.path.isdir(value):
            digest = hashlib.blake2b(digest_size=12)
            for piece in clip_contents(value):
                digest.update(piece)
            return digest.hexdigest()
        if media != "text" and isinstance(value, str):
            with open(value, "rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
        data = value.encode() if isinstance(value, str) else value
        return hashlib.blake2b(data, digest_size=12, person=media.encode()[:16]).hexdigest()
    message = explain(candidate.id or "candidate", got="neither text nor media", expected="one of them")
    raise FieldError(message, "empty_candidate")


def _require_pairs(rows: Iterable[PreferenceRow], what: str) -> list[PreferenceRow]:
    rows = list(rows)
    for row in rows:
        if row.kind != "pairs":
            message = explain(f"{row.source or row.id} kind", got=row.kind, expected=f"pairs for {what}")
            raise FieldError(message, "not_a_pair")
    if not rows:
        raise ConfigError(explain(what, got="no pairs", expected="at least one"))
    return rows


# ------------------------------------------------------------------------------------------------ length


@dataclass(frozen=True)
class LengthBias:
    """Whether the longer response wins, whatever it says.

    Args:
        unit: what length is.
        chosen_mean: mean length of chosen responses.
        rejected_mean: mean length of rejected ones.
        difference: mean of chosen minus rejected.
        longer_wins: share of pairs whose longer response is chosen; equal lengths count half.
        equal_share: share of pairs of equal length.
        length_only_accuracy: accuracy of the better one of the two rules "the longer" and "the shorter".
        rule: that rule.
    """

    unit: str
    chosen_mean: float
    rejected_mean: float
    difference: Estimate
    longer_wins: Estimate
    equal_share: float
    length_only_accuracy: float
    rule: Literal["longer", "shorter"]

    @property
    def biased(self) -> bool:
        """Whether one half lies outside the interval of `longer_wins`."""
        return not self.longer_wins.holds(0.5)


def default_length(candidate: Candidate) -> tuple[float, str]:
    """Length of a response and its unit: characters of a text, encoded bytes of media.

    Bytes of an image say how much detail its encoder kept: pairs of one resolution whose chosen side is
    always heavier give a model the same shortcut as longer texts.
    """
    if candidate.text is not None:
        return float(len(candidate.text)), "characters"
    value = next((value for value in (candidate.image, candidate.audio, candidate.video) if value), b"")
    if isinstance(value, str) and os.path.isdir(value):
        return float(sum(os.path.getsize(frame) for frame in frame_files(value))), "encoded bytes"
    return float(os.path.getsize(value) if isinstance(value, str) else len(value)), "encoded bytes"


def length_bias(
    rows: Iterable[PreferenceRow],
    *,
    length: Callable[[Candidate], tuple[float, str]] = default_length,
) -> LengthBias:
    """Length statistics of pairs, with 95 % intervals over prompts. Ties (preference 0.5) are left out.

    Args:
        rows: pairs.
        length: from a candidate to (length, unit), for example tokens of your tokenizer.

    Raises:
        ConfigError: no pairs with a preference.
        RowError: a row that is no pair.
    """
    rows = _require_pairs([row for row in rows if row.preference != 0.5], "length statistics")
    measured = [[length(candidate) for candidate in row.candidates] for row in rows]
    prompts = [row.prompt for row in rows]
    chosen = np.array([first[0] for first, _ in measured], dtype=np.float64)
    rejected = np.array([second[0] for _, second in measured], dtype=np.float64)
    difference = chosen - rejected
    longer = share_of(((np.sign(difference) + 1) / 2).tolist(), prompts)
    return LengthBias(
        unit=measured[0][0][1],
        chosen_mean=float(chosen.mean()),
        rejected_mean=float(rejected.mean()),
        difference=mean_of(difference.tolist(), prompts),
        longer_wins=longer,
        equal_share=float((difference == 0).mean()),
        length_only_accuracy=max(longer.value, 1.0 - longer.value),
        rule="longer" if longer.value >= 0.5 else "shorter",
    )


# ------------------------------------------------------------------------------------------------ consistency


@dataclass(frozen=True)
class Consistency:
    """Repetitions and contradictions among pairs.

    Args:
        pairs: pairs looked at.
        prompts: distinct prompts.
        ties: pairs with preference 0.5.
        repeated: pairs that say again what another one said (same prompt, same two responses, same order).
        contradictory: prompts' couples of responses that are preferred one way in one pair and the other way
            in another.
        contradictory_pairs: pairs that take part in those.
        cycles: prompts whose preferences go round in a circle of three or more responses.
        identical: pairs of twice the same response.
        shared_candidates: responses that stand under more than one prompt.
        examples: sources of the first contradictory pairs, for looking them up.
    """

    pairs: int
    prompts: int
    ties: int
    repeated: int
    contradictory: int
    contradictory_pairs: int
    cycles: int
    identical: int
    shared_candidates: int
    examples: tuple[tuple[str, ...], ...] = ()


def consistency(
    rows: Iterable[PreferenceRow], *, key: Callable[[Candidate], str] = candidate_key
) -> Consistency:
    """Repetitions, contradictions and circles.

    Args:
        rows: pairs.
        key: what makes two candidates the same.

    Raises:
        ConfigError: no pairs.
        RowError: a row that is no pair.
    """
    rows = _require_pairs(rows, "consistency")
    edges: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    sources: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    prompts_of: dict[str, set[str]] = defaultdict(set)
    ties: Counter[tuple[str, frozenset[str]]] = Counter()
    identical = 0
    for row in rows:
        chosen, rejected = (key(candidate) for candidate in row.candidates)
        for name in (chosen, rejected):
            prompts_of[name].add(row.prompt)
        if chosen == rejected:
            identical += 1
        elif row.preference == 0.5:
            ties[(row.prompt, frozenset((chosen, rejected)))] += 1
        else:
            edges[row.prompt][(chosen, rejected)] += 1
            sources[(row.prompt, chosen, rejected)].append(row.source or row.id)
    both = [(prompt, *pair) for prompt, found in edges.items() for pair in _both_ways(list(found))]
    counted = [*ties.values(), *(count for found in edges.values() for count in found.values())]
    return Consistency(
        pairs=len(rows),
        prompts=len({row.prompt for row in rows}),
        ties=sum(row.preference == 0.5 for row in rows),
        repeated=sum(count - 1 for count in counted),
        contradictory=len(both),
        contradictory_pairs=sum(edges[p][(a, b)] + edges[p][(b, a)] for p, a, b in both),
        cycles=sum(_has_circle(list(found)) for found in edges.values()),
        identical=identical,
        shared_candidates=sum(len(found) > 1 for found in prompts_of.values()),
        examples=tuple((*sources[(p, a, b)][:1], *sources[(p, b, a)][:1]) for p, a, b in both[:3]),
    )


def _both_ways(edges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Couples that stand both ways, as they first appear."""
    place = {edge: number for number, edge in enumerate(edges)}
    return [(a, b) for (a, b), number in place.items() if place.get((b, a), -1) > number]


def _has_circle(edges: Sequence[tuple[str, str]]) -> bool:
    """Whether directed edges close a circle of three or more, contradictions of two left out."""
    known = set(edges)
    followers: dict[str, set[str]] = defaultdict(set)
    waiting: Counter[str] = Counter()
    for better, worse in known:
        if (worse, better) not in known:
            followers[better].add(worse)
            waiting[worse] += 1
    free = [name for name in {name for edge in known for name in edge} if not waiting[name]]
    # Take away what nothing is preferred to, again and again; what is left goes in circles.
    left = sum(1 for count in waiting.values() if count)
    while free:
        for worse in followers[free.pop()]:
            waiting[worse] -= 1
            if not waiting[worse]:
                left -= 1
                free.append(worse)
    return left > 0


# ------------------------------------------------------------------------------------------------ scores


@dataclass(frozen=True)
class ScoreGaps:
    """How far apart the scores of chosen and rejected are.

    Args:
        scored: pairs with two scores.
        quantiles: 0, 10, 50, 90 and 100 % points of score(chosen) - score(rejected).
        disagree: share of pairs whose rejected response has the higher score.
        equal: share of pairs with equal scores.
    """

    scored: int
    quantiles: tuple[float, float, float, float, float]
    disagree: Estimate
    equal: float


def score_gaps(rows: Iterable[PreferenceRow]) -> ScoreGaps | None:
    """Score gaps of the pairs that have scores; None when none has. Ties are left out.

    Raises:
        RowError: a row that is no pair.
    """
    gaps, prompts = [], []
    for row in rows:
        if row.kind != "pairs":
            _require_pairs([row], "score gaps")
        chosen, rejected = (candidate.reward for candidate in row.candidates)
        if chosen is None or rejected is None or row.preference == 0.5:
            continue
        gaps.append(chosen - rejected)
        prompts.append(row.prompt)
    if not gaps:
        return None
    found = np.array(gaps)
    low, tenth, middle, ninetieth, high = (
        float(value) for value in np.quantile(found, (0, 0.1, 0.5, 0.9, 1))
    )
    return ScoreGaps(
        scored=len(gaps),
        quantiles=(low, tenth, middle, ninetieth, high),
        disagree=share_of((found < 0).astype(np.float64).tolist(), prompts),
        equal=float((found == 0).mean()),
    )


# ------------------------------------------------------------------------------------------------ filter


def keep_lowest(scores: Sequence[float] | Any, share: float) -> list[int]:
    """Numbers of the rows with the lowest scores, in their given order.

    With length-normalised CHES scores this is the published filter against likelihood displacement: pairs
    whose two responses look alike to the model go (the paper keeps the lowest 5 % of a small set that
    displaces badly; 0.5 is a mild choice).

    Args:
        scores: one number per row; a sequence, array or tensor.
        share: in (0, 1], part of the rows to keep; at least one row stays. Of equal scores the first stay.

    Raises:
        ConfigError: a share out of range, no scores, or one that is no number.

    Source: arXiv 2410.08847, section 6 (filtering by length-normalised CHES).
    """
    if not 0 < share <= 1:
        raise ConfigError(explain("keep_lowest share", got=share, expected="a number in (0, 1]"))
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    if not len(values):
        raise ConfigError(explain("keep_lowest scores", got="none", expected="one per row"))
    bad = np.flatnonzero(np.isnan(values))
    if len(bad):
        message = explain(
            f"keep_lowest scores[{bad[0]}]",
            got=math.nan,
            expected="a number for every row",
            do=f"{len(bad)} of {len(values)} rows have none; score or drop them first.",
        )
        raise ConfigError(message)
    # The rounding error of share * n must not cost a row: 0.7 of 10 are 7.
    count = max(1, math.floor(share * len(values) + 1e-9))
    return sorted(int(number) for number in np.argsort(values, kind="stable")[:count])
