"""Every registered objective keeps the contract of `mmalign.testing.objectives`."""

import pytest

from mmalign import objectives
from mmalign.testing.objectives import CHECKS, problems


@pytest.mark.parametrize("check", list(CHECKS))
@pytest.mark.parametrize("name", objectives.names())
def test_objective_conforms(name, check):
    assert problems(name, check) == []


@pytest.mark.parametrize("name", objectives.names())
def test_exemptions_name_a_check(name):
    assert set(objectives.registered(name).allows) <= set(CHECKS)


@pytest.mark.parametrize("name", objectives.names())
def test_row_names_the_builder_and_existing_cases(name, repository):
    row = objectives.row(name)
    assert row.name == row.objective == name
    cases = {path.stem for path in (repository / "tests" / "parity" / "cases").glob("*.json")}
    assert set(row.parity) <= cases
    assert row.formula.startswith("loss = ")
