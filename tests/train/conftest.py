"""Tiny models, real parquet files in the Pick-a-Pic layout, and short runs on them."""

import io
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from mmalign.testing.accelerator import forget_accelerator
from mmalign.testing.tiny import RESOLUTION, write_tiny_sd15, write_tiny_sdxl
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.run import RunResult, train


@pytest.fixture(autouse=True)
def _every_run_afresh(_fresh_accelerator: None) -> None:
    """Every run here wants its own precision."""


@pytest.fixture(scope="session")
def sd15_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.x-structured pipeline with random weights."""
    return write_tiny_sd15(tmp_path_factory.mktemp("tiny") / "sd15")


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL-structured pipeline with random weights."""
    return write_tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


def _picture(generator: np.random.Generator, kind: str) -> bytes:
    """Encoded bytes of a smooth random picture."""
    coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def write_pairs() -> Callable[..., Path]:
    """`write_pairs(path, num_rows, broken=())`: a parquet file in the Pick-a-Pic v2 layout."""

    def write(path: Path, num_rows: int = 7, *, broken: Collection[int] = (), seed: int = 0) -> Path:
        generator = np.random.default_rng(seed)
        kinds = ("PNG", "JPEG")
        first = [_picture(generator, kinds[row % 2]) for row in range(num_rows)]
        second = [_picture(generator, kinds[row % 2]) for row in range(num_rows)]
        labels = [float(row % 3 != 1) for row in range(num_rows)]
        # A broken row lost the second half of one picture, as an interrupted download leaves it.
        cut = [image[: len(image) // 2] if row in broken else image for row, image in enumerate(first)]
        table = {
            "caption": [f"a picture with the number {row}" for row in range(num_rows)],
            "jpg_0": cut,
            "jpg_1": second,
            "label_0": labels,
            "label_1": [1.0 - label for label in labels],
            "has_label": [True] * num_rows,
            "are_different": [True] * num_rows,
        }
        pq.write_table(pa.table(table), path)
        return path

    return write


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory, write_pairs: Callable[..., Path]) -> Path:
    """Seven readable pairs."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


def _laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _write_run(path: Path, content: Mapping[str, Any], sections: Mapping[str, Any]) -> Path:
    """A YAML file of a short run on the CPU into the folder beside it: `content`, and `sections` over it."""
    short = {
        "adapter": {"rank": 3, "alpha": 5},
        "train": {
            "output": str(path.with_suffix("")),
            "batch_size": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "num_workers": 0,
            "device": "cpu",
        },
        "log": {"every": 1, "trackers": []},
    }
    path.write_text(yaml.safe_dump(_laid_over(_laid_over(short, content), sections)))
    return path


def _train(run: ResolvedRun) -> RunResult:
    forget_accelerator()
    return train(run)


@pytest.fixture
def write_config(tmp_path: Path, sd15_folder: Path, pairs_file: Path) -> Callable[..., Path]:
    """`write_config(name, train={...}, ...)`: a YAML file of a short run into its own folder."""

    def write(name: str = "run", **sections: Any) -> Path:
        content = {
            "method": "diffusion_dpo",
            "model": {"family": "sd15", "source": str(sd15_folder)},
            "image": {"resolution": RESOLUTION},
            "data": {"source": str(pairs_file)},
            "objective": {"beta": 500.0},
            "train": {"steps": 3},
        }
        if sections.get("method", content["method"]) != content["method"]:
            content["objective"] = {}  # beta is another number elsewhere, or none
        return _write_run(tmp_path / f"{name}.yaml", content, sections)

    return write


@pytest.fixture
def make_run(write_config: Callable[..., Path]) -> Callable[..., ResolvedRun]:
    """`make_run(name, train={...}, ...)`: the resolved run of such a file."""

    def make(name: str = "run", **sections: Any) -> ResolvedRun:
        return load_run(write_config(name, **sections))

    return make


@pytest.fixture
def run_to_end(make_run: Callable[..., ResolvedRun]) -> Callable[..., RunResult]:
    """`run_to_end(name, train={...}, ...)`: train it."""

    return lambda *name, **sections: _train(make_run(*name, **sections))


def _dialogue(number: int, kind: str, picture: str) -> dict[str, Any]:
    """A record about a picture; chosen and rejected answers differ in length."""
    yes, no = f"A picture of {number} things.", "Nothing at all is to be seen here."
    prompt = {"prompt": f"What is shown in number {number}?", "images": [picture]}
    if kind == "unpaired":
        return {**prompt, "completion": yes if number % 2 else no, "label": bool(number % 2)}
    if kind == "lists":
        # Two or three rated answers.
        answers = [yes, no, "Some things."][: 2 + number % 2]
        rated = [
            {"response": text, "annotations": {"Helpfulness": {"Rating": str(5 - place)}}}
            for place, text in enumerate(answers)
        ]
        return {**prompt, "completions": rated}
    return {**prompt, "chosen": yes, "rejected": no, "score_chosen": 2.0, "score_rejected": 1.0}


@pytest.fixture(scope="session")
def write_dialogues() -> Callable[..., Path]:
    """`write_dialogues(folder, kind="pairs", num_rows=7, broken=())`: a file of records about pictures."""

    def write(
        folder: Path, kind: str = "pairs", *, num_rows: int = 7, broken: Collection[int] = (), **more: Any
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        lines = []
        for number in range(num_rows):
            data = _picture(generator, "PNG")
            (folder / f"{number}.png").write_bytes(data[: len(data) // 2] if number in broken else data)
            lines.append(json.dumps(_dialogue(number, kind, f"{number}.png") | more))
        path = folder / f"{kind}.jsonl"
        path.write_text("\n".join(lines))
        return path

    return write


@pytest.fixture(scope="session")
def dialogues_file(tmp_path_factory: pytest.TempPathFactory, write_dialogues: Callable[..., Path]) -> Path:
    """Seven readable pairs of answers, each about a picture."""
    return write_dialogues(tmp_path_factory.mktemp("dialogues"))


@pytest.fixture
def write_dialogue_config(
    tmp_path: Path, tiny_vlm_folder: Callable[[str], Path], dialogues_file: Path
) -> Callable[..., Path]:
    """`write_dialogue_config(name, family="llava", train={...}, ...)`: a short run of a language model."""

    def write(name: str = "run", *, family: str = "llava", **sections: Any) -> Path:
        content = {
            "method": "dpo",
            "model": {"family": family, "source": str(tiny_vlm_folder(family))},
            "data": {"source": str(dialogues_file)},
            "train": {"steps": 2},
        }
        return _write_run(tmp_path / f"{name}.yaml", content, sections)

    return write


@pytest.fixture
def make_dialogue_run(write_dialogue_config: Callable[..., Path]) -> Callable[..., ResolvedRun]:
    """`make_dialogue_run(name, train={...}, ...)`: the resolved run of such a file."""

    def make(name: str = "run", **sections: Any) -> ResolvedRun:
        return load_run(write_dialogue_config(name, **sections))

    return make


@pytest.fixture
def train_dialogues(make_dialogue_run: Callable[..., ResolvedRun]) -> Callable[..., RunResult]:
    """`train_dialogues(name, train={...}, ...)`: train it."""

    return lambda *name, **sections: _train(make_dialogue_run(*name, **sections))


@pytest.fixture(scope="session")
def trained_weights() -> Callable[[RunResult], dict[str, torch.Tensor]]:
    """`trained_weights(result)`: copies of the trained weights by name."""

    def weights(result: RunResult) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in result.trainables.parameters.items()}

    return weights


TIMINGS = ("prompts_per_second", "peak_memory_gib")


@pytest.fixture(scope="session")
def without_timings() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """`without_timings(records)`: what two equal runs must agree on."""

    def strip(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in record.items() if key not in TIMINGS} for record in records]

    return strip
