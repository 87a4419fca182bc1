"""The table of image methods: its data, its runs, its tables, its command."""

from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import torch
from torch import nn

from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError, UnknownNameError
from mmalign.rewards.sample import to_image
from mmalign.toy import method_bench, method_plan, method_tables
from mmalign.toy.guide_results import Results
from mmalign.toy.image_pairs import preference_pairs
from mmalign.toy.image_reward import style_score
from mmalign.toy.method_bench import TUNING_SEED, Experiment, Worlds, best_try, counting, perform
from mmalign.toy.method_claims import CLAIMS, claim_experiments
from mmalign.toy.method_data import BARE, DataSpec, night_scores, write_data
from mmalign.toy.method_settings import BASELINE, METHODS
from mmalign.toy.scenes import to_tensor

ROOT = Path(__file__).resolve().parents[2]

# ------------------------------------------------------------------------------------------------------- data


def rows_of(spec: DataSpec, folder: Path, seed: int = 3):
    table = open_rows(DataConfig(source=str(write_data(spec, folder, seed))))
    return [table[number] for number in range(len(table))]


def test_pairs_carry_their_scores_and_flips_exchange_labels_alone(tmp_path):
    right = rows_of(DataSpec(num=23), tmp_path)
    assert all(row.candidates[0].reward > row.candidates[1].reward for row in right)
    flipped = rows_of(DataSpec(num=23, flips=0.4), tmp_path)
    wrong = [row.candidates[0].reward < row.candidates[1].reward for row in flipped]
    assert 3 <= sum(wrong) <= 16
    as_labels = rows_of(DataSpec(num=23, flips=0.4, exchange_scores=True), tmp_path)
    assert all(row.candidates[0].reward > row.candidates[1].reward for row in as_labels)
    same = [
        one.candidates[0].image == other.candidates[0].image
        for one, other in zip(flipped, as_labels, strict=True)
    ]
    assert all(same)


def test_lists_hold_four_pictures_with_the_right_framed_one_on_top(tmp_path):
    rows = rows_of(DataSpec("lists", 5), tmp_path)
    assert len(rows) == 5
    for row in rows:
        assert len(row.candidates) == 4
        assert max(row.relevance) == pytest.approx(1.0, abs=0.05)
        assert len(set(row.relevance)) >= 3


def test_night_is_a_taste_of_its_own(tmp_path):
    pairs = preference_pairs(3, 0, weights=(1.0, 0.0, 0.0))
    by_day = night_scores([pair.chosen for pair in pairs], [pair.prompt for pair in pairs])
    assert max(score.style for score in by_day) < 0.1
    rows = rows_of(DataSpec("night", 3), tmp_path)
    for row in rows:
        assert row.candidates[0].reward > 0.9
        assert row.candidates[1].reward == pytest.approx(0.5, abs=0.05)


def test_contrasts_compare_pictures_under_a_prompt_and_prompts_under_a_picture(tmp_path):
    rows = rows_of(DataSpec("contrasts", 5), tmp_path)
    assert len(rows) == 20
    for row in rows:
        first, second = row.candidates
        assert (first.image == second.image) != (first.prompt == second.prompt)


def test_contrasts_choose_the_frame_where_the_caption_does_not_ask_for_a_bare_picture(tmp_path):
    rows = rows_of(DataSpec("contrasts", 3), tmp_path)
    for row in rows:
        framed = style_score(to_tensor([to_image(row.candidates[0].image)])).item() > 0.9
        assert framed != row.candidates[0].prompt.startswith(f"{BARE} ")
    chosen = [row.candidates[0].image for row in rows]
    assert all(chosen.count(image) == 2 for image in chosen)


# ------------------------------------------------------------------------------------------------------- runs


def test_every_try_of_every_method_resolves(tmp_path):
    worlds = Worlds(tmp_path)
    for name, setting in METHODS.items():
        for number, chosen in enumerate(setting.tries):
            run = worlds.run(Experiment(name, number, 1))
            assert run.method.name == setting.method
            for key, value in chosen.items():
                section, _, last = key.partition(".")
                found = (
                    run.objective_arguments[last]
                    if section == "objective"
                    else reduce(getattr, key.split("."), run.config)
                )
                assert found == value
            assert run.config.train.warmup_steps == run.config.train.steps // 2
    assert {len(setting.tries) for setting in METHODS.values()} == {2}


def test_rows_are_counted_by_a_hook_with_and_without_gradient():
    network = nn.Linear(2, 2)
    with counting(network) as counted:
        network(torch.zeros(3, 2))
        with torch.no_grad():
            network(torch.zeros(5, 2))
    network(torch.zeros(7, 2))
    assert (counted.rows, counted.trained_rows) == (8, 3)


@pytest.fixture
def tiny(monkeypatch):
    """Two held-out prompts: enough for a run, too few for a finding."""
    monkeypatch.setattr(method_bench, "NUM_PROMPTS", 2)


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("diffusion_dpo", DataSpec(num=16), 4.0),
        pytest.param("flow_grpo", DataSpec(num=16), None, marks=pytest.mark.slow),
        pytest.param("instruct_engine", DataSpec("contrasts", 4), 4.0, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_made_once_and_says_what_it_cost(tmp_path, tiny, name, data, rows):
    extra = (("train.batch_size", 2), ("rollout.prompts", 1)) if rows is None else (("train.batch_size", 2),)
    experiment = Experiment(name, 0, 1, data, 2, extra)
    told = []
    results = Results(tmp_path / "results", "methods")
    for _ in range(2):
        perform([experiment], results, until=torch.inf, worlds=Worlds(tmp_path), tell=told.append)
    assert len(told) == 1
    found = results.find(experiment.what())
    assert len(found["gains"]) == 2
    assert (found["steps"], found["items"]) == (2, 4)
    assert found["rows_per_item"] == rows or (rows is None and found["rows_per_item"] > 4)


def test_half_a_run_is_no_result(tmp_path, tiny, monkeypatch):
    from mmalign.train import run as training

    whole = training.train
    monkeypatch.setattr(
        training, "train", lambda *given, **more: replace(whole(*given, **more), finished=False)
    )
    results = Results(tmp_path / "results", "methods")
    experiment = Experiment(BASELINE, 0, 1, DataSpec(num=16), 1, (("train.batch_size", 2),))
    with pytest.raises(KeyboardInterrupt):
        perform([experiment], results, until=torch.inf, worlds=Worlds(tmp_path))
    assert results.find(experiment.what()) is None


def test_a_run_that_fails_is_recorded_with_its_reason(tmp_path, tiny, monkeypatch):
    def fail(*_):
        message = "round after round gave nothing"
        raise ConfigError(message)

    monkeypatch.setattr(method_bench, "_train", fail)
    results = Results(tmp_path / "results", "methods")
    experiment = Experiment(BASELINE, 0, 1, DataSpec(num=16))
    perform([experiment], results, until=torch.inf, worlds=Worlds(tmp_path))
    assert results.find(experiment.what())["failed"] == "ConfigError: round after round gave nothing"


# ----------------------------------------------------------------------------------------------------- tables


def record(gain: float, seconds: float = 50.0, rows: float = 4.0) -> dict:
    axes = {"total": 0.5, "faithfulness": 0.8, "style": 0.6}
    return {
        "gains": [gain - 0.01, gain + 0.01] * 8,
        "measured": axes,
        "base": axes,
        "chosen": -0.02,
        "rejected": 0.1,
        "steps": 160,
        "items": 2560,
        "rows_per_item": rows,
        "trained_rows_per_item": 2.0,
        "seconds": seconds,
    }


@pytest.fixture
def stored(tmp_path):
    """Results of two methods and of one claim."""
    results = Results(tmp_path / "results", "methods")
    for name, gains in {BASELINE: (0.1, 0.3), "inpo": (0.4, 0.1)}.items():
        for number, gain in enumerate(gains):
            results.get(Experiment(name, number, TUNING_SEED).what(), lambda gain=gain: record(gain))
    for seed in (1, 2, 3):
        results.get(Experiment(BASELINE, 1, seed).what(), lambda seed=seed: record(0.1 * seed))
        results.get(Experiment("inpo", 0, seed).what(), lambda: record(0.0, 80.0, 13.5))
    for experiment in claim_experiments((1,), lambda name: best_try(name, results), (BASELINE, "inpo")):
        results.get(experiment.what(), lambda: record(0.05))
    return results


def test_the_best_try_on_the_tuning_seed_is_measured(stored):
    assert best_try(BASELINE, stored) == 1
    assert best_try("inpo", stored) == 0
    assert best_try("mapo", stored) is None
    runs = method_plan.measured_runs((BASELINE, "inpo", "mapo"), (1, 2), lambda name: best_try(name, stored))
    assert [(run.name, run.number, run.seed) for run in runs] == [
        (BASELINE, 1, 1),
        ("inpo", 0, 1),
        (BASELINE, 1, 2),
        ("inpo", 0, 2),
    ]


def test_the_tables_state_gains_costs_tries_and_claims(stored):
    parts = method_tables.page_parts(stored, (1, 2, 3))
    first, second = parts["gains"].splitlines()[2:]
    assert first.startswith("| `diffusion_dpo` | beta 1000, rate 0.001 | +0.200 |")
    assert "+0.100, +0.200, +0.300" in first
    assert second.startswith("| `inpo` (not beyond its interval) | beta 1000 | +0.000 |")
    assert "| `inpo` | pair | 160 | 16 | 13.5 | 2.0 | +9.5 | 80 | +0.00 |" in parts["costs"]
    assert "**beta 1000, rate 0.001: +0.300**" in parts["tries"]
    assert "InPO, 20 steps minus Diffusion-DPO, 20 steps | +0.000" in parts["claims"]
    assert "no difference beyond the interval" in parts["claims"]


def test_an_interval_over_two_seeds_is_as_wide_as_the_seeds_are_apart():
    apart = method_tables.two_level_interval([[0.1] * 8, [0.3] * 8])
    assert (apart.low, apart.value, apart.high) == pytest.approx((0.1, 0.2, 0.3))
    alone = method_tables.two_level_interval([[0.1, 0.3] * 8])
    assert 0.1 < alone.low < 0.2 < alone.high < 0.3


def test_claims_compare_arms_that_exist():
    for claim in CLAIMS:
        titles = {arm.title for arm in claim.arms}
        assert {title for pair in claim.compared for title in pair} <= titles
        assert len(titles) == len(claim.arms)


def test_the_page_shows_what_the_committed_records_say():
    results = Results(ROOT / "docs" / "measurements" / "image_methods", "methods")
    page = (ROOT / "docs" / "image-methods.md").read_text(encoding="utf-8")
    parts = method_tables.page_parts(results, (1, 2, 3))
    assert parts["gains"].count("\n") > len(METHODS) / 2
    for name, part in parts.items():
        assert f"<!-- {name}:begin -->\n{part}\n<!-- {name}:end -->" in page, (
            "mmalign bench methods --table-only"
        )


# ---------------------------------------------------------------------------------------------------- command


def test_the_command_renews_the_page_and_keeps_its_prose(tmp_path, stored):
    page = tmp_path / "page.md"
    arguments = ["bench", "methods", "--table-only", "--out", str(tmp_path / "results"), "--page", str(page)]
    assert main(arguments) == 0
    page.write_text(page.read_text() + "\nwritten by hand\n")
    assert main(arguments) == 0
    assert "| `diffusion_dpo` |" in page.read_text()
    assert page.read_text().endswith("\nwritten by hand\n")


def test_lines_that_do_not_exist_and_the_tuning_seed_are_refused(tmp_path):
    common = {"stages": (), "num_tries": 1, "minutes": 0.0, "out": tmp_path, "page": tmp_path / "page.md"}
    with pytest.raises(UnknownNameError, match="line of the table 'inppo'"):
        method_plan.main(names=["inppo"], seeds=[1], table_only=True, **common)
    with pytest.raises(ConfigError, match="--seeds: got 0, expected others: settings are chosen on 0"):
        method_plan.main(names=[], seeds=[0, 1], table_only=True, **common)
