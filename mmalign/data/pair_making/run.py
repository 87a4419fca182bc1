"""What `mmalign pairs make` does for clips and sounds alike: rows in, counts, a card and rows out."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mmalign.batch import DataKind, PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.pair_making.output import Provenance, write_rows
from mmalign.data.pair_making.progress import print_made, stage_bars
from mmalign.data.pair_making.rows import require_few_bad, rows_to_work_on, without_held_out
from mmalign.data.pair_making.stages import Stages

__all__ = ["MadeGroup", "PairPlan", "PairRun", "made_and_told"]

Report = Callable[[str, int, int], None]


@runtime_checkable
class PairPlan(Protocol):
    """What plans of all media say."""

    @property
    def recipe(self) -> str:
        """Name of the pair maker."""
        ...

    @property
    def data(self) -> DataConfig:
        """The rows that it starts from."""
        ...

    @property
    def exclude(self) -> Sequence[str]:
        """Data sets whose prompts are left out."""
        ...

    @property
    def limit(self) -> int | None:
        """Most rows."""
        ...

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""
        ...

    @property
    def block_rows(self) -> int:
        """Rows that are worked on together."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """All of it, as JSON values."""
        ...


@runtime_checkable
class MadeGroup(Protocol):
    """The clips of one row."""

    @property
    def row(self) -> PreferenceRow:
        """With the prompt."""
        ...

    @property
    def files(self) -> Sequence[str | None]:
        """Of each clip; None where there is none."""
        ...

    @property
    def errors(self) -> Sequence[str]:
        """Of each clip: why it or a score is missing."""
        ...


@dataclass
class PairRun:
    """A plan that is being carried out.

    Args:
        plan: of any medium.
        output: folder of rows, files and `stages/`.
        rows: that pairs are made of.
        stages: what is done before is not done again.
        counts: what was made and left out, by reason.
    """

    plan: PairPlan
    output: Path
    rows: Sequence[PreferenceRow]
    stages: Stages
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def start(
        cls, plan: PairPlan, output: Path, *, kind: DataKind | None, report: Report | None
    ) -> "PairRun":
        """The run with its rows read; those that cannot be read, or are held out, are counted.

        Args:
            plan: of any medium.
            output: folder of rows, files and `stages/`.
            kind: of rows; None takes what the data hold.
            report: told (stage, done, total).

        Raises:
            ConfigError: the data do not fit, or too many rows cannot be read.
        """
        counts: Counter[str] = Counter()
        rows = rows_to_work_on(plan.data, kind=kind, limit=plan.limit, counts=counts)
        require_few_bad(counts, len(rows) + counts.total(), plan.data)
        rows = without_held_out(rows, plan.exclude, counts)
        stages = Stages(output / "stages", {}, plan.seed, plan.block_rows, report)
        return cls(plan, output, rows, stages, counts)

    def count_clips(self, groups: Sequence[MadeGroup]) -> None:
        """Count the clips that there are, and those that failed."""
        self.counts["clips"] = sum(name is not None for group in groups for name in group.files)
        self.counts["failed_clips"] = sum(name is None for group in groups for name in group.files)

    def provenance(self, maker: Mapping[str, Any]) -> Provenance:
        """Who makes the rows, and from what.

        Args:
            maker: identity of what made the clips; empty where they were there.
        """
        name = str(maker.get("model") or maker.get("function") or "data")
        settings = {**self.plan.model_dump(mode="json"), "made_with": dict(maker)}
        return Provenance(self.plan.recipe, name, settings, self.plan.seed)

    def finish(
        self,
        records: Sequence[Mapping[str, Any]],
        groups: Sequence[MadeGroup],
        provenance: Provenance,
        facts: Mapping[str, Any],
    ) -> tuple[Path, Counter[str]]:
        """`rows.jsonl`, written with its card, and the counts; what happened never is not told.

        Args:
            records: one per row.
            groups: that they come from; their first errors go into the card.
            provenance: of all rows.
            facts: what else the card says.
        """
        unanswered = self.stages.unanswered
        self.counts["unanswered"] = unanswered.total()
        counts = +self.counts
        counts["rows"] = len(records)
        found = {**facts, "first_errors": _first_errors(groups)}
        if unanswered:
            found["unanswered"] = dict(unanswered.most_common(5))
        return write_rows(self.output, records, provenance, counts, found), counts


def _first_errors(groups: Sequence[MadeGroup], limit: int = 5) -> list[str]:
    """Why clips or scores are missing, the first few."""
    errors = (f"{group.row.id}: {error}" for group in groups for error in group.errors if error)
    return [error for _, error in zip(range(limit), errors, strict=False)]


def made_and_told(
    make: Callable[..., tuple[Path, Counter[str]]],
    plan: Any,
    output: Path,
    *,
    device: str | None,
    tools: Any,
) -> None:
    """Carry out a plan under bars, and say what was written and left out.

    Args:
        make: (plan, output, device, report, tools) to the rows and counts.
        plan: what it is given.
        output: folder of rows.
        device: None takes the best there is.
        tools: what loads models and rewards.
    """
    with stage_bars() as report:
        rows, counts = make(plan, output, device=device, report=report, tools=tools)
    print_made(rows, counts)
