"""Small encoded images and data sets in every layout."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmalign.data import DataConfig


def _encoded(seed: int = 0, size: tuple[int, int] = (40, 32), format: str = "JPEG", **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Bytes of a noise image: encoded(seed, size=(width, height), format="JPEG")."""
    return _encoded


@pytest.fixture
def config_of() -> Callable[..., DataConfig]:
    """A data config of one source: config_of(path, tie_policy=..., source={...})."""

    def make(path: str | Path, *, source: dict[str, Any] | None = None, **settings: Any) -> DataConfig:
        return DataConfig.model_validate({"source": {"path": str(path), **(source or {})}, **settings})

    return make


@pytest.fixture
def pickapic_records() -> Callable[..., list[dict[str, Any]]]:
    """Records in the layout of Pick-a-Pic v2, label by label."""

    def make(labels: list[float | None], **columns: list[Any]) -> list[dict[str, Any]]:
        records = []
        for number, label in enumerate(labels):
            record = {
                "caption": f"prompt {number}",
                "jpg_0": _encoded(2 * number),
                "jpg_1": _encoded(2 * number + 1),
                "label_0": label,
                "label_1": None if label is None else 1.0 - label,
                "image_0_uid": f"{number}-0",
                "image_1_uid": f"{number}-1",
                "has_label": True,
                "are_different": True,
                "model_0": "left model",
                "model_1": "right model",
            }
            records.append(record | {name: values[number] for name, values in columns.items()})
        return records

    return make


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Write records to a parquet file."""

    def write(records: list[dict[str, Any]], name: str = "pairs.parquet", row_group_size: int = 3) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=row_group_size)
        return path

    return write


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write records as JSON lines; images named in `images` are written beside the file."""

    def write(records: list[Any], name: str = "rows.jsonl", images: tuple[str, ...] = ()) -> Path:
        path = tmp_path / name
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for seed, image in enumerate(images):
            file = tmp_path / image
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_encoded(seed, format="PNG"))
        return path

    return write
