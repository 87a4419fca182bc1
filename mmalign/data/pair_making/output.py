"""Made rows on disk: `rows.jsonl`, files named by their content, and a card that says how they were made."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from mmalign.files import atomic_write, fingerprint

__all__ = ["MadeFiles", "Provenance", "placed", "score_table", "write_rows"]


@dataclass(frozen=True)
class Provenance:
    """Who made rows, and from what.

    Args:
        recipe: name of the pair maker.
        model: what made the candidates: name and fingerprint.
        settings: of the recipe.
        seed: of the run.
    """

    recipe: str
    model: str
    settings: Mapping[str, Any]
    seed: int

    def columns(self, row_id: str) -> dict[str, Any]:
        """Columns of one row: `made_by`, `made_from`, `made_model`, `made_settings`, `made_seed`."""
        return {
            "made_by": self.recipe,
            "made_from": row_id,
            "made_model": self.model,
            "made_settings": fingerprint(dict(self.settings)),
            "made_seed": self.seed,
        }


@dataclass(frozen=True)
class MadeFiles:
    """Media of rows in the output folder, each content once.

    Args:
        folder: where.
    """

    folder: Path

    def put(self, kind: str, data: bytes, ending: str) -> str:
        """Keep a file; returns its path from the folder on.

        Args:
            kind: sub-folder.
            data: encoded medium.
            ending: of the name, with the dot.
        """
        name = f"{kind}/{hashlib.blake2b(data, digest_size=12).hexdigest()}{ending}"
        if not (self.folder / name).is_file():
            atomic_write(self.folder / name, data)
        return name


def write_rows(
    folder: str | Path,
    records: Iterable[Mapping[str, Any]],
    provenance: Provenance,
    counts: Mapping[str, int],
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write `rows.jsonl` and `card.yaml`; returns the rows, which appear when the card is there.

    Args:
        folder: where; media lie there already.
        records: one per row, JSON values.
        provenance: goes into the card in full.
        counts: of what was made and left out.
        facts: what else the card says.
    """
    folder = Path(folder)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    card = {
        "recipe": provenance.recipe,
        "model": provenance.model,
        "seed": provenance.seed,
        "settings": dict(provenance.settings),
        "rows": len(lines),
        "counts": dict(counts),
        **(facts or {}),
    }
    atomic_write(folder / "card.yaml", yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
    return atomic_write(folder / "rows.jsonl", "".join(lines))


def placed(name: str | None, folder: Path, kind: str) -> str:
    """A file of `stages` put under a sub-folder, from the folder on; a hard link where the disk allows one.

    Args:
        name: of the file, from `stages` on.
        folder: of the rows.
        kind: the sub-folder.
    """
    source = folder / "stages" / str(name)
    kept = f"{kind}/{source.name}"
    target = folder / kept
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return kept


def score_table(
    records: Sequence[Mapping[str, Any]], titles: Sequence[str]
) -> Mapping[str, Mapping[str, float]]:
    """Mean score of chosen and rejected clips, and the mean gap, by scorer; as Audio-Alpaca reports them."""
    if not records or "chosen" not in records[0]:
        return {}
    table = {}
    for title in titles:
        chosen = fmean(record[f"{title}_chosen"] for record in records)
        rejected = fmean(record[f"{title}_rejected"] for record in records)
        table[title] = {
            "chosen": round(chosen, 6),
            "rejected": round(rejected, 6),
            "gap": round(chosen - rejected, 6),
        }
    return table
