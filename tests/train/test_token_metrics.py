"""The panel, the verdict and the guard of language models."""

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.objectives import Scores
from mmalign.train.guard import Guard
from mmalign.train.sections import GuardConfig
from mmalign.train.token_metrics import token_panel_values, token_verdict

MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).repeat(2, 1, 1)


def panel(policy, reference, labels=None, *, objective="dpo", valid=(True, True)):
    """Panel of two prompts; log-probabilities are per token and equal along an answer."""
    candidates = len(policy[0])
    mask = MASK[:, :candidates]

    def per_token(values):
        return torch.tensor(values).unsqueeze(-1) * mask

    scores = Scores(
        policy=per_token(policy), reference=None if reference is None else per_token(reference), mask=mask
    )
    labels = labels or Labels.pairs(2)
    arguments = {} if objective == "sft" else {"beta": 0.1}
    output = objectives.build(objective, **arguments)(scores, labels)
    return token_panel_values(output, scores, labels, valid=torch.tensor(valid))


def mean(found, name):
    values, weights = found
    weight = weights.get(name, weights[""])
    return float((values[name] * weight).sum() / weight.sum())


POLICY = [[-2.0, -6.0], [-3.0, -1.0]]
REFERENCE = [[-1.0, -2.0], [-4.0, -2.0]]


def test_each_side_has_its_log_probability_per_token_its_length_and_its_relative_likelihood() -> None:
    found = panel(POLICY, REFERENCE)
    assert mean(found, "logps_per_token/chosen") == -2.5
    assert mean(found, "logps_per_token/rejected") == -3.5
    assert (mean(found, "length/chosen"), mean(found, "length/rejected")) == (2, 1)
    # Sums over rows: (4 + 6) / (2 + 8) - 1 and (6 + 1) / (2 + 2) - 1.
    assert mean(found, "nll/relative_chosen") == pytest.approx(0.0, abs=1e-6)
    assert mean(found, "nll/relative_rejected") == pytest.approx(0.75)
    assert mean(found, "chosen_fell") == 0.5
    assert mean(found, "implicit_accuracy") == 1.0
    assert mean(found, "log_ratio/chosen") == 0.0
    assert mean(found, "log_ratio/rejected") == -1.5


def test_rows_that_could_not_be_read_count_nowhere() -> None:
    found = panel(POLICY, REFERENCE, valid=(True, False))
    assert mean(found, "chosen_fell") == 1.0
    assert mean(found, "nll/relative_chosen") == pytest.approx(1.0)


def test_an_answer_that_was_certain_from_the_start_does_not_outweigh_the_others() -> None:
    found = panel([[-1.0, -6.0], [-4.0, -2.0]], [[-0.001, -2.0], [-4.0, -2.0]])
    assert mean(found, "nll/relative_chosen") == pytest.approx((1 + 4) / 4.001 - 1, rel=1e-4)


def test_without_a_reference_comparisons_count_nowhere_and_names_stay() -> None:
    compared, (values, _) = panel(POLICY, REFERENCE), panel(POLICY, None, objective="sft")
    for name in ("nll/relative_chosen", "chosen_fell", "implicit_accuracy", "log_ratio/chosen"):
        assert torch.isnan(values[name]).all(), name
    assert {"nll/relative_chosen", "chosen_fell"} <= compared[0].keys()


def test_thumbs_have_their_sides_by_label() -> None:
    labels = Labels.unpaired(torch.tensor([True, False]))
    found = panel([[-2.0], [-3.0]], [[-1.0], [-4.0]], labels, objective="kto")
    assert mean(found, "logps_per_token/chosen") == -2.0
    assert mean(found, "logps_per_token/rejected") == -3.0
    assert mean(found, "chosen_fell") == 1.0
    assert mean(found, "nll/relative_rejected") == pytest.approx(-0.25)


# --- the verdict --------------------------------------------------------------------------------------------


def records(**last):
    start = {"loss": 0.69, "logit": 0.0, "implicit_accuracy": 0.5, "chosen_fell": 0.0, "prompts": 1000.0}
    ratios = {f"log_ratio/{side}": last.pop(side) for side in ("chosen", "rejected") if side in last}
    return [start.copy() for _ in range(4)] + [start | last | ratios for _ in range(2)]


def verdict(**last) -> str:
    return " ".join(token_verdict(records(**last)))


def test_a_margin_that_grows_while_chosen_answers_fall_is_called_displacement() -> None:
    fell = {
        "implicit_accuracy": 0.9,
        "chosen_fell": 0.8,
        "chosen": -3.0,
        "rejected": -9.0,
    }
    found = verdict(**fell)
    assert "It is learning" in found
    assert "Displacement: 80% of the chosen answers are less likely" in found
    assert "by making rejected answers unlikely" in found
    assert "dpop, rpo_sft" in found
    assert "making rejected" not in verdict(**fell | {"implicit_accuracy": 0.4})


def test_chosen_answers_that_became_likelier_are_no_displacement() -> None:
    found = verdict(implicit_accuracy=0.9, chosen_fell=0.1, chosen=2.0, rejected=-1.0)
    assert "Chosen answers became likelier than under the reference (mean log-ratio of chosen" in found
    assert "Displacement" not in found
    assert "about as likely" in verdict(chosen_fell=0.2, chosen=-0.1, rejected=-0.1)


def test_answers_that_differ_in_length_are_pointed_out() -> None:
    found = verdict(**{"length/chosen": 60.0, "length/rejected": 40.0})
    assert "Chosen answers are the longer ones (chosen 60 tokens, rejected 40)" in found
    assert "Rejected answers are the longer" in verdict(**{"length/chosen": 40.0, "length/rejected": 60.0})
    assert "the longer ones" not in verdict(**{"length/chosen": 42.0, "length/rejected": 40.0})


@pytest.mark.parametrize("reference", [True, False])
def test_nothing_is_said_of_images_or_errors(reference: bool) -> None:
    lines = records(accuracy=0.9)
    if not reference:
        for record in lines:
            record.pop("implicit_accuracy", None)
            record.pop("chosen_fell", None)
            record.setdefault("accuracy", 0.5)
    found = " ".join(token_verdict(lines))
    assert "image" not in found
    assert "error" not in found
    assert reference or "the chosen side is the likelier one in 50% of the pairs at the start" in found


# --- the guard ----------------------------------------------------------------------------------------------


def test_the_guard_watches_the_chosen_answers_negative_log_likelihood() -> None:
    settings = GuardConfig(action="rollback", patience=3, threshold=0.05)
    guard = Guard(settings, learning_rate=1e-5, beta=0.1, language=True)
    guard.saving(0)
    record = {"nll/relative_chosen": 0.3, "nll/relative_rejected": 0.9, "implicit_accuracy": 0.9}
    assert [guard.observe(step, record) for step in (1, 2, 3)] == ["go_on", "go_on", "roll_back"]
    assert guard.level == 0.3
    guard.rolled_back(3, 0)
    message = guard.message()
    assert "the chosen answers' negative log-likelihood is +30.0% against the reference's" in message
    assert "The rejected answers' negative log-likelihood rises more (+90.0%)" in message
    assert "method dpop or rpo_sft" in message
    assert "safeguard" not in message


def test_the_guard_says_when_likelihoods_are_back() -> None:
    guard = Guard(GuardConfig(patience=1), language=True)
    guard.observe(1, {"nll/relative_chosen": 0.3})
    assert guard.observe(2, {"nll/relative_chosen": 0.0}) == "say"
    assert "the chosen answers' negative log-likelihood is back below guard.threshold 5%" in guard.message()
