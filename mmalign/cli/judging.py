"""`mmalign judge bias | arena | rubrics`, `mmalign safety-shift`: the options; work is imported later."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmalign.cli.probes import add_rows

__all__ = ["add_commands"]


def _add_judge(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--judge",
        required=True,
        metavar="JUDGE",
        help="module:function of comparisons, or a reward: pairwise, or pointwise (the higher score wins)",
    )
    add(
        "--option",
        dest="judge_options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the reward, for example model=ID or rubric=FILE; may be repeated",
    )
    add("--weights", type=Path, metavar="DIR", help="folder with the reward's files")
    add("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="default: float32")
    add("--batch-size", type=int, default=16, metavar="N", help="questions per forward (default: 16)")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the report and of the judge's answers; the same command goes on where it stopped",
    )


def _add_safety(commands: Any, calls: Callable[[str], Any]) -> None:  # argparse's type is not public
    parser = commands.add_parser(
        "safety-shift",
        help="does a model refuse the same things when their pictures are altered?",
        description="Ask a model your own questions about your own pictures, clean and under every shift: "
        "rotation, crop, size, written words, mixing with --auxiliaries. Refusals are compared by item.",
    )
    add = parser.add_argument
    add("items", metavar="ITEMS", type=Path, help="JSON lines: prompt, image; must_refuse, overlay, id")
    add("--model", required=True, help="module:function of (prompt, picture) pairs, or a chat model")
    add("--auxiliaries", type=Path, metavar="DIR", help="harmless pictures to mix with (default: no mixing)")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="length of an answer (default: 256)")
    add("--seed", type=int, default=0, help="of places and mixtures (default: 0)")
    add("--batch-size", type=int, default=8, metavar="N", help="questions at once (default: 8)")
    add("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")
    add("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"), help="default: bfloat16")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of report and answers")
    parser.set_defaults(handler=calls("mmalign.cli.safety:main"))


def add_commands(commands: Any, calls: Callable[[str], Any]) -> None:
    """Register `mmalign judge` and `mmalign safety-shift`.

    Args:
        commands: argparse's sub-parsers.
        calls: `module:function` to the handler that imports and calls it.
    """
    parser = commands.add_parser("judge", help="probe a judge for bias, rank models by one, list rubrics")
    actions = parser.add_subparsers(dest="subcommand", metavar="bias|arena|rubrics", required=True)

    bias = actions.add_parser(
        "bias",
        help="is a judge moved by order, majorities, authorities, chatter?",
        description="Ask about every pair in both orders, then again with one sentence for what was not "
        "chosen. Prints flip rates above the judge's own noise, and its agreement with the labels.",
    )
    add_rows(bias)
    _add_judge(bias)
    bias.add_argument(
        "--probe",
        dest="probes",
        action="append",
        default=[],
        metavar="NAME",
        help="bandwagon, authority, distraction or reflection; repeat (default: all)",
    )
    bias.add_argument("--noun", help="what the question calls a candidate (default: Image or Answer)")
    bias.set_defaults(handler=calls("mmalign.cli.judge_runs:bias"))

    arena = actions.add_parser(
        "arena",
        help="rank models by judged pairs of their answers",
        description="Every two models meet on the same prompts, judged in both orders; Bradley-Terry "
        "strengths with errors.",
    )
    arena.add_argument(
        "entries",
        metavar="RUN|MODEL=FILE",
        nargs="+",
        help="folder of `mmalign eval`, or a model's answers as JSON lines (prompt, and answer or image)",
    )
    _add_judge(arena)
    arena.add_argument("--games", type=int, metavar="N", help="prompts each pair meets on (default: all)")
    arena.add_argument("--seed", type=int, default=0, help="of the choice of prompts (default: 0)")
    arena.add_argument(
        "--ridge",
        type=float,
        default=0.0,
        help="1e-6 ranks an arena in which somebody won or lost everything (default: 0 refuses it)",
    )
    arena.set_defaults(handler=calls("mmalign.cli.judge_runs:arena"))

    rubrics = actions.add_parser("rubrics", help="the rubrics that come with mmalign, or one whole")
    rubrics.add_argument("name", nargs="?", metavar="NAME", help="a shipped rubric, or a YAML file of yours")
    rubrics.set_defaults(handler=calls("mmalign.cli.judge_runs:rubrics"))
    _add_safety(commands, calls)
