"""`mmalign data check | convert | cache`: the options; the work is imported when a command runs."""

import argparse
from typing import Any

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
    }
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


def _add_source_options(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--split", help="split of the data set")
    parser.add_argument(
        "--root", help="folder that relative media paths start from (default: beside the file)"
    )
    parser.add_argument("--allow-outside", action="store_true", help="accept media paths that leave the root")
    parser.add_argument(
        "--lists",
        default="keep",
        choices=("keep", "pairs", "best_worst"),
        help="what rankings become (default: keep)",
    )
    parser.add_argument(
        "--ties", default="drop", choices=("drop", "random", "soft"), help="what ties become (default: drop)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="bad rows that are tolerated (default: 0.01)",
    )


def add_commands(subparsers: Any) -> None:
    """Add `data` and its sub-commands to the parser of `mmalign`; imports nothing heavy."""
    parser = subparsers.add_parser("data", help="check, convert and cache preference data")
    commands = parser.add_subparsers(dest="subcommand", metavar="check|convert|cache", required=True)

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
        help="decode every image, some 500 rows, or none (default: sample)",
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.set_defaults(handler=_check)

    convert = commands.add_parser(
        "convert",
        help="write another layout",
        description="Unusable rows are counted and left out.",
    )
    _add_source_options(convert)
    convert.add_argument("output", metavar="OUT", help="file (pickapic) or folder (jsonl, folders) to write")
    convert.add_argument(
        "--to",
        required=True,
        choices=("pickapic", "jsonl", "folders"),
        help="pickapic: a parquet file with images inside, in small row groups; jsonl: rows.jsonl, images/; "
        "folders: chosen/, rejected/, captions/",
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
        choices=("float16", "float32"),
        help="of stored moments (default: %(default)s)",
    )
    cache.set_defaults(handler=_cache)
