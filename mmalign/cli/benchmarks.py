"""`mmalign benchmarks | benchmark`: the options; work is imported when one runs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add_commands"]


def _add_benchmarks(commands: Any, calls: Callable[[str], Any]) -> None:  # argparse's type is not public
    parser = commands.add_parser(
        "benchmarks",
        help="the benchmarks, or one of them whole",
        description="Every benchmark by name: what it measures, the official files it reads, the tools and "
        "options it takes, its protocol, and where it departs from the official code. Downloads nothing.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="one benchmark whole")
    parser.set_defaults(handler=calls("mmalign.cli.benchmark_cards:print_benchmarks"))


def _add_benchmark(commands: Any, calls: Callable[[str], Any]) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="score answers or models on one benchmark, paired where there are several",
        description="Score stored answers, let a vision-language model answer, or paint and judge pictures. "
        "Numbers are printed with those that must stand beside them; several models are compared item by "
        "item with the first. What is stored is not made again.",
    )
    _add_inputs(parser)
    _add_making(parser)
    _add_scoring(parser)
    parser.set_defaults(handler=calls("mmalign.cli.benchmark_runs:run"))


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="as `mmalign benchmarks` lists it")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with the benchmark's official files"
    )
    parser.add_argument(
        "--answers",
        metavar="[MODEL=]FILE",
        action="append",
        default=[],
        help="stored answers (JSON lines, JSON, CSV), or the official script's results; repeat for more "
        "models, or with the same MODEL for more files of one",
    )
    parser.add_argument(
        "--model",
        dest="models",
        metavar="[MODEL=]SOURCE",
        action="append",
        default=[],
        help="a model that answers or paints now: hub id, folder, run folder, or images:FOLDER; repeat",
    )
    parser.add_argument(
        "--tool",
        dest="tools",
        metavar="TOOL=SOURCE",
        action="append",
        default=[],
        help="weights of a tool (hub id or folder), a reward's name, or a judge; TOOL=none leaves it out; "
        "tools with a default need not be named",
    )


def _add_making(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help="folder of the results (default: runs/benchmarks/NAME)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/evals/store"),
        help="answers and pictures, shared by all runs (default: runs/evals/store)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="first N items only, to try things out; marked in the results"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, metavar="N", help="length of answers (default: 512)"
    )
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", help="larger pictures are scaled down (default: as they are)"
    )
    parser.add_argument(
        "--images-per-prompt", type=int, metavar="N", help="pictures of each prompt (default: the protocol's)"
    )
    parser.add_argument("--steps", type=int, help="sampler steps (default: the model's)")
    parser.add_argument("--guidance-scale", type=float, help="default: the model's")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of noise and of intervals (default: 0)")
    parser.add_argument("--batch-size", type=int, default=4, help="items per network call (default: 4)")
    parser.add_argument(
        "--groups",
        type=int,
        default=20,
        metavar="N",
        help="answers are scored N times more, without a group of pictures each, for intervals of metrics "
        "that are no means (F1, CHAIRi); 0: no such intervals (default: 20)",
    )
    parser.add_argument(
        "--shard",
        default="0/1",
        metavar="N/COUNT",
        help="this process's part of answering, painting and judging; start COUNT of them, on any machines "
        "that share the cache, then run once more without",
    )
    parser.add_argument("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="default: float32"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="option=value", help="options of the benchmark, e.g. mode=strict"
    )


def add_commands(commands: Any, calls: Callable[[str], Any]) -> None:
    """Register the commands.

    Args:
        commands: argparse's sub-parsers.
        calls: `module:function` to the handler that imports and calls it.
    """
    _add_benchmarks(commands, calls)
    _add_benchmark(commands, calls)
