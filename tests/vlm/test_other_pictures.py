"""Corruptions that show another row's picture find one among the rows of the run, never the row's own."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mmalign.batch import PreferenceRow
from mmalign.data.config import ImageLimits
from mmalign.errors import RowError
from mmalign.methods.row import View
from mmalign.testing.vlm_dialogues import dialogue, load_vlm, photo
from mmalign.train.config import load_run
from mmalign.train.run import train
from mmalign.vlm.corruptions import corruption
from mmalign.vlm.corruptions.others import OtherRows
from mmalign.vlm.family import VlmModel
from mmalign.vlm.media import FrameChoice, MediaReader, Picture

Folder = Callable[[str], Path]
READER = MediaReader(ImageLimits(), FrameChoice(num_frames=4))


def plain(number: int, *, prompt: str = "") -> PreferenceRow:
    """A row about a picture of one colour, which says its number."""
    buffer = BytesIO()
    Image.new("RGB", (24, 16), (10 * number, 0, 0)).save(buffer, format="PNG")
    return PreferenceRow(
        prompt=prompt, candidates=(), kind="prompts", images=(buffer.getvalue(),), id=str(number)
    )


def own_of(row: PreferenceRow) -> frozenset[str]:
    return frozenset(READER.picture(image, where="test").digest for image in row.images)


def colour(frames) -> int:
    return int(frames[0].getpixel((0, 0))[0]) // 10


def test_every_other_picture_is_drawn_and_the_own_one_never() -> None:
    rows = [plain(number) for number in range(1, 6)]
    found = Counter(
        colour(OtherRows(rows, READER)(rows[1], own=own_of(rows[1]), seed=seed)) for seed in range(400)
    )
    assert set(found) == {1, 3, 4, 5}
    assert min(found.values()) > 60
    draws = [colour(OtherRows(rows, READER)(rows[1], own=own_of(rows[1]), seed=7)) for _ in range(2)]
    assert draws[0] == draws[1]


def test_another_row_about_the_same_picture_is_no_other_picture() -> None:
    rows = [plain(1), plain(1, prompt="again"), plain(2)]
    others = OtherRows(rows, READER)
    assert {colour(others(rows[0], own=own_of(rows[0]), seed=seed)) for seed in range(30)} == {2}
    with pytest.raises(RowError, match="no other picture in 64 rows") as caught:
        OtherRows(rows[:2], READER)(rows[0], own=own_of(rows[0]), seed=0)
    assert caught.value.reason == "no_other_image"


def test_rows_that_cannot_be_read_or_show_nothing_are_passed_over() -> None:
    broken, empty = replace(plain(3), images=(b"no picture",)), replace(plain(4), images=())
    rows = [plain(1), broken, empty, plain(2)]
    found = {colour(OtherRows(rows, READER)(rows[0], own=own_of(rows[0]), seed=seed)) for seed in range(40)}
    assert found == {2}


def test_a_clip_is_shown_frame_by_frame_stretched_over_the_videos_length() -> None:
    spoil = corruption("other_image", others_follow=True)
    clip = [Image.new("RGB", (3, 3), (10 * number, 0, 0)) for number in (1, 2, 3)]
    frames = [Image.new("RGB", (7, 5)) for _ in range(5)]
    made = spoil.beside(clip).frames(frames, 0)
    assert [frame.getpixel((0, 0))[0] for frame in made] == [10, 10, 20, 30, 30]
    assert {frame.size for frame in made} == {(7, 5)}
    half = corruption("mixup", 0.5, others_follow=True).beside(clip[2:]).frames(frames, 0)
    assert [frame.getpixel((0, 0))[0] for frame in half] == [15] * 5


def shown(model: VlmModel, row: PreferenceRow, key: int) -> Image.Image:
    """What stands in the place of the row's picture."""
    reader = model.reader
    made = reader.spoilt(row, reader.opened(row, row.candidates[0]), View(0), key)
    (item,) = made["image"]
    assert isinstance(item, Picture)
    return item.image


@pytest.mark.parametrize("kind", ["other_image", "mixup"])
def test_a_model_that_was_shown_the_rows_draws_by_the_rows_key(kind: str, tiny_vlm_folder: Folder) -> None:
    tokens = {"corruption": {"kind": kind}}
    model = load_vlm("llava", tiny_vlm_folder("llava"), tokens=tokens, dtype=torch.float32, views=(View(0),))
    rows = [dialogue(number) for number in range(5)]
    with pytest.raises(RowError, match=r"got \[no other rows\]"):
        model.example(rows[0], key=0)
    model.show_rows(rows)
    pictures = [np.asarray(Image.open(BytesIO(row.images[0])).convert("RGB"), dtype=float) for row in rows]
    seen = set()
    for key in range(12):
        made = np.asarray(shown(model, rows[2], key), dtype=float)
        mixed = {
            number: picture if kind == "other_image" else (picture + pictures[2]) / 2
            for number, picture in enumerate(pictures)
        }
        nearest = min(mixed, key=lambda number: np.abs(made - mixed[number]).mean())
        assert np.abs(made - mixed[nearest]).mean() < 1.0
        seen.add(nearest)
        assert np.array_equal(made, np.asarray(shown(model, rows[2], key), dtype=float))
    assert 2 not in seen
    assert len(seen) >= 3


@pytest.mark.usefixtures("_fresh_accelerator")
@pytest.mark.parametrize(("kind", "workers"), [("other_image", 0), ("mixup", 1)])
def test_mdpo_trains_against_other_rows_pictures(
    kind: str, workers: int, tiny_vlm_folder: Folder, tmp_path: Path
) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    rows = [
        {
            "prompt": f"What is {number}?",
            "chosen": "A circle.",
            "rejected": "Nothing.",
            "images": [f"{number}.png"],
        }
        for number in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "method": "mdpo",
        "model": {"family": "llava", "source": str(tiny_vlm_folder("llava"))},
        "data": {"source": {"path": str(tmp_path / "rows.jsonl")}},
        "tokens": {"corruption": {"kind": kind}},
        "adapter": {"rank": 2},
        "train": {
            "output": str(tmp_path / "run"),
            "steps": 2,
            "batch_size": 2,
            "num_workers": workers,
            "device": "cpu",
        },
        "log": {"every": 1, "trackers": []},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    train(load_run(tmp_path / "run.yaml"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["grad_norm"] > 0 for record in records)
