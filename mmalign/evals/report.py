"""The page of a run: one HTML file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmalign.evals.tables import markdown
from mmalign.files import atomic_write

__all__ = ["write_report"]


def write_report(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write the page. Returns its path."""
    listed = "\n".join(escape(json.dumps(row, ensure_ascii=False)) for row in rows)
    page = f"<!doctype html><meta charset=utf-8><pre>{escape(markdown(record))}\n{listed}</pre>\n"
    return atomic_write(path, page)
