"""Every recipe of the image folder is a valid run, opens with its command, says what it costs, and runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mmalign import methods
from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.errors import ConfigError
from mmalign.evals.pairs.relabel import RelabelSettings, relabel
from mmalign.testing.simple_rewards import Brightness
from mmalign.testing.tiny import RESOLUTION
from mmalign.train.config import load_run
from mmalign.train.run import prepare, train

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

CONFIGS = Path(__file__).parents[2] / "diffusion" / "configs"
FAMILIES = ("sd15", "sdxl", "sd3", "flux", "pixart")
RECIPES = sorted(
    path
    for family in FAMILIES
    for path in (CONFIGS / family).glob("*.yaml")
    if path.stem not in ("step_aware", "diff_instruct_star")  # test_step_aware.py, test_one_step_recipe.py
    if path.stem not in ("online_dpo", "spo", "dro", "seppo", "draft", "flow_grpo")  # test_online_recipes.py
)
EXTENSIVE = {"dpo_full", "dpo_lora", "ipo", "kto", "mapo", "orpo", "simpo"}
NEW = {
    "inpo",
    "smpo",
    "sdpo",
    "dmpo",
    "dspo",
    "linear_dpo",
    "rankdpo",
    "lpo",
    "dpo_ai_feedback",
    "instruct_engine",
}
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")


def test_both_families_have_every_method() -> None:
    for family in ("sd15", "sdxl"):
        assert {path.stem for path in RECIPES if path.parent.name == family} >= EXTENSIVE | NEW


def test_every_offline_method_with_a_published_image_run_has_a_recipe() -> None:
    published = {
        row.name
        for row in methods.runs()
        if not row.rollout
        if any(
            default.mark != "ours"
            for family in FAMILIES
            if family in row.defaults
            for name, default in row.defaults_for(family).items()
            if name == "learning_rate"
        )
    }
    assert {"inpo", "dspo_sdxl", "linear_dpo", "flow_dpo"} <= published
    assert published <= {load_run(path).method.name for path in RECIPES}


@each_recipe
def test_a_recipe_is_a_valid_run_that_explains_itself(path: Path) -> None:
    run = load_run(path)
    assert run.config.model.family == path.parent.name
    assert run.config.train.output == f"runs/{path.parent.name}-{path.stem}"
    text = path.read_text(encoding="utf-8")
    head = text.split("\n\n")[0]
    assert f"mmalign train diffusion/configs/{path.parent.name}/{path.name}" in head
    for word in ("Hardware", "Memory", "Time", "Expect", "Source"):
        assert re.search(rf"^# {word}\b", head, flags=re.MULTILINE), word
    # PyYAML reads 1e-5 as text.
    assert not re.search(r":\s*\d+e-?\d+", text)


@each_recipe
def test_a_recipe_with_the_row_s_batch_has_its_learning_rate(path: Path) -> None:
    """A rate belongs to a batch: whoever trains with the published one trains at the published rate."""
    run = load_run(path)
    settings, row = run.config.train, run.method.defaults_for(path.parent.name)
    batches = {settings.batch_size * settings.accumulation * devices for devices in (1, 8)}
    published = row["learning_rate"].mark != "ours" and row["effective_batch"].value in batches
    if published and run.config.adapter.kind == "none":
        assert settings.learning_rate == pytest.approx(row["learning_rate"].value)
    assert settings.learning_rate is not None
    assert settings.learning_rate < 1e-3


@pytest.mark.parametrize(
    ("stem", "batch", "base"), [("dpo_full", 2048, 1e-8), ("inpo", 1024, 1e-8), ("smpo", 1024, 1e-8)]
)
def test_learning_rates_of_full_recipes_are_the_effective_ones(stem: str, batch: int, base: float) -> None:
    for family in ("sd15", "sdxl"):
        settings = load_run(CONFIGS / family / f"{stem}.yaml").config.train
        assert settings.learning_rate == pytest.approx(base * batch)
        assert settings.batch_size * settings.accumulation * 8 == batch


def test_kto_recipes_reach_their_method_with_the_doubled_beta() -> None:
    for family in ("sd15", "sdxl"):
        run = load_run(CONFIGS / family / "kto.yaml")
        assert run.method.data == "unpaired"
        assert run.objective_arguments["beta"] == 2000.0


def test_recipes_of_inversion_and_safeguard_say_what_the_row_says() -> None:
    for family, steps, mu in (("sd15", 5, 0.9), ("sdxl", 10, 0.6)):
        smpo = load_run(CONFIGS / family / "smpo.yaml").config.likelihood
        assert (smpo.kind, smpo.inversion.method, smpo.inversion.num_steps) == ("inversion", "renoise", steps)
        inpo = load_run(CONFIGS / family / "inpo.yaml").config.likelihood
        assert (inpo.inversion.method, inpo.inversion.num_steps, inpo.inversion.eta) == ("ddim", 10, 0.1)
        for stem in ("sdpo", "dmpo"):
            assert load_run(CONFIGS / family / f"{stem}.yaml").config.safeguard.mu == mu


# ---------------------------------------------------------------------------------------------- three steps


def overrides(model: Path, rows: Path, output: Path) -> list[str]:
    """What makes a recipe a run of three steps of two rows on a tiny model; everything else stands."""
    return [
        f"model.source={model}",
        f"image.resolution={RESOLUTION}",
        f"data.source={rows}",
        f"train.output={output}",
        *("train.steps=3", "train.accumulation=1", "train.warmup_steps=0", "train.num_workers=0"),
        *("train.device=cpu", "train.mixed_precision=no", "log.every=1", "log.trackers=[]"),
        *("samples.prompts=[]", "train.checkpoint_every=1000"),
        "train.batch_size=2",
    ]


def three_steps(path: Path, model: Path, rows: Path, output: Path) -> list[dict[str, float]]:
    """The records of three optimiser steps of a recipe."""
    train(load_run(path, overrides(model, rows, output)))
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def is_quick(path: Path) -> bool:
    """One recipe for each kind of step and network in the quick run, all of them in the slow one."""
    return f"{path.parent.name}/{path.stem}" in {
        *("sd15/smpo", "sd15/sdpo", "sd15/linear_dpo", "sd15/rankdpo", "sdxl/dspo"),
        *("sd3/flow_sdpo", "flux/flow_dpo", "pixart/dpo_lora"),
    }


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=f"{path.parent.name}/{path.stem}", marks=() if is_quick(path) else pytest.mark.slow
        )
        for path in RECIPES
    ],
)
def test_a_recipe_trains_three_steps(
    path: Path, tiny_model: Callable[[str, str], Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    kind = load_run(path).method.data
    records = three_steps(path, tiny_model(path.parent.name, path.stem), data(kind), tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert all(record["grad_norm"] > 0 for record in records)


# ------------------------------------------------------------------------------- data made for a method first


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("stem", ["dpo_ai_feedback", "smpo"])
def test_pairs_are_relabelled_by_a_reward_and_then_trained_on(
    stem: str, tiny_model: Callable[[str, str], Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    """What `mmalign data relabel` does, with a reward that needs no weights."""
    config = DataConfig.model_validate({"source": {"path": str(data("pairs"))}})
    rewards = {"brightness": Brightness(gain=20.0)}
    relabel(config, tmp_path / "scored", rewards, RelabelSettings(), store=tmp_path / "store")
    path = CONFIGS / "sd15" / f"{stem}.yaml"
    rows = [json.loads(line) for line in (tmp_path / "scored" / "rows.jsonl").read_text().splitlines()]
    assert all(row["score_chosen"] > row["score_rejected"] for row in rows)
    records = three_steps(path, tiny_model("sd15", stem), tmp_path / "scored", tmp_path / "run")
    assert all(np.isfinite(record["loss"]) for record in records)


def test_crossed_images_compare_prompts_too(
    tiny_model: Callable[[str, str], Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"picture {n}", "image": str(data("pairs").parent / f"{n}.png"), "label": True}
        | {"contrast": n // 2}
        for n in range(4)
    ]
    source, output = written(tmp_path / "images.jsonl", rows), tmp_path / "crossed"
    options = ["--allow-outside", "--how", "cross_validation", "--output", str(output)]
    assert main(["data", "derive", str(source), *options]) == 0
    path = CONFIGS / "sd15" / "instruct_engine.yaml"
    records = three_steps(path, tiny_model("sd15", "lora"), output, tmp_path / "run")
    assert records[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert all(record["grad_norm"] > 0 for record in records)


def test_chained_pairs_train_as_lists_of_different_lengths(
    tiny_model: Callable[[str, str], Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = data("pairs").parent
    edges = [("a", 0, 1), ("a", 1, 2), ("b", 3, 4)]
    rows = [
        {"prompt": prompt, "chosen": str(folder / f"{one}.png"), "rejected": str(folder / f"{two}.png")}
        for prompt, one, two in edges
    ]
    source, output = written(tmp_path / "pairs.jsonl", rows), tmp_path / "chains"
    options = ["--allow-outside", "--how", "ranked_chains", "--output", str(output)]
    assert main(["data", "derive", str(source), *options]) == 0
    run = load_run(
        CONFIGS / "sd15" / "lpo.yaml", overrides(tiny_model("sd15", "lora"), output, tmp_path / "run")
    )
    _, loader = prepare(run)
    labels = next(iter(loader)).labels
    assert labels.relevance is not None
    assert labels.valid is not None
    assert sorted(labels.relevance.tolist()) == [[1.0, 0.0, 0.0], [1.0, 0.5, 0.0]]
    assert sorted(labels.valid.sum(1).tolist()) == [2, 3]
    records = train(run).records
    # log 2 for two images, log 3! for three; what pads a list costs nothing.
    assert records[0]["loss"] == pytest.approx((np.log(2) + np.log(6)) / 2, abs=1e-3)


# ------------------------------------------------------------------------------------- methods that combine


@pytest.mark.parametrize(
    "stem", ["dmpo", *(pytest.param(stem, marks=pytest.mark.slow) for stem in ("linear_dpo", "inpo"))]
)
def test_the_safeguard_goes_with_other_methods_of_pairs(
    stem: str, tiny_model: Callable[[str, str], Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    """The rejected image pushes less, so the weights end elsewhere; the first loss is the same number."""
    model, losses, weights = tiny_model("sd15", stem), [], []
    for number, mu in enumerate(("null", "1.0")):
        settings = overrides(model, data("pairs"), tmp_path / str(number))
        # At mu 1 a rejected image that points the chosen one's way pushes not at all.
        run = load_run(CONFIGS / "sd15" / f"{stem}.yaml", [*settings, f"safeguard.mu={mu}"])
        result = train(run)
        losses.append(result.records[0]["loss"])
        trained = result.trainables.parameters.values()
        weights.append(torch.cat([value.detach().flatten() for value in trained]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("stem", ["kto", "rankdpo"])
def test_the_safeguard_is_refused_where_there_is_no_rejected_image(
    stem: str, tiny_model: Callable[[str, str], Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    path = CONFIGS / "sd15" / f"{stem}.yaml"
    rows = data("unpaired" if stem == "kto" else "lists")
    settings = overrides(tiny_model("sd15", stem), rows, tmp_path / "run")
    with pytest.raises(ConfigError, match="safeguard"):
        train(load_run(path, [*settings, "safeguard.mu=0.9"]))
