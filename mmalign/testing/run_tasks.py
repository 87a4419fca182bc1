"""Whole runs with something wrong, or something to look at, in every process of a group (`on_processes`)."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from mmalign.batch import Batch, PreferenceRow

__all__ = ["Letters", "train_compiled", "train_on_letters", "train_with_a_broken_loss"]


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def train_with_a_broken_loss(path: str, rank: int, call: int) -> None:
    """Train a file; the loss of one micro-step is infinite on one process, and its gradient with it.

    Args:
        path: of the configuration.
        rank: of the process.
        call: the number of the micro-step, from 0.
    """
    from mmalign.train import loop
    from mmalign.train.run import main
    from mmalign.train.step import preference_step

    calls = 0

    def broken(parts: Any, batch: Batch, **settings: Any) -> Any:
        nonlocal calls
        output, number = preference_step(parts, batch, **settings), calls
        calls += 1
        return replace(output, loss=output.loss * torch.inf) if (number, _rank()) == (call, rank) else output

    with mock.patch.object(loop, "preference_step", broken):
        main(path)


def train_compiled(path: str, backend: str) -> None:
    """Train a file whose blocks are compiled, by a backend of torch's compiler.

    Args:
        path: of the configuration.
        backend: "inductor", or "aot_eager", which traces forward and backward passes and makes no kernels.
    """
    from mmalign.train import compiling
    from mmalign.train.run import main

    with mock.patch.object(compiling, "BACKEND", backend):
        main(path)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


class Letters:
    """A reward of answers: the more different letters, the better.

    Attributes:
        seen: round by round, the rows that were asked about, by name.
    """

    name = "letters"

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def score_answers(self, rows: Sequence[PreferenceRow], answers: Sequence[str]) -> list[float]:
        """One number per answer."""
        self.seen.append(list(dict.fromkeys(row.id for row in rows)))
        return [float(len(set(answer))) for answer in answers]


def train_on_letters(path: str, seen: str) -> None:
    """Train an online run of a language model; write down what every process asked, and compare weights.

    Args:
        path: of the configuration.
        seen: a folder, into which process 3 writes `3.json`: the rows of each of its rounds.

    Raises:
        AssertionError: processes ended with other weights than the first.
    """
    from mmalign.train.config import load_run
    from mmalign.train.run import train

    reward = Letters()
    result = train(load_run(path), reward=reward)
    folder = Path(seen)
    folder.mkdir(exist_ok=True)
    (folder / f"{_rank()}.json").write_text(json.dumps(reward.seen))
    for name, value in result.trainables.parameters.items():
        first = value.detach().clone()
        torch.distributed.broadcast(first, src=0)
        assert torch.equal(first, value), f"process {_rank()} has another {name}"
