"""What the selection leaves behind: rows that `mmalign data check` and training read, and a card.

The folder appears when it is complete. Nothing in it depends on the time or the machine: the same store and
plan give the same bytes, also after a run that was killed.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import mmalign
from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.convert import write_pickapic
from mmalign.errors import ConfigError
from mmalign.evals.pairs.contamination import CleanPrompts
from mmalign.evals.pairs.making import Made, Pair, Ranking
from mmalign.evals.pairs.plan import PairPlan, SelectionConfig
from mmalign.evals.pairs.pool import PoolCandidate
from mmalign.evals.prompts import prompts_hash
from mmalign.evals.results import Column
from mmalign.files import atomic_directory

__all__ = ["card_of", "write_made"]

_GROUP_ROWS = 1024


def write_made(
    output: str | Path,
    made: Made,
    settings: SelectionConfig,
    card: Mapping[str, Any],
    *,
    force: bool = False,
) -> Path:
    """Write rows, pictures and card.yaml. Returns the folder.

    parquet, jsonl: rows.parquet or rows.jsonl beside images/, each picture once, named by its content.
    pickapic: rows.parquet with the pictures inside.

    Args:
        output: folder.
        made: pairs or rankings.
        settings: layout and how pictures get there.
        card: what `card_of` returns.
        force: replace what is there.

    Raises:
        ConfigError: `output` exists.
        CheckpointError: the disk refused.
    """
    output = Path(output)
    if output.exists() and not force:
        message = f"{output}: exists. Give another name, or --force to replace it."
        raise ConfigError(message)
    with atomic_directory(output) as folder:
        if settings.layout == "pickapic":
            write_pickapic(folder / "rows.parquet", (_row(pair) for pair in made.pairs))
        else:
            records: Iterable[dict[str, Any]] = (
                (_pair_record(pair, made, folder, settings.images) for pair in made.pairs)
                if made.pairs
                else (_ranking_record(row, made, folder, settings.images) for row in made.rankings)
            )
            _write_records(folder, records, settings.layout)
        text = yaml.safe_dump(dict(card), sort_keys=False, allow_unicode=True, width=110)
        (folder / "card.yaml").write_text(text, encoding="utf-8")
    return output


def _write_records(folder: Path, records: Iterable[dict[str, Any]], layout: str) -> None:
    import json

    if layout == "jsonl":
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None
    held: list[dict[str, Any]] = []
    path = folder / "rows.parquet"

    def flush() -> None:
        nonlocal writer
        table = pa.Table.from_pylist(held, schema=None if writer is None else writer.schema)
        writer = pq.ParquetWriter(path, table.schema, compression="zstd") if writer is None else writer
        writer.write_table(table)
        held.clear()

    for record in records:
        held.append(record)
        if len(held) >= _GROUP_ROWS:
            flush()
    if held:
        flush()
    if writer is not None:
        writer.close()


def _stored(candidate: PoolCandidate, folder: Path, how: str) -> str:
    """Name of the candidate's picture in the folder, where it now is."""
    name = f"images/{candidate.sha256[:2]}/{candidate.sha256[:32]}{candidate.ending}"
    target = folder / name
    if target.exists():
        return name
    target.parent.mkdir(parents=True, exist_ok=True)
    if candidate.path is None:
        target.write_bytes(_checked(candidate))
        return name
    if how == "link":
        try:
            os.link(candidate.path, target)
        except OSError:  # another disk, or one that has no links
            shutil.copyfile(candidate.path, target)
        return name
    target.write_bytes(_checked(candidate))
    return name


def _checked(candidate: PoolCandidate) -> bytes:
    """The picture's bytes, if they still are those that were scored.

    Raises:
        ConfigError: the file has changed.
    """
    data = candidate.read()
    if hashlib.sha256(data).hexdigest() != candidate.sha256:
        message = (
            f"{candidate.id}: {candidate.path or 'its bytes'} changed since it was scored. Score it again."
        )
        raise ConfigError(message)
    return data


def _rewards(made: Made, values: Sequence[float]) -> dict[str, float]:
    return dict(zip(made.titles, values, strict=True))


def _pair_record(pair: Pair, made: Made, folder: Path, how: str) -> dict[str, Any]:
    winner, loser = (pair.prompt.candidates[place] for place in (pair.winner, pair.loser))
    return {
        "id": pair.id,
        "prompt_id": pair.prompt.id,
        "prompt": pair.prompt.prompt,
        "chosen": _stored(winner, folder, how),
        "rejected": _stored(loser, folder, how),
        "preference": pair.preference,
        "weight": pair.weight,
        "score_chosen": pair.standing[0],
        "score_rejected": pair.standing[1],
        "margin": pair.gap,
        "win_id": winner.id,
        "lose_id": loser.id,
        "model_chosen": winner.model,
        "model_rejected": loser.model,
        "rewards_chosen": _rewards(made, pair.prompt.values[pair.winner].tolist()),
        "rewards_rejected": _rewards(made, pair.prompt.values[pair.loser].tolist()),
    }


def _ranking_record(ranking: Ranking, made: Made, folder: Path, how: str) -> dict[str, Any]:
    prompt = ranking.prompt
    ordered = [prompt.candidates[place] for place in ranking.order]
    values = prompt.values[list(ranking.order)].T.tolist()
    return {
        "id": prompt.id,
        "prompt": prompt.prompt,
        "candidates": [_stored(candidate, folder, how) for candidate in ordered],
        "scores": [ranking.standing[place] for place in ranking.order],
        "candidate_ids": [candidate.id for candidate in ordered],
        "candidate_models": [candidate.model for candidate in ordered],
        "reward_values": dict(zip(made.titles, values, strict=True)),
    }


def _row(pair: Pair) -> PreferenceRow:
    """A pair with its pictures' bytes."""
    sides = []
    for place, standing in zip((pair.winner, pair.loser), pair.standing, strict=True):
        candidate = pair.prompt.candidates[place]
        sides.append(
            Candidate(image=_checked(candidate), reward=standing, id=candidate.id, model=candidate.model)
        )
    return PreferenceRow(
        prompt=pair.prompt.prompt,
        candidates=tuple(sides),
        preference=pair.preference,
        weight=pair.weight,
        id=pair.id,
    )


# ------------------------------------------------------------------------------------------------ card


def card_of(
    plan: PairPlan,
    made: Made,
    prompts: CleanPrompts,
    columns: Sequence[Column],
    generators: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Where the data come from: generators, rewards, filters, counts after each step, licences."""
    rewards = [
        {
            "title": column.title,
            "name": column.card.name,
            "output": column.output,
            "scale": column.card.scale,
            "higher_is_better": column.card.higher_is_better,
            "licence": column.card.licence,
            "fingerprint": column.fingerprint,
            "provenance": _plain(column.provenance),
        }
        for column in columns
    ]
    found: dict[str, Any] = {
        "made_by": f"mmalign {mmalign.__version__} pairs select",
        "name": plan.name,
        "description": plan.description,
        "rows": len(made.pairs) or len(made.rankings),
        "kind": "pairs" if made.pairs else "rankings",
        "prompts": list(plan.prompts),
        "prompts_hash": prompts_hash(prompts.items),
        "held_out": {
            "checked": {
                name: {"prompts": count, "found": prompts.contaminated[name]}
                for name, count in prompts.checked.items()
            },
            "waived_and_not_checked": list(prompts.waived),
        },
        "generation": plan.generation.model_dump(mode="json"),
        "generators": [_plain(generator) for generator in generators],
        "rewards": rewards,
        "selection": plan.selection.model_dump(mode="json"),
        "steps": [step.record() for step in made.steps],
        "licences": {
            "rewards": {column.card.name: column.card.licence for column in columns},
            "note": "pictures carry the licences of the generators, prompts those of their sets",
        },
    }
    if made.histogram:
        found["histogram_of_gaps"] = made.histogram
    return found


def _plain(value: Any) -> Any:
    """YAML types only."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
