"""The page of a run: one HTML file that needs nothing else and opens from a disk.

What is claimed, the tables and where the numbers come from are written here, so that they can be read and
printed without a script. The pictures are listed by the scripts in `report_assets` from data that lie in the
page as JSON. Everything that comes from a run is escaped, and a policy in the page forbids it to load
anything from elsewhere or to run any script but its own.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmalign.evals.number_texts import interval_text
from mmalign.evals.report_page import asset, page
from mmalign.evals.report_tables import (
    comparison_tables,
    diversity_tables,
    group_table,
    interval_bar,
    provenance,
    score_table,
)
from mmalign.evals.statistics.proportions import normal_quantile
from mmalign.evals.tables import claim, evidence, headline, verdict
from mmalign.evals.thumbnails import Pictures, gather, priority
from mmalign.files import atomic_write

__all__ = ["THUMBNAIL_BYTES", "write_report"]

THUMBNAIL_BYTES = 32_000_000
"""Thumbnails of about 3000 pictures; a page of this size still opens in a second or two."""

_CHUNK = 64
"""Thumbnails per block of the page: a block is parsed when one of its pictures is first shown."""

Record = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def write_report(
    record: Record, rows: Rows, path: Path, *, thumbnail_bytes: int = THUMBNAIL_BYTES, seed: int = 0
) -> Path:
    """Write the page. Returns its path.

    Args:
        record: as `summarise` makes it, or as results.json holds it.
        rows: as `sample_rows` makes them, or as samples.jsonl holds them.
        path: where to. Links to pictures are relative to its folder.
        thumbnail_bytes: of all pictures in the page together; those beyond are linked. 0 links all.
        seed: that the blind vote proposes.
    """
    names = [model["name"] for model in record["models"]]
    order = priority([row["sample_id"] for row in rows], _gains(record, rows))
    pictures = gather(rows, names, order, max_bytes=thumbnail_bytes)
    folder = os.path.abspath(path.parent)
    data = _data(record, rows, pictures, os.path.relpath(pictures.root, folder), seed)
    text = _page(record, data, pictures.thumbnails)
    # Half a surrogate pair, cut out of an emoji, is no text a file can hold: it becomes a mark.
    return atomic_write(path, text.encode("utf-8", "xmlcharrefreplace"))


def _gains(record: Record, rows: Rows) -> list[float | None]:
    """By how much the last model is better than the first by the primary reward, sample by sample."""
    title = record["primary"]
    first, last = record["models"][0]["name"], record["models"][-1]["name"]
    rises = next(reward["higher_is_better"] for reward in record["rewards"] if reward["title"] == title)
    gains: list[float | None] = []
    for row in rows:
        before, after = (row["models"][name]["values"][title] for name in (first, last))
        known = before is not None and after is not None
        gains.append((after - before) * (1 if rises else -1) if known else None)
    return gains


def _data(record: Record, rows: Rows, pictures: Pictures, prefix: str, seed: int) -> dict[str, Any]:
    """What the scripts read; short keys and lists, as there may be thousands of samples."""
    names = [model["name"] for model in record["models"]]
    titles = [reward["title"] for reward in record["rewards"]]
    content = json.dumps(
        [record["prompts"]["sha256"], record["models"], list(pictures.files)], sort_keys=True
    )
    return {
        "suite": record["suite"]["name"],
        "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:16],
        "seed": seed,
        "confidence": record["suite"]["statistics"]["confidence"],
        "z": normal_quantile(0.5 + record["suite"]["statistics"]["confidence"] / 2),
        "names": names,
        "rewards": [
            {
                "title": reward["title"],
                "sign": 1 if reward["higher_is_better"] else -1,
                "role": reward["role"],
            }
            for reward in record["rewards"]
        ],
        "primary": titles.index(record["primary"]),
        "samples": [[row["sample_id"], row["item_id"], row["prompt"], row["group"]] for row in rows],
        "values": [[[row["models"][name]["values"][t] for t in titles] for row in rows] for name in names],
        "errors": [
            [place, model, reward, row["models"][name]["errors"][title]]
            for place, row in enumerate(rows)
            for model, name in enumerate(names)
            for reward, title in enumerate(titles)
            if title in row["models"][name]["errors"]
        ],
        "shown": [list(pictures.shown[name]) for name in names],
        "files": list(pictures.files),
        "prefix": Path(prefix).as_posix(),
        "root": Path(os.path.relpath(pictures.root)).as_posix(),
        "clips": record.get("media") == "clips",
        "sounds": record.get("media") == "sounds",
        "place": list(pictures.place),
        "problems": {str(number): text for number, text in pictures.problems.items()},
        "chunk": _CHUNK,
    }


# ------------------------------------------------------------------------------------------------------- page


def _grid(record: Record) -> str:
    """The place where the scripts list samples."""
    words = record.get("media", "pictures").capitalize()
    return asset("grid.html").replace(">Pictures</h2>", f">{words}</h2>")


def _json_block(name: str, value: Any) -> str:
    """Data in the page. ASCII without "<": no prompt can end the block, whatever it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _page(record: Record, data: Mapping[str, Any], thumbnails: Sequence[str]) -> str:
    title = f"{record['suite']['name']}: {' against '.join(data['names'][::-1])}"
    chunks = [thumbnails[start : start + _CHUNK] for start in range(0, len(thumbnails), _CHUNK)]
    blocks = [_json_block("data", data)]
    blocks += [_json_block(f"thumbnails-{number}", list(chunk)) for number, chunk in enumerate(chunks)]
    parts = [_header(record), _warnings(record), score_table(record), comparison_tables(record)]
    parts += [group_table(record), diversity_tables(record), _grid(record), provenance(record)]
    body = "\n".join(part for part in parts if part)
    scripts = ("samples.js", "grid.js", "vote.js")
    return page(title, body, scripts=scripts, blocks=blocks, skip="pictures Skip to the pictures")


def _header(record: Record) -> str:
    suite = record["suite"]
    primary = record["primary"]
    compared = [entry for entry in record["comparisons"] if primary in entry["win_rates"]]
    if compared:
        cards = "\n".join(_card(record, entry, primary) for entry in compared)
        title = claim(compared[0], primary) if len(compared) == 1 else suite["name"]
    else:
        title = suite["name"]
        cards = f'<div class="card"><p>{"<br>".join(escape(text) for text in headline(record))}</p></div>'
    described = f'<p class="lead muted">{escape(suite["description"])}</p>\n' if suite["description"] else ""
    return (
        f'<header>\n<p class="eyebrow">mmalign eval &middot; {escape(suite["name"])}</p>\n'
        f"<h1>{escape(title)}</h1>\n{described}{cards}\n</header>"
    )


def _card(record: Record, comparison: Mapping[str, Any], title: str) -> str:
    """One comparison by the primary reward: rate, interval, counts, both means, corrected p-value."""
    found = comparison["win_rates"][title]
    rate = found["rate"]
    heading = f"<h2>{escape(claim(comparison, title))}</h2>" if len(record["comparisons"]) > 1 else ""
    means = " &rarr; ".join(
        escape(f"{name} {interval_text(record['scores'][name][title]['mean'])}")
        for name in (comparison["base"], comparison["model"])
    )
    counts = f"Won {found['wins']}, tied {found['ties']}, lost {found['losses']}"
    counts += f", not comparable {found['failed']}." if found["failed"] else "."
    return (
        f'<div class="card headline"><div class="rate num {verdict(comparison, title)}">'
        f"{100 * rate['value']:.0f}<small> %</small></div>"
        f"<div>{heading}{interval_bar(rate)}<p>{escape(evidence(comparison, title))} {counts}</p>"
        f'<p class="muted small num">Mean {escape(title)}: {means}</p></div></div>'
    )


def _warnings(record: Record) -> str:
    if not record["warnings"]:
        return ""
    listed = "".join(f"<li>{escape(text)}</li>" for text in record["warnings"])
    return f'<section class="card warnings"><h2>Before believing it</h2><ul>{listed}</ul></section>'
