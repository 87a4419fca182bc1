"""Steps of so many epochs, warm-up as a share of them, and learning rates of the parts of a model."""

from typing import Any

import pytest
import torch
from torch import nn

from mmalign.train.adapters import Trainables
from mmalign.train.optim import make_optimizer, make_schedule
from mmalign.train.steps import learning_rates, with_steps

UNDECIDED: dict[str, Any] = {"steps": None, "warmup_steps": None}


@pytest.mark.parametrize(
    ("epochs", "ratio", "steps", "warmup"),
    [
        (1, 0.0, 3, 0),  # 7 rows, 3 at a time: the last step begins the next pass
        (3, 0.5, 7, 4),
        (0.1, 1.0, 1, 1),
        (2.5, 0.1, 6, 1),
    ],
)
def test_epochs_and_a_share_become_steps(make_dialogue_run, epochs, ratio, steps, warmup) -> None:
    run = make_dialogue_run(train={**UNDECIDED, "epochs": epochs, "warmup_ratio": ratio})
    decided = with_steps(run, num_rows=7, effective_batch=3).config.train
    assert (decided.steps, decided.warmup_steps) == (steps, warmup)
    assert (decided.epochs, decided.warmup_ratio) == (None, None)


def test_steps_that_are_given_stay(make_dialogue_run) -> None:
    run = make_dialogue_run(train={"steps": 5, "warmup_steps": 2})
    assert with_steps(run, num_rows=7, effective_batch=3) is run


class Parted:
    """A model whose parameters' names say what they belong to; nothing of it is a projector."""

    def parameter_groups(self, named: dict[str, nn.Parameter]) -> dict[str, list[nn.Parameter]]:
        return {
            part: [value for name, value in named.items() if name.startswith(part)]
            for part in ("language", "projector", "vision")
        }


@pytest.fixture
def trainables() -> Trainables:
    named = {name: nn.Parameter(torch.zeros(2)) for name in ("vision.a", "language.a", "language.b")}
    return Trainables(nn.Linear(2, 3), named)


def test_parts_without_a_rate_of_their_own_are_one_list(make_dialogue_run, trainables) -> None:
    found = learning_rates(make_dialogue_run().config, Parted(), trainables)
    assert found == list(trainables.parameters.values())


def test_a_part_with_a_rate_of_its_own_keeps_it_through_the_schedule(make_dialogue_run, trainables) -> None:
    run = make_dialogue_run(
        tokens={"train_vision": True, "vision_learning_rate": 1e-5}, train={"steps": 5, "schedule": "linear"}
    )
    groups = learning_rates(run.config, Parted(), trainables)
    optimizer = make_optimizer(groups, run.config.train)
    schedule = make_schedule(optimizer, run.config.train)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([1e-3, 1e-5])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.8e-3, 0.8e-5])
