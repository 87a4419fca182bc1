"""`mmalign data derive`: the options; work is imported when it runs."""

import argparse
from typing import Any

from mmalign.cli.data_sources import add_source_options, data_config

__all__ = ["add_derive"]

_RULES = {
    "all_pairs": "every two candidates of a ranking",
    "best_worst": "its ends",
    "adjacent": "neighbours in rank",
    "best_vs_rest": "the best with each other one",
    "curriculum": "pairs in stages, easy first (Curry-DPO)",
    "reward_augmented": "two pairs of each, with the score to reach in the prompt",
    "directional": "a direction over several rewards in the prompt, and the candidate best along it",
    "few_shot": "other choices of the same user in the prompt (FSPO)",
    "keep_lowest": "the rows with the lowest value in a column (a CHES filter)",
    "ranked_chains": "rankings out of pairs that share candidates (Diffusion-LPO)",
    "rarity": "the pairs with a weight each, higher where scores are rare (VideoDPO): the column pair_weight",
    "cross_validation": "images compared under a prompt, prompts under an image (InstructEngine)",
}


def _derive(options: argparse.Namespace) -> int:
    from mmalign.data.derive import DeriveSettings, derive

    given = vars(options)
    settings = DeriveSettings(
        how=options.how,
        objectives=tuple(options.objectives),
        **{
            name: given[name]
            for name in (
                *("pairs", "min_gap", "max_per_prompt", "stages", "scope", "keep", "scale", "directions"),
                *("max_angle", "user_column", "shots", "show", "score_column", "share", "template", "seed"),
                *("max_length", "group_column", "compare", "exponent", "bin_width"),
            )
        },
    )
    found = derive(data_config(options), options.output, settings, force=options.force)
    print(found.summary(options.output))
    return 0


def add_derive(commands: Any) -> None:  # argparse's sub-parser action has no public type
    """Register `mmalign data derive`."""
    derive = commands.add_parser(
        "derive",
        help="make a data set of another one: pairs, stages, conditioned prompts",
        description="Writes rows.jsonl, the images it uses and card.yaml. "
        + "; ".join(f"{name}: {what}" for name, what in _RULES.items())
        + ".",
    )
    add_source_options(derive, lists=False)
    add = derive.add_argument
    add("--how", required=True, choices=tuple(_RULES), help="the rule")
    add("--output", required=True, metavar="OUT", help="folder to write")
    _add_pairing(derive)
    _add_stages_and_directions(derive)
    _add_columns(derive)
    _add_contrasts(derive)
    add("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    add("--force", action="store_true", help="replace OUT if it exists")
    derive.set_defaults(handler=_derive)


def _add_pairing(derive: argparse.ArgumentParser) -> None:
    add = derive.add_argument
    add(
        "--pairs",
        default="best_vs_rest",
        choices=tuple(_RULES)[:4],
        help="how rankings become pairs where a rule needs pairs (default: %(default)s)",
    )
    add(
        "--min-gap",
        type=float,
        default=0.0,
        metavar="GAP",
        help="least score difference of a pair (default: 0)",
    )
    add("--max-per-prompt", type=int, metavar="N", help="pairs kept of one prompt, widest gap first")


def _add_stages_and_directions(derive: argparse.ArgumentParser) -> None:
    add = derive.add_argument
    add("--stages", type=int, default=3, metavar="N", help="curriculum: stages (default: 3)")
    add(
        "--scope",
        default="prompt",
        choices=("prompt", "dataset"),
        help="curriculum: order the pairs of each prompt, or all together (default: prompt)",
    )
    add("--objectives", nargs="*", default=[], metavar="COLUMN", help="directional: columns of rewards")
    add(
        "--keep",
        default="best",
        choices=("best", "pairs"),
        help="directional: the best candidate as a liked row, or best over worst (default: best)",
    )
    add(
        "--scale",
        default="standard",
        choices=("standard", "none"),
        help="directional: standardise each objective, or take it as it is (default: standard)",
    )
    add("--directions", type=int, default=1, metavar="N", help="directional: directions per row (default: 1)")
    add(
        "--max-angle",
        type=float,
        default=45.0,
        metavar="DEGREES",
        help="directional: widest angle to the first objective (default: 45)",
    )


def _add_columns(derive: argparse.ArgumentParser) -> None:
    add = derive.add_argument
    add(
        "--user-column",
        default="user_id",
        metavar="COLUMN",
        help="few_shot: column of the user (default: user_id)",
    )
    add("--shots", type=int, default=4, metavar="N", help="few_shot: examples in the prompt (default: 4)")
    add(
        "--show",
        default="both",
        choices=("both", "chosen"),
        help="few_shot: responses of an example that are shown (default: both)",
    )
    add(
        "--score-column",
        default="ches",
        metavar="COLUMN",
        help="keep_lowest: column to sort by (default: ches)",
    )
    add("--exponent", type=float, default=0.72, help="rarity: of p_max / p (default: 0.72)")
    add("--bin-width", type=float, default=0.01, help="rarity: of the histogram of scores (default: 0.01)")
    add("--share", type=float, default=0.5, help="keep_lowest: part of the rows to keep (default: 0.5)")


def _add_contrasts(derive: argparse.ArgumentParser) -> None:
    add = derive.add_argument
    add(
        "--max-length",
        type=int,
        default=8,
        metavar="N",
        help="ranked_chains: candidates of a list (default: 8)",
    )
    add(
        "--group-column",
        default="contrast",
        metavar="COLUMN",
        help="cross_validation: rows with the same value contrast (default: contrast)",
    )
    add(
        "--compare",
        default="both",
        choices=("both", "images", "prompts"),
        help="cross_validation: what meets (default: both)",
    )
    add(
        "--template",
        metavar="TEXT",
        help="words around {prompt} and {goal} (reward_augmented, directional) or {examples} (few_shot)",
    )
