"""`mmalign guide`, which trains a reward for guidance, and the options of `mmalign sample` for clips."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["add_clip_options", "add_command", "main"]


def add_command(commands: Any, handler: Any) -> None:  # argparse's type is not public
    """Register `mmalign guide`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "guide",
        help="train a small reward that guides a flow model while it samples",
        description="Flow-NRG: a head on the first blocks of the frozen network learns from the pairs of a "
        "config, at all noise levels. `mmalign sample --guide FOLDER --guide-weight W` then bends "
        "the velocity along its gradient. Of the config, model, medium, data, batch size and seed are used. "
        "A training that was stopped goes on when the command is given again.",
    )
    add = parser.add_argument
    add("config_path", metavar="CONFIG", type=Path, help="YAML file of a run on pairs")
    add(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        default=[],
        help="settings that replace the file's",
    )
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder of the reward")
    add("--steps", type=int, default=1000, help="optimiser steps (default: 1000)")
    add("--learning-rate", type=float, default=1e-4, help="of the head (default: 1e-4)")
    add("--hidden", type=int, default=256, help="width of the head (default: 256)")
    add("--block", help="module whose states are read (default: the 6th of 28 blocks, in proportion)")
    add("--save-every", type=int, default=100, metavar="N", help="steps between checkpoints (default: 100)")
    parser.set_defaults(handler=handler)


def add_clip_options(group: Any) -> None:
    """Options of `mmalign sample` for models of video alone."""
    group.add_argument(
        "--num-frames", type=int, default=None, help="of a clip (default: the run's or model's)"
    )
    for name in ("height", "width"):
        group.add_argument(f"--{name}", type=int, default=None, help="pixels (default: the run's or model's)")
    group.add_argument("--fps", type=float, default=None, help="frames per second (default: the same)")
    group.add_argument(
        "--guide",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="of `mmalign guide`: the same clips once more, bent towards its reward (flow models)",
    )
    group.add_argument(
        "--guide-weight", type=float, default=None, metavar="W", help="how strongly; 0 not at all"
    )


def main(
    *,
    config_path: Path,
    overrides: Sequence[str] = (),
    output: Path,
    steps: int = 1000,
    learning_rate: float = 1e-4,
    hidden: int = 256,
    block: str | None = None,
    save_every: int = 100,
) -> int:
    """`mmalign guide`. Returns 0.

    Args:
        config_path: YAML file of a run on pairs.
        overrides: `section.key=value`.
        output: folder of the reward.
        steps: of the optimiser.
        learning_rate: of the head.
        hidden: width of the head.
        block: module whose states are read.
        save_every: steps between checkpoints.

    Raises:
        MmalignError: anything a user can mend; the message says how.
    """
    from mmalign.diffusion.guide_training import GuideSettings, train_guide
    from mmalign.train.config import load_run

    settings = GuideSettings(
        steps=steps, learning_rate=learning_rate, hidden=hidden, block=block, save_every=save_every
    )
    folder = train_guide(load_run(config_path, overrides), output, settings, say=print)
    print(f"reward: mmalign sample --guide {folder} --guide-weight 1")
    return 0
