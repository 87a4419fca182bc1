"""The symbolic form of a row is what its loss computes: checked by counting weighted models."""

import itertools
import math

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.objectives import Scores

SYMBOLIC = [name for name in objectives.names() if objectives.row(name).symbolic]
ATOMS = ("W", "L", "RW", "RL")


def weight(formula: str, probability: dict[str, float]) -> float:
    """Summed weight of all truth assignments that satisfy a conjunction of atoms and negated atoms."""
    literals = [part.strip() for part in formula.split("&")]
    total = 0.0
    for values in itertools.product((True, False), repeat=len(ATOMS)):
        world = dict(zip(ATOMS, values, strict=True))
        if all(world[part.lstrip("~")] != part.startswith("~") for part in literals):
            total += math.prod(
                probability[atom] if value else 1 - probability[atom] for atom, value in world.items()
            )
    return total


@pytest.mark.parametrize("name", SYMBOLIC)
def test_the_symbolic_form_gives_the_log_odds_that_the_loss_sees(name):
    probability = {"W": 0.4, "L": 0.3, "RW": 0.6, "RL": 0.7}
    logs = {atom: math.log(value) for atom, value in probability.items()}
    given = objectives.registered(name)
    row = given.row
    supported, opposed = row.symbolic.split(" vs ")
    odds = math.log(weight(supported, probability) / weight(opposed, probability))
    built = given.builder(**given.sample)
    scores = Scores(
        policy=torch.tensor([[logs["W"], logs["L"]]], dtype=torch.float64),
        reference=torch.tensor([[logs["RW"], logs["RL"]]], dtype=torch.float64)
        if "reference" in row.needs
        else None,
    )
    out = built(scores, Labels.pairs(1))
    if not built.terms:
        assert out.loss.item() == pytest.approx(math.log1p(math.exp(-odds)), rel=1e-12)
        return
    term = built.terms[0]
    assert out.logit.item() == pytest.approx(term.beta * odds - term.margin, rel=1e-12)
