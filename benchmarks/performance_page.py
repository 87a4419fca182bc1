"""The tables of docs/performance.md, made of records. No number in them is written by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import records

__all__ = ["PARTS_OF_THE_PAGE", "renew_page"]

_CURVE = "images/performance-growth.svg"


def _table(headings: list[str], rows: list[list[str]]) -> str:
    from mmalign.toy.guide_tables import table

    return table([(name, "---" if place == 0 else "---:") for place, name in enumerate(headings)], rows)


def _of(found: Mapping[str, Any], begin: str) -> dict[str, dict[str, Any]]:
    return {name: dict(each["values"]) for name, each in found.items() if name.startswith(begin)}


def _machine(found: Mapping[str, Any]) -> str:
    """Where the records were measured, once per machine."""
    rows = []
    for each in found.values():
        where = each["machine"]
        versions = ", ".join(f"{name} {value}" for name, value in where["versions"].items())
        row = [
            where["gpu"] or f"{where['cpu']}, {where['threads']} of {where['cores']} cores",
            f"`{where['commit']}`",
            versions,
        ]
        if row not in rows:
            rows.append(row)
    return _table(["measured on", "commit", "versions"], rows)


def _steps(found: Mapping[str, Any]) -> str:
    """Pairs per CPU second of every model, and what they are compared with."""
    rows = []
    for name, values in _of(found, "step.").items():
        speed = values["pairs_per_cpu_second"]
        base = "unoptimised" if "unoptimised" in speed else "trl, answers alone"
        over = values["over_unoptimised"] if "over_unoptimised" in values else values["over_trl"][base]
        memory = values.get("step_mib", {})
        rows.append(
            [
                name.removeprefix("step."),
                f"{speed['mmalign']:.2f}",
                f"{speed['mmalign, stored']:.2f}",
                f"{speed[base]:.2f} ({base})",
                f"{over['mmalign']:.2f}x",
                f"{over['mmalign, stored']:.2f}x",
                f"{memory['mmalign']:.0f}, {memory[base]:.0f}" if memory else "",
            ]
        )
    headings = ["model", "pairs/s", "stored reference", "peer", "over peer", "stored, over peer"]
    return _table([*headings, "MiB of a step, ours and peer's"], rows)


def _parts(found: Mapping[str, Any]) -> str:
    """Shares of a step's time."""
    from inside_a_step import PARTS

    rows = []
    for name, values in _of(found, "step.").items():
        if "milliseconds" not in values:
            continue
        total = sum(values["milliseconds"].values())
        rows.append(
            [
                name.removeprefix("step."),
                f"{total:.0f}",
                *(f"{values['milliseconds'][part] / total:.1%}" for part in PARTS),
            ]
        )
    return _table(["model", "ms a step", *PARTS], rows)


def _flops(found: Mapping[str, Any]) -> str:
    """Arithmetic of a pair, and how far time is from it."""
    rows = []
    for name, values in _of(found, "step.").items():
        counted, floor = values["flops_over_least"], values.get("time_over_floor", {})
        base = "unoptimised" if "unoptimised" in counted else "trl, answers alone"
        least = values.get("gflop_per_pair_least", values["gflop_per_pair"]["mmalign, stored"])
        rows.append(
            [
                name.removeprefix("step."),
                f"{least:.2f}",
                *(f"{counted[title]:.2f}" for title in ("mmalign, stored", "mmalign", base)),
                f"{floor['mmalign, stored']:.1f}" if floor else "",
                f"{floor['mmalign']:.1f}" if floor else "",
            ]
        )
    headings = ["model", "least GFLOP a pair", "stored reference", "live reference", "peer"]
    return _table([*headings, "time over floor, stored", "live"], rows)


def _tax(found: Mapping[str, Any]) -> str:
    rows = []
    for values in _of(found, "tax.").values():
        for name, one in values.items():
            if isinstance(one, dict):
                rows.append(
                    [
                        name,
                        f"{one['tax']:+.1%}",
                        _between(one.get("interval")),
                        f"{one['tax_low']:+.1%} to {one['tax_high']:+.1%}",
                        f"{one['tax_of_minima']:+.1%}",
                    ]
                )
    headings = ("tax", "95 % interval of the median", "quartiles over blocks", "of the fastest blocks")
    return _table(["pairs a step", *headings], rows)


def _between(interval: Sequence[float] | None) -> str:
    """Both ends; empty in records that have none."""
    return "" if interval is None else f"{interval[0]:+.1%} to {interval[1]:+.1%}"


def _lora(found: Mapping[str, Any]) -> str:
    """Steps with our forward pass of LoRA layers over steps with peft's."""
    rows = [
        [
            name.removeprefix("lora."),
            str(values["layers"]),
            *(f"{values['milliseconds'][title]:.0f}" for title in ("peft", "lean")),
            f"{values['over_peft']:.2f}",
            f"{values['over_peft_low']:.2f} to {values['over_peft_high']:.2f}",
        ]
        for name, values in _of(found, "lora.").items()
    ]
    return _table(["step", "LoRA layers", "ms, peft's", "ms, ours", "ratio", "quartiles over rounds"], rows)


def _rates(found: Mapping[str, Any]) -> str:
    """Everything that is a rate or a start."""
    rows = []
    units = {"start": "s", "loader": "rows/s", "reward": "pictures/s"}
    for name, unit in units.items():
        for title, value in _of(found, name).get(name, {}).items():
            if title not in ("wall_seconds", "over trl"):
                rows.append([f"{name}: {title}", f"{value:.3g} {unit}"])
            elif title == "over trl":
                rows.append(["start: first step of the language model over TRL's", f"{value:.2f}"])
    scoring = _of(found, "scoring").get("scoring")
    if scoring is not None:
        rows.append(["evaluation store", f"{scoring['items_per_second']:.0f} pictures/s"])
    return _table(["measurement", "value"], rows)


def _growth(found: Mapping[str, Any]) -> str:
    names = {
        "rows": "rows of the data",
        "list": "candidates of a list",
        "frames": "frames of a clip",
        "words": "tokens of an answer",
    }
    rows = []
    for values in _of(found, "growth").values():
        for name, title in names.items():
            one = values[name]
            sizes = [f"{point['size']:.0f}" for point in one["points"]]
            rows.append(
                [
                    title,
                    f"{sizes[0]} to {sizes[-1]}",
                    *(
                        f"{one[f'{cost}_exponent']:.2f} ({one[f'{cost}_exponent_last']:.2f})"
                        for cost in ("seconds", "mib")
                    ),
                ]
            )
    return _table(["what grows", "sizes", "exponent of time (last two sizes)", "of memory"], rows)


def _gpu(found: Mapping[str, Any]) -> str:
    """Machine, steps, attention and gradients measured by gpu.py; nothing where it never ran."""
    if not found:
        return ""
    import gpu

    rows: list[dict[str, Any]] = [{"id": name, **each["values"]} for name, each in found.items()]
    parts = [_machine(found), gpu.table(rows)]
    kernels = [
        [name, value if isinstance(value, str) else f"{value:.1e}"]
        for row in rows
        if row["id"] == "attention"
        for name, value in row.items()
        if name not in ("id", "error", "left_out")
    ]
    if kernels:
        parts.append(_table(["attention kernel", "largest relative error, or why not"], kernels))
    gaps = [(row["id"], row["gradient_difference"]) for row in rows if "gradient_difference" in row]
    if gaps:
        cells = [[name, gap if isinstance(gap, str) else f"{gap:.1e}"] for name, gap in gaps]
        parts.append(_table(["gradients", "relative difference"], cells))
    return "\n\n".join(parts)


PARTS_OF_THE_PAGE = {
    "machine": _machine,
    "steps": _steps,
    "parts": _parts,
    "flops": _flops,
    "tax": _tax,
    "lora": _lora,
    "rates": _rates,
    "growth": _growth,
}
"""Name of a marker to what makes its table."""


def renew_page(page: Path, results: Path) -> None:
    """Put the tables of the last record of every measurement between the page's markers.

    Args:
        page: Markdown.
        results: records; those of a GPU are read from it, and from `gpu.jsonl` beside it.
    """
    import growth

    from mmalign.files import atomic_write
    from mmalign.toy.guide_tables import renew

    beside = results.with_name("gpu.jsonl")
    both = [path for path in dict.fromkeys((results, beside)) if path == results or path.exists()]
    every = [each for path in both for each in records.read(path)]
    # One that failed does not hide the one before.
    found = records.latest(
        each for each in every if each["profile"] == "cpu" and "error" not in each["values"]
    )
    on_gpu = records.latest(each for each in every if each["profile"] == "gpu")
    parts = {name: make(found) for name, make in PARTS_OF_THE_PAGE.items()} | {"gpu": _gpu(on_gpu)}
    renew(page, {f"bench_{name}": text for name, text in parts.items()})
    if "growth" in found:
        picture = page.parent / _CURVE
        picture.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(picture, growth.svg(_only_series(found["growth"]["values"])))


def _only_series(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, dict) and "points" in value}
