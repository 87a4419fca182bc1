"""The discovered links: which way they start, what they reduce to, and what their batch statistics count."""

import math
import subprocess
import sys
import warnings

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import HyperparameterError
from mmalign.objectives import Scores

GATED = {
    "discovered_aql": {"temperature": 0.2},
    "discovered_aqfl": {},
    "discovered_dbaql": {},
}


def pairs(*margins):
    gap = torch.tensor(margins, dtype=torch.float64)
    policy = torch.stack([gap / 2, -gap / 2], dim=1) - 1.0
    return Scores(policy.requires_grad_(), torch.full_like(policy, -1.0).detach())


def quietly(name, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return objectives.build(name, **arguments)


def slope_at_start(built):
    scores = pairs(0.0)
    loss = built(scores, Labels.pairs(1)).loss.sum()
    return torch.autograd.grad(loss, scores.policy)[0][0, 0].item()


@pytest.mark.parametrize(("temperature", "slope"), [(0.05, 0.7843), (0.2, -0.3664)])
def test_discopop_starts_the_wrong_way_at_the_released_temperature(temperature, slope):
    assert slope_at_start(quietly("discopop", beta=1.0, temperature=temperature)) == pytest.approx(
        slope, abs=1e-4
    )


@pytest.mark.parametrize(("name", "bound"), [("discopop", 0.10228), ("discovered_aql", 0.10465)])
def test_the_bound_in_the_warning_is_where_the_start_turns(name, bound):
    more = {"rate": 0.0} if name == "discovered_aql" else {}
    below, above = (
        slope_at_start(quietly(name, beta=1.0, temperature=bound + step, **more)) for step in (-1e-4, 1e-4)
    )
    assert above < 0 < below


@pytest.mark.parametrize("name", ["discopop", "discovered_aql"])
def test_a_wrong_start_is_warned_about(name):
    message = (
        rf"{name} temperature: got 0\.05\. Up to 0\.10\d+ the loss falls when the rejected candidate gains "
        r"\(slope \+0\.7\d at z = 0.*Choose a temperature above 0\.10\d+; 0\.05 reproduces"
    )
    with pytest.warns(UserWarning, match=message):
        objectives.build(name, beta=0.05, temperature=0.05)


@pytest.mark.parametrize("name", ["discopop", "discovered_aql"])
def test_a_right_start_is_not_warned_about(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objectives.build(name, beta=0.05, temperature=0.11)


def test_the_warning_comes_once_and_not_on_import():
    script = (
        "from mmalign import objectives\n"
        "print('imported', flush=True)\n"
        "for beta in (0.05, 0.1, 0.2):\n"
        "    objectives.discopop(beta=beta, temperature=0.05)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "imported\n"
    assert run.stderr.count("UserWarning: discopop temperature: got 0.05.") == 1


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (objectives.discovered_cell(beta=0.3, share=0.0), objectives.dpo(beta=0.3)),
        (objectives.discovered_padll(beta=0.3, decay=1.0, penalty=0.0), objectives.dpo(beta=0.3)),
        (
            objectives.discovered_aqfl(beta=0.3, scale=0.0),
            0.5 * objectives.dpo(beta=0.3) + 0.5 * objectives.hinge(beta=0.3),
        ),
    ],
    ids=["cell", "padll", "aqfl"],
)
def test_limits_are_known_losses(built, expected):
    scores = pairs(0.7, -1.1, 2.3)
    torch.testing.assert_close(
        built(scores, Labels.pairs(3)).loss, expected(scores, Labels.pairs(3)).loss, rtol=1e-12, atol=1e-12
    )


def test_a_jumping_link_counts_wrong_pairs_half():
    scores = pairs(1.0, -1.0)
    loss = objectives.discovered_padll(beta=1.0)(scores, Labels.pairs(2)).loss
    assert loss.tolist() == pytest.approx(
        [0.9 * math.log1p(math.exp(-1)), 0.45 * math.log1p(math.exp(1))], rel=1e-12
    )


def test_policy_focus_looks_at_the_policy_alone():
    """The policy prefers the rejected candidate, the log-ratios the chosen one: the hinge, doubled."""
    scores = Scores(
        torch.tensor([[-3.0, -1.0]], dtype=torch.float64), torch.tensor([[-5.0, -1.0]], dtype=torch.float64)
    )
    loss = objectives.discovered_pfl(beta=0.25)(scores, Labels.pairs(1)).loss
    assert loss.item() == pytest.approx(2 * (1 - 0.5))


@pytest.mark.parametrize("name", GATED)
def test_batch_statistics_leave_out_padding(name):
    built = objectives.build(name, beta=0.05, **GATED[name])
    whole = pairs(0.7, -1.1, 2.3, 50.0, -70.0)
    labels = Labels(valid=torch.tensor([[True, True]] * 3 + [[False, False], [True, False]]))
    expected = built(pairs(0.7, -1.1, 2.3), Labels()).loss
    found = built(whole, labels).loss
    torch.testing.assert_close(found, torch.cat([expected, torch.zeros(2, dtype=torch.float64)]))


@pytest.mark.parametrize("name", GATED)
def test_a_batch_of_one_row_has_a_finite_loss(name):
    scores = pairs(0.4)
    loss = objectives.build(name, beta=0.05, **GATED[name])(scores, Labels.pairs(1)).loss
    assert torch.isfinite(loss).all()
    assert torch.isfinite(torch.autograd.grad(loss.sum(), scores.policy)[0]).all()


def test_margins_that_agree_are_half_exponential():
    loss = objectives.discovered_dbaql(beta=1.0)(pairs(0.5, 0.5, 0.5), Labels.pairs(3)).loss
    expected = 0.5 * math.log1p(math.exp(-0.5 / 0.9)) + 0.5 * math.exp(-0.45)
    assert loss.tolist() == pytest.approx([expected] * 3, rel=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: objectives.discovered_cell(beta=0.1, share=1.1), r"discovered_cell share: got 1\.1"),
        (lambda: objectives.discovered_padll(beta=0.1, penalty=1.0), r"discovered_padll penalty: got 1\.0"),
        (lambda: objectives.discovered_padll(beta=0.1, decay=0.0), r"discovered_padll decay: got 0\.0"),
        (lambda: objectives.discovered_pfl(beta=0.1, focus=0.0), r"discovered_pfl focus: got 0\.0"),
        (lambda: objectives.discovered_aql(beta=0.1, temperature=0.0), "discovered_aql temperature"),
        (lambda: objectives.discovered_aql(beta=0.1, temperature=0.2, rate=1.1), "discovered_aql rate"),
        (
            lambda: objectives.discovered_aql(beta=0.1, temperature=0.2, quantile=math.inf),
            r"discovered_aql quantile: got inf, expected a finite number",
        ),
        (lambda: objectives.discovered_aqfl(beta=0.1, temperature=0.0), "discovered_aqfl temperature"),
        (lambda: objectives.discovered_aqfl(beta=0.1, rate=-0.1), "discovered_aqfl rate"),
        (lambda: objectives.discovered_aqfl(beta=0.1, scale=-0.1), "discovered_aqfl scale"),
        (lambda: objectives.discovered_dbaql(beta=0.1, temperature=0.0), "discovered_dbaql temperature"),
        (lambda: objectives.discovered_dbaql(beta=0.1, sharpness=0.0), "discovered_dbaql sharpness"),
    ],
)
def test_wrong_hyperparameters_are_explained(build, message):
    with pytest.raises(HyperparameterError, match=message):
        build()
