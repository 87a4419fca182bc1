"""Step-aware preference models: what they are shown, what a step costs, resuming, folders, recipes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mmalign import methods, rewards
from mmalign.batch import RowKeys
from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.diffusion.step_aware_config import StepAwareRunConfig, load_step_aware_run
from mmalign.diffusion.step_aware_pairs import (
    Estimator,
    NoisyPairs,
    PairColumns,
    PairSource,
    read_columns,
    step_aware_outputs,
    steps_of,
)
from mmalign.diffusion.step_aware_training import train_step_aware
from mmalign.errors import CheckpointError, ConfigError, RowError, UnknownNameError
from mmalign.files import read_json, read_json_lines
from mmalign.rewards.step_aware_files import (
    OFFICIAL_FILE,
    WEIGHTS_FILE,
    clip_tokens,
    new_step_aware,
    save_step_aware,
)
from mmalign.rewards.step_aware_reward import load_step_aware, step_aware_pixels
from mmalign.rewards.training.loop import METRICS
from mmalign.seeding import row_normal
from mmalign.testing.families import load
from mmalign.testing.reward_checkpoints.step_aware import write_clip_base, write_pickscore
from mmalign.testing.tiny import RESOLUTION

CONFIGS = Path(__file__).parents[2] / "diffusion" / "configs"


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 pairs over 17 prompts in JSON lines: the brighter picture wins; every fifth is a tie."""
    folder = tmp_path_factory.mktemp("step_aware_pairs")
    generator = np.random.default_rng(3)
    lines = []
    for number in range(23):
        names = []
        for side, level in (("a", 160), ("b", 60)):
            values = generator.integers(level - 50, level + 50, (RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
            names.append(f"{number}{side}.png")
            Image.fromarray(values).save(folder / names[-1])
        label = 0.5 if number % 5 == 0 else float(number % 2)
        shown = names if label else names[::-1]
        row = {"prompt": f"a picture {number % 17}", "image_0": shown[0], "image_1": shown[1]}
        lines.append(json.dumps({**row, "label_0": label, "label_1": 1.0 - label}))
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pickscore(tmp_path_factory.mktemp("tiny_pickscore"))


@pytest.fixture(scope="module")
def make_config(
    pairs_file: Path, clip: Path, tiny_sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., StepAwareRunConfig]:
    """`make_config(section={...})`: a run of a few steps on tiny models."""

    def make(**sections: Any) -> StepAwareRunConfig:
        train = {
            "output": str(tmp_path_factory.mktemp("run")),
            "steps": 4,
            "batch_size": 5,
            "learning_rate": 1e-3,
            "evaluate_every": 2,
            "patience": 100,
            "device": "cpu",
        }
        given = {
            "method": "reward_step_aware",
            "model": {"family": "sdxl", "source": str(tiny_sdxl_folder)},
            "image": {"resolution": RESOLUTION, "flip": False},
            "data": {"source": str(pairs_file), "tie_policy": "soft"},
            "network": {"weights": str(clip)},
            "validation": {"validation_share": 0.2, "test_share": 0.2, "timesteps": [0, 501, 951]},
            **sections,
            "train": {**train, **sections.get("train", {})},
        }
        return StepAwareRunConfig.model_validate(given)

    return make


@pytest.fixture(scope="module")
def source(pairs_file: Path, clip: Path, tiny_sdxl_folder: Path) -> PairSource:
    model = load("sdxl", tiny_sdxl_folder, image={"flip": False})
    network = new_step_aware(clip / "config.json", seed=0)
    table = open_rows(DataConfig.model_validate({"source": str(pairs_file), "tie_policy": "soft"}))
    return PairSource(table, Estimator(model, 5.0, batch_size=3), clip_tokens(clip, network))


@pytest.fixture(scope="module")
def pairs(source: PairSource) -> NoisyPairs:
    columns = read_columns(source.table)
    rows = torch.arange(len(source.table))
    start = steps_of(source.estimator.model.schedule, (0,)).expand(len(rows))
    return NoisyPairs(source, rows, columns.probability, columns.weight, rows, start)


# ------------------------------------------------------------------------------------------ what is shown


def test_estimates_are_one_guided_prediction_of_pictures_noised_alike(
    source: PairSource, pairs: NoisyPairs
) -> None:
    drawn = pairs.drawn(torch.tensor([2, 7, 11]), seed=5, step=3)
    found, _, time = drawn.inputs()
    model = source.estimator.model
    examples = [one[1] for one in drawn.read if one is not None]
    keys = RowKeys(drawn.key, torch.zeros(3), 3)
    clean, conditioning = model.encode(model.collate(examples), keys)
    alphas = torch.cumprod(
        1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0
    ).float()
    alpha = alphas[drawn.timestep][:, None, None, None]
    noise = row_normal(drawn.key, model.latent_shape, purpose="noise")
    empty = model.guidance_conditioning().shared
    given = conditioning.rows(2)
    for side in (0, 1):
        noised = alpha.sqrt() * clean[:, side] + (1 - alpha).sqrt() * noise
        rows = {name: value[side::2] for name, value in given.items()}
        blank = {
            name: empty[name].expand_as(value) if name in empty else value for name, value in rows.items()
        }
        with torch.no_grad():
            with_prompt, without = (
                model.denoise(noised, drawn.timestep, one).float() for one in (rows, blank)
            )
        predicted = without + 5.0 * (with_prompt - without)
        estimate = (noised - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
        pixels = model.decode_pixels(estimate)
        torch.testing.assert_close(found[:, side], pixels, rtol=1e-3, atol=1e-3)
    assert torch.equal(time, drawn.timestep)


def test_a_step_decides_what_it_shows_and_every_step_shows_something_else(pairs: NoisyPairs) -> None:
    places = torch.tensor([1, 4, 9])
    first, again, later = (pairs.drawn(places, seed=5, step=step) for step in (3, 3, 4))
    assert torch.equal(first.key, again.key)
    assert torch.equal(first.timestep, again.timestep)
    assert torch.equal(first.inputs()[0], again.inputs()[0])
    assert not set(first.key.tolist()) & set(later.key.tolist())
    assert torch.equal(first.at(torch.tensor([2, 0])).timestep, first.timestep[[2, 0]])


def test_timesteps_are_uniform_over_the_schedule(pairs: NoisyPairs) -> None:
    places = torch.arange(2).repeat(5)
    seen = torch.cat([pairs.drawn(places, seed=1, step=step).timestep for step in range(60)]).double()
    assert float(seen.min()) < 20
    assert float(seen.max()) > 979
    spread = 1000 / math.sqrt(12 * len(seen))
    assert abs(float(seen.mean()) - 499.5) < 4 * spread


def test_held_out_pairs_keep_their_noise_at_every_timestep(source: PairSource) -> None:
    columns, rows = read_columns(source.table), torch.tensor([3, 8])
    held = NoisyPairs.held(source, rows, columns, timesteps=(0, 951), seed=7)
    assert held.timestep.tolist() == [0, 0, 951, 951]
    assert held.row.tolist() == [3, 8, 3, 8]
    assert len(set(held.key.tolist())) == 4
    first, again = (held.at(torch.tensor([2])).inputs()[0] for _ in range(2))
    assert torch.equal(first, again)


def test_columns_are_read_as_rows_are(source: PairSource) -> None:
    columns = read_columns(source.table)
    for number, row in enumerate(source.table):
        assert columns.prompts[number] == row.prompt
        assert columns.probability[number] == pytest.approx(row.preference)


def test_scores_are_those_of_the_loaded_reward(pairs: NoisyPairs, clip: Path, tmp_path: Path) -> None:
    network = new_step_aware(clip / "config.json", seed=1).eval()
    reward: Any = rewards.load(
        "step_aware", weights=save_step_aware(tmp_path, network, base=clip, description={})
    )
    some = pairs.drawn(torch.tensor([0, 5]), seed=2, step=0)
    with torch.no_grad():
        first, second = step_aware_outputs(network, some)
        pixels, _, time = some.inputs()
        prompts = [one[0] for one in some.read if one is not None]
        for side, scores in enumerate((first, second)):
            expected = reward.score_tensor(pixels[:, side], prompts, time)
            torch.testing.assert_close(scores[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert step_aware_pixels(pixels[:, 0], network.image_size).shape[-1] == 28


# ------------------------------------------------------------------------------------------------- labels


def test_a_margin_makes_hard_labels_and_ties() -> None:
    soft = torch.tensor([0.5, 0.53, 0.549, 0.551, 0.7, 1.0])
    columns = PairColumns(("a",) * 6, soft, torch.ones(6))
    assert columns.hardened(0.1).probability.tolist() == [0.5, 0.5, 0.5, 1.0, 1.0, 1.0]
    assert columns.hardened(None) is columns


def test_the_pairs_of_a_prompt_weigh_one_together(source: PairSource) -> None:
    columns = read_columns(source.table)
    weight = columns.per_prompt(torch.arange(len(source.table)))
    total: dict[str, float] = {}
    for prompt, value in zip(columns.prompts, weight.tolist(), strict=True):
        total[prompt] = total.get(prompt, 0.0) + value
    assert len(total) == 17
    assert all(value == pytest.approx(1.0) for value in total.values())


# ----------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def run(make_config: Callable[..., StepAwareRunConfig]) -> Any:
    return train_step_aware(make_config(official_file=True))


def test_a_run_ends_in_a_reward_that_says_how_good_it_is_at_each_timestep(run: Any) -> None:
    content = read_json(run.folder / "step_aware.json")
    assert list(content["measures"]) == ["0", "501", "951"] == list(run.measures)
    assert content["measures"]["501"]["accuracy"] == run.measures["501"].accuracy
    assert content["training"]["pairs"]["test"] == run.measures["0"].pairs + run.measures["0"].ties
    reward = rewards.load("step_aware", weights=run.folder, timestep=0)
    sample = rewards.Sample(prompt="a picture 3", image=torch.rand(3, 31, 31))
    assert reward.score([sample]).first().isfinite().all()
    assert len(read_json_lines(run.folder / METRICS)) == 2


def test_the_released_layout_is_read_by_the_loader_of_released_models(run: Any, clip: Path) -> None:
    loaded = load_step_aware(run.folder / OFFICIAL_FILE, clip / "config.json", dtype=torch.float32)
    own = load_step_aware(run.folder / WEIGHTS_FILE, clip / "config.json", dtype=torch.float32)
    state = torch.load(run.folder / OFFICIAL_FILE, weights_only=True)
    assert all(name.startswith("model.") and value.dtype == torch.float32 for name, value in state.items())
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, own.state_dict()[name])
        assert torch.equal(value, run.network.state_dict()[name])


def test_training_starts_at_pickscore_and_moves_all_of_it(run: Any, clip: Path) -> None:
    start = load_step_aware(
        clip / "model.safetensors", clip / "config.json", start="pickscore", dtype=torch.float32
    ).state_dict()
    moved = {name for name, value in run.network.state_dict().items() if not torch.equal(value, start[name])}
    for part in (
        "t_embedder.mlp.2.bias",
        "vision_model.encoder.layers.0.adaLN_modulation",
        "text_model.encoder",
    ):
        assert any(part in name for name in moved), part


def test_a_run_that_was_stopped_ends_with_the_same_weights_bit_by_bit(
    make_config: Callable[..., StepAwareRunConfig], run: Any
) -> None:
    config = make_config(official_file=True)
    stopped = train_step_aware(config, stop=lambda step: step == 2)
    assert not stopped.progress.finished
    assert not stopped.measures
    assert not (stopped.folder / WEIGHTS_FILE).exists()
    with pytest.raises(CheckpointError, match=r"no step_aware\.safetensors.*only checkpoints"):
        rewards.load("step_aware", weights=stopped.folder)
    finished = train_step_aware(config)
    assert finished.progress.finished
    for name, value in finished.network.state_dict().items():
        assert torch.equal(value, run.network.state_dict()[name]), name


def test_parts_of_a_step_add_up_to_the_step(make_config: Callable[..., StepAwareRunConfig]) -> None:
    whole, parts = (
        train_step_aware(make_config(train={"steps": 1, **extra})).network
        for extra in ({}, {"micro_batch_size": 2})
    )
    gradients = dict(parts.named_parameters())
    largest = max(float(one.grad.abs().max()) for one in whole.parameters() if one.grad is not None)
    for name, one in whole.named_parameters():
        assert one.grad is not None, name
        torch.testing.assert_close(gradients[name].grad, one.grad, rtol=1e-3, atol=1e-5 * largest)


def test_another_run_in_the_folder_is_refused(
    make_config: Callable[..., StepAwareRunConfig], run: Any
) -> None:
    config = make_config(train={"output": str(run.folder)}, estimate={"guidance_scale": 3.0})
    with pytest.raises(CheckpointError, match=r"other settings, data or features"):
        train_step_aware(config)


def test_training_can_go_on_from_an_earlier_model(
    make_config: Callable[..., StepAwareRunConfig], run: Any
) -> None:
    config = make_config(
        network={"start": "step_aware", "weights": str(run.folder)}, train={"steps": 1, "learning_rate": 1e-9}
    )
    found = train_step_aware(config).network.state_dict()
    for name, value in run.network.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_rows_that_cannot_be_read_weigh_nothing_and_whole_steps_of_them_end_the_run(
    pairs_file: Path, source: PairSource, tmp_path: Path
) -> None:
    lines = pairs_file.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[1:5]]
    for row in rows:
        for name in ("image_0", "image_1"):
            row[name] = str(pairs_file.parent / row[name])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows[2]["image_0"] = str(tmp_path / "broken.png")
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings: dict[str, Any] = {"source": {"path": str(path), "allow_outside": True}, "max_bad_share": 0.3}
    table = open_rows(DataConfig.model_validate(settings))
    broken = PairSource(table, source.estimator, source.tokens)
    columns, places = read_columns(table), torch.arange(4)
    pairs = NoisyPairs(broken, places, columns.probability, columns.weight, places, places)
    drawn = pairs.drawn(places, seed=0, step=0)
    assert drawn.weight.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert drawn.inputs()[0].shape[0] == 4
    assert list(broken.unreadable) == [2]
    with pytest.raises(RowError, match=r"step 1: no row can be read"):
        pairs.drawn(torch.tensor([2, 2]), seed=0, step=1)
    strict = open_rows(DataConfig.model_validate({**settings, "max_bad_share": 0.1}))
    with pytest.raises(ConfigError, match=r"1 of 4 rows that cannot be used, so far.*at most 10%"):
        PairSource(strict, source.estimator, source.tokens).read(2, 0)


# --------------------------------------------------------------------------------------------- configs


def test_the_row_fills_rate_and_steps_by_family(
    make_config: Callable[..., StepAwareRunConfig], tmp_path: Path
) -> None:
    content = make_config().model_dump(mode="json")
    del content["train"]["learning_rate"], content["train"]["steps"]
    for family, rate, steps in (("sd15", 3e-6, 8000), ("sdxl", 1e-6, 7000)):
        content["model"]["family"] = family
        path = tmp_path / f"{family}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        config, row = load_step_aware_run(path)
        assert (config.train.learning_rate, config.train.steps) == (rate, steps)
        assert row is methods.find("reward_step_aware")
    with pytest.raises(UnknownNameError, match="reward_step_aware"):
        load_step_aware_run(path, ["method=diffusion_dpo"])
    with pytest.raises(ConfigError, match=r"estimate\.guidance.*unknown key.*guidance_scale"):
        load_step_aware_run(path, ["estimate.guidance=3"])


def test_settings_that_cannot_work_are_refused(make_config: Callable[..., StepAwareRunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"image\.prompt_dropout.*estimates are made under guidance"):
        train_step_aware(make_config(image={"resolution": RESOLUTION, "prompt_dropout": 0.1}))
    with pytest.raises(ValueError, match=r"start: new reads a folder"):
        make_config(network={"start": "new"})
    with pytest.raises(ConfigError, match=r"pairs for test.*none of 23 pairs over 17 prompts"):
        train_step_aware(make_config(validation={"validation_share": 0.2, "test_share": 1e-9}))


def test_a_linear_rate_warms_up_and_falls_to_nothing(make_config: Callable[..., StepAwareRunConfig]) -> None:
    train = make_config(train={"schedule": "linear", "warmup_steps": 5, "steps": 25}).train
    from mmalign.rewards.training.loop import _factor

    factors = [_factor(step, 25, train) for step in range(26)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == pytest.approx([1 - step / 20 for step in range(21)])


def test_the_command_says_what_it_would_do(
    make_config: Callable[..., StepAwareRunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "step_aware.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")), encoding="utf-8")
    assert main(["train", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "reward_step_aware" in said
    assert "23 kept" in said


def test_a_device_that_is_not_there_is_refused(make_config: Callable[..., StepAwareRunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"got '?cuda:99'?, expected cuda, cuda:1, cpu or mps, and present"):
        train_step_aware(make_config(train={"device": "cuda:99"}))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "toy"])
def test_a_recipe_runs_on_tiny_models(
    family: str,
    pairs_file: Path,
    clip: Path,
    tiny_sd15_folder: Path,
    tiny_sdxl_folder: Path,
    tmp_path: Path,
) -> None:
    path = CONFIGS / family / "step_aware.yaml"
    assert f"mmalign train diffusion/configs/{family}/step_aware.yaml" in path.read_text(encoding="utf-8")
    settings = [
        f"model.source={tiny_sd15_folder if family == 'sd15' else tiny_sdxl_folder}",
        "model.vae=null",
        f"image.resolution={RESOLUTION}",
        f"data.source={pairs_file}",
        f"network.weights={clip}",
        "estimate.dtype=float32",
        f"train.output={tmp_path}",
        *("train.steps=3", "train.batch_size=3", "train.evaluate_every=3", "train.device=cpu"),
        *("validation.validation_share=0.2", "validation.test_share=0.2", "validation.timesteps=[951]"),
    ]
    config, row = load_step_aware_run(path)
    assert config.train.output == f"runs/{family}{'_' if family == 'toy' else '-'}step_aware"
    if family != "toy":
        published = row.defaults_for(family)
        assert config.train.batch_size == published["effective_batch"].value
        assert config.train.learning_rate == published["learning_rate"].value
        assert config.train.steps == published["steps"].value
    found = train_step_aware(load_step_aware_run(path, settings)[0])
    assert found.progress.step == 3
    assert (tmp_path / OFFICIAL_FILE).is_file() == (family != "toy")


def test_a_new_network_is_plain_clip_at_every_timestep(tmp_path: Path) -> None:
    network = new_step_aware(write_clip_base(tmp_path) / "config.json", seed=2).eval()
    pixels = torch.rand(3, 3, 28, 28)
    with torch.no_grad():
        features = [network.image_features(pixels, torch.full((3,), float(time))) for time in (0, 701)]
        plain = network.model.visual_projection(network.model.vision_model(pixels).pooler_output)
    assert torch.equal(*features)
    torch.testing.assert_close(features[0], plain)
