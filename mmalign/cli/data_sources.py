"""The options of `mmalign data` that say what to read, and the settings of data that they make."""

import argparse
from typing import Any

__all__ = ["add_source_options", "data_config"]


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


def data_config(options: argparse.Namespace) -> Any:
    """Settings of the data that the options name. Raises ConfigError."""
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


def add_source_options(parser: argparse.ArgumentParser, *, ties: str = "drop", lists: bool = True) -> None:
    """Add them to a parser.

    Args:
        parser: of a sub-command.
        ties: what ties become unless the user says otherwise.
        lists: whether rankings may become something else.
    """
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
