"""`mmalign data check | audit | convert | derive | relabel | cache`: the options; work is imported later."""

import argparse
from typing import Any

from mmalign.cli.relabel import add_relabel

__all__ = ["add_commands"]


def _columns(words: list[str]) -> dict[str, str]:
    """`role=column` words as a mapping."""
    from mmalign.errors import ConfigError, explain

    mapping: dict[str, str] = {}
    for word in words:
        role, equals, column = word.partition("=")
        if not equals or not role or not column:
            message = explain(
                "--columns", got=word, expected="role=column", do="Example: --columns prompt=caption a=left"
            )
            raise ConfigError(message)
        mapping[role] = column
    return mapping


def _data_config(options: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from mmalign.data.config import DataConfig
    from mmalign.errors import ConfigError

    source = {
        "path": options.path,
        "format": options.format,
        "columns": _columns(options.columns),
        "split": options.split,
        "root": options.root,
        "allow_outside": options.allow_outside,
        "lists": options.lists,
        "limit": options.limit,
        "dialogue": {"aspect": options.aspect, "min_gap": options.min_rating_gap, "phrases": options.phrases},
    }
    if options.media is not None:
        source["media"] = options.media
    settings = {"source": source, "tie_policy": options.ties, "max_bad_share": options.max_bad_share}
    try:
        return DataConfig.model_validate(settings)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg']} (got {item['input']!r})"
            for item in error.errors()
        ]
        message = "\n".join(lines)
        raise ConfigError(message) from None


def _check(options: argparse.Namespace) -> int:
    from mmalign.data.check import check, print_report, write_json_report

    config = _data_config(options)
    report = check(config, decode=options.decode, html=options.html, num_preview=options.num_preview)
    if options.json:
        write_json_report(report)
    else:
        print_report(report)
    return 0 if report.ok else 1


def _convert(options: argparse.Namespace) -> int:
    from mmalign.data.convert import convert

    config = _data_config(options)
    report = convert(config, options.output, to=options.to, force=options.force)
    print(f"{options.output}: {report.summary()}")
    report.check(config.max_bad_share)
    return 0


def _audit(options: argparse.Namespace) -> int:
    from mmalign.data.audit import audit, print_audit, write_json_audit

    found = audit(_data_config(options), features=options.features, num_folds=options.folds)
    if options.json:
        write_json_audit(found)
    else:
        print_audit(found)
    return 0 if found.ok else 1


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
    found = derive(_data_config(options), options.output, settings, force=options.force)
    print(found.summary(options.output))
    return 0


def _cache(options: argparse.Namespace) -> int:
    from mmalign.cli.encoding import encode_run

    encode_run(
        options.config,
        options.overrides,
        output=options.output,
        batch_size=options.batch_size,
        dtype=options.dtype,
    )
    return 0


def _add_source_options(parser: argparse.ArgumentParser, *, ties: str = "drop", lists: bool = True) -> None:
    parser.add_argument("path", metavar="PATH", help="file, folder or hub id of the data set")
    parser.add_argument(
        "--format", default="auto", metavar="LAYOUT", help="layout of the rows (default: recognise it)"
    )
    parser.add_argument(
        "--columns",
        nargs="*",
        default=[],
        metavar="role=column",
        help="what columns mean, where it is not recognised",
    )
    parser.add_argument(
        "--media",
        choices=("image", "text", "audio", "video", "dialogue"),
        help="what candidates are (default: images, unless sounds or dialogues are recognised)",
    )
    parser.add_argument(
        "--aspect", metavar="NAME", help="VLFeedback: rate answers by one aspect (default: the mean of all)"
    )
    parser.add_argument(
        "--min-rating-gap",
        type=float,
        default=0.0,
        metavar="GAP",
        help="dialogues: pairs whose rewards differ by less are left out (default: 0)",
    )
    parser.add_argument(
        "--phrases",
        default="auto",
        choices=("auto", "markers", "align", "none"),
        help="dialogues: how phrases that differ are found (default: auto)",
    )
    parser.add_argument("--split", help="split of the data set")
    parser.add_argument(
        "--root", help="folder that relative media paths start from (default: beside the file)"
    )
    parser.add_argument("--allow-outside", action="store_true", help="accept media paths that leave the root")
    if lists:
        parser.add_argument(
            "--lists",
            default="keep",
            choices=("keep", "pairs", "best_worst"),
            help="what rankings become (default: keep)",
        )
    else:
        parser.set_defaults(lists="keep")
    parser.add_argument(
        "--ties",
        default=ties,
        choices=("drop", "random", "soft"),
        help="what ties become (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="bad rows that are tolerated (default: 0.01)",
    )


def _add_audit(commands: Any) -> None:
    audit = commands.add_parser(
        "audit",
        help="what the preferences say: length bias, contradictions, score gaps, shortcuts",
        description="Lengths, ties, repeated and contradictory pairs, score gaps, held-out separability of "
        "chosen and rejected by features where a column of features exists. Intervals: 95 % over prompts.",
    )
    _add_source_options(audit, ties="soft")
    audit.add_argument(
        "--features",
        metavar="COLUMN",
        help="column with a feature vector per candidate (default: features, or features_chosen and "
        "features_rejected, or features_a and features_b)",
    )
    audit.add_argument(
        "--folds", type=int, default=5, metavar="N", help="held-out parts for separability (default: 5)"
    )
    audit.add_argument("--json", action="store_true", help="print the report as JSON")
    audit.set_defaults(handler=_audit)


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


def _add_derive(commands: Any) -> None:
    derive = commands.add_parser(
        "derive",
        help="make a data set of another one: pairs, stages, conditioned prompts",
        description="Writes rows.jsonl, the images it uses and card.yaml. "
        + "; ".join(f"{name}: {what}" for name, what in _RULES.items())
        + ".",
    )
    _add_source_options(derive, lists=False)
    add = derive.add_argument
    add("--how", required=True, choices=tuple(_RULES), help="the rule")
    add("--output", required=True, metavar="OUT", help="folder to write")
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
    add("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    add("--force", action="store_true", help="replace OUT if it exists")
    derive.set_defaults(handler=_derive)


def add_commands(subparsers: Any) -> None:
    """Add `data` and its sub-commands to the parser of `mmalign`; imports nothing heavy."""
    parser = subparsers.add_parser(
        "data", help="check, audit, convert, derive, relabel and cache preference data"
    )
    commands = parser.add_subparsers(
        dest="subcommand", metavar="check|audit|convert|derive|relabel|cache", required=True
    )
    _add_audit(commands)
    _add_derive(commands)
    add_relabel(commands, _add_source_options, _data_config)

    check = commands.add_parser(
        "check",
        help="what is in a data set, and what is wrong with it",
        description="Counts, ties, drops by reason, unreadable media, prompts, sizes, duplicates. Exit code "
        "1 above --max-bad-share.",
    )
    _add_source_options(check)
    check.add_argument("--html", metavar="OUT.html", help="write a page with a preview of rows")
    check.add_argument(
        "--num-preview", type=int, default=24, metavar="N", help="rows in the preview (default: 24)"
    )
    check.add_argument(
        "--decode",
        default="sample",
        choices=("all", "sample", "none"),
        help="decode every image or sound, some 500 rows, or none (default: sample)",
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.set_defaults(handler=_check)

    convert = commands.add_parser(
        "convert",
        help="write another layout",
        description="Unusable rows are counted and left out.",
    )
    _add_source_options(convert)
    convert.add_argument("output", metavar="OUT", help="file (parquet) or folder to write")
    convert.add_argument(
        "--to",
        required=True,
        choices=(
            *("pickapic", "audio-alpaca", "jsonl", "folders", "trl-jsonl", "ms-swift", "llama-factory"),
        ),
        help="pickapic: a parquet file with images inside, in small row groups; audio-alpaca: one of sounds; "
        "jsonl: rows.jsonl, images/, audio/ or videos/; "
        "folders: chosen/, rejected/, captions/; of dialogues: trl-jsonl (an image folder of `datasets`), "
        "ms-swift, llama-factory (with dataset_info.json)",
    )
    convert.add_argument("--force", action="store_true", help="replace OUT if it exists")
    convert.set_defaults(handler=_convert)

    cache = commands.add_parser(
        "cache",
        help="encode images and prompts once, before training",
        description="Writes VAE moments (sampling is kept; flips have their own entry) and text states of "
        "every unique prompt. Interrupt and run again: it goes on.",
    )
    cache.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    cache.add_argument("overrides", metavar="section.key=value", nargs="*", default=[])
    cache.add_argument("--output", metavar="DIR", help="folder to write (default: image.cache of the config)")
    cache.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="images encoded at once (default: 8)"
    )
    cache.add_argument(
        "--dtype",
        default="float16",
        choices=("float16", "bfloat16", "float32"),
        help="of stored moments (default: %(default)s)",
    )
    cache.set_defaults(handler=_cache)
