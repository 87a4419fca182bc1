"""`mmalign rewards | serve-reward | fit-user | doctor`: the options; work is imported when one runs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add_commands"]


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder with the models' files, or with a sub-folder per model (default: the hub's cache and "
        "the folder MMALIGN_REWARD_WEIGHTS names)",
    )


def _add_rewards(commands: Any, calls: Callable[[str], Any]) -> None:  # argparse's type is not public
    parser = commands.add_parser(
        "rewards",
        help="the reward models, or one of them whole",
        description="Every reward by name: what it rates, its scale, its licence, and whether its weights "
        "are on this machine. Downloads nothing.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="one reward whole")
    _add_weights(parser)
    parser.set_defaults(handler=calls("mmalign.cli.reward_cards:print_rewards"))


def _add_serve(commands: Any, calls: Callable[[str], Any]) -> None:
    parser = commands.add_parser(
        "serve-reward",
        help="score over HTTP, on this machine or for others",
        description="Serve one reward on a port. Wherever a reward is named, http://HOST:PORT then stands "
        "for it, with the same values and fingerprint. Only this machine can reach it unless --host says "
        "otherwise, which needs a token; traffic is not encrypted, so cross networks through a tunnel.",
    )
    parser.add_argument("name", metavar="NAME", help="as `mmalign rewards` lists it, or module:function")
    _add_weights(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one (default: 8765)")
    parser.add_argument("--token", metavar="TEXT", help="visible in process lists; prefer --token-file")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with what clients must show, at least 16 characters (or set MMALIGN_REWARD_TOKEN)",
    )
    parser.add_argument("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="default: float32"
    )
    parser.add_argument(
        "--option",
        dest="options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an option of the reward; may be repeated",
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="samples in one forward (default: 16)"
    )
    parser.add_argument(
        "--max-samples", type=int, default=256, metavar="N", help="samples of one request (default: 256)"
    )
    parser.add_argument(
        "--max-body-mb", type=int, default=256, metavar="N", help="MiB of one request (default: 256)"
    )
    parser.set_defaults(handler=calls("mmalign.cli.reward_serving:serve"))


def _add_fit_user(commands: Any, calls: Callable[[str], Any]) -> None:
    parser = commands.add_parser(
        "fit-user",
        help="teach a PAL head one more user, from a few of their choices",
        description="Fit the mixture of prototypes that a user is, K numbers, to pairs the user decided; "
        "nothing else in the head changes. Prints how often the fitted rewards agree with choices of prompts "
        "that were held out, beside the uniform mixture.",
    )
    add = parser.add_argument
    add("head", metavar="HEAD", type=Path, help="folder of a head, as PalHead.save writes it")
    add("choices", metavar="CHOICES", help="pairs or rankings of pictures: file, folder or hub id")
    add("--user", metavar="NAME", help="whose choices they are")
    add("--user-column", metavar="COLUMN", help="or the column that says whose; each user is fitted")
    add("--replace", action="store_true", help="fit users anew that the head has already")
    add("--output", type=Path, metavar="DIR", help="folder to save the head to (default: HEAD itself)")
    add("--backbone", default="pickscore", help="the head was trained on, as pal_b's options say")
    add(
        "--loss",
        default="own",
        choices=("own", "choice", "hinge"),
        help="own: what the head is trained with; choice: calibrated cross-entropy (default: own)",
    )
    add("--ridge", type=float, default=1e-2, help="pull to the uniform mixture, above 0 (default: 0.01)")
    add("--format", default="auto", metavar="LAYOUT", help="layout of the rows (default: recognise it)")
    add("--columns", nargs="*", default=[], metavar="role=column", help="what columns mean")
    add("--split", help="split of the data set")
    add("--root", help="folder that relative picture paths start from (default: beside the file)")
    add("--limit", type=int, metavar="N", help="only the first N rows")
    add("--batch-size", type=int, default=16, metavar="N", help="pictures in one forward (default: 16)")
    add("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")
    parser.set_defaults(handler=calls("mmalign.cli.user_fitting:fit_user"))


def _add_doctor(commands: Any, calls: Callable[[str], Any]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what is installed, what is missing, and the commands that mend it",
        description="Libraries, devices and rewards of this machine. Downloads nothing. Exit code 1 when a "
        "library is missing or outside its range, a reward that was named is not ready, a file is not the "
        "published one, or a published score is not reproduced.",
    )
    parser.add_argument(
        "--rewards", default="all", metavar="all|none|NAMES", help="names with commas between (default: all)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="hash the files, load the rewards that are here and reproduce their published scores",
    )
    _add_weights(parser)
    parser.add_argument(
        "--references",
        type=Path,
        metavar="DIR",
        help="folder with the pictures of the published scores, as in the official repositories",
    )
    parser.add_argument("--device", default=None, help="for --verify (default: the best there is)")
    parser.add_argument("--json", dest="as_json", action="store_true", help="everything as JSON")
    parser.set_defaults(handler=calls("mmalign.cli.doctor:main"))


def add_commands(commands: Any, calls: Callable[[str], Any]) -> None:
    """Register the commands.

    Args:
        commands: argparse's sub-parsers.
        calls: `module:function` to the handler that imports and calls it.
    """
    _add_rewards(commands, calls)
    _add_serve(commands, calls)
    _add_fit_user(commands, calls)
    _add_doctor(commands, calls)
