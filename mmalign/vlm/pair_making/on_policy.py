"""Pairs of the policy's own answers: corrected by an expert, or ranked by a score.

Both start from answers that the policy writes now. Corrections and scores may come later, from people or
other programs: the first run writes the answers, a later one reads the file that was made of them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.batch import PreferenceRow
from mmalign.data.dialogues.spans import changed_spans
from mmalign.data.pair_making.stages import Stages
from mmalign.errors import ConfigError, explain
from mmalign.seeding import derive_seed
from mmalign.vlm.pair_making.output import MadePair
from mmalign.vlm.pair_making.requests import Request, Sampling, Scorer, Writer
from mmalign.vlm.pair_making.selection import best_and_worst, pairs_above

__all__ = [
    "Correction",
    "OwnAnswers",
    "all_above",
    "corrected",
    "extremes",
    "given_scores",
    "own_answers",
    "paired_by_score",
    "read_corrections",
    "score_answers",
]

RowId = str


@dataclass(frozen=True)
class OwnAnswers:
    """What the policy says to one prompt.

    Args:
        row: the prompt.
        texts: its answers.
        scores: of the answers, higher is better; () before they are scored.
    """

    row: PreferenceRow
    texts: tuple[str, ...]
    scores: tuple[float, ...] = ()


def own_answers(
    rows: Sequence[PreferenceRow],
    write: Writer,
    stages: Stages,
    *,
    num_answers: int,
    sampling: Sampling,
    name: str = "answers",
) -> list[OwnAnswers]:
    """Answers of the policy to every row, all drawn alike (deconfounded: one model, one way of sampling).

    Args:
        rows: prompts, with ids that differ.
        write: the policy.
        stages: where records go.
        num_answers: per prompt, >= 1.
        sampling: of all of them.
        name: of the stage.
    """

    def work(block: Sequence[PreferenceRow], seed: int) -> list[dict[str, Any]]:
        requests = [Request(row) for row in block for _ in range(num_answers)]
        texts = write(requests, sampling, seed)
        return [
            {"answers": texts[place * num_answers : (place + 1) * num_answers]} for place in range(len(block))
        ]

    settings = {"num_answers": num_answers, "sampling": vars(sampling)}
    records = stages.run(name, rows, work, key=lambda row: row.id, settings=settings)
    return [OwnAnswers(row, tuple(record["answers"])) for row, record in zip(rows, records, strict=True)]


# --- expert corrections -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correction:
    """What an expert made of an answer.

    Args:
        revised: the answer, mended as little as needed.
        standard: a true answer in the expert's own words, "" where there is none.
        own: the answer that was corrected, "" where the file does not say.
        report: OPA-DPO's judgement, sentence by sentence: copied content, rewritten content, score 1 to
            4, error type; None where there is none.
        author: who corrected.
    """

    revised: str
    standard: str = ""
    own: str = ""
    report: Mapping[str, Any] | None = None
    author: str = ""


def read_corrections(records: Sequence[Mapping[str, Any]]) -> dict[RowId, Correction]:
    """Corrections by row id.

    A record has `id` and `revised`, and may have `standard`, `own`, `report`, `author`. `report` is the
    object of OPA-DPO, `{"Sentence 1": {"copied content", "rewritten content", "score", "error type"}, ...}`.

    Raises:
        ConfigError: a row is corrected twice, or a correction is empty.
    """
    found: dict[RowId, Correction] = {}
    for record in records:
        key = str(record["id"])
        revised = str(record.get("revised") or "").strip()
        if not revised or key in found:
            got = "[an empty text]" if not revised else "[a second correction]"
            raise ConfigError(explain(f"correction of row {key}", got=got, expected="one text per row"))
        found[key] = Correction(
            revised,
            str(record.get("standard") or ""),
            str(record.get("own") or ""),
            record.get("report"),
            str(record.get("author") or ""),
        )
    return found


def corrected(
    answers: Sequence[OwnAnswers], corrections: Mapping[RowId, Correction]
) -> tuple[list[MadePair], list[tuple[PreferenceRow, dict[str, Any]]], Counter[str]]:
    """Rows of corrected answers: plain pairs, OPA-DPO rows, and what was left out by reason.

    With a report and a true answer a row becomes one of OPA-DPO (true, own and revised answer, severities
    per sentence). Otherwise revised over own, the words that changed as spans for losses that weigh tokens.

    Args:
        answers: the policy's; the first of each is the one that was corrected.
        corrections: by row id.

    Source: zhyang2226/OPA-DPO db90180 for the columns.
    """
    pairs: list[MadePair] = []
    rows: list[tuple[PreferenceRow, dict[str, Any]]] = []
    counts: Counter[str] = Counter()
    for answer in answers:
        found = corrections.get(answer.row.id)
        own = answer.texts[0].strip()
        if found is None:
            counts["not_corrected"] += 1
        elif found.own and found.own.strip() != own:
            # The model has changed since: the correction speaks of other words.
            counts["corrected_another_answer"] += 1
        elif found.revised == own:
            counts["nothing_to_correct"] += 1
        elif not own:
            counts["empty_answer"] += 1
        elif found.report and found.standard:
            rows.append((answer.row, _opa_columns(answer.row, own, found)))
        else:
            chosen, rejected = changed_spans(found.revised, own)
            spans = {"spans_chosen": chosen, "spans_rejected": rejected, "corrected_by": found.author}
            pairs.append(MadePair(answer.row, found.revised, own, columns=spans))
    counts["rows"] = len(pairs) + len(rows)
    return pairs, rows, counts


def _opa_columns(row: PreferenceRow, own: str, found: Correction) -> dict[str, Any]:
    return {
        "id": row.id,
        "queries": row.prompt,
        "standard_response": found.standard,
        "original_generate_response": own,
        "AI_pseudo_response": found.revised,
        "AI_json_report": dict(found.report or {}),
        "corrected_by": found.author,
    }


# --- scores -------------------------------------------------------------------------------------------------


def score_answers(
    answers: Sequence[OwnAnswers],
    score: Scorer,
    stages: Stages,
    *,
    settings: Mapping[str, Any] | None = None,
) -> list[OwnAnswers]:
    """The answers with scores of a function; `settings` are what the function depends on."""

    def work(block: Sequence[OwnAnswers], seed: int) -> list[dict[str, Any]]:
        del seed
        rows = [answer.row for answer in block for _ in answer.texts]
        values = iter(score(rows, [text for answer in block for text in answer.texts]))
        return [{"scores": [next(values) for _ in answer.texts]} for answer in block]

    records = stages.run(
        "scores",
        answers,
        work,
        key=lambda answer: answer.row.id,
        settings=settings,
        depends=lambda answer: list(answer.texts),
    )
    return [
        OwnAnswers(answer.row, answer.texts, tuple(record["scores"]))
        for answer, record in zip(answers, records, strict=True)
    ]


def given_scores(answers: Sequence[OwnAnswers], records: Sequence[Mapping[str, Any]]) -> list[OwnAnswers]:
    """The answers with scores of a file: records `{id, scores: [...]}`, one number per answer, null for none.

    Raises:
        ConfigError: a row has another number of scores than answers.
    """
    scores = {str(record["id"]): record["scores"] for record in records}
    made = []
    for answer in answers:
        given = scores.get(answer.row.id)
        if given is None:
            made.append(answer)
            continue
        if len(given) != len(answer.texts):
            message = explain(
                f"scores of row {answer.row.id}",
                got=f"[{len(given)} numbers]",
                expected=f"{len(answer.texts)}, one per answer",
            )
            raise ConfigError(message)
        values = tuple(float("nan") if value is None else float(value) for value in given)
        made.append(OwnAnswers(answer.row, answer.texts, values))
    return made


def paired_by_score(
    answers: Sequence[OwnAnswers],
    *,
    rule: Callable[[Sequence[float], int], Sequence[tuple[int, int]]],
    seed: int = 0,
) -> tuple[list[MadePair], Counter[str]]:
    """Pairs of scored answers by a rule, and what was left out by reason.

    Args:
        answers: scored.
        rule: (scores, seed) to (better, worse) places; `extremes` and `all_above` make the published ones.
        seed: of the run.
    """
    pairs: list[MadePair] = []
    counts: Counter[str] = Counter()
    for answer in answers:
        if not answer.scores:
            counts["not_scored"] += 1
            continue
        kept = rule(answer.scores, derive_seed(seed, "pairs", answer.row.id))
        counts["no_difference"] += not kept
        for better, worse in kept:
            chosen, rejected = answer.texts[better].strip(), answer.texts[worse].strip()
            if not chosen or not rejected or chosen == rejected:
                counts["empty_or_equal"] += 1
                continue
            numbers = {"score_chosen": answer.scores[better], "score_rejected": answer.scores[worse]}
            pairs.append(MadePair(answer.row, chosen, rejected, f"{better}-{worse}", numbers))
    counts["rows"] = len(pairs)
    return pairs, +counts


def extremes(scores: Sequence[float], seed: int, *, spread: float = 1e-8) -> list[tuple[int, int]]:
    """The best against the worst answer (CheXalign, LLaVA-Hound with a larger spread)."""
    del seed
    found = best_and_worst(scores, spread=spread)
    return [] if found is None else [found]


def all_above(
    scores: Sequence[float], seed: int, *, difference: float, limit: int | None
) -> list[tuple[int, int]]:
    """All answers that differ enough, at most `limit` pairs (RLAIF-V; VLFeedback without a limit)."""
    return pairs_above(scores, difference=difference, limit=limit, seed=seed)
