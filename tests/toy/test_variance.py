"""The arithmetic behind docs/variance.md, by hand, and the schemes that no configuration can ask for."""

from pathlib import Path

import pytest
import torch

from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.likelihood import Elbo, UniformTimesteps
from mmalign.toy.variance import ARMS, experiment, stored
from mmalign.toy.variance_schemes import SCHEMES, STANDARD
from mmalign.toy.variance_tables import agreement, page_parts, per_cost, per_cost_with_rows, rows_variance

ROOT = Path(__file__).parents[2]

# Two batches whose mean gradients are 0 and 4: their variance is 8, of which 2 batches of variance 6 in means
# of 2 draws explain 3.
ONE = {"variance": [4.0, 8.0], "means": [[0.0, 0.0], [0.0, 16.0]], "repeats": 2, "flops": 100}
OTHER = {**ONE, "variance": [1.0, 2.0], "flops": 200, "distance": [1.0, 2.75]}


def test_variance_counts_per_flop() -> None:
    assert per_cost(OTHER, ONE, [0, 1]) == pytest.approx(3 / 12 * 2)
    assert per_cost(OTHER, ONE, [1]) == pytest.approx(2 / 8 * 2)


def test_what_draws_leave_in_the_means_is_taken_off_the_scatter_of_rows() -> None:
    assert rows_variance(ONE, [0, 1]) == pytest.approx(8 - 6 / 2)


def test_a_scheme_of_twice_the_cost_pays_with_rows() -> None:
    assert per_cost_with_rows(OTHER, ONE, [0, 1]) == pytest.approx((5 + 1.5) / (5 + 6) * 2)


def test_means_agree_when_their_distance_is_what_draws_give() -> None:
    assert agreement(OTHER, ONE) == pytest.approx((1.0 + 2.75) / (12 / 2 + 3 / 2))


def batch_of(rows: int) -> Batch:
    keys = RowKeys(torch.arange(3, 3 + rows), torch.arange(rows) / rows, rows)
    return Batch(
        clean=torch.zeros(rows, 2, 5),
        conditioning=Conditioning(),
        labels=Labels.pairs(rows),
        weight=torch.ones(rows),
        valid=torch.ones(rows, dtype=torch.bool),
        keys=keys,
    )


def drawn(name: str, vp, rows: int = 7) -> torch.Tensor:
    scheme = SCHEMES[name]
    likelihood = scheme.likelihood(Elbo(vp, "epsilon", UniformTimesteps()))
    return likelihood.draw(scheme.draws.over(batch_of(rows))).timestep


def test_one_timestep_is_that_of_the_whole_batch(vp) -> None:
    assert drawn("one timestep", vp).unique().numel() == 1


def test_a_mirrored_timestep_lies_at_the_other_end(vp) -> None:
    found, alone = drawn("two, timestep mirrored", vp), drawn(STANDARD, vp)
    assert torch.equal(found[::2], alone)
    assert ((found[::2] + found[1::2] - (vp.num_timesteps - 1)).abs() <= 1).all()


def test_trainings_that_are_compared_cost_the_same() -> None:
    costs = []
    for arm in ARMS:
        settings = experiment(arm, 1).settings
        costs.append(settings["train.batch_size"] * settings.get("likelihood.draws", 1))
    assert len(set(costs)) == 1


def test_the_page_shows_what_is_stored() -> None:
    page = (ROOT / "docs" / "variance.md").read_text(encoding="utf-8")
    records = stored(ROOT / "docs" / "measurements" / "gradient_variance")
    assert records
    found = page_parts(records, {})
    for name, text in found.items():
        if name != "variance_trainings":
            assert text in page, name
