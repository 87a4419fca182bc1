"""`mmalign data check | audit | convert | derive | relabel | cache`: the options; work is imported later."""

import argparse
from typing import Any

from mmalign.cli.data_sources import add_source_options, data_config
from mmalign.cli.derive import add_derive
from mmalign.cli.relabel import add_relabel

__all__ = ["add_commands"]


def add_commands(subparsers: Any) -> None:
    """Add `data` and its sub-commands to the parser of `mmalign`; imports nothing heavy."""
    parser = subparsers.add_parser(
        "data", help="check, audit, convert, derive, relabel and cache preference data"
    )
    commands = parser.add_subparsers(
        dest="subcommand", metavar="check|audit|convert|derive|relabel|cache", required=True
    )
    _add_audit(commands)
    add_derive(commands)
    add_relabel(commands, add_source_options, data_config)
    _add_check(commands)
    _add_convert(commands)
    _add_cache(commands)


def _check(options: argparse.Namespace) -> int:
    from mmalign.data.check import check, print_report, write_json_report

    config = data_config(options)
    report = check(config, decode=options.decode, html=options.html, num_preview=options.num_preview)
    if options.json:
        write_json_report(report)
    else:
        print_report(report)
    return 0 if report.ok else 1


def _convert(options: argparse.Namespace) -> int:
    from mmalign.data.convert import convert

    config = data_config(options)
    report = convert(config, options.output, to=options.to, force=options.force)
    print(f"{options.output}: {report.summary()}")
    report.check(config.max_bad_share)
    return 0


def _audit(options: argparse.Namespace) -> int:
    from mmalign.data.audit import audit
    from mmalign.data.audit_report import print_audit, write_json_audit

    found = audit(data_config(options), features=options.features, num_folds=options.folds)
    if options.json:
        write_json_audit(found)
    else:
        print_audit(found)
    return 0 if found.ok else 1


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


def _add_audit(commands: Any) -> None:
    audit = commands.add_parser(
        "audit",
        help="what the preferences say: length bias, contradictions, score gaps, shortcuts",
        description="Lengths, ties, repeated and contradictory pairs, score gaps, held-out separability of "
        "chosen and rejected by features where a column of features exists; of clips, which side moves more. "
        "Intervals: 95 % over prompts.",
    )
    add_source_options(audit, ties="soft")
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


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="what is in a data set, and what is wrong with it",
        description="Counts, ties, drops by reason, unreadable media, prompts, sizes, duplicates. Exit code "
        "1 above --max-bad-share.",
    )
    add_source_options(check)
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


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="write another layout",
        description="Unusable rows are counted and left out.",
    )
    add_source_options(convert)
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


def _add_cache(commands: Any) -> None:
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
