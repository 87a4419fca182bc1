"""The loss guide's runs in the world of images: a representative dozen of rows, by the real training loop."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch

from mmalign import objectives
from mmalign.errors import TrainingError
from mmalign.seeding import generator_for
from mmalign.toy.comparison import AXES, Interval, bootstrap_mean
from mmalign.toy.guide_results import Results
from mmalign.toy.image_runs import exact_scores, panel_tail

if TYPE_CHECKING:
    from mmalign.diffusion.family import ImageModel
    from mmalign.train.config import ResolvedRun

__all__ = ["FLIPS", "IMAGE_ROWS", "ImageRow", "ImageSetting", "ImageWorld", "collect", "run", "what"]

NUM_PAIRS, NUM_PROMPTS, STEPS, SEED = 768, 64, 160, 1

FLIPS = 0.25
"""Share of exchanged labels of the noisy runs."""


@dataclass(frozen=True)
class ImageSetting:
    """How a row is trained here.

    Args:
        method: of the recipe: a method of the modality, or the bare objective.
        arguments: of the objective.
        learning_rate: peak.
    """

    method: str
    arguments: Mapping[str, float]
    learning_rate: float = 5e-4


def _at(method: str, learning_rate: float = 5e-4, **arguments: float) -> ImageSetting:
    return ImageSetting(method, MappingProxyType(arguments), learning_rate)


IMAGE_ROWS: Mapping[str, ImageSetting] = MappingProxyType(
    {
        "dpo": _at("diffusion_dpo", beta=1000.0),
        "diffusion_ipo": _at("diffusion_ipo", beta=100.0),
        "kto": _at("diffusion_kto", beta=1000.0),
        "mapo": _at("mapo", beta=0.1),
        "simpo": _at("diffusion_simpo", 2e-4, beta=500.0, gamma=0.5),
        "diffusion_orpo": _at("diffusion_orpo", beta=0.1, scale=1000.0),
        "sft": _at("diffusion_sft"),
        "cdpo": _at("diffusion_cdpo", beta=1000.0, label_smoothing=0.25),
        "robust_dpo": _at("diffusion_robust_dpo", beta=1000.0, label_smoothing=0.25),
        "hinge": _at("diffusion_hinge", beta=1000.0),
        "exo_pair": _at("exo_pair", beta=1000.0, label_smoothing=0.001),
        "dpo_shift": _at("dpo_shift", beta=1000.0, shift=0.75),
        "dpo_cauchy": _at("dpo_cauchy", beta=1000.0),
        "apo_zero": _at("apo_zero", beta=1000.0),
        "nca_pair": _at("nca_pair", beta=1000.0),
    }
)
"""Betas of the toy recipes where there is one, DPO's for what starts with DPO's slope; not tuned here."""


def what(name: str, flips: float) -> dict[str, Any]:
    """Everything the outcome of a run depends on."""
    setting = IMAGE_ROWS[name]
    return {
        "objective": name,
        "method": setting.method,
        "arguments": dict(setting.arguments),
        "learning_rate": setting.learning_rate,
        "flips": flips,
        "budget": [NUM_PAIRS, NUM_PROMPTS, STEPS, SEED],
        "formula": objectives.build(name, **setting.arguments).formula,
    }


@dataclass(frozen=True)
class ImageWorld:
    """Pairs on disk, encoded once, and the base's rewards of the held-out captions."""

    folder: Path
    prompts: list[str]
    base: tuple[dict[str, float], ...]

    @classmethod
    def paint(cls, folder: Path) -> "ImageWorld":
        """Paint and encode the pairs, rightly labelled and with `FLIPS` of them exchanged, into a folder."""
        from mmalign.data.readers import open_rows
        from mmalign.toy.encoding import cache_latents
        from mmalign.toy.image_pairs import preference_pairs, write_pickapic
        from mmalign.toy.scenes import held_out_prompts
        from mmalign.train.parts import load_model

        pairs = preference_pairs(NUM_PAIRS, SEED)
        write_pickapic(pairs, folder / "pairs.parquet", seed=SEED)
        luck = torch.rand(len(pairs), generator=generator_for(SEED, "flips")).tolist()
        exchanged = [
            replace(pair, chosen=pair.rejected, rejected=pair.chosen) if drawn < FLIPS else pair
            for pair, drawn in zip(pairs, luck, strict=True)
        ]
        write_pickapic(exchanged, folder / "flipped.parquet", seed=SEED)
        world = cls(folder, held_out_prompts(NUM_PROMPTS, seed=SEED), ())
        run = world.resolve("dpo", 0.0)
        config = run.config
        bare = replace(
            run, config=config.model_copy(update={"image": config.image.model_copy(update={"cache": None})})
        )
        model = cast("ImageModel", load_model(bare, torch.device("cpu")))
        cache_latents(model, open_rows(config.data), folder / "cache")
        return replace(world, base=_scored(model, world.prompts))

    def resolve(self, name: str, flips: float) -> "ResolvedRun":
        """The run of a row: the demo's recipe with this method, these arguments and one budget for all."""
        import yaml

        from mmalign.toy.demo import recipe_path
        from mmalign.toy.image_demo import RECIPE
        from mmalign.toy.image_pipeline import ASSETS
        from mmalign.train.config import resolve

        setting = IMAGE_ROWS[name]
        content = yaml.safe_load(recipe_path(RECIPE).read_text(encoding="utf-8"))
        content |= {"method": setting.method, "objective": dict(setting.arguments)}
        content["model"]["source"] = str(ASSETS)
        content["data"]["source"] = str(self.folder / ("flipped.parquet" if flips else "pairs.parquet"))
        content["image"]["cache"] = str(self.folder / "cache")
        content["train"] |= {
            "output": str(self.folder / f"{name}-{flips:g}"),
            "seed": SEED,
            "steps": STEPS,
            "warmup_steps": STEPS,
            "learning_rate": setting.learning_rate,
        }
        return resolve(content)


def _scored(model: "ImageModel", prompts: list[str]) -> tuple[dict[str, float], ...]:
    return tuple(
        {axis: float(getattr(score, axis)) for axis in AXES}
        for score in exact_scores(model, prompts, seed=SEED)
    )


def _trained(world: ImageWorld, name: str, flips: float) -> dict[str, Any]:
    from mmalign.train.run import train

    started = time.process_time()
    try:
        result = train(world.resolve(name, flips))
    except TrainingError as error:
        return {"failed": str(error)}
    if not result.finished:  # a signal: half a run is no result
        raise KeyboardInterrupt
    scores = _scored(cast("ImageModel", result.model), world.prompts)
    return {
        "gains": [round(new["total"] - old["total"], 4) for new, old in zip(scores, world.base, strict=True)],
        "measured": {axis: round(sum(one[axis] for one in scores) / len(scores), 4) for axis in AXES},
        "base": {axis: round(sum(one[axis] for one in world.base) / len(scores), 4) for axis in AXES},
        "chosen": panel_tail(result.records, "error/relative_chosen"),
        "rejected": panel_tail(result.records, "error/relative_rejected"),
        "seconds": round(time.process_time() - started, 1),
    }


def run(
    names: list[str], results: Results, *, until: float, tell: Callable[[str], None] = lambda _: None
) -> None:
    """Make the runs that are missing: all rows with right labels first, then all with flipped ones.

    Args:
        names: rows, of `IMAGE_ROWS`.
        results: where records are found and put.
        until: `time.monotonic()` after which no run is started.
        tell: called with a line per run.
    """
    missing = [
        (name, flips) for flips in (0.0, FLIPS) for name in names if results.find(what(name, flips)) is None
    ]
    if not missing or time.monotonic() > until:
        return
    with TemporaryDirectory(prefix="mmalign-loss-guide-") as folder:
        world = ImageWorld.paint(Path(folder))
        for name, flips in missing:
            if time.monotonic() > until:
                return
            found = results.get(what(name, flips), functools.partial(_trained, world, name, flips))
            gain = found.get("failed") or f"gain {sum(found['gains']) / len(found['gains']):+.3f}"
            tell(f"{name}, {flips:.0%} flipped: {gain} ({found.get('seconds', 0):.0f} s)")


@dataclass(frozen=True)
class ImageRow:
    """One row of the table.

    Args:
        name: of the objective.
        setting: how it was trained.
        gain: in total reward, with its interval over prompts.
        noisy: the same with flipped labels, None if that was not run.
        measured: mean faithfulness and style.
        chosen: change of the chosen side's error at the end, as a share; None without a reference.
        rejected: the same of the rejected side.
        seconds: CPU time of the run.
    """

    name: str
    setting: ImageSetting
    gain: Interval
    noisy: Interval | None
    measured: Mapping[str, float]
    base: Mapping[str, float]
    chosen: float | None
    rejected: float | None
    seconds: float


def collect(name: str, results: Results) -> ImageRow | str:
    """The table's row from stored runs, or why there is none."""
    found, noisy = (results.find(what(name, flips)) for flips in (0.0, FLIPS))
    if found is None:
        return "not run yet"
    if "failed" in found:
        return str(found["failed"])
    return ImageRow(
        name=name,
        setting=IMAGE_ROWS[name],
        gain=bootstrap_mean(torch.tensor(found["gains"])),
        noisy=bootstrap_mean(torch.tensor(noisy["gains"])) if noisy and "gains" in noisy else None,
        measured=found["measured"],
        base=found["base"],
        chosen=found["chosen"],
        rejected=found["rejected"],
        seconds=found["seconds"],
    )
