"""What an audit of preference data found, in numbers, sentences, a table or JSON."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from mmalign.data.curation import Consistency, LengthBias, ScoreGaps
from mmalign.data.motion_bias import MotionBias
from mmalign.data.rows import RowReport
from mmalign.data.separability import Separability

__all__ = ["AuditReport", "notes_of", "print_audit", "write_json_audit"]


@dataclass
class AuditReport:
    """What `audit` found.

    Args:
        path: the data set.
        layout: what was recognised.
        read: rows read, kept and left out, by reason.
        consistency: ties, repetitions, contradictions.
        length: length bias; None when every pair is a tie.
        scores: score gaps; None without scores.
        separability: None without features.
        motion: of both sides of pairs of clips; None for other media.
        notes: what stands out, and what could not be computed, in sentences.
        ok: whether the share of bad rows is below the limit.
    """

    path: str
    layout: str
    read: RowReport
    consistency: Consistency
    length: LengthBias | None = None
    scores: ScoreGaps | None = None
    separability: Separability | None = None
    motion: MotionBias | None = None
    notes: list[str] = field(default_factory=list)
    ok: bool = True


def notes_of(found: AuditReport) -> list[str]:
    """What a reader should not miss."""
    notes = []
    length, scores, same = found.length, found.scores, found.consistency
    if length is not None and length.biased:
        notes.append(
            f"The {length.rule} response is chosen in {length.length_only_accuracy:.1%} of pairs: a judge "
            "that only looks at length would be right that often. `mmalign methods` lists length-aware "
            "objectives."
        )
    if same.contradictory:
        notes.append(
            f"{same.contradictory} couples of responses are preferred both ways "
            f"({same.contradictory_pairs} pairs), for example {' and '.join(same.examples[0])}; one soft "
            "label says that better than opposite pairs."
        )
    if same.repeated:
        notes.append(f"{same.repeated} pairs repeat another one; they weigh double.")
    if scores is not None and scores.disagree.value > 0:
        notes.append(f"In {scores.disagree.value:.1%} of scored pairs the rejected response scores higher.")
    if found.separability is not None and found.separability.separable:
        notes.append(
            "Features alone tell chosen from rejected on unseen prompts, beyond the shuffled control: check "
            "that they see quality and not where a response came from."
        )
    if found.motion is not None:
        verdict = found.motion.verdict
        notes.append(f"{verdict[:1].upper()}{verdict[1:]}{'' if verdict.endswith('.') else '.'}")
    return notes


def _facts(found: AuditReport) -> list[tuple[str, str]]:
    """Name and value of everything worth a line."""
    same, length, scores, apart = found.consistency, found.length, found.scores, found.separability
    motion = found.motion
    lines = [
        ("recognised", found.layout),
        ("pairs", f"{same.pairs} of {same.prompts} prompts"),
        ("ties", str(same.ties)),
        ("repeated pairs", str(same.repeated)),
        ("contradictory", f"{same.contradictory} couples, {same.contradictory_pairs} pairs"),
        ("prompts with circles", str(same.cycles)),
        ("twice the same response", str(same.identical)),
        ("responses under several prompts", str(same.shared_candidates)),
    ]
    lines += [(f"bad: {reason}", str(count)) for reason, count in found.read.bad.most_common()]
    if length is not None:
        lines += [
            (
                f"length in {length.unit}",
                f"chosen {length.chosen_mean:.1f}, rejected {length.rejected_mean:.1f}, difference "
                f"{length.difference.describe(1)}",
            ),
            ("longer response chosen", f"{length.longer_wins.describe()}, equal {length.equal_share:.3f}"),
            ("accuracy of length alone", f"{length.length_only_accuracy:.3f} (choose the {length.rule})"),
        ]
    if scores is not None:
        shown = ", ".join(f"{value:.3g}" for value in scores.quantiles)
        lines += [
            ("score gap at 0, 10, 50, 90, 100 %", f"{shown} ({scores.scored} scored pairs)"),
            ("scores against the label", f"{scores.disagree.describe()}, equal {scores.equal:.3f}"),
        ]
    if motion is not None:
        lines += [
            (
                "motion, of 1 within 1/8 s",
                f"chosen {motion.chosen:.4f}, rejected {motion.rejected:.4f}, difference "
                f"{motion.difference.describe(4)}",
            ),
            ("livelier clip chosen", f"{motion.livelier.describe()} of {motion.pairs} pairs"),
        ]
    if apart is not None:
        lines += [
            (
                "separable by features, held out",
                f"{apart.accuracy.describe()} with {apart.num_features} features, {apart.num_folds} folds",
            ),
            ("the same with shuffled labels", apart.control.describe()),
            ("the same on what was fitted", f"{apart.training_accuracy:.3f}"),
        ]
    return lines


def print_audit(found: AuditReport) -> None:
    """Print the report as a table, notes last; numbers in brackets are 95 % intervals over prompts."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _facts(found):
        table.add_row(escape(name), escape(value))
    console.print(table)
    for messages in found.read.examples.values():
        for message in messages:
            console.print(f"  [red]bad[/red] {escape(message)}", highlight=False)
    for line in found.notes:
        console.print(f"  [yellow]note[/yellow] {escape(line)}", highlight=False)


def write_json_audit(found: AuditReport) -> None:
    """Print the report as JSON."""
    read = found.read
    record: dict[str, Any] = {
        "path": found.path,
        "layout": found.layout,
        "ok": found.ok,
        "read": {"read": read.read, "kept": read.kept, "dropped": dict(read.dropped), "bad": dict(read.bad)},
        "consistency": asdict(found.consistency),
        "length": None if found.length is None else asdict(found.length) | {"biased": found.length.biased},
        "scores": None if found.scores is None else asdict(found.scores),
        "motion": None if found.motion is None else found.motion.as_dict(),
        "separability": None
        if found.separability is None
        else asdict(found.separability) | {"separable": found.separability.separable},
        "notes": found.notes,
    }
    print(json.dumps(record, indent=2, ensure_ascii=False))
