"""Tiny vision-language models, each written once per test run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mmalign.testing.tiny_vlm import tiny_vlm


@pytest.fixture(scope="session")
def tiny_vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_vlm_folder("llava")`: the folder of a family's tiny model. Read it, do not write into it."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = tiny_vlm(name, tmp_path_factory.mktemp("tiny_vlm") / name)
        return written[name]

    return folder
