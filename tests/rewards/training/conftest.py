"""Pairs of features with known preferences, and pairs of pictures on disk."""

import random
from pathlib import Path

import pytest
import torch

from mmalign.rewards.training.config import RewardRunConfig
from mmalign.rewards.training.loop import train_head
from mmalign.rewards.training.pairs import FeaturePairs
from mmalign.rewards.training.scoring import make_head, make_loss
from mmalign.toy.images import Pair, Score, corrupt, draw_scene, draw_split, render, write_pickapic

WIDTH = 7


def labelled(items, chance, **columns):
    """Pairs (0, 1), (2, 3), ... of items whose first is preferred with some probability, drawn by a seed."""
    count = len(items) // 2
    generator = torch.Generator().manual_seed(1)
    first = torch.arange(0, 2 * count, 2)
    wins = torch.rand(count, generator=generator) < chance
    none = torch.zeros(count, dtype=torch.int64)
    given = {
        "prompts": None,
        "prompt": none,
        "contexts": None,
        "context": none,
        "probability": torch.ones(count),
        "weight": torch.ones(count),
        "user": none,
        "task": none,
    }
    return FeaturePairs(
        items=items,
        first=torch.where(wins, first, first + 1),
        second=torch.where(wins, first + 1, first),
        **{**given, **columns},
    )


@pytest.fixture
def make_pairs():
    return labelled


@pytest.fixture
def make_config(tmp_path):
    """A configuration; `train` and the other sections are laid over small defaults."""

    def make(method="reward_bradley_terry", **sections):
        columns = {"reward_pal": {"user": "user"}, "reward_context": {"context": "context"}}
        given = sections.get("train", {})
        train = {"output": str(tmp_path / "run"), "learning_rate": 3e-3, "batch_size": 128}
        train |= {} if "steps" in given else {"epochs": 10}
        content = {
            "method": method,
            "backbone": {"kind": "pixels"},
            "data": {"source": "pairs.parquet"},
            "columns": columns.get(method, {}),
            "head": {"width": 32},
            **sections,
            "train": {**train, **given},
        }
        return RewardRunConfig.model_validate(content)

    return make


@pytest.fixture
def trained():
    """`trained(config, pairs)`: a head trained on the first 80 % of the pairs, and the rest."""

    def run(config, pairs, users=()):
        cut, count = int(0.7 * len(pairs)), len(pairs)
        stop = int(0.8 * count)
        train, validation, test = (
            pairs.at(torch.arange(*ends)) for ends in ((0, cut), (cut, stop), (stop, count))
        )
        head = make_head(
            config,
            item=pairs.items.shape[1],
            prompt=0 if pairs.prompts is None else pairs.prompts.shape[1],
            context=0 if pairs.contexts is None else pairs.contexts.shape[1],
            users=users,
            generator=torch.Generator().manual_seed(2),
        )
        if config.method != "reward_pal":
            tables = {"item": pairs.items, "prompt": pairs.prompts, "context": pairs.contexts}
            head.standardise_by(**{name: table for name, table in tables.items() if table is not None})
        tasks = int(pairs.task.max()) + 1
        loss = make_loss(config.method, config.loss, form=config.head.form, tasks=tasks)
        progress = train_head(head, train, validation, loss, config.train)
        return head, test, progress

    return run


def toy_pairs(num: int, seed: int) -> list[Pair]:
    """Pairs of the toy world without the cost of scoring them: the rejected one has no frame, or is wrong."""
    rng = random.Random(f"training {seed}")
    pairs = []
    for number, facts in enumerate(draw_split(num, seed=seed, held_out=False)):
        chosen = draw_scene(facts, rng, style="framed")
        plain = number % 3 > 0
        rejected = corrupt(chosen, facts, "colour", rng) if number % 3 < 2 else chosen
        if plain:
            rejected = type(rejected)(**{**vars(rejected), "framed": False})
        pairs.append(
            Pair(facts.caption(), render(chosen), render(rejected), Score(1.0, 1.0), Score(0.0, 0.0), "both")
        )
    return pairs


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory) -> Path:
    """500 pairs of the toy world as a parquet file."""
    return write_pickapic(toy_pairs(500, seed=3), tmp_path_factory.mktemp("toy") / "pairs.parquet")
