"""Several runs in one table: a column holds numbers of one protocol, or the table is refused.

Two mean scores can be set side by side when the reward had the same fingerprint, the prompts were the same,
the pictures were painted from the same noise as the suite demanded, and the statistics are the same. What a
suite leaves to the model (its own number of steps, its resolution) belongs to the model and may differ.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.evals.benchmark_scores import as_scores, is_benchmark
from mmalign.evals.number_texts import interval_text
from mmalign.evals.run_files import located
from mmalign.evals.sheets import markdown_table
from mmalign.files import read_json, read_json_lines

__all__ = [
    "Combined",
    "Entry",
    "Run",
    "combine",
    "conflict",
    "distinct_models",
    "entries_of",
    "read_run",
    "told_apart",
]

_DEMANDS = ("seed", "num_steps", "guidance_scale", "scheduler", "format")
"""What a suite can demand of painting; None there leaves it to the model."""

_SHAPE = ("num_frames", "height", "width", "fps")
"""Of clips, always: measures of clips of another length, size or rate are other numbers."""

_OWN = "the model's own"
_UNRECORDED = "not recorded"


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Args:
        name: what tables call it.
        record: content of results.json.
        rows: content of samples.jsonl, pictures as this process finds them; None where it is not there.
        folder: of both files.
    """

    name: str
    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] | None
    folder: Path


def read_run(path: str | Path) -> Run:
    """The run of a results.json, of rewards or of a benchmark, or of the folder that holds one.

    Raises:
        CheckpointError: no such file, or it is not one of ours.
    """
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    record = read_json(file)
    if is_benchmark(record):
        record = as_scores(record)
    if not isinstance(record, dict) or not {"scores", "models", "rewards", "prompts"} <= set(record):
        message = explain(str(file), got="another JSON file", expected="results.json of `mmalign eval`")
        raise CheckpointError(message)
    if record.get("schema_version") != 1:
        message = explain(
            f"{file} schema_version",
            got=record.get("schema_version"),
            expected="1",
            do="Run the report stage again with this version of mmalign.",
        )
        raise CheckpointError(message)
    samples = file.parent / "samples.jsonl"
    rows = None
    if samples.is_file():
        rows = [located(row, file.parent) for row in read_json_lines(samples)]
    return Run(file.resolve().parent.name, record, rows, file.parent)


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs; those in folders of one name are called by the folder above too."""
    names = [run.name for run in runs]
    return [
        run
        if names.count(run.name) == 1
        else dataclasses.replace(run, name="/".join(run.folder.resolve().parts[-2:]))
        for run in runs
    ]


@dataclass(frozen=True)
class Entry:
    """One number of one run: a model's mean by a reward.

    Args:
        run: name of the run.
        model: name of the model in it.
        fingerprint: of the model, or of the pictures of another program.
        title: of the reward.
        mean: value, low and high; None where nothing could be scored.
        protocol: everything that must agree with the other numbers of a column, by field.
        open: fields of `protocol` that the suite left to the model.
    """

    run: str
    model: str
    fingerprint: str
    title: str
    mean: Mapping[str, Any] | None
    protocol: Mapping[str, Any]
    open: frozenset[str]


def entries_of(run: Run) -> Iterator[Entry]:
    """All means of a run with the protocol each was made by."""
    record = run.record
    suite = record["suite"]
    demanded = suite["generation"]
    shared = {
        "prompts.sha256": record["prompts"]["sha256"],
        "generation.images_per_prompt": demanded["images_per_prompt"],
        **{f"statistics.{name}": value for name, value in suite["statistics"].items()},
    }
    for model in record["models"]:
        recipe = {f"recipe.{name}": model["recipe"].get(name, _UNRECORDED) for name in _DEMANDS}
        recipe |= {f"recipe.{name}": model["recipe"].get(name, _UNRECORDED) for name in _SHAPE}
        own = frozenset(
            f"recipe.{name}"
            for name in _DEMANDS
            if demanded.get(name) is None and recipe[f"recipe.{name}"] != _UNRECORDED
        )
        for reward in record["rewards"]:
            protocol = {
                "reward.fingerprint": reward["fingerprint"],
                "reward.output": reward["output"],
                **{f"reward.provenance.{key}": value for key, value in _flat(reward["provenance"])},
                **shared,
                **recipe,
            }
            mean = record["scores"][model["name"]][reward["title"]]["mean"]
            yield Entry(run.name, model["name"], model["fingerprint"], reward["title"], mean, protocol, own)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names, so that a difference can be named exactly."""
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry


def conflict(one: Entry, other: Entry) -> tuple[str, Any, Any] | None:
    """The first field in which two protocols differ, with both values; None where they agree.

    Of rewards the part of the provenance that differs is named, and the fingerprint where no part does.
    """
    names = [*one.protocol, *(name for name in other.protocol if name not in one.protocol)]
    # The fingerprint differs whenever a part of it does; the part says more.
    names.sort(key=lambda name: name == "reward.fingerprint")
    for name in names:
        if name in one.open and name in other.open:
            continue
        values = [entry.protocol.get(name, _UNRECORDED) for entry in (one, other)]
        if values[0] != values[1]:
            return name, values[0], values[1]
    return None


@dataclass(frozen=True)
class Combined:
    """One table of several runs.

    Args:
        columns: header of each column; titles with what sets them apart where protocols differ.
        rows: (model, run) of each row.
        cells: means by row and column; None where the run has no such number.
        notes: what does not forbid a comparison but may move a number.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    cells: tuple[tuple[Mapping[str, Any] | None, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """The table, and the notes under it."""
        body = [
            [model, run, *("" if cell is None else interval_text(cell) for cell in cells)]
            for (model, run), cells in zip(self.rows, self.cells, strict=True)
        ]
        table = markdown_table(["model", "run", *self.columns], body, words=2)
        return "\n\n".join([table, *(f"- {note}" for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass
class _Column:
    title: str
    entries: list[Entry]
    difference: str = ""


def combine(runs: Sequence[Run], *, separate: bool = False) -> Combined:
    """Means of all models of all runs, one column per reward and protocol.

    A model that several runs hold with the same files and the same numbers stands there once.

    Args:
        runs: at least one, with different names.
        separate: give numbers of another protocol a column of their own in place of an error.

    Raises:
        ConfigError: two runs of one name; or a column would mix protocols: the message names the field and
            both values.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        message = explain(
            "runs", got=", ".join(names) or "none", expected="runs in folders of different names"
        )
        raise ConfigError(message)
    columns: list[_Column] = []
    for run in runs:
        for entry in entries_of(run):
            _place(entry, columns, separate=separate)
    rows = [(model["name"], run.name) for run, model in distinct_models(runs)]
    cells = tuple(tuple(_cell(row, column) for column in columns) for row in rows)
    titles = tuple(
        f"{column.title} ({column.difference})" if column.difference else column.title for column in columns
    )
    return Combined(titles, tuple(rows), cells, tuple(_notes(runs)))


def _place(entry: Entry, columns: list[_Column], *, separate: bool) -> None:
    """Put an entry into the first column of its title that has its protocol."""
    same = [column for column in columns if column.title == entry.title]
    found: list[tuple[Entry, tuple[str, Any, Any]]] = []
    for column in same:
        differing = ((other, conflict(other, entry)) for other in column.entries)
        first = next(((other, gap) for other, gap in differing if gap is not None), None)
        if first is None:
            column.entries.append(entry)
            return
        found.append(first)
    if not found:
        columns.append(_Column(entry.title, [entry]))
        return
    other, (name, before, after) = found[0]
    if not separate:
        message = (
            f"{entry.title} {name}: got {before!r} in {other.run} ({other.model}) and {after!r} in "
            f"{entry.run} ({entry.model}), expected one protocol in one column. Run both under one suite, "
            "or give --separate for columns of their own."
        )
        raise ConfigError(message)
    columns.append(_Column(entry.title, [entry], f"{name} {_short(after)}"))
    same[0].difference = same[0].difference or f"{name} {_short(before)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."


def distinct_models(runs: Sequence[Run]) -> list[tuple[Run, Mapping[str, Any]]]:
    """Models of all runs in order; one that an earlier run holds with the same numbers is left out."""
    kept: list[tuple[Run, Mapping[str, Any]]] = []
    known: list[tuple[Any, ...]] = []
    for run in runs:
        for model in run.record["models"]:
            means = {title: found["mean"] for title, found in run.record["scores"][model["name"]].items()}
            facts = (model["fingerprint"], model["recipe"], means)
            if model["fingerprint"] and facts in known:
                continue
            known.append(facts)
            kept.append((run, model))
    return kept


def _cell(row: tuple[str, str], column: _Column) -> Mapping[str, Any] | None:
    return next((entry.mean for entry in column.entries if (entry.model, entry.run) == row), None)


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    """Differences that may move a number a little."""
    for place in ("mmalign", "device"):
        found = {run.name: run.record["software"][place] for run in runs}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{value} ({name})" for name, value in found.items())
            yield f"The runs differ in {place}: {listed}; part of a difference may come from there."
    libraries = sorted({library for run in runs for library in run.record["software"]["libraries"]})
    for library in libraries:
        versions = {run.name: run.record["software"]["libraries"].get(library, "none") for run in runs}
        if len(set(versions.values())) > 1:
            listed = ", ".join(f"{version} ({name})" for name, version in versions.items())
            yield f"The runs differ in {library}: {listed}; part of a difference may come from there."
    dtypes = {model["recipe"].get("dtype", _UNRECORDED) for run in runs for model in run.record["models"]}
    if len(dtypes) > 1:
        yield f"Models painted in different precisions: {', '.join(sorted(map(str, dtypes)))}."
