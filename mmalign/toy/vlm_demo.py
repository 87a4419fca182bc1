"""`mmalign demo vlm`: align the toy world of dialogues by DPO, compare with the base, write report.html.

Every stage is the real one: TRL rows in parquet, the data readers, the recipe `vlm/configs/toy/dpo.yaml`, the
training loop, and answers to held-out pictures. Nothing heavy is imported before the first line is printed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from mmalign.toy.demo import (
    Clock,
    fixed_threads,
    free_folder,
    recipe_path,
    versions,
    where_time_went,
)

if TYPE_CHECKING:
    from mmalign.toy.dialogue_exam import Axis, ExamComparison
    from mmalign.train.config import ResolvedRun
    from mmalign.train.run import RunResult
    from mmalign.vlm.family import VlmModel

__all__ = ["VLM_DEMO", "VLM_RECIPE", "VlmBudget", "main", "numbers"]

VLM_RECIPE = "vlm/configs/toy/dpo.yaml"

_NUM_THREADS = 1  # the network is so small that two threads mostly wait for each other


@dataclass(frozen=True)
class VlmBudget:
    """How much work the demo does.

    Args:
        num_pairs: preference pairs that are painted.
        num_pictures: held-out pictures that both models describe.
        overrides: `section.key=value` over the recipe.
        recipe: name of its file.
    """

    num_pairs: int = 1536
    num_pictures: int = 200
    overrides: tuple[str, ...] = ()
    recipe: str = VLM_RECIPE


VLM_DEMO = VlmBudget()


def main(output: Path = Path("runs/demo"), seed: int = 0, *, budget: VlmBudget = VLM_DEMO) -> int:
    """Run the demo and print what came of it. Returns 0.

    Args:
        output: folder to write; where it holds something already, the next free name is taken.
        seed: of the pairs, the adapter, the order.
        budget: how much work.

    Raises:
        ConfigError: the recipe is not installed, or `output` is a file.
    """
    home = free_folder(Path(output))
    console = Console(highlight=False, soft_wrap=True)
    _announce(console, home, budget)
    clock = Clock()
    with clock.stage("loading libraries"):
        import mmalign.toy.dialogue_exam
        import mmalign.train.run  # noqa: F401  the time is spent here and not inside the first stage
    with fixed_threads(_NUM_THREADS):
        run = _resolve(home, seed, budget)
        result = _align(run, home, seed, budget, clock, console)
        comparison = _compare(result, seed, budget, clock, console)
    with clock.stage("writing the report"):
        _write_report(home, run, result, comparison, budget, clock.seconds)
    _conclude(console, comparison, home, clock.seconds)
    return 0


# --- stages -------------------------------------------------------------------------------------------------


def _announce(console: Console, home: Path, budget: VlmBudget) -> None:
    console.print(
        "[bold]mmalign demo vlm[/]: teach a small model of LLaVA's structure to say only what it sees\n"
    )
    for number, line in enumerate(
        (
            f"paint {budget.num_pairs} preference pairs into a parquet file of TRL rows: the chosen answer "
            "is true of its picture",
            f"train LoRA weights on the language model with the recipe {budget.recipe}",
            f"let base and aligned describe {budget.num_pictures} held-out pictures, and ask both what is "
            "there",
            f"judge every answer exactly and write {home / 'report.html'}",
        ),
        start=1,
    ):
        console.print(f"  {number}. {line}", markup=False)
    console.print("\nAbout a minute on one CPU core. No download, no GPU.\n")


def _resolve(home: Path, seed: int, budget: VlmBudget) -> "ResolvedRun":
    """The recipe with this demo's model, data, folder and seed."""
    from mmalign.toy.dialogue_parts import ASSETS
    from mmalign.train.config import load_run

    extra = {
        "model": {"source": str(ASSETS)},
        "data": {"source": str(home / "pairs.parquet")},
        "train": {"output": str(home / "run"), "seed": seed},
    }
    return load_run(recipe_path(budget.recipe), budget.overrides, extra=extra)


def _align(
    run: "ResolvedRun", home: Path, seed: int, budget: VlmBudget, clock: Clock, console: Console
) -> "RunResult":
    import torch

    from mmalign.toy.dialogue_pairs import dialogue_pairs, write_trl
    from mmalign.train.parts import load_model
    from mmalign.train.run import train

    with clock.stage("painting pairs"), console.status("painting preference pairs"):
        write_trl(dialogue_pairs(budget.num_pairs, seed=seed), home / "pairs.parquet")
    with clock.stage("loading the base"):
        model = load_model(run, torch.device("cpu"))
    with clock.stage("training"):
        return train(run, model=model)


def _compare(
    result: "RunResult", seed: int, budget: VlmBudget, clock: Clock, console: Console
) -> "ExamComparison":
    from mmalign.toy.dialogue_exam import Answers, ExamComparison, draw_exam, take_exam

    exam = draw_exam(budget.num_pictures, seed=seed)
    model = cast("VlmModel", result.model)

    def answers(name: str) -> Answers:
        with clock.stage(f"answering, {name}"), console.status(f"answering about held-out pictures, {name}"):
            return take_exam(model, exam)

    aligned = answers("aligned")
    with result.trainables.disabled():
        base = answers("base")
    return ExamComparison(exam, base, aligned)


# --- report -------------------------------------------------------------------------------------------------


def _settings(run: "ResolvedRun", result: "RunResult", budget: VlmBudget) -> dict[str, str]:
    config = run.config
    arguments = ", ".join(f"{name} {value:g}" for name, value in run.objective_arguments.items())
    return {
        "method": f"{run.method.name} ({arguments})",
        "reference": "the same network with its adapters off",
        "preference pairs": str(budget.num_pairs),
        "adapter": f"LoRA rank {config.adapter.rank}, {result.trainables.count:,} trained weights",
        "learning rate": f"{config.train.learning_rate:g}, {config.train.schedule}",
        "optimiser steps": str(result.steps),
        "pairs per step": str(config.train.batch_size * config.train.accumulation),
        "decoding": "greedy",
        "seed": str(config.train.seed),
        "threads": str(_NUM_THREADS),
        "recipe": budget.recipe,
    }


def _next_commands() -> list[tuple[str, str]]:
    return [
        (
            "Look at your own preference data first: layout, unreadable images, lengths, a preview.",
            "mmalign data check PAIRS --html pairs.html",
        ),
        (
            "See the plan for LLaVA 1.5: resolved settings, trained weights, memory.",
            "mmalign train vlm/configs/toy/dpo.yaml model.source=llava-hf/llava-1.5-7b-hf data.source=PAIRS "
            "--dry-run",
        ),
        (
            "Where answers can be told apart without looking, compare images as well.",
            "mmalign train vlm/configs/toy/mdpo.yaml",
        ),
    ]


def _write_report(
    home: Path,
    run: "ResolvedRun",
    result: "RunResult",
    comparison: "ExamComparison",
    budget: VlmBudget,
    seconds: Mapping[str, float],
) -> None:
    from mmalign.files import atomic_write, write_json
    from mmalign.toy.vlm_demo_report import DialogueReport, render_dialogue_report

    page = render_dialogue_report(
        DialogueReport(
            comparison=comparison,
            records=result.records,
            verdict=result.verdict,
            settings=_settings(run, result, budget),
            seconds=dict(seconds),
            commands=_next_commands(),
            versions=versions("torch", "transformers", "peft"),
        )
    )
    atomic_write(home / "report.html", page)
    write_json(home / "result.json", numbers(comparison))


def numbers(comparison: "ExamComparison") -> dict[str, Any]:
    """The report's numbers for programs; the same seed gives the same file on one machine."""
    from mmalign.toy.dialogue_exam import AXES

    rate = comparison.win_rate()
    won, tied, lost = comparison.outcomes()
    rates = dict(zip(("base", "aligned"), comparison.rates(), strict=True))
    polls = dict(zip(("base", "aligned"), comparison.exists(), strict=True))
    gains = {axis: comparison.gain(axis) for axis in AXES}
    return {
        "pictures": len(comparison.exam.pictures),
        "descriptions": {name: found.as_numbers() for name, found in rates.items()},
        "change": {axis: {"value": g.value, "low": g.low, "high": g.high} for axis, g in gains.items()},
        "questions": {
            name: {
                split: {"accuracy": found.accuracy, "yes_share": found.yes_share, "number": found.num}
                for split, found in splits.items()
            }
            for name, splits in polls.items()
        },
        "win_rate": {"value": rate.value, "low": rate.low, "high": rate.high},
        "won": won,
        "tied": tied,
        "lost": lost,
    }


_ROWS: tuple[tuple["Axis", str], ...] = (
    ("hallucinated", "answers that hallucinate"),
    ("recall", "recall of what is there"),
    ("words", "words per answer"),
)


def _conclude(
    console: Console, comparison: "ExamComparison", home: Path, seconds: Mapping[str, float]
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "base", "aligned", "change", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for axis, title in _ROWS:
        (before, after), gain = comparison.means(axis), comparison.gain(axis)
        row = (f"{before:.3f}", f"{after:.3f}", f"{gain.value:+.3f}", f"{gain.low:+.3f} to {gain.high:+.3f}")
        table.add_row(title, *row)
    polls = comparison.exists()
    for split in polls[0]:
        base, aligned = (side[split] for side in polls)
        change = aligned.accuracy - base.accuracy
        cells = (f"{base.accuracy:.3f}", f"{aligned.accuracy:.3f}", f"{change:+.3f}")
        table.add_row(f"yes or no, {split}: accuracy", *cells, "")
    rate = comparison.win_rate()
    won, tied, lost = comparison.outcomes()
    console.print()
    console.print(
        f"[bold]win rate {rate.value:.1%}[/]  (95 % interval {rate.low:.1%} to {rate.high:.1%}; "
        f"won {won}, tied {tied}, lost {lost} of {len(comparison.exam.pictures)})\n"
    )
    console.print(table)
    console.print("\n" + where_time_went(seconds), markup=False)
    console.print(f"report: {home / 'report.html'}", markup=False)
    explanation, command = _next_commands()[0]
    console.print(f"\n{explanation}\n  {command}", markup=False)
