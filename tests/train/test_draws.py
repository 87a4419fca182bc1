"""Runs with several draws per row: the mean of one loss per draw, whatever the split and the reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmalign.errors import ConfigError
from mmalign.likelihood import Draws
from mmalign.train.config import load_run
from mmalign.train.micro_batch import to_batch
from mmalign.train.plan import derived_values, layout_of
from mmalign.train.rollout_memory import rows_with_gradient
from mmalign.train.run import prepare
from mmalign.train.run_identity import identity_of
from mmalign.train.step import preference_step

MIRRORED = {"draws": 2, "antithetic": True}
SMOOTH = {"adam_epsilon": 1e-2}  # see tests/train/test_loop.py


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert max(float(value.abs().max()) for name, value in expected.items() if "lora_B" in name) > 1e-6
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)


def gradient_of(loop: Any, batch: Any, draws: Draws) -> torch.Tensor:
    output = preference_step(replace(loop.parts, draws=draws), batch)
    assert float(output.num_valid) == draws.num * batch.num_prompts
    weights = list(loop.trainables.parameters.values())
    gradients = torch.autograd.grad(output.loss / output.num_valid, weights)
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("draws", [Draws(2), Draws(2, antithetic=True), Draws(3)])
@pytest.mark.parametrize("method", ["diffusion_dpo", "mapo"])
def test_the_gradient_of_several_draws_is_the_mean_of_theirs(make_run, method, draws) -> None:
    """Away from the reference, where the link bends: losses are averaged, not errors."""
    loop, loader = prepare(make_run(method=method))
    batch = to_batch(next(iter(loader)), loop.model, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in loop.trainables.parameters.values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    keys = draws.keys(batch.keys)
    alone = [
        gradient_of(
            loop,
            replace(batch, keys=replace(keys, key=keys.key[number :: draws.num], stratum=batch.keys.stratum)),
            Draws(),
        )
        for number in range(draws.num)
    ]
    assert float((alone[0] - alone[1]).norm()) > 0.1 * float(alone[0].norm()), "draws differ"
    together = gradient_of(loop, batch, draws)
    torch.testing.assert_close(together, torch.stack(alone).mean(0), rtol=0, atol=1e-5 * together.abs().max())


def test_the_split_of_a_batch_does_not_change_what_its_rows_draw(run_to_end, trained_weights) -> None:
    likelihood = {**MIRRORED, "stratified": True}
    whole = run_to_end("whole", likelihood=likelihood, train={"batch_size": 4, "steps": 2, **SMOOTH})
    split = run_to_end(
        "split", likelihood=likelihood, train={"batch_size": 1, "accumulation": 4, "steps": 2, **SMOOTH}
    )
    assert_close(trained_weights(split), trained_weights(whole))
    parts = {"batch_size": 4, "steps": 2, "split_backward": True, "split_size": 3, **SMOOTH}
    assert_close(
        trained_weights(run_to_end("parts", likelihood=likelihood, train=parts)), trained_weights(whole)
    )


def test_a_run_goes_on_bit_for_bit(run_to_end, trained_weights) -> None:
    whole = run_to_end("whole", likelihood=MIRRORED, train={"steps": 4})
    run_to_end("parts", likelihood=MIRRORED, train={"steps": 2})
    resumed = run_to_end("parts", likelihood=MIRRORED, train={"steps": 4})
    got, expected = trained_weights(resumed), trained_weights(whole)
    assert all(torch.equal(got[name], value) for name, value in expected.items())


@pytest.mark.parametrize("likelihood", [pytest.param({"draws": 3}, marks=pytest.mark.slow), MIRRORED])
def test_stored_errors_hold_every_draw_of_either_sign(run_to_end, trained_weights, likelihood) -> None:
    """The bank is revisited: 5 steps of 2 rows are more than 7 rows in one draw each."""
    from mmalign.train.stored import REFERENCE_FILE, ReferenceTable

    found = {
        kind: run_to_end(
            kind,
            likelihood=likelihood,
            reference={"kind": kind, "draws_per_row": 2},
            train={"steps": 5, "batch_size": 2},
        )
        for kind in ("frozen", "stored")
    }
    table = ReferenceTable.load(found["stored"].folder / REFERENCE_FILE)
    assert len(table) == 7 * 2 * likelihood["draws"]
    got, expected = (trained_weights(found[kind]) for kind in ("stored", "frozen"))
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_the_zero_point_of_thumbs_is_taken_over_all_draws(run_to_end) -> None:
    result = run_to_end(method="diffusion_kto", likelihood=MIRRORED, train={"steps": 2})
    assert result.finished
    assert all(record["prompts"] == 2 for record in result.records), "rows, not draws"


@pytest.mark.parametrize(
    ("method", "kind"), [("inpo", "inversion"), ("spo", "transition"), ("flow_grpo", "transition")]
)
@pytest.mark.parametrize("likelihood", [{"draws": 3}, MIRRORED])
def test_likelihoods_that_cannot_be_drawn_again_say_so(write_config, method, kind, likelihood) -> None:
    path = write_config(method=method, likelihood=likelihood)
    with pytest.raises(ConfigError, match=rf"likelihood.draws: got .*likelihood {kind}.*expected 1: .*Take"):
        load_run(path)


def test_tokens_have_nothing_to_draw(make_dialogue_run) -> None:
    with pytest.raises(ConfigError, match=r"likelihood: got .*draws.* expected no settings"):
        make_dialogue_run(likelihood={"draws": 2})


def test_mirror_images_need_an_even_number(write_config) -> None:
    with pytest.raises(ConfigError, match=r"antithetic true with draws 1: expected an even number.*draws=2"):
        load_run(write_config(likelihood={"antithetic": True}))


def test_runs_of_one_draw_keep_the_identity_they_had_before_there_were_more(make_run) -> None:
    one, two = make_run(), make_run(likelihood=MIRRORED)
    described = [identity_of(run, layout_of(run), "adapters_off", 7)["likelihood"] for run in (one, two)]
    assert not {"draws", "antithetic"} & described[0].keys()
    assert (described[1]["draws"], described[1]["antithetic"]) == (2, True)


def test_the_plan_counts_every_draw(make_run) -> None:
    one, two = make_run(), make_run(likelihood=MIRRORED)
    assert rows_with_gradient(two) == 2 * rows_with_gradient(one)
    assert derived_values(two, layout_of(two), 64)["draws"].startswith("2 per row and visit, mirrored")
    assert "draws" not in derived_values(one, layout_of(one), 64)
