"""Methods improve the order of events in the toy world of sound through the real loop; broken ones do not.

"Improves" is a claim about captions: the 95 % interval of the mean gain in order, paired over held-out
captions played from the same noise, lies above zero. What is broken: the labels are swapped, or the
objective has the wrong sign.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.data.readers import open_rows
from mmalign.toy.audio_pairs import edited_pairs, swapped, write_pairs
from mmalign.toy.audio_pipeline import ASSETS, load_base, play_held_out
from mmalign.toy.comparison import Interval, bootstrap_mean
from mmalign.toy.demo import recipe_path
from mmalign.toy.encoding import cache_clips
from mmalign.train import parts
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.parts import load_model
from mmalign.train.run import train

pytestmark = pytest.mark.slow

METHODS = ("crpo", "dpo", "ipo", "kto", "mapo")
NUM_PAIRS, NUM_PROMPTS, SEED = 384, 128, 1


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _order(model: Any) -> torch.Tensor:
    """Order of each held-out caption's clip."""
    scores = play_held_out(model, NUM_PROMPTS, seed=SEED)
    return torch.tensor([score.order for score in scores], dtype=torch.float64)


@dataclass(frozen=True)
class World:
    """Pairs on disk, encoded once, and what the base makes of the held-out captions."""

    folder: Path
    base: torch.Tensor

    def resolve(self, method: str, name: str, *, pairs: str = "pairs") -> ResolvedRun:
        extra: dict[str, Any] = {
            "model": {"source": str(ASSETS)},
            "data": {"source": str(self.folder / f"{pairs}.parquet")},
            "audio": {"cache": str(self.folder / "cache")},
            "train": {"output": str(self.folder / name), "seed": SEED},
        }
        return load_run(recipe_path(f"audio/configs/toy/{method}.yaml"), extra=extra)

    def gain(self, run: ResolvedRun) -> Interval:
        """Mean gain in order over the base after training."""
        return bootstrap_mean(_order(train(run).model) - self.base)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    pairs = edited_pairs(NUM_PAIRS, SEED)
    write_pairs(pairs, folder / "pairs.parquet")
    write_pairs(swapped(pairs), folder / "swapped.parquet")
    new = World(folder, _order(load_base()))
    run = new.resolve("dpo", "none")
    config = run.config.model_copy(update={"audio": run.config.audio.model_copy(update={"cache": None})})
    # The swapped file holds the same clips, and a cache knows clips by their content.
    model: Any = load_model(replace(run, config=config), torch.device("cpu"))
    cache_clips(model, open_rows(config.data), folder / "cache")
    return new


def test_the_base_plays_the_right_events_and_often_the_wrong_order(world: World) -> None:
    assert 0.7 < float(world.base.mean()) < 0.92


@pytest.mark.parametrize("method", METHODS)
def test_a_method_improves_held_out_order_beyond_its_interval(world: World, method: str) -> None:
    gain = world.gain(world.resolve(method, method))
    print(f"{method}: gain {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    assert gain.low > 0.0


@pytest.mark.parametrize("method", METHODS)
def test_swapped_labels_do_not_improve_order(world: World, method: str) -> None:
    gain = world.gain(world.resolve(method, f"{method}_swapped", pairs="swapped"))
    print(f"{method} swapped: gain {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    assert gain.low <= 0.0


@pytest.mark.parametrize("method", METHODS)
def test_the_wrong_sign_does_not_improve_order(
    world: World, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = parts.objectives.build
    monkeypatch.setattr(parts.objectives, "build", lambda *names, **values: -1.0 * build(*names, **values))
    gain = world.gain(world.resolve(method, f"{method}_flipped"))
    print(f"{method} flipped: gain {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    assert gain.low <= 0.0
