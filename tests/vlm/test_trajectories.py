"""GRAPE: windows of steps as rows, their scores against step-by-step sums, rewards and ranks."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mmalign import objectives
from mmalign.batch import Candidate, Labels, PreferenceRow
from mmalign.errors import ConfigError, ShapeError
from mmalign.likelihood import AdaptersOff, Evaluation, Tokens, adapter_toggle
from mmalign.testing.vlm_dialogues import load_vlm, photo, token_log_probs, with_adapter
from mmalign.vlm.trajectories import (
    ActionStep,
    Trajectory,
    gcpg_reward,
    ranked_pairs,
    self_log_likelihood,
    window_batch,
    window_rows,
    window_scores,
)

Folder = Callable[[str], Path]


def attempt(number: int, length: int, *, instruction: str = "Stack it.", cameras: int = 1) -> Trajectory:
    return Trajectory(
        instruction,
        tuple(
            ActionStep(
                tuple(photo(97 * number + 7 * step + camera) for camera in range(cameras)),
                f"{(number + step) % 5} {step} 3",
            )
            for step in range(length)
        ),
        id=f"attempt{number}",
    )


def evaluation(*shape: int) -> Evaluation:
    score = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    return Evaluation(score=score.requires_grad_(), error=-score)


class TestWindows:
    def test_hold_the_better_steps_first_and_leave_out_what_fills_no_window(self) -> None:
        better, worse = attempt(1, 8), attempt(2, 7)
        rows = window_rows(better, worse, size=3)
        assert [row.id for row in rows] == ["attempt1>attempt2@0", "attempt1>attempt2@3"]
        for row, start in zip(rows, (0, 3), strict=True):
            steps = [*better.steps[start : start + 3], *worse.steps[start : start + 3]]
            assert [candidate.text for candidate in row.candidates] == [step.action for step in steps]
            assert [candidate.images for candidate in row.candidates] == [step.images for step in steps]
            assert row.prompt == "Stack it."

    def test_overlap_where_the_stride_is_shorter(self) -> None:
        rows = window_rows(attempt(1, 7), attempt(2, 8), size=3, stride=2)
        assert [row.id.partition("@")[2] for row in rows] == ["0", "2", "4"]

    def test_hold_eight_steps_as_released(self) -> None:
        assert [len(row.candidates) for row in window_rows(attempt(1, 8), attempt(2, 11))] == [16]

    @pytest.mark.parametrize(("size", "stride"), [(0, None), (3, 0), (9, None)])
    def test_of_no_step_or_longer_than_an_attempt_are_refused(self, size: int, stride: int | None) -> None:
        with pytest.raises(ConfigError, match=r"attempt1 and attempt2: got .* at least one whole window"):
            window_rows(attempt(1, 8), attempt(2, 8), size=size, stride=stride)

    def test_of_two_tasks_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"got .*'Push it.', 1.*expected .*attempts at one task"):
            window_rows(attempt(1, 3), attempt(2, 3, instruction="Push it."), size=3)
        with pytest.raises(ConfigError, match="attempts at one task"):
            window_rows(attempt(1, 3), attempt(2, 3, cameras=2), size=3)

    def test_an_attempt_needs_steps_that_look_alike(self) -> None:
        first, second = attempt(1, 2).steps[0], attempt(1, 2, cameras=2).steps[1]
        with pytest.raises(ConfigError, match=r"trajectory mixed: images per step: got \[1, 2\]"):
            Trajectory("Stack it.", (first, second), id="mixed")
        with pytest.raises(ConfigError, match="got 'no steps'"):
            Trajectory("Stack it.", ())


class TestScores:
    def test_fold_candidates_into_sides_and_steps(self) -> None:
        policy, reference = evaluation(2, 6), evaluation(2, 6)
        scores = window_scores(policy, reference)
        assert scores.policy.shape == (2, 2, 3)
        assert torch.equal(scores.policy[:, 1], policy.score[:, 3:])
        assert not scores.reference.requires_grad
        assert window_scores(policy).reference is None

    def test_of_an_odd_number_of_steps_are_refused(self) -> None:
        with pytest.raises(ShapeError, match="window_scores: got '5 steps'"):
            window_scores(evaluation(2, 5))

    def test_train_a_model_as_the_sum_over_steps_scored_one_by_one_says(
        self, tiny_vlm_folder: Folder
    ) -> None:
        model = load_vlm("llava", tiny_vlm_folder("llava"))
        trainables = with_adapter(model)
        toggle, policy = adapter_toggle(model.network), model.policy(model.network)
        better, worse = attempt(1, 3), attempt(2, 3)
        batch = window_batch(model, window_rows(better, worse, size=3))
        likelihood = Tokens()
        draw = likelihood.draw(batch)
        reference = AdaptersOff(policy, toggle).evaluate(likelihood, batch, draw)
        scores = window_scores(likelihood.evaluate(policy, batch, draw), reference)
        loss = objectives.grape_tpo(beta=0.3)(scores, Labels.pairs(1)).loss.sum()
        name = sorted(trainables.parameters)[-1]
        (gradient,) = torch.autograd.grad(loss, trainables.parameters[name])
        assert float(gradient.abs().max()) > 0.0

        def alone(trajectory: Trajectory) -> list[float]:
            rows = [
                PreferenceRow("Stack it.", (Candidate(text=step.action),), images=step.images)
                for step in trajectory.steps
            ]
            return [float(token_log_probs(model, [row]).sum()) for row in rows]

        with torch.no_grad():
            ours = torch.tensor([alone(better), alone(worse)], dtype=torch.float64)
            with toggle():
                base = torch.tensor([alone(better), alone(worse)], dtype=torch.float64)
        torch.testing.assert_close(scores.policy[0].detach(), ours, rtol=1e-6, atol=1e-6)
        ratio = (ours - base).sum(1)
        assert float(loss.detach()) == pytest.approx(
            float(-F.logsigmoid(0.3 * (ratio[0] - ratio[1]))), abs=1e-6
        )
        assert self_log_likelihood(model, better, batch_size=2) == pytest.approx(float(ours[0].sum()))
        with pytest.raises(ConfigError, match="self_log_likelihood batch_size: got 0"):
            self_log_likelihood(model, better, batch_size=0)


class TestReward:
    def test_is_the_weighted_sum_of_opinion_cost_and_success(self) -> None:
        found = gcpg_reward(
            torch.tensor([-3.0, -7.0]),
            torch.tensor([[0.5, 0.2, 0.0], [0.0, 0.0, 0.0]]),
            torch.tensor([False, True]),
            self_weight=0.1,
            stage_weight=2.0,
            success_weight=5.0,
        )
        expected = torch.tensor([-0.3 + 2.0 * 0.4965853, -0.7 + 2.0 + 5.0])
        torch.testing.assert_close(found, expected)

    def test_refuses_what_cannot_be_a_reward(self, untyped: AbstractContextManager[None]) -> None:
        opinion, costs, success = torch.zeros(2), torch.zeros(2, 3), torch.tensor([True, False])
        with untyped, pytest.raises(ShapeError, match="gcpg_reward: got '2 log-likelihoods, 3 rows of costs"):
            gcpg_reward(opinion, torch.zeros(3, 3), success)
        with pytest.raises(ConfigError, match=r"gcpg_reward weights: got .*-1.0"):
            gcpg_reward(opinion, costs, success, stage_weight=-1.0)
        with pytest.raises(ConfigError, match=r"gcpg_reward stage_costs: got -0.5"):
            gcpg_reward(opinion, costs - 0.5, success)


class TestRanks:
    def test_pair_the_best_with_the_worst_and_leave_out_what_is_unknown(self) -> None:
        reward = torch.tensor([2.0, float("nan"), 7.0, -1.0, 3.0, 0.0])
        assert ranked_pairs(reward, top=5) == [(2, 3), (4, 5)]
        assert ranked_pairs(reward) == [(2, 3)]
        assert ranked_pairs(reward, top=2, min_gap=3.0) == [(2, 3)]

    def test_make_no_pair_of_equals(self) -> None:
        assert ranked_pairs(torch.ones(3), top=2) == []

    @pytest.mark.parametrize("options", [{"top": 0}, {"min_gap": -1.0}, {"min_gap": float("nan")}])
    def test_refuse_no_pairs_and_negative_gaps(self, options: dict) -> None:
        with pytest.raises(ConfigError, match=r"ranked_pairs: got .*expected top >= 1, min_gap >= 0"):
            ranked_pairs(torch.ones(3), **options)


@pytest.mark.slow
def test_the_example_learns_to_prefer_the_cheaper_attempt(repository: Path) -> None:
    script = repository / "examples" / "align_robot_steps.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    first, *steps = done.stdout.splitlines()
    assert first.startswith("better: straight, rewards [")
    losses = [float(line.rpartition(" ")[2]) for line in steps]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0]
