"""The command `mmalign compare`."""

from pathlib import Path
from typing import Any


def add_command(commands: Any, handler: Any) -> None:  # argparse's sub-parser action has no public type
    """Register `mmalign compare`."""
    parser = commands.add_parser(
        "compare",
        help="runs of `mmalign eval` in one table, paired where they share samples",
        description="Numbers stand in one column only if reward, prompts, noise, recipe and statistics are "
        "the same; otherwise the command names the field that differs and stops.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="results.json, or its folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write table, record, samples and page")
    parser.add_argument(
        "--separate", action="store_true", help="columns of their own for numbers of another protocol"
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="model the others are paired with (default: the first)"
    )
    parser.set_defaults(handler=handler)
