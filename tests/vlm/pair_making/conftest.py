"""Rows, writers and judges that answer by a rule, for tests of pair makers."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.pair_making.stages import Stages
from mmalign.vlm.pair_making.requests import Request, Sampling


def picture(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(name="row")
def _row() -> Callable[..., PreferenceRow]:
    """`row("a", "what is it?", "a cat")`: a prompt about one picture, with its true answer."""

    def made(name: str, prompt: str = "what is it?", truth: str = "", colour: str = "red") -> PreferenceRow:
        candidates = (Candidate(text=truth),) if truth else ()
        kind = "chosen" if truth else "prompts"
        return PreferenceRow(
            prompt=prompt, candidates=candidates, kind=kind, id=name, images=(picture(colour),)
        )

    return made


@dataclass
class Scripted:
    """A writer that answers by a rule and remembers what it was asked."""

    rule: Callable[[Request, int], str]
    asked: list[Request] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def __call__(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[str]:
        self.seeds.append(seed)
        texts = [self.rule(request, len(self.asked) + number) for number, request in enumerate(requests)]
        self.asked += requests
        return texts


@pytest.fixture(name="scripted")
def _scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture(name="stages")
def _stages(tmp_path: Path) -> Stages:
    return Stages(tmp_path / "stages", {"model": "tiny"}, seed=5, block_size=2)
