"""Mutation check: an objective with one part wrong must fail its plain formula.

`python tests/objectives/test_mutants.py` prints how many mutants of each kind there are and who survives.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch

from mmalign import objectives
from mmalign.testing.mutants import NoMutantError, mutants
from mmalign.testing.objectives import example
from mmalign.testing.parity import adapter_module

MODULES = [adapter_module(path) for path in sorted(Path(__file__).parent.glob("plain_*.py"))]
PLAIN = {name: function for module in MODULES for name, function in module.PLAIN.items()}

# (objective, what was broken) -> why the broken one is the same function.
_OWN_GAPS = "the policy's gaps meet the reference's: the anchored score is not read"
_EVEN = "a square around 0 is even"
_APART = "positions are compared one by one: there is nothing to reduce"
_MATCHING = "a loss of score matching has no link and no label coefficients"
EQUIVALENT: dict[tuple[str, str], str] = {
    ("aot", "scores negated"): _OWN_GAPS,
    ("aot", "z doubled"): _OWN_GAPS,
    ("aot", "reference dropped"): _OWN_GAPS,
    ("nemo_rpo_sq", "z negated"): _EVEN,
    ("nemo_rpo_sq", "labels exchanged"): _EVEN,
    ("densedpo_per_segment", "sum to mean"): _APART,
    ("videodpo_columns", "sum to mean"): _APART,
    **{
        (name, what): _MATCHING
        for name in ("dspo", "dspo_sdxl")
        for what in ("z negated", "labels exchanged")
    },
    **{("opa_dpo_released", f"sum to mean in term {number}"): _APART for number in range(1, 7)},
}


def arguments(name):
    defaults = {
        key: given.default
        for key, given in objectives.signature(name).parameters.items()
        if given.default is not given.empty
    }
    return defaults | dict(objectives.registered(name).sample)


def gradient(loss, scores):
    (found,) = torch.autograd.grad(loss.sum(), scores.policy, allow_unused=True)
    return torch.zeros_like(scores.policy) if found is None else found


def notices(name, broken):
    """Whether the plain formula sees a difference, in the loss or in its gradient."""
    registered = objectives.registered(name)
    for inner in (0, 7):
        scores, labels = example(registered, seed=1, inner=inner)
        if scores.reference is None:
            scores = objectives.Scores(**{**scores.__dict__, "reference": scores.policy.detach() - 0.3})
        expected = PLAIN[name](scores, labels, arguments(name))
        try:
            actual = broken(scores, labels).loss
        except NoMutantError:
            return True
        except Exception:
            return True
        if not torch.allclose(actual, expected, rtol=1e-7, atol=1e-10):
            return True
        if not torch.allclose(gradient(actual, scores), gradient(expected, scores), rtol=1e-6, atol=1e-9):
            return True
    return False


def survivors(name):
    registered = objectives.registered(name)
    built = registered.builder(**registered.sample)
    single = registered.row.data == "unpaired"
    return [
        what
        for what, broken in mutants(built)
        if not (single and what == "candidates exchanged") and not notices(name, broken)
    ]


@pytest.mark.parametrize("name", objectives.names())
def test_every_mutant_is_noticed(name):
    known = {what for row, what in EQUIVALENT if row == name}
    assert set(survivors(name)) == known


def test_a_sound_objective_is_no_mutant():
    assert not notices("dpo", objectives.dpo(**objectives.registered("dpo").sample))


if __name__ == "__main__":
    kinds: Counter[str] = Counter()
    alive: list[str] = []
    for row in objectives.names():
        registered = objectives.registered(row)
        kinds.update(what for what, _ in mutants(registered.builder(**registered.sample)))
        alive += [f"{row}: {what}" for what in survivors(row)]
    for what, count in kinds.most_common():
        print(f"{count:5d}  {what}")
    print(f"{kinds.total()} mutants of {len(objectives.names())} objectives, {len(alive)} survive")
    print("\n".join(f"  {line}: {EQUIVALENT.get(tuple(line.split(': ')), 'UNEXPLAINED')}" for line in alive))
