"""Errors of a tiny model and its base on a few pairs: what is drawn, what is stored, who computes what."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from mmalign.cli.main import main
from mmalign.data.readers import open_rows
from mmalign.errors import CheckpointError, ConfigError
from mmalign.evals.accuracy_run import data_config
from mmalign.evals.implicit_accuracy import summarise
from mmalign.evals.implicit_errors import Errors, errors_table, measure_errors, read_errors
from mmalign.evals.implicit_models import ComparedModels, load_compared
from mmalign.testing.tiny import RESOLUTION, write_tiny_sd15
from mmalign.testing.variants import variants
from mmalign.train.config import load_run
from mmalign.train.run import train

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

NUM_PAIRS = 11


def _picture(rng: np.random.Generator, base: tuple[int, int, int]) -> bytes:
    pixels = np.clip(np.array(base) + rng.integers(-40, 41, (RESOLUTION, RESOLUTION, 3)), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_pairs(path: Path, *, count: int = NUM_PAIRS, seed: int = 0, swapped: bool = False) -> Path:
    """Pairs of a light and a dark picture; people prefer the light one, or with `swapped` the dark one."""
    rng = np.random.default_rng(seed)
    light = [_picture(rng, (215, 205, 190)) for _ in range(count)]
    dark = [_picture(rng, (40, 30, 60)) for _ in range(count)]
    side = [row % 2 == 0 for row in range(count)]
    label = [float(first != swapped) for first in side]
    table = {
        "caption": [f"picture {row % 7}" for row in range(count)],
        "jpg_0": [light[row] if side[row] else dark[row] for row in range(count)],
        "jpg_1": [dark[row] if side[row] else light[row] for row in range(count)],
        "label_0": label,
        "label_1": [1.0 - value for value in label],
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd15(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet", seed=5)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of Diffusion-DPO on other pairs of the same kind."""
    folder = tmp_path_factory.mktemp("runs")
    content = {
        "method": "diffusion_dpo",
        "model": {"family": "sd15", "source": str(base)},
        "image": {"resolution": RESOLUTION, "prompt_dropout": 0.2},
        "data": {"source": str(write_pairs(folder / "pairs.parquet", count=23))},
        "objective": {"beta": 500.0},
        "adapter": {"rank": 8},
        "train": {
            "output": str(folder / "run"),
            "steps": 24,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "warmup_steps": 0,
            "num_workers": 0,
            "device": "cpu",
        },
        "log": {"every": 10, "trackers": []},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    train(load_run(path))
    return folder / "run"


def measured(models: ComparedModels, data: Path, cache: Path, *, draws: int = 5, **options: Any) -> Errors:
    table = open_rows(data_config(str(data)), kind="pairs")
    store = errors_table(cache, models, table, draws=draws, seed=0)
    measure_errors(models, table, store, draws=draws, num_workers=0, **options)
    return read_errors(store, len(table))


@pytest.mark.slow
def test_a_trained_model_prefers_what_people_prefer_on_pairs_it_has_not_seen(
    run: Path, pairs: Path, tmp_path: Path
) -> None:
    found = summarise(measured(load_compared(str(run), device="cpu"), pairs, tmp_path), beta=500.0)
    assert (found.pairs, found.prompts, found.draws) == (11, 7, 5)
    assert found.accuracy.low is not None
    assert found.accuracy.low > 0.5
    assert found.margin.value > 0
    assert found.logit is not None
    assert found.logit.value == pytest.approx(250.0 * found.margin.value)
    assert found.rejected.value > found.chosen.value, "the others got worse by more"
    assert [entry.pairs for entry in found.by_timestep] == [11] * 5, "five strata, one draw of a pair in each"


@pytest.mark.slow
def test_swapped_labels_give_the_other_answer_to_every_pair(run: Path, pairs: Path, tmp_path: Path) -> None:
    models = load_compared(str(run), device="cpu")
    swapped = write_pairs(tmp_path / "swapped.parquet", seed=5, swapped=True)
    one, other = measured(models, pairs, tmp_path), measured(models, swapped, tmp_path)
    right, wrong = summarise(one), summarise(other)
    assert wrong.accuracy.value == pytest.approx(1.0 - right.accuracy.value)
    np.testing.assert_allclose(other.margins, -one.margins, rtol=0, atol=1e-5)


class Recorder:
    """A denoiser that remembers what it was given."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seen = inner, list[tuple[Any, ...]]()

    def __call__(self, noised: Any, timestep: Any, conditioning: Any) -> Any:
        self.seen.append((noised.clone(), timestep.clone(), conditioning["text"].clone()))
        return self.inner(noised, timestep, conditioning)


def test_policy_and_base_see_the_same_draws_and_both_pictures_the_same_timestep(
    run: Path, pairs: Path, tmp_path: Path
) -> None:
    models = load_compared(str(run), device="cpu")
    policy, base = Recorder(models.policy), Recorder(models.base)
    watched = replace(models, policy=policy, base=base)
    measured(watched, pairs, tmp_path, draws=3, batch_size=2)
    assert len(policy.seen) == len(base.seen) == 3 * 6
    for one, two in zip(policy.seen, base.seen, strict=True):
        assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))
        times = one[1].unflatten(0, (-1, 2))
        assert torch.equal(times[:, 0], times[:, 1])
    # Draw k of 3 lies in the k-th third of the noise levels, for every pair.
    thirds = torch.stack([times[1].float() for times in policy.seen[:3]]) / 1000 * 3
    assert thirds.floor().tolist() == [[k] * 4 for k in range(3)]


def test_a_base_held_against_itself_ties_in_every_pair(base: Path, pairs: Path, tmp_path: Path) -> None:
    models = load_compared(str(base), str(base), device="cpu", resolution=RESOLUTION)
    found = summarise(measured(models, pairs, tmp_path, draws=2))
    assert (found.accuracy.value, found.ties, found.margin.value) == (0.5, NUM_PAIRS, 0.0)
    assert found.exact.low is None


def _network_of(run: Path, base: Path, folder: Path, kind: str) -> Path:
    """What others publish of a fully trained network: the same weights as the run's, in another folder."""
    from mmalign.diffusion.trained import load_trained

    trained = load_trained(run, device="cpu")
    if kind == "adapter":
        return trained.model.save_adapter(folder)
    trained.model.save_model(folder / "whole")
    if kind == "pipeline":
        return folder / "whole"
    alone = folder / "alone"
    alone.mkdir()
    (folder / "whole" / "unet").rename(alone / "unet")
    return alone if kind == "subfolder" else alone / "unet"


@pytest.mark.parametrize(
    "kind", variants(["subfolder", "network", "pipeline", "adapter"], fast=("subfolder", "adapter"))
)
def test_a_published_network_gives_what_the_run_gives(
    run: Path, base: Path, pairs: Path, tmp_path: Path, kind: str
) -> None:
    published = _network_of(run, base, tmp_path, kind)
    models = load_compared(str(published), str(base), device="cpu", resolution=RESOLUTION)
    expected = measured(load_compared(str(run), device="cpu"), pairs, tmp_path / "a", draws=2)
    got = measured(models, pairs, tmp_path / "b", draws=2)
    np.testing.assert_allclose(got.values, expected.values, rtol=1e-4)
    assert got.prompts == expected.prompts


def test_a_run_of_the_whole_network_is_held_against_its_base(base: Path, pairs: Path, tmp_path: Path) -> None:
    content = {
        "method": "diffusion_dpo",
        "model": {"family": "sd15", "source": str(base)},
        "image": {"resolution": RESOLUTION},
        "data": {"source": str(pairs)},
        "adapter": {"kind": "none"},
        "train": {
            "output": str(tmp_path / "whole"),
            "steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "num_workers": 0,
            "device": "cpu",
        },
        "log": {"trackers": []},
    }
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(content))
    train(load_run(tmp_path / "whole.yaml"))
    models = load_compared(str(tmp_path / "whole"), device="cpu")
    untouched = load_compared(str(base), str(base), device="cpu", resolution=RESOLUTION)
    got = measured(models, pairs, tmp_path, draws=2).values
    expected = measured(untouched, pairs, tmp_path, draws=2).values
    np.testing.assert_allclose(got[..., 2:], expected[..., 2:], rtol=1e-5)
    assert np.abs(got[..., :2] - expected[..., :2]).max() > 1e-4


def test_what_is_stored_is_not_computed_again_and_shards_fill_one_table(
    run: Path, pairs: Path, tmp_path: Path
) -> None:
    models = load_compared(str(run), device="cpu")
    expected = measured(models, pairs, tmp_path / "whole", draws=2)
    table = open_rows(data_config(str(pairs)), kind="pairs")
    store = errors_table(tmp_path / "parts", models, table, draws=2, seed=0)
    done = [
        measure_errors(models, table, store, draws=2, shard=(number, 3), batch_size=2, num_workers=0)
        for number in range(3)
    ]
    assert sum(part.new for part in done) == NUM_PAIRS
    assert [part.missing for part in done][-1] == 0
    assert done[0].missing > 0
    got = read_errors(store, len(table))
    np.testing.assert_allclose(got.values, expected.values, rtol=1e-4)

    def refuses(noised: torch.Tensor, timestep: torch.Tensor, conditioning: Any) -> torch.Tensor:
        raise AssertionError((noised, timestep, conditioning))

    broken = replace(models, policy=refuses)
    assert measure_errors(broken, table, store, draws=2, num_workers=0).new == 0


def test_more_rows_later_are_the_only_new_ones(run: Path, pairs: Path, tmp_path: Path) -> None:
    models = load_compared(str(run), device="cpu")
    few, all_rows = (
        open_rows(data_config(str(pairs), **limit), kind="pairs") for limit in ({"limit": 3}, {})
    )
    stores = [errors_table(tmp_path, models, table, draws=2, seed=0) for table in (few, all_rows)]
    assert stores[0].folder == stores[1].folder
    assert measure_errors(models, few, stores[0], draws=2, num_workers=0).new == 3
    assert measure_errors(models, all_rows, stores[1], draws=2, num_workers=0).new == NUM_PAIRS - 3
    assert len(read_errors(stores[0], 3).prompts) == 3


def test_other_models_draws_or_data_have_another_table(
    run: Path, base: Path, pairs: Path, tmp_path: Path
) -> None:
    models = load_compared(str(run), device="cpu")
    other = load_compared(str(base), str(base), device="cpu", resolution=RESOLUTION)
    table = open_rows(data_config(str(pairs)), kind="pairs")
    elsewhere = open_rows(data_config(str(write_pairs(tmp_path / "p.parquet", count=5))), kind="pairs")
    folders = {
        errors_table(tmp_path, *which, draws=draws, seed=seed).folder
        for which, draws, seed in (
            ((models, table), 2, 0),
            ((models, table), 3, 0),
            ((models, table), 2, 1),
            ((other, table), 2, 0),
            ((models, elsewhere), 2, 0),
        )
    }
    assert len(folders) == 5


def _with_broken_row(pairs: Path, path: Path) -> Path:
    table = pq.read_table(pairs).to_pylist()
    table[2]["jpg_0"] = table[2]["jpg_0"][:50]
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


def test_an_unreadable_pair_is_counted_told_and_tried_again(run: Path, pairs: Path, tmp_path: Path) -> None:
    models = load_compared(str(run), device="cpu")
    path = _with_broken_row(pairs, tmp_path / "broken.parquet")
    table = open_rows(data_config(str(path)), kind="pairs")
    store = errors_table(tmp_path, models, table, draws=2, seed=0)
    first, second = (measure_errors(models, table, store, draws=2, num_workers=0) for _ in range(2))
    assert (first.new, first.missing, list(first.failed)) == (NUM_PAIRS - 1, 1, [2])
    assert (second.new, second.missing, list(second.failed)) == (0, 1, [2])
    assert len(read_errors(store, len(table)).prompts) == NUM_PAIRS - 1


def test_the_command_prints_writes_and_tells_what_failed(
    run: Path, base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _with_broken_row(pairs, tmp_path / "broken.parquet")
    words = [
        "--model",
        str(run),
        "--data",
        str(path),
        "--draws",
        "2",
        "--num-workers",
        "0",
        "--device",
        "cpu",
    ]
    words += ["--cache", str(tmp_path / "store"), "--output", str(tmp_path / "out")]
    assert main(["eval", "implicit-accuracy", *words]) == 3
    printed = capsys.readouterr().out
    assert "accuracy, ties half" in printed
    assert "1 of 11 pairs have no errors" in printed
    record = json.loads((tmp_path / "out" / "implicit_accuracy.json").read_text())
    assert record["result"]["pairs"] == 10
    assert record["beta"] == 500.0
    assert len(record["failed"]) == 1
    assert "| draws | accuracy |" in (tmp_path / "out" / "implicit_accuracy.md").read_text()


def test_what_cannot_be_compared_is_refused_in_words(
    run: Path, base: Path, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"got 'no --base', expected the model it was tuned from"):
        load_compared(str(base))
    with pytest.raises(ConfigError, match="expected neither: a run knows both"):
        load_compared(str(run), resolution=64)
    with pytest.raises(ConfigError, match="a folder or hub id with unet/ or a network itself"):
        load_compared(str(tmp_path), str(base), device="cpu", resolution=RESOLUTION)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "mmalign_config.yaml").write_text((run / "mmalign_config.yaml").read_text())
    with pytest.raises(CheckpointError, match="no complete checkpoint yet"):
        load_compared(str(tmp_path / "empty"))
    models = load_compared(str(run), device="cpu")
    table = open_rows(data_config(str(pairs)), kind="pairs")
    store = errors_table(tmp_path, models, table, draws=0, seed=0)
    with pytest.raises(ConfigError, match="--draws: got 0, expected at least 1"):
        measure_errors(models, table, store, draws=0)
    with pytest.raises(ConfigError, match="no pair with errors"):
        read_errors(store, len(table))


def test_a_network_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    config = json.loads((base / "unet" / "config.json").read_text())
    weights = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"] = torch.zeros(7)
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "other" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ConfigError, match=r"--model .*other"):
        load_compared(str(tmp_path / "other"), str(base), device="cpu", resolution=RESOLUTION)
