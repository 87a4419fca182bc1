"""CHES, differential information, calibration, displacement: meaning, limits, messages."""

import json
import math

import pytest
import torch

from mmalign.errors import HyperparameterError, ShapeError, UnknownNameError
from mmalign.objectives import diagnostics


def masks(*lengths, size):
    places = torch.arange(size)
    return places < torch.tensor(lengths).unsqueeze(1)


# --- CHES


@pytest.mark.parametrize("form", ["sum", "mean"])
def test_padding_and_whatever_stands_there_change_no_ches_score(draw, form):
    chosen, rejected = draw(3, 5, 2), draw(3, 7, 2)
    plain = {"chosen_mask": torch.ones(3, 5), "rejected_mask": torch.ones(3, 7), "form": form}
    expected = diagnostics.ches_score(chosen, rejected, **plain)
    padded = torch.cat([chosen, torch.full((3, 4, 2), float("nan"))], dim=1)
    mask = torch.cat([torch.ones(3, 5), torch.zeros(3, 4)], dim=1)
    found = diagnostics.ches_score(padded, rejected, **(plain | {"chosen_mask": mask}))
    torch.testing.assert_close(found, expected)


def test_rows_of_different_length_are_scored_as_if_alone(draw):
    chosen, rejected = draw(2, 7, 3), draw(2, 7, 3)
    first, last = torch.tensor([1, 2]), torch.tensor([4, 6])
    mask = diagnostics.response_positions(first, 7, last=last)
    found = diagnostics.ches_score(chosen, rejected, chosen_mask=mask, rejected_mask=mask, form="sum")
    for row, (start, stop) in enumerate([(1, 4), (2, 6)]):
        winner, loser = chosen[row, start:stop].sum(0), rejected[row, start:stop].sum(0)
        assert found[row].item() == pytest.approx((winner @ loser - winner @ winner).item())


def test_response_positions_start_at_the_last_prompt_token_and_leave_the_last_token_out():
    found = diagnostics.response_positions(torch.tensor([0, 2]), 5)
    assert found.tolist() == [[True, True, True, True, False], [False, False, True, True, False]]
    padded = diagnostics.response_positions(torch.tensor([0, 2]), 5, last=torch.tensor([2, 4]))
    assert padded.tolist() == [[True, True, False, False, False], [False, False, True, True, False]]


def test_two_equal_responses_have_ches_zero_and_opposite_ones_a_negative_score(draw):
    chosen = draw(5, 3, 2)
    mask = {"chosen_mask": torch.ones(5, 3), "rejected_mask": torch.ones(5, 3), "form": "mean"}
    assert diagnostics.ches_score(chosen, chosen, **mask).abs().max() == 0
    assert (diagnostics.ches_score(chosen, -chosen, **mask) < 0).all()


def test_ches_of_half_precision_states_is_summed_in_float32():
    states = torch.full((1, 1031, 1), 1.0, dtype=torch.bfloat16)
    other = torch.full((1, 1, 1), 1.0, dtype=torch.bfloat16)
    found = diagnostics.ches_score(
        states, other, chosen_mask=torch.ones(1, 1031), rejected_mask=torch.ones(1, 1), form="sum"
    )
    assert found.dtype == torch.float32
    assert found.item() == 1031.0 * (1.0 - 1031.0)


def test_ches_refuses_other_forms_and_masks_of_another_shape(draw, untyped):
    states, good = draw(2, 3, 5), torch.ones(2, 3)
    with untyped:
        with pytest.raises(UnknownNameError, match=r"unknown form of the CHES score 'total'.*mean, sum"):
            diagnostics.ches_score(states, states, chosen_mask=good, rejected_mask=good, form="total")
        with pytest.raises(ShapeError, match=r"rejected_mask: got shape \[2, 5\], expected \[2, 3\]"):
            diagnostics.ches_score(
                states, states, chosen_mask=good, rejected_mask=torch.ones(2, 5), form="sum"
            )


# --- differential information


def test_entropy_over_all_outcomes_is_the_entropy_of_the_normalised_ratio(draw):
    policy, reference = draw(3, 7).log_softmax(-1), draw(3, 7).log_softmax(-1)
    q = policy.exp() / reference.exp()
    q = q / q.sum(-1, keepdim=True)
    torch.testing.assert_close(diagnostics.differential_information(policy, reference).exp(), q)
    found = diagnostics.differential_information_entropy(policy, reference)
    torch.testing.assert_close(found.entropy, -(q * q.log()).sum(-1))
    assert found.effective_samples.tolist() == [7.0] * 3


def test_a_policy_that_did_not_move_teaches_nothing_in_particular(draw):
    same = draw(2, 5).log_softmax(-1)
    found = diagnostics.differential_information_entropy(same, same)
    torch.testing.assert_close(found.entropy, torch.full((2,), math.log(5), dtype=torch.float64))


def test_the_estimate_from_samples_of_the_policy_agrees_with_the_sum(draw, generator):
    policy, reference = draw(1, 5).log_softmax(-1), draw(1, 5).log_softmax(-1)
    exact = diagnostics.differential_information_entropy(policy, reference).entropy
    drawn = torch.multinomial(policy.exp(), 20011, replacement=True, generator=generator)
    found = diagnostics.differential_information_entropy(
        policy.gather(1, drawn), reference.gather(1, drawn), proposal=policy.gather(1, drawn)
    )
    assert found.entropy.item() == pytest.approx(exact.item(), abs=0.03)
    assert 1000 < found.effective_samples.item() < 20011


def test_one_dominating_sample_is_worth_one_sample():
    policy, reference = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -60.0]])
    found = diagnostics.differential_information_entropy(policy, reference, proposal=torch.zeros(1, 3))
    assert found.effective_samples.item() == pytest.approx(1.0)


# --- calibration


def test_every_number_of_the_golden_case_is_exact_but_its_searched_temperature(repository):
    content = json.loads((repository / "tests/parity/cases" / "eval_preference_calibration.json").read_text())
    confidence = torch.tensor(content["inputs"]["confidence"], dtype=torch.float64)
    correct = torch.tensor(content["inputs"]["correct"])
    found = diagnostics.calibration(confidence, correct, num_bins=content["hyperparameters"]["bins"])
    expected = content["outputs"]
    for name, value in (
        ("ece", found.error),
        ("mce", found.largest_error),
        ("brier", found.brier),
        ("nll", found.nll),
        ("accuracy", found.accuracy),
    ):
        assert value.item() == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_bins", [5, 10])
def test_a_confidence_on_an_edge_goes_to_the_upper_bin(dtype, num_bins):
    edges = torch.tensor([0.5 + 0.5 * place / num_bins for place in range(num_bins)] + [1.0], dtype=dtype)
    found = diagnostics.calibration(edges, torch.ones(num_bins + 1), num_bins=num_bins)
    assert found.bin_count.tolist() == [1.0] * (num_bins - 1) + [2.0]


def test_labels_drawn_from_the_logits_are_calibrated_and_sharpened_logits_are_not(draw, generator):
    size = draw(20011).abs()
    right = torch.rand(20011, generator=generator, dtype=torch.float64) < torch.sigmoid(size)
    logit = torch.where(right, size, -size)
    assert diagnostics.preference_calibration(logit).error < 0.02
    sharpened = diagnostics.preference_calibration(3.0 * logit)
    assert sharpened.error > 0.1
    assert sharpened.confidence > sharpened.accuracy
    assert diagnostics.preference_calibration(3.0 * logit, temperature=3.0).error < 0.02
    confidence = torch.sigmoid((3.0 * logit).abs())
    temperature, nll = diagnostics.best_temperature(confidence, logit > 0)
    assert temperature.item() == pytest.approx(3.0, rel=0.05)
    assert nll < sharpened.nll


def test_an_undecided_logit_is_half_right():
    found = diagnostics.preference_calibration(torch.zeros(3))
    assert found.accuracy.item() == 0.5
    assert found.error.item() == 0.0


def test_certain_predictions_that_are_right_cost_nothing():
    found = diagnostics.calibration(torch.ones(2), torch.ones(2))
    assert found.nll.item() == 0.0
    assert found.error.item() == 0.0
    assert torch.isfinite(torch.stack(diagnostics.best_temperature(torch.ones(2), torch.ones(2)))).all()


def test_no_pairs_have_no_calibration_error():
    found = diagnostics.calibration(torch.zeros(0), torch.zeros(0), num_bins=3)
    assert found.error.item() == found.nll.item() == 0.0


def test_calibration_refuses_no_bins_an_empty_range_and_a_temperature_that_is_none():
    half = torch.full((2,), 0.5)
    with pytest.raises(HyperparameterError, match=r"calibration num_bins: got 0.0, expected at least 1"):
        diagnostics.calibration(half, half, num_bins=0)
    with pytest.raises(HyperparameterError, match=r"calibration upper: got 0.5, expected a number above"):
        diagnostics.calibration(half, half, upper=0.5)
    for bad in (0.0, float("nan")):
        with pytest.raises(HyperparameterError, match=r"temperature: got .*, expected a number > 0"):
            diagnostics.preference_calibration(half, temperature=bad)


# --- displacement


def test_displacement_tells_a_growing_margin_from_a_growing_likelihood():
    reference = torch.zeros(5, 2)
    policy = torch.tensor([[1.0, -1.0], [-2.0, -5.0], [-1.0, 2.0], [-3.0, -7.0], [3.0, 1.0]])
    found = diagnostics.displacement(policy, reference)
    assert found.chosen.item() == pytest.approx(-2 / 5)
    assert found.rejected.item() == pytest.approx(-10 / 5)
    assert found.chosen_fell.item() == pytest.approx(3 / 5)
    assert found.both_fell.item() == pytest.approx(2 / 5)
    assert found.wrong_way.item() == pytest.approx(1 / 5)
    assert found.margin.item() == pytest.approx(8 / 5)
    assert found.worst_chosen.item() == -3.0


def test_displacement_refuses_lists_and_no_pairs():
    with pytest.raises(ShapeError, match=r"displacement policy: got shape \[5, 3\], expected \[any, 2\]"):
        diagnostics.displacement(torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"displacement: got 'no pairs', expected at least one"):
        diagnostics.displacement(torch.zeros(0, 2), torch.zeros(0, 2))


def test_the_gradient_ratio_is_that_of_dpo_in_the_two_probabilities():
    probability = torch.tensor([0.3, 0.02], dtype=torch.float64, requires_grad=True)
    scores = probability.log()
    loss = -torch.nn.functional.logsigmoid(0.1 * (scores[0] - scores[1]))
    (gradient,) = torch.autograd.grad(loss, probability)
    found = diagnostics.three_d_properties(scores.detach().unsqueeze(0), torch.zeros(1, 2).double())
    expected = (gradient[1] / gradient[0]).abs().log().item()
    assert found.gradient_log_ratio.item() == pytest.approx(expected)


def test_the_three_indicators_each_see_their_symptom():
    reference = torch.zeros(2, 2)
    healthy = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    dropped = torch.tensor([[0.0, -9.0], [0.0, -7.0]])
    degraded = torch.tensor([[-3.0, -4.0], [1.0, -4.0]])
    assert diagnostics.three_d_properties(healthy, reference).drastic_drop.item() == 0.0
    assert diagnostics.three_d_properties(dropped, reference).drastic_drop.item() == 8.0
    assert diagnostics.three_d_properties(dropped, reference).degradation.item() == 0.0
    assert diagnostics.three_d_properties(degraded, reference).degradation.item() == 1.5
    unseen = diagnostics.three_d_properties(
        healthy, reference, unseen_policy=torch.tensor([2.0, 4.0, 0.0]), unseen_reference=torch.zeros(3)
    )
    assert unseen.dispersion.item() == 2.0
    assert diagnostics.three_d_properties(healthy, reference).dispersion.item() == 0.0


def test_half_of_the_unseen_inputs_is_refused():
    with pytest.raises(ShapeError, match=r"unseen_policy has shape \[3\], unseen_reference \[0\]"):
        diagnostics.three_d_properties(torch.zeros(2, 2), torch.zeros(2, 2), unseen_policy=torch.zeros(3))
