"""`mmalign pairs sample | score | select | make`: the options; work is imported when one runs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add_command"]


def _add_common(parser: argparse.ArgumentParser, *, work: bool) -> None:
    add = parser.add_argument
    add("plan_path", metavar="PLAN", type=Path, help="YAML file: a suite with exclude and selection")
    add("overrides", nargs="*", metavar="key=value", help="e.g. limit=8 selection.margin=0.1")
    add(
        "--model",
        dest="models",
        metavar="[NAME=]MODEL",
        action="append",
        default=[],
        help="what paints; repeat (default: all models of the plan)",
    )
    add(
        "--store",
        type=Path,
        default=Path("runs/evals/store"),
        metavar="DIR",
        help="pictures and scores, shared with `mmalign eval` (default: runs/evals/store)",
    )
    if work:
        add(
            "--shard",
            default="0/1",
            metavar="N/COUNT",
            help="this process's part; start COUNT of them, on any machines that share the store",
        )
        add("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")


def _add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--candidates",
        dest="candidates_source",
        type=Path,
        metavar="SHARDS",
        help="candidates that exist: .parquet or .tar (WebDataset) shards, or a folder of them, with prompt, "
        "picture and, if known, id and model; PLAN then needs no prompts and no models",
    )
    parser.add_argument(
        "--block-rows",
        type=int,
        default=256,
        metavar="N",
        help="with --candidates: samples that are scored and stored together; the same for score and select "
        "(default: 256)",
    )


def add_command(commands: Any, calls: Callable[[str], Any]) -> None:  # argparse's type is not public
    """Register `mmalign pairs`.

    Args:
        commands: argparse's sub-parsers.
        calls: `module:function` to the handler that imports and calls it.
    """
    parser = commands.add_parser(
        "pairs",
        help="make preference data: of pictures in three stages; of answers, sounds and clips by a recipe",
        description="Of pictures: sample candidates, score them, select pairs or rankings, each restartable "
        "alone. Of answers about images and videos, of sounds and of clips: make. What is stored is not made "
        "again; a run that was killed ends with the same rows as one that was not.",
    )
    stages = parser.add_subparsers(dest="subcommand", metavar="sample|score|select|make", required=True)
    sample = stages.add_parser(
        "sample",
        help="paint K candidates of every prompt with every model",
        description="Prompts of held-out sets (exclude) never enter; every model paints from equal noise.",
    )
    _add_common(sample, work=True)
    sample.set_defaults(handler=calls("mmalign.evals.pairs.commands:run_sample"))

    score = stages.add_parser(
        "score",
        help="score the candidates by every reward of the plan",
        description="A score is stored under the picture's bytes, the prompt and the reward's fingerprint.",
    )
    _add_common(score, work=True)
    _add_shards(score)
    add = score.add_argument
    add(
        "--ray",
        metavar="ADDRESS|local",
        help="with --candidates: score on a Ray cluster (extra ray); shards and store lie on a disk all see",
    )
    add("--workers", type=int, default=1, metavar="N", help="with --ray: one per device (default: 1)")
    add("--gpus-per-worker", type=float, default=0.0, metavar="N", help="with --ray (default: 0)")
    score.set_defaults(handler=calls("mmalign.evals.pairs.commands:run_score"))

    select = stages.add_parser(
        "select",
        help="make pairs or rankings, with labels, weights and a card",
        description="Loads neither models nor rewards. Writes rows, pictures and card.yaml with counts after "
        "every step.",
    )
    _add_common(select, work=False)
    _add_shards(select)
    select.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    select.add_argument("--force", action="store_true", help="replace DIR if it exists")
    select.set_defaults(handler=calls("mmalign.evals.pairs.commands:run_select"))

    _add_make(stages, calls)


def _add_make(stages: Any, calls: Callable[[str], Any]) -> None:
    make = stages.add_parser(
        "make",
        help="pairs of a vision-language model's answers, of sounds or of clips, by a recipe",
        description="Of answers: correct, score, claims, csr, self_judged, multi_image, captions, clips, "
        "mistakes, bias_driven, prompt_writer. Of sounds: seeds, quality, events, order, candidates. Of "
        "clips: groups, existing_clips, corrupt_and_denoise, damage, segments. Writes rows.jsonl, media and "
        "card.yaml; answers, clips and judgements are kept under stages/ as they are made. correct and score "
        "write answers first and go on once their file is there.",
    )
    add = make.add_argument
    add("plan_path", metavar="PLAN", type=Path, help="YAML file: recipe, model, data and settings")
    add("overrides", nargs="*", metavar="key=value", help="e.g. limit=8 sampling.temperature=1.0")
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write; the same one goes on")
    add("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")
    make.set_defaults(handler=calls("mmalign.evals.pairs.make:run_make"))
