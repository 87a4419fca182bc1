"""The conformance suite over every reward of the catalogue: a name without a tiny checkpoint fails it."""

import pkgutil

import pytest

from mmalign import rewards
from mmalign.rewards import catalogue
from mmalign.testing.reward_checkpoints import TABLES, collected
from mmalign.testing.rewards import RewardConformance

NAMES = sorted(module.name for module in pkgutil.iter_modules(catalogue.__path__))
# Table of a tiny checkpoint's module -> attribute of the suite.
ATTRIBUTES = {
    "BAD_SAMPLES": "bad_sample",
    "CHECKPOINTS": "write",
    "LOAD_OPTIONS": "options",
    "OTHER_OPTIONS": "other_options",
    "SAMPLES": "samples",
    "TENSOR_ARGUMENTS": "tensor_arguments",
    "TOLERANCES": "half_tolerance",
}


def suite_of(name):
    """The suite of one reward, filled from the tables of its tiny checkpoint."""
    given = {"name": name}
    for table, attribute in ATTRIBUTES.items():
        if name in collected(table):
            value = collected(table)[name]
            given[attribute] = staticmethod(value) if callable(value) else value
    return type(f"Test_{name}", (RewardConformance,), given)


for _name in NAMES:
    if _name in collected("CHECKPOINTS"):
        globals()[f"Test_{_name}"] = suite_of(_name)


@pytest.mark.parametrize("name", NAMES)
def test_every_reward_of_the_catalogue_has_a_tiny_checkpoint(name):
    assert name in collected("CHECKPOINTS"), f"{name}: write one in mmalign.testing.reward_checkpoints"


def test_tables_name_rewards_that_exist():
    assert set(ATTRIBUTES) == set(TABLES)
    known = set(rewards.names())
    for table in TABLES:
        assert set(collected(table)) <= known, table
