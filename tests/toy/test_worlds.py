"""Every method improves the toy world through the real loop; the same method broken in a known way does not.

"Improves" is a claim about prompts: the 95 % interval of the mean gain in exact reward, paired over held-out
prompts painted from the same noise, lies above zero. What is broken: the labels are swapped, the objective
has the wrong sign.

A missing reference is not in this list: the pairs are minimal (one scene with and without a frame), so that
the bare difference of errors ranks them too, which is SimPO, and SimPO improves this world. The numbers
are in docs/lab-notes.md; that the reference is there and counts is held by tests/train/test_step.py (the
first logit is exactly 0).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.data.readers import open_rows
from mmalign.toy.comparison import Interval, bootstrap_mean
from mmalign.toy.demo import recipe_path
from mmalign.toy.encoding import cache_latents
from mmalign.toy.image_pairs import preference_pairs, write_pickapic
from mmalign.toy.image_pipeline import ASSETS
from mmalign.toy.image_reward import score_images
from mmalign.toy.scenes import held_out_prompts
from mmalign.train import parts
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.parts import load_model
from mmalign.train.run import train

pytestmark = pytest.mark.slow

METHODS = ("dpo", "ipo", "kto", "mapo", "simpo")
NUM_PAIRS, NUM_PROMPTS, SEED = 768, 64, 1


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class World:
    """Pairs on disk, encoded once, and what the base makes of the held-out prompts."""

    folder: Path
    prompts: list[str]
    base: torch.Tensor
    known: dict[str, torch.Tensor] = field(default_factory=dict)

    def resolve(
        self, method: str, name: str, *, swapped: bool = False, steps: int | None = None
    ) -> ResolvedRun:
        extra: dict[str, Any] = {
            "model": {"source": str(ASSETS)},
            "data": {"source": str(self.folder / ("swapped.parquet" if swapped else "pairs.parquet"))},
            "image": {"cache": str(self.folder / "cache")},
            "train": {"output": str(self.folder / name), "seed": SEED},
        }
        if steps is not None:
            extra["train"]["steps"] = steps
        return load_run(recipe_path(f"diffusion/configs/toy/{method}.yaml"), extra=extra)

    def rewards(self, run: ResolvedRun) -> torch.Tensor:
        """Reward of each held-out prompt after training; a run that was made before is not made again."""
        name = run.config.train.output
        if name not in self.known:
            self.known[name] = _rewards(train(run).model, self.prompts)
        return self.known[name]

    def gain(self, run: ResolvedRun) -> Interval:
        """Mean gain in total reward over the base after training."""
        return bootstrap_mean(self.rewards(run) - self.base)


def _rewards(model: Any, prompts: list[str]) -> torch.Tensor:
    pictures = model.sample(prompts, seed=SEED, num_steps=20, guidance_scale=4.0, batch_size=32)
    return torch.tensor([score.total for score in score_images(pictures, prompts)], dtype=torch.float64)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    pairs = preference_pairs(NUM_PAIRS, SEED)
    write_pickapic(pairs, folder / "pairs.parquet", seed=SEED)
    swapped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]
    write_pickapic(swapped, folder / "swapped.parquet", seed=SEED)
    prompts = held_out_prompts(NUM_PROMPTS, seed=SEED)
    new = World(folder, prompts, torch.zeros(NUM_PROMPTS))
    run = new.resolve("dpo", "none")
    config = run.config.model_copy(update={"image": run.config.image.model_copy(update={"cache": None})})
    model = load_model(replace(run, config=config), torch.device("cpu"))
    base = _rewards(model, prompts)
    # the swapped file holds the same pictures, and a cache knows pictures by their content
    cache_latents(model, open_rows(config.data), folder / "cache")
    return World(folder, prompts, base)


def test_the_base_follows_captions_in_part_and_paints_no_frame(world: World) -> None:
    mean = float(world.base.mean())
    assert 0.2 < mean < 0.5  # the total of a faithful picture in the base's style is 0.5


@pytest.mark.parametrize("method", [*METHODS, "orpo"])
def test_a_method_improves_held_out_reward_beyond_its_interval(world: World, method: str) -> None:
    gain = world.gain(world.resolve(method, method))
    print(f"{method}: gain {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    assert gain.low > 0.0


@pytest.mark.parametrize("method", METHODS)
def test_swapped_labels_do_not_improve_it(world: World, method: str) -> None:
    gain = world.gain(world.resolve(method, f"{method}_swapped", swapped=True))
    print(f"{method} swapped: gain {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    assert gain.low <= 0.0


@pytest.mark.parametrize("method", METHODS)
def test_the_wrong_sign_does_not_improve_it(
    world: World, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = parts.objectives.build
    monkeypatch.setattr(parts.objectives, "build", lambda *names, **values: -1.0 * build(*names, **values))
    gain = world.gain(world.resolve(method, f"{method}_flipped"))
    print(f"{method} flipped: gain {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    assert gain.low <= 0.0
