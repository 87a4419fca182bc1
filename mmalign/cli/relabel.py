"""`mmalign data relabel`: the options; work is imported when it runs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add_relabel"]


def add_relabel(
    commands: Any, add_source: Callable[..., None], data_config: Callable[[argparse.Namespace], Any]
) -> None:  # argparse's sub-parser action has no public type
    """Register `mmalign data relabel`.

    Args:
        commands: argparse's sub-parsers of `mmalign data`.
        add_source: adds the options that say what to read.
        data_config: makes the data settings of them.
    """
    parser = commands.add_parser(
        "relabel",
        help="labels, soft labels and weights from rewards, old labels kept beside them",
        description="Scores every candidate, writes rows.jsonl, images/ or audio/, and card.yaml, and "
        "reports how far the new labels agree with the old ones. Interrupt and run again: stored scores are "
        "not made again.",
    )
    add_source(parser, ties="soft")
    add = parser.add_argument
    add("--reward", dest="rewards", metavar="NAME", action="append", required=True, help="repeat for several")
    add("--output", required=True, type=Path, metavar="OUT", help="folder to write")
    add(
        "--label",
        default="sign",
        choices=("sign", "votes", "sigmoid", "smpo"),
        help="of pairs: the higher score wins; share of rewards that agree; sigmoid of the gap; SmPO's "
        "softmax of PickScore cosines (default: sign)",
    )
    add("--scale", type=float, default=1.0, help="sigmoid: per unit of the score (default: 1)")
    add(
        "--logit-scale",
        type=float,
        default=100.0,
        metavar="X",
        help="smpo: PickScores are divided by it; 1 if they are cosines (default: 100)",
    )
    add(
        "--new-ties",
        default="drop",
        choices=("drop", "soft"),
        help="pairs whose new label has no side (default: drop)",
    )
    add("--threshold", type=float, metavar="X", help="unpaired rows: liked from this score on")
    add(
        "--keep-share",
        type=float,
        metavar="SHARE",
        help="keep this part of the rows, those a reward likes best: a filter of instruction data",
    )
    add(
        "--weight",
        default="none",
        choices=("none", "gap", "duplication", "rarity"),
        help="of pairs, by the gap of the first reward (default: none)",
    )
    add("--weight-scale", type=float, default=100.0, metavar="X", help="gap: full marks (default: 100)")
    add("--weight-beta", type=float, default=1.0, metavar="X", help="duplication (default: 1)")
    add("--weight-bin", type=float, default=0.01, metavar="X", help="width of a bin (default: 0.01)")
    add("--weights", type=Path, metavar="DIR", help="folder with the rewards' files")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="default: float32")
    add("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")
    add("--batch-size", type=int, default=16, metavar="N", help="samples in one forward (default: 16)")
    add(
        "--store",
        type=Path,
        default=Path("runs/evals/store"),
        metavar="DIR",
        help="scores, shared with eval and pairs (default: runs/evals/store)",
    )
    add("--force", action="store_true", help="replace OUT if it exists")

    def handle(options: argparse.Namespace) -> int:
        return _relabel(options, data_config(options))

    parser.set_defaults(handler=handle)


def _relabel(options: argparse.Namespace, config: Any) -> int:
    from mmalign.devices import best_device
    from mmalign.evals.pairs.candidates import load_reward
    from mmalign.evals.pairs.plan import WeightConfig
    from mmalign.evals.pairs.relabel import RelabelSettings, relabel
    from mmalign.evals.suite import RewardSpec

    device = str(best_device(options.device))
    weights = None if options.weights is None else str(options.weights)
    specs = [RewardSpec(name=name, weights=weights, dtype=options.dtype) for name in options.rewards]
    rewards = {spec.name: load_reward(spec, device) for spec in specs}
    settings = RelabelSettings(
        label=options.label,
        scale=options.scale,
        logit_scale=options.logit_scale,
        ties=options.new_ties,
        threshold=options.threshold,
        weight=WeightConfig(
            how=options.weight,
            scale=options.weight_scale,
            beta=options.weight_beta,
            bin_width=options.weight_bin,
        ),
        keep_share=options.keep_share,
    )
    found = relabel(
        config,
        options.output,
        rewards,
        settings,
        store=options.store,
        batch_size=options.batch_size,
        force=options.force,
    )
    print(found.summary(options.output))
    return 0
