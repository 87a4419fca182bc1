"""What gradient checkpointing keeps and repeats at full size, counted on shapes: none, selective, full.

    python benchmarks/recomputation.py --write                        # count, and add to the records
    python benchmarks/recomputation.py --only sdxl wan                # some of it
    python benchmarks/recomputation.py --page docs/planning.md        # the table of the records, no counting

Each network is that of a recipe, with its adapter, one pair at a time in bfloat16, on the meta device, as
`mmalign plan` counts it for a GPU. Kept is what lives between the policy's forward and backward pass;
repeated are the products of the backward pass beyond those of a run that recomputes nothing.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# The checkout itself too: what is counted is what stands here.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import records

from mmalign.files import atomic_write
from mmalign.train.config import load_run
from mmalign.train.planning.counting import count

__all__ = ["WAYS", "counted", "main", "table"]

_ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "sdxl": ("SDXL, 1024 x 1024", "diffusion/configs/sdxl/dpo_lora.yaml"),
    "sd3": ("SD3.5 medium, 1024 x 1024", "diffusion/configs/sd3/flow_dpo.yaml"),
    "flux": ("FLUX.1 dev, 1024 x 1024", "diffusion/configs/flux/flow_dpo.yaml"),
    "wan": ("Wan 1.3B, 81 frames of 480 x 832", "video/configs/wan/flow_dpo_lora.yaml"),
    "llava": ("LLaVA 1.5 7B, a photograph and two answers", "vlm/configs/llava/dpo.yaml"),
}
"""Titles and recipes."""

WAYS = {"false": "none", "selective": "selective", "true": "full"}
"""`model.gradient_checkpointing`, and what the table calls it."""

RECORDS = _ROOT / "docs" / "measurements" / "recomputation.jsonl"
MARKERS = ("<!-- recomputation:begin -->", "<!-- recomputation:end -->")
_ONE_PAIR = ("train.batch_size=1", "train.mixed_precision=bf16")


def counted(recipe: str | Path, overrides: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """By way: bytes kept, bytes at the highest, products forward and backward.

    Args:
        recipe: a configuration.
        overrides: of it, after those of one pair in bfloat16.
    """
    found = {}
    for way, name in WAYS.items():
        run = load_run(recipe, [*_ONE_PAIR, *overrides, f"model.gradient_checkpointing={way}"])
        policy = count(run, device_type="cuda").policy
        found[name] = {
            "kept_bytes": policy.kept,
            "peak_bytes": policy.peak,
            "forward_flops": policy.flops_of("forward"),
            "backward_flops": policy.flops_of("backward"),
        }
    return found


def table(found: Iterable[Mapping[str, Any]]) -> str:
    """The last record of every network, as Markdown."""
    latest = records.latest(found)
    lines = [
        "| network | checkpointing | kept, GiB | of none | highest, GiB | TFLOP repeated | of forward |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, (title, _) in NETWORKS.items():
        if f"recomputation.{key}" not in latest:
            continue
        values = latest[f"recomputation.{key}"]["values"]
        none = values["none"]
        for name in WAYS.values():
            each = values[name]
            again = each["backward_flops"] - none["backward_flops"]
            cells = (
                f"{each['kept_bytes'] / 2**30:.2f}",
                f"{each['kept_bytes'] / none['kept_bytes']:.0%}".replace("%", " %"),
                f"{each['peak_bytes'] / 2**30:.2f}",
                f"{again / 1e12:.2f}",
                f"{again / none['forward_flops']:.1%}".replace("%", " %"),
            )
            lines.append(f"| {title} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def renew(page: Path, content: str, markers: tuple[str, str] = MARKERS) -> None:
    """Put the table between the page's markers.

    Raises:
        ValueError: it has none.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(markers[0])
    _, ended, after = rest.partition(markers[1])
    if not (found and ended):
        message = f"{page}: got no {' and '.join(markers)}, between which the table stands"
        raise ValueError(message)
    atomic_write(page, f"{before}{markers[0]}\n{content}\n{markers[1]}{after}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print, or renew the page."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--only", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS))
    parser.add_argument("--write", action="store_true", help=f"add to {RECORDS.relative_to(_ROOT)}")
    parser.add_argument(
        "--page", type=Path, help="renew this page's table from the records, and count nothing"
    )
    options = parser.parse_args(arguments)
    if options.page is not None:
        renew(options.page, table(records.read(RECORDS)))
        return
    for key in options.only:
        name, recipe = f"recomputation.{key}", NETWORKS[key][1]
        made = records.record(name, counted(_ROOT / recipe), profile="meta", where=records.machine())
        print(table([made]), flush=True)
        if options.write:
            records.append(RECORDS, [made])


if __name__ == "__main__":
    main()
