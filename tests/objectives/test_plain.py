"""Every registered objective against a plain re-statement of its formula, written without the algebra.

`plain_<module>.py` beside this file holds `PLAIN`: name -> function of (scores, labels, hyperparameters) to
the loss of every prompt, in plain torch, as one would type it from the paper. It uses nothing of the algebra.
"""

from pathlib import Path

import pytest
import torch

from mmalign import objectives
from mmalign.testing.objectives import example
from mmalign.testing.parity import adapter_module

MODULES = [adapter_module(path) for path in sorted(Path(__file__).parent.glob("plain_*.py"))]
PLAIN = {name: function for module in MODULES for name, function in module.PLAIN.items()}


@pytest.mark.parametrize("inner", [0, 7], ids=["reduced", "positions"])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", objectives.names())
def test_objective_equals_its_plain_formula(name, seed, inner):
    registered = objectives.registered(name)
    scores, labels = example(registered, seed=seed, inner=inner)
    arguments = {
        key: given.default
        for key, given in objectives.signature(name).parameters.items()
        if given.default is not given.empty
    } | dict(registered.sample)
    expected = PLAIN[name](scores, labels, arguments)
    actual = registered.builder(**registered.sample)(scores, labels).loss
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    (wanted,) = torch.autograd.grad(expected.sum(), scores.policy)
    (found,) = torch.autograd.grad(actual.sum(), scores.policy)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


def test_plain_formulas_name_registered_objectives_once():
    assert len(PLAIN) == sum(len(module.PLAIN) for module in MODULES)
    assert set(PLAIN) <= set(objectives.names())
