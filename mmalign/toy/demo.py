"""`mmalign demo`: align the toy world of images by Diffusion-DPO, compare with the base, write report.html.

Every stage is the real one: a Pick-a-Pic parquet file, the data readers, the latent cache, the recipe
`diffusion/configs/toy/dpo.yaml`, the training loop, and sampling from the same noise. Nothing heavy is
imported before the first line is printed.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from mmalign.errors import ConfigError, explain

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.diffusion.family import ImageModel
    from mmalign.toy.comparison import Comparison
    from mmalign.toy.image_reward import Score
    from mmalign.train.config import ResolvedRun
    from mmalign.train.run import RunResult

__all__ = [
    "DEMO",
    "NUM_THREADS",
    "RECIPE",
    "Budget",
    "Clock",
    "fixed_threads",
    "free_folder",
    "main",
    "recipe_path",
    "versions",
    "where_time_went",
]

RECIPE = "diffusion/configs/toy/dpo.yaml"

NUM_THREADS = 2  # more changes the rounding of sums, and with it the report


@dataclass(frozen=True)
class Budget:
    """How much work the demo does.

    Args:
        num_pairs: preference pairs that are painted.
        num_prompts: held-out prompts that are compared.
        num_steps: sampler steps per picture.
        guidance_scale: classifier-free guidance of both models.
        batch_size: pictures painted at once.
        overrides: `section.key=value` over the recipe.
    """

    num_pairs: int = 768
    num_prompts: int = 80
    num_steps: int = 20
    guidance_scale: float = 4.0
    batch_size: int = 40
    overrides: tuple[str, ...] = ()


DEMO = Budget()


@dataclass
class Clock:
    """Seconds per stage, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class _Folders:
    """Where the demo's files lie; `home` is the folder that was asked for, or the next free one."""

    home: Path

    @property
    def pairs(self) -> Path:
        return self.home / "pairs.parquet"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def report(self) -> Path:
        return self.home / "report.html"


def recipe_path(name: str) -> Path:
    """The file of a recipe, in the wheel's data or in the checkout.

    Raises:
        ConfigError: it is in neither.
    """
    package = Path(__file__).resolve().parent.parent
    for root in (package / "_recipes", package.parent):
        if (root / name).is_file():
            return root / name
    message = explain(
        "demo",
        got=f"an mmalign package at {package} without {name}",
        expected="an installed wheel or a checkout",
        do="Install again: pip install mmalign.",
    )
    raise ConfigError(message)


def free_folder(wanted: Path) -> Path:
    """`wanted` if it is empty or not there, else the first free of `wanted`-2, `wanted`-3, ...

    So that a demo run again overwrites nothing.

    Raises:
        ConfigError: it is a file.
    """
    number, folder = 1, wanted
    while folder.exists():
        if not folder.is_dir():
            message = explain(f"demo --output {folder}", got="a file", expected="a folder, or a new path")
            raise ConfigError(message)
        if not any(folder.iterdir()):
            break
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


@contextmanager
def fixed_threads(num: int) -> Iterator[None]:
    """A fixed number of threads inside, so that the same seed gives the same report on one machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(num, os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(
    world: str = "images",
    output: Path = Path("runs/demo"),
    seed: int = 0,
    *,
    budget: Budget = DEMO,
) -> int:
    """Run the demo and print what came of it. Returns 0.

    Args:
        world: "images", or "vlm" (see `mmalign.toy.vlm_demo`), which has a budget of its own.
        output: folder to write; where it holds something already, the next free name is taken.
        seed: of the pairs, the adapter, the order, the noise.
        budget: how much work.

    Raises:
        ConfigError: another world, or the recipe is not installed.
    """
    if world == "vlm":
        from mmalign.toy import vlm_demo

        return vlm_demo.main(output, seed)
    if world != "images":
        raise ConfigError(explain("demo", got=world, expected="images or vlm"))
    folders = _Folders(free_folder(Path(output)))
    console = Console(highlight=False, soft_wrap=True)
    _announce(console, folders, budget)
    clock = Clock()
    with clock.stage("loading libraries"):
        import mmalign.toy.comparison
        import mmalign.toy.image_pipeline
        import mmalign.train.run  # noqa: F401  the time is spent here and not inside the first stage
    with fixed_threads(NUM_THREADS):
        run = _resolve(folders, seed, budget)
        result = _align(run, folders, seed, budget, clock, console)
        comparison = _compare(result, seed, budget, clock, console)
    with clock.stage("writing the report"):
        _write_report(run, result, comparison, folders, budget, clock.seconds)
    _conclude(console, comparison, folders, clock.seconds)
    return 0


# ----------------------------------------------------------------------------------------------------- stages


def _announce(console: Console, folders: _Folders, budget: Budget) -> None:
    console.print("[bold]mmalign demo[/]: align a small model of SDXL's structure, and see what came of it\n")
    for number, line in enumerate(
        (
            f"paint {budget.num_pairs} preference pairs into a Pick-a-Pic parquet file: the chosen picture "
            "follows its caption, inside a dark frame",
            f"train LoRA weights by Diffusion-DPO with the recipe {RECIPE}",
            f"let base and aligned paint {budget.num_prompts} held-out captions from the same noise",
            f"judge both by an exact reward and write {folders.report}",
        ),
        start=1,
    ):
        console.print(f"  {number}. {line}", markup=False)
    console.print("\nA minute or two on two CPU cores. No download, no GPU.\n")


def _resolve(folders: _Folders, seed: int, budget: Budget) -> "ResolvedRun":
    """The recipe with this demo's model, data, folder and seed."""
    from mmalign.toy.image_pipeline import ASSETS
    from mmalign.train.config import load_run

    extra = {
        "model": {"source": str(ASSETS)},
        "data": {"source": str(folders.pairs)},
        "train": {"output": str(folders.run), "seed": seed},
    }
    return load_run(recipe_path(RECIPE), budget.overrides, extra=extra)


def _align(
    run: "ResolvedRun", folders: _Folders, seed: int, budget: Budget, clock: Clock, console: Console
) -> "RunResult":
    import torch

    from mmalign.data.readers import open_rows
    from mmalign.toy.encoding import cache_latents
    from mmalign.toy.image_pairs import preference_pairs, write_pickapic
    from mmalign.train.parts import load_model
    from mmalign.train.run import train

    with clock.stage("painting pairs"), console.status("painting preference pairs"):
        write_pickapic(preference_pairs(budget.num_pairs, seed), folders.pairs, seed=seed)
    with clock.stage("encoding pairs"), console.status("encoding pictures and captions once"):
        table = open_rows(run.config.data, kind=run.method.data)
        model = load_model(run, torch.device("cpu"))
        cache_latents(cast("ImageModel", model), table, folders.cache)
    with clock.stage("training"):
        return train(run, model=model, table=table)


def _compare(result: "RunResult", seed: int, budget: Budget, clock: Clock, console: Console) -> "Comparison":
    from mmalign.toy.comparison import Comparison
    from mmalign.toy.image_reward import score_images
    from mmalign.toy.scenes import held_out_prompts

    prompts = held_out_prompts(budget.num_prompts, seed=seed)
    model = cast("ImageModel", result.model)

    def paint(name: str) -> "list[Image]":
        with clock.stage(f"painting, {name}"), console.status(f"painting held-out captions, {name}"):
            return model.sample(
                prompts,
                seed=seed,
                num_steps=budget.num_steps,
                guidance_scale=budget.guidance_scale,
                batch_size=budget.batch_size,
            )

    aligned = paint("aligned")
    with result.trainables.disabled():
        base = paint("base")
    scores: list[list[Score]] = []
    with clock.stage("scoring"):
        scores = [score_images(pictures, prompts) for pictures in (base, aligned)]
    return Comparison(prompts, base, aligned, *scores)


# ----------------------------------------------------------------------------------------------------- report


def _settings(run: "ResolvedRun", result: "RunResult", budget: Budget) -> dict[str, str]:
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
        "sampler": f"Euler, {budget.num_steps} steps, guidance {budget.guidance_scale:g}",
        "seed": str(config.train.seed),
        "threads": str(NUM_THREADS),
        "recipe": RECIPE,
    }


def _next_commands() -> list[tuple[str, str]]:
    return [
        (
            "Look at your own preference pairs first: counts, ties, unreadable pictures, a preview.",
            "mmalign data check PAIRS --html pairs.html",
        ),
        (
            "See the plan: resolved settings, what differs from the paper, trained weights, memory.",
            "mmalign train diffusion/configs/sdxl/dpo_lora.yaml data.source=PAIRS --dry-run",
        ),
        (
            "Train SDXL, on one GPU or on several.",
            "accelerate launch diffusion/train.py diffusion/configs/sdxl/dpo_lora.yaml data.source=PAIRS",
        ),
        (
            "Paint base beside aligned from the same noise.",
            'mmalign sample --run RUN --prompt "a red fox in fresh snow"',
        ),
    ]


def versions(*packages: str) -> dict[str, str]:
    """Versions of mmalign and of packages."""
    from importlib.metadata import version

    from mmalign import __version__

    return {"mmalign": __version__} | {name: version(name) for name in packages}


def _write_report(
    run: "ResolvedRun",
    result: "RunResult",
    comparison: "Comparison",
    folders: _Folders,
    budget: Budget,
    seconds: Mapping[str, float],
) -> None:
    from mmalign.files import atomic_write, write_json
    from mmalign.toy.report import Report, render_report

    page = render_report(
        Report(
            comparison=comparison,
            records=result.records,
            verdict=result.verdict,
            settings=_settings(run, result, budget),
            seconds=dict(seconds),
            commands=_next_commands(),
            versions=versions("torch", "diffusers", "peft"),
        )
    )
    atomic_write(folders.report, page)
    atomic_write(folders.home / "comparison.png", _picture(comparison))
    write_json(folders.home / "result.json", _numbers(comparison))


def _picture(comparison: "Comparison", *, num: int = 10, scale: int = 2) -> bytes:
    """PNG of the first prompts, base above aligned: not a selection."""
    import io

    from PIL import Image

    from mmalign.train.samples import grid

    rows = [
        [
            picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
            for picture in row
        ]
        for row in (comparison.base[:num], comparison.aligned[:num])
    ]
    buffer = io.BytesIO()
    grid(rows).save(buffer, format="PNG")
    return buffer.getvalue()


def _numbers(comparison: "Comparison") -> dict[str, Any]:
    """The report's numbers for programs; the same seed gives the same file on one machine."""
    from mmalign.toy.comparison import AXES

    rate = comparison.win_rate()
    won, tied, lost = comparison.outcomes()
    axes = {}
    for axis in AXES:
        (before, after), gain = comparison.means(axis), comparison.gain(axis)
        axes[axis] = {
            "base": before,
            "aligned": after,
            "gain": gain.value,
            "low": gain.low,
            "high": gain.high,
        }
    return {
        "prompts": len(comparison.prompts),
        "win_rate": {"value": rate.value, "low": rate.low, "high": rate.high},
        "won": won,
        "tied": tied,
        "lost": lost,
        "reward": axes,
    }


def _conclude(
    console: Console, comparison: "Comparison", folders: _Folders, seconds: Mapping[str, float]
) -> None:
    rate = comparison.win_rate()
    won, tied, lost = comparison.outcomes()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "base", "aligned", "change", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for axis in ("total", "faithfulness", "style"):
        (before, after), gain = comparison.means(axis), comparison.gain(axis)
        row = (f"{before:.3f}", f"{after:.3f}", f"{gain.value:+.3f}", f"{gain.low:+.3f} to {gain.high:+.3f}")
        table.add_row("total reward" if axis == "total" else axis, *row)
    console.print()
    console.print(
        f"[bold]win rate {rate.value:.1%}[/]  (95 % interval {rate.low:.1%} to {rate.high:.1%}; "
        f"won {won}, tied {tied}, lost {lost} of {len(comparison.prompts)})\n"
    )
    console.print(table)
    console.print("\n" + where_time_went(seconds), markup=False)
    console.print(f"report: {folders.report}", markup=False)
    explanation, command = _next_commands()[1]
    console.print(f"\nReal SDXL. {explanation}\n  {command}", markup=False)


def where_time_went(seconds: Mapping[str, float]) -> str:
    """Seconds per stage in one line."""
    parts: Sequence[str] = [f"{name} {value:.0f}" for name, value in seconds.items() if value >= 0.5]
    return f"{sum(seconds.values()):.0f} s: {', '.join(parts)}"
