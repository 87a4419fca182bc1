"""`mmalign best-of`: of several answers or pictures to each prompt, the one a reward likes most."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, RowError, explain

__all__ = ["add_command", "main"]


def add_command(commands: Any, handler: Callable[..., Any]) -> None:  # argparse's action has no public type
    """Register `mmalign best-of`."""
    parser = commands.add_parser(
        "best-of",
        help="of several candidates to each prompt, the one a reward likes most",
        description="FILE is JSON lines: prompt, and candidates as a list of texts, or of records with image "
        "(a path, relative to FILE) or text. The output has, for each line, the place of the best candidate, "
        "its value, how far the next one is behind, and all values. The implicit reward of a tuned model: "
        "--reward implicit --option tuned=RUN --option reference=MODEL.",
    )
    parser.add_argument("rows", metavar="FILE", type=Path, help="JSON lines with prompt and candidates")
    parser.add_argument("--reward", required=True, help="name, module:function or address")
    parser.add_argument("--weights", default=None, help="folder with the reward's files")
    parser.add_argument(
        "--option", dest="options", metavar="KEY=VALUE", action="append", default=[], help="of the reward"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write")
    parser.add_argument("--batch-size", type=int, default=16, help="candidates per call (default: 16)")
    parser.add_argument("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")
    parser.set_defaults(handler=handler)


def main(
    *,
    rows: Path,
    reward: str,
    output: Path,
    weights: str | None = None,
    options: Sequence[str] = (),
    batch_size: int = 16,
    device: str | None = None,
) -> int:
    """Choose for every line of a file. Returns 0, or 3 where a prompt has no candidate that could be scored.

    Args:
        rows: JSON lines with prompt and candidates.
        reward: what judges.
        output: JSON lines to write, one per prompt, in their order.
        weights: folder with the reward's files.
        options: KEY=VALUE of the reward.
        batch_size: candidates per call.
        device: where the reward runs.

    Raises:
        RowError: a line without prompt or candidates; names file and line.
        ConfigError: the reward or an option does not fit.
    """
    from mmalign.cli.reward_serving import parsed_options
    from mmalign.devices import best_device
    from mmalign.files import atomic_write, read_json_lines
    from mmalign.rewards.best_of_n import best_of_n
    from mmalign.rewards.loading import load

    if not rows.is_file():
        raise ConfigError(explain("best-of", got=str(rows), expected="a file of JSON lines"))
    records = read_json_lines(rows)
    samples = [
        sample
        for number, record in enumerate(records, start=1)
        for sample in _samples(record, number, where=f"{rows}:{number}", folder=rows.parent)
    ]
    if not samples:
        raise ConfigError(explain(str(rows), got="no lines", expected="at least one prompt"))
    given = parsed_options(options)
    if ":" not in reward:
        given |= {"weights": weights, "device": str(best_device(device))}
    chosen = best_of_n(load(reward, **given), samples, group="extras.row", batch_size=batch_size)
    start = 0
    lines: list[str] = []
    for record, best in zip(records, chosen, strict=True):
        place = None if best.place is None else best.place - start
        candidate = None if place is None else record["candidates"][place]
        found = {
            "prompt": record["prompt"],
            "best": place,
            "candidate": candidate,
            "value": _number(best.value),
            "gap": _number(best.gap),
            "failed": [failed - start for failed in best.failed],
        }
        kept = {key: value for key, value in record.items() if key not in ("prompt", "candidates")}
        lines.append(json.dumps({**kept, **found}, ensure_ascii=False))
        start += len(best.candidates)
    atomic_write(output, "\n".join(lines) + "\n")
    empty = sum(best.place is None for best in chosen)
    print(f"{len(chosen)} prompts, {len(samples)} candidates: {output}")
    if empty:
        print(f"{empty} prompts have no candidate that could be scored; their best is null.")
    return 3 if empty else 0


def _samples(record: Mapping[str, Any], number: int, *, where: str, folder: Path) -> list[Any]:
    from mmalign.rewards.sample import Sample

    prompt, candidates = record.get("prompt"), record.get("candidates")
    if not isinstance(prompt, str) or not isinstance(candidates, list) or not candidates:
        message = explain(where, got=sorted(record), expected="a prompt and a list of candidates")
        raise RowError(message, reason="no_candidates")
    found = []
    for place, candidate in enumerate(candidates):
        parts = {"text": candidate} if isinstance(candidate, str) else candidate
        if not isinstance(parts, Mapping) or not set(parts) & {"text", "image"}:
            message = explain(
                f"{where} candidates[{place}]", got=candidate, expected="a text, or image or text"
            )
            raise RowError(message, reason="no_candidates")
        image = None if parts.get("image") is None else folder / str(parts["image"])
        found.append(Sample(prompt=prompt, text=parts.get("text"), image=image, extras={"row": number}))
    return found


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
