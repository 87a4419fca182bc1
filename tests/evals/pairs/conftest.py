"""A painter and rewards without networks; a plan over them."""

import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from mmalign.evals import generation
from mmalign.evals.pairs.plan import read_plan
from mmalign.evals.pairs.pool import Pool, PoolCandidate, PoolPrompt

EVALS = Path(__file__).parents[1]
PROMPTS = ["a fox", "a heron", "two boats", "A fox!", "the pier at night", "an owl", "a red roof"]


@pytest.fixture(autouse=True)
def rewards_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EVALS))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def painter(rewards_can_be_imported, monkeypatch):
    from fake_painter import FakePainter

    fake = FakePainter()
    monkeypatch.setattr(generation, "_painter", fake.load)
    return fake


@pytest.fixture
def write_plan(tmp_path):
    """Write prompts, a held-out set and a plan; returns the plan's path."""

    def write(selection: str = "{}") -> Path:
        chosen = {"duplicates": {"by": "bytes"}, **yaml.safe_load(selection)}
        (tmp_path / "mine.txt").write_text("\n".join(PROMPTS))
        (tmp_path / "held.txt").write_text("The pier, at night.\nanother one\n")
        (tmp_path / "plan.yaml").write_text(
            "name: mine\nprompts: mine.txt\n"
            "models: {base: hub/base, tuned: hub/tuned}\n"
            "generation: {seed: 3, images_per_prompt: 2, batch_size: 3}\n"
            "rewards:\n"
            '  - {name: "pair_rewards:redness", title: redness}\n'
            '  - {name: "pair_rewards:contrast", title: contrast}\n'
            "exclude: [held=held.txt, hpdv2]\nwaived: [hpdv2]\n"
            f"selection: {json.dumps(chosen)}\n"
        )
        return tmp_path / "plan.yaml"

    return write


@pytest.fixture
def plan(write_plan):
    return read_plan(write_plan())


@pytest.fixture
def make_pool():
    """A pool from a table of values per prompt; candidates are named c0, c1, ..."""

    def make(*tables, titles=("first", "second")) -> Pool:
        prompts = []
        for number, table in enumerate(tables):
            candidates = tuple(
                PoolCandidate(f"p{number}:c{place}", "model", f"{number}{place}" * 8, lambda: b"")
                for place in range(len(table))
            )
            values = torch.tensor(table, dtype=torch.float64)
            prompts.append(PoolPrompt(f"p{number}", f"prompt {number}", candidates, values))
        return Pool(tuple(titles), prompts)

    return make


@pytest.fixture
def shard_rows():
    """Rows of candidates in shards: 5 prompts, one of them held out, each row with a picture of its own."""
    prompts = ["a fox", "a heron", "two boats", "an owl", "The pier at night"]

    def rows(count: int) -> list[dict]:
        return [
            {
                "id": f"s{number:03d}",
                "prompt": prompts[number % len(prompts)],
                "image": _picture(number),
                "model": f"m{number % 2}",
                "seed": number,
            }
            for number in range(count)
        ]

    return rows


def _picture(number: int) -> bytes:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 255, (12, 12, 3), generator=generator, dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
