"""`mmalign`: the parser of every command, and what happens when one fails.

Nothing but argparse is imported here, so `mmalign --help` answers at once. A command names the function that
does the work as `module:function`; the module is imported when the command runs, and the function receives
the parsed options as keyword arguments under their own names. An error that mmalign raises on purpose is
printed without a traceback and ends with exit code 2; `--debug` shows the traceback.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmalign import __version__
from mmalign.cli import (
    bench,
    benchmarks,
    best_of,
    compare,
    data,
    diversity,
    evals,
    guides,
    implicit_accuracy,
    judging,
    pairs,
    planning,
    probes,
    rewards,
)
from mmalign.errors import MmalignError

__all__ = ["build_parser", "main"]

Handler = Callable[[argparse.Namespace], int | None]

# What argparse keeps for us and no handler wants to see.
_OWN_OPTIONS = frozenset({"command", "subcommand", "handler", "debug"})

_EXAMPLES = """\
examples:
  mmalign demo                                             align a tiny SDXL-structured model in two minutes
  mmalign demo vlm                                         the same for a tiny model of LLaVA's structure
  mmalign train diffusion/configs/sdxl/dpo_lora.yaml --dry-run  what a run would do, and the memory it needs
  mmalign train my.yaml train.learning_rate=1.0e-5         train, with one setting of the file replaced
  mmalign data check pairs.parquet                         what is in your preference pairs, and what is wrong
  mmalign methods diffusion_dpo                            formula, source, departures, defaults per family
"""


def _calls(target: str) -> Handler:
    """A handler that imports `module:function` when run and passes it the options as keyword arguments."""

    def handle(options: argparse.Namespace) -> int | None:
        module_name, _, function_name = target.partition(":")
        function = getattr(importlib.import_module(module_name), function_name)
        values = {name: value for name, value in vars(options).items() if name not in _OWN_OPTIONS}
        result: Any = function(**values)
        return result if isinstance(result, int) else None

    return handle


def _add_train(commands: Any) -> None:  # argparse's sub-parser action has no public type
    parser = commands.add_parser(
        "train",
        help="run a config",
        description="Train from one YAML file. Several devices: accelerate launch diffusion/train.py CONFIG",
    )
    parser.add_argument("config_path", metavar="CONFIG", type=Path, help="YAML file of the run")
    parser.add_argument(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        default=[],
        help="settings that replace the file's",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, what differs from the paper's row, trainable parameters and memory",
    )
    parser.add_argument(
        "--resume",
        metavar="auto|none|PATH",
        help="auto: the last good checkpoint of the output folder; none: start anew; PATH: that checkpoint "
        "(default: what the config says)",
    )
    parser.set_defaults(handler=_calls("mmalign.cli.training:main"))


def _add_sample(commands: Any) -> None:
    parser = commands.add_parser(
        "sample",
        help="paint, sound or answer prompts, base beside tuned",
        description="Image models: base against tuned, same noise, one picture. Sound and video: the "
        "same as files and a page of players. Language models: answers "
        "side by side, as text, Markdown and a page with the pictures that were asked about.",
    )
    parser.add_argument(
        "--model", help="hub id, diffusers folder or single file (default: the base model of --run)"
    )
    parser.add_argument("--run", type=Path, help="run folder or adapter to compare with its base")
    parser.add_argument(
        "--prompt", dest="prompts", metavar="TEXT", action="append", default=[], help="may be repeated"
    )
    parser.add_argument(
        "--prompts-file",
        type=Path,
        metavar="FILE",
        help="one prompt per line; of language models also JSONL with prompt, images, videos",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="noise of image i comes from (seed, i) (default: 0)"
    )
    _add_answering(parser.add_argument_group("language models"))
    guides.add_clip_options(parser.add_argument_group("models of video"))
    parser.add_argument("--steps", type=int, default=None, help="sampler steps (default: the family's)")
    parser.add_argument(
        "--guidance-scale", type=float, default=None, help="1 switches guidance off (default: the family's)"
    )
    parser.add_argument(
        "--num-images",
        type=int,
        default=None,
        metavar="N",
        help="images, sounds or clips per prompt (default: 1)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("samples"), help="folder to write to (default: samples)"
    )
    parser.add_argument("--device", default=None, help="cuda, cuda:1, cpu, mps (default: the best there is)")
    parser.set_defaults(handler=_calls("mmalign.cli.sampling:main"))


def _add_answering(group: Any) -> None:
    group.add_argument("--family", default=None, help="of --model (default: what its config says)")
    group.add_argument(
        "--image",
        dest="images",
        metavar="PATH",
        action="append",
        default=[],
        help="shown with every prompt; may be repeated",
    )
    group.add_argument(
        "--video", dest="videos", metavar="PATH", action="append", default=[], help="file or folder of frames"
    )
    group.add_argument("--max-new-tokens", type=int, default=None, metavar="N", help="default: 256")
    group.add_argument("--temperature", type=float, default=None, help="0, the default, is greedy")


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a run in the format other tools load",
        description="Convert the trained weights of a run, load them back and compare.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument(
        "--to",
        required=True,
        choices=("diffusers", "comfyui", "merged", "peft", "official"),
        help="diffusers: adapter for load_lora_weights, or the denoiser's folder; comfyui: one safetensors "
        "file with its alphas; merged: a pipeline folder, or language model, without adapters; peft: the "
        "adapter of a language model or a model of sound; official: what Tango's and VideoCrafter's "
        "own code reads",
    )
    parser.add_argument(
        "--output", type=Path, default=None, help="where to write (default: RUN/export/FORMAT)"
    )
    parser.set_defaults(handler=_calls("mmalign.cli.exporting:main"))


def _add_tables(commands: Any) -> None:
    methods = commands.add_parser("methods", help="the method table, or one method whole")
    methods.add_argument(
        "name", metavar="NAME", nargs="?", help="formula, source, departures, defaults, status, parity"
    )
    methods.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    methods.add_argument(
        "--update",
        type=Path,
        metavar="FILE",
        help="renew the Markdown table between the `methods` markers of FILE",
    )
    methods.set_defaults(handler=_calls("mmalign.cli.tables:print_methods"))

    families = commands.add_parser("families", help="the model families that can be trained")
    families.add_argument("name", metavar="NAME", nargs="?", help="what the family's own documentation says")
    families.set_defaults(handler=_calls("mmalign.cli.tables:print_families"))


def _add_recipes(commands: Any) -> None:
    parser = commands.add_parser(
        "recipes", help="list and copy the scripts and configs that come with mmalign"
    )
    parser.set_defaults(handler=_calls("mmalign.cli.recipes:print_recipes"))
    actions = parser.add_subparsers(dest="subcommand", metavar="list|cp")
    actions.add_parser("list", help="all of them (the default)")
    copy = actions.add_parser("cp", help="copy one file or folder")
    copy.add_argument(
        "name", metavar="NAME", help="as listed, for example diffusion/configs/sdxl/dpo_lora.yaml"
    )
    copy.add_argument("destination", metavar="DEST", type=Path, help="file or folder to copy to")
    copy.add_argument("--force", action="store_true", help="overwrite")
    copy.set_defaults(handler=_calls("mmalign.cli.recipes:copy_recipe"))


def _add_config(commands: Any) -> None:
    parser = commands.add_parser("config", help="what a config may contain, and what one says once resolved")
    actions = parser.add_subparsers(dest="subcommand", metavar="schema|show", required=True)
    schema = actions.add_parser("schema", help="every setting with type, range, default and meaning")
    schema.add_argument("--json", dest="as_json", action="store_true", help="JSON schema, for editors")
    schema.set_defaults(handler=_calls("mmalign.cli.config:print_schema"))
    show = actions.add_parser("show", help="a config merged with its method's row, as YAML")
    show.add_argument("config_path", metavar="CONFIG", type=Path)
    show.add_argument("overrides", metavar="section.key=value", nargs="*", default=[])
    show.set_defaults(handler=_calls("mmalign.cli.config:print_resolved"))


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="align a tiny model with a known best answer, and write a report",
        description="images: Diffusion-DPO on SDXL's structure, held-out prompts from the same noise. vlm: "
        "DPO on LLaVA's structure, hallucination and recall on held-out pictures. audio: Tango's structure, "
        "order of sounds. video: DenseDPO on Wan's structure, direction of shapes, and whether they still "
        "move. Base beside aligned, win rate, report.html. About a minute and a half on two CPU cores, no "
        "download.",
    )
    parser.add_argument(
        "world",
        nargs="?",
        default="images",
        choices=("images", "vlm", "audio", "video"),
        help="default: images",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), help="folder to write (default: runs/demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.set_defaults(handler=_calls("mmalign.toy.demo:main"))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; importing and building it loads nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="mmalign",
        description="Preference alignment for image, video, audio and vision-language models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmalign {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_train(commands)
    planning.add_command(commands, _calls("mmalign.cli.planning:main"))
    _add_sample(commands)
    evals.add_command(commands, _calls("mmalign.evals.harness:main"))
    implicit_accuracy.add_command(commands, _calls("mmalign.cli.implicit_accuracy:main"))
    compare.add_command(commands, _calls("mmalign.evals.compare:main"))
    best_of.add_command(commands, _calls("mmalign.cli.best_of:main"))
    diversity.add_command(commands, _calls("mmalign.cli.diversity:main"))
    benchmarks.add_commands(commands, _calls)
    bench.add_commands(commands, _calls)
    rewards.add_commands(commands, _calls)
    probes.add_commands(commands, _calls)
    judging.add_commands(commands, _calls)
    pairs.add_command(commands, _calls)
    guides.add_command(commands, _calls("mmalign.cli.guides:main"))
    _add_export(commands)
    data.add_commands(commands)
    _add_tables(commands)
    _add_recipes(commands)
    _add_config(commands)
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Options, with overrides accepted anywhere after the config.

    argparse binds a `*` positional to the first run of positionals only, so `CONFIG --dry-run a.b=1` would be
    refused. `--debug` is accepted after the command too.
    """
    options, unknown = parser.parse_known_args(_with_joined_commands(arguments))
    if "--debug" in unknown:
        options.debug = True
        unknown = [word for word in unknown if word != "--debug"]
    if hasattr(options, "overrides"):
        options.overrides = [*options.overrides, *(word for word in unknown if _is_override(word))]
        unknown = [word for word in unknown if not _is_override(word)]
    if unknown:
        parser.error(f"unrecognised arguments: {' '.join(unknown)} (see: mmalign {options.command} --help)")
    return options


def _with_joined_commands(arguments: Sequence[str]) -> list[str]:
    """The words with a command of two words made one: `eval` takes a suite file, and no sub-commands."""
    words = list(arguments)
    place = next((number for number, word in enumerate(words) if not word.startswith("-")), len(words))
    if " ".join(words[place : place + 2]) == implicit_accuracy.COMMAND:
        words[place : place + 2] = [implicit_accuracy.COMMAND]
    return words


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 the command's own "no", 2 an error, 130 interrupted.

    Args:
        arguments: words after `mmalign` (default: those of the process).
    """
    options = _parse(build_parser(), sys.argv[1:] if arguments is None else arguments)
    # diffusers loads bitsandbytes, which complains of a kernel for CPUs that nobody has asked for.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return options.handler(options) or 0
    except MmalignError as error:
        if options.debug:
            raise
        print(f"mmalign: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if options.debug:
            raise
        print("mmalign: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mmalign methods | head`: the reader left, and that is fine
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
