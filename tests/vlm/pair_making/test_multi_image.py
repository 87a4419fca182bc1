"""Several images of one: sizes, places, words and the filter by attention."""

import io

import numpy as np
import pytest
from PIL import Image

from mmalign.errors import ConfigError, HyperparameterError
from mmalign.vlm.pair_making.composing import compose, multi_image_pairs
from mmalign.vlm.pair_making.multi_image import (
    LIMITS,
    Attended,
    attention_ratio,
    collage,
    picture_in_picture,
    rejects,
    sequence,
    with_noise,
)

COLOURS = ("green", "blue", "yellow", "purple", "orange", "brown", "pink", "grey")


def plain(colour: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def opened(data: bytes | str) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def even(count: int, tokens: int = 576) -> tuple[np.ndarray, ...]:
    return tuple(np.ones(tokens, dtype=np.float32) for _ in range(count))


def test_a_sequence_keeps_the_image_among_others_and_names_its_place(row) -> None:
    places = set()
    for seed in range(12):
        made = sequence(row("a", "Is the cat red?", "yes"), [b"1", b"2"], seed=seed)
        assert made.row.images[made.target] == row("a").images[0]
        assert sorted(image for image in made.row.images if len(image) == 1) == [b"1", b"2"]
        assert f"Image {made.target + 1}" in made.row.prompt
        assert made.row.prompt.lower().endswith("is the cat red?")
        assert made.row.candidates[0].text == "yes"
        places.add(made.target)
    assert places == {0, 1, 2}
    with pytest.raises(HyperparameterError, match="sequence images: got 6"):
        sequence(row("a", truth="yes"), [b"1"] * 5, seed=0)


@pytest.mark.parametrize(
    ("number", "size"),
    [(2, (976, 528)), (3, (1424, 528)), (4, (976, 976)), (6, (1424, 976)), (9, (1424, 1424))],
)
def test_a_collage_has_tiles_of_448_in_a_margin_of_40(row, number: int, size: tuple[int, int]) -> None:
    others = [plain(colour) for colour in COLOURS[: number - 1]]
    made = collage(row("a", truth="yes"), plain("red"), others, seed=3)
    (data,) = made.row.images
    canvas = opened(data)
    assert canvas.size == size
    assert canvas.getpixel((39, 39)) == (255, 255, 255)
    assert canvas.getpixel((size[0] - 40, size[1] - 40)) == (255, 255, 255)
    left, top, right, bottom = made.boxes[made.target]
    assert (right - left) * size[0] == pytest.approx(448)
    middle = (int((left + right) / 2 * size[0]), int((top + bottom) / 2 * size[1]))
    assert canvas.getpixel(middle) == (255, 0, 0)
    # The label covers the upper left corner of the tile.
    corner = (int(left * size[0]) + 2, int(top * size[1]) + 2)
    assert canvas.getpixel(corner) == (255, 255, 255)


def test_a_collage_of_five_tiles_does_not_exist(row) -> None:
    with pytest.raises(HyperparameterError, match="collage images: got 5, expected 2, 3, 4, 6, 9"):
        collage(row("a", truth="yes"), plain("red"), [plain("blue")] * 4, seed=0)


def test_a_picture_in_a_picture_covers_the_central_seventy_percent(row) -> None:
    made = picture_in_picture(row("a", truth="yes"), plain("red"), plain("blue", (100, 200)), seed=1)
    canvas = np.asarray(opened(made.row.images[0]))
    red = (canvas == (255, 0, 0)).all(axis=-1)
    assert canvas.shape[:2] == (200, 100)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 169, 15, 84)
    assert red.sum() == 140 * 70


def test_noise_has_its_deviation_and_wraps_only_where_asked() -> None:
    image = plain("grey", (97, 101))
    mild = np.asarray(with_noise(image, 15.0, seed=1), dtype=float)
    assert mild.std() == pytest.approx(15, abs=0.5)
    black = plain("black", (97, 101))
    assert np.asarray(with_noise(black, 7.0, seed=1)).max() < 50
    assert np.asarray(with_noise(black, 7.0, seed=1, wrap=True)).max() > 220
    assert with_noise(image, 0.0, seed=1) is image


def test_the_ratio_is_the_share_of_attention_on_the_target(row) -> None:
    made = sequence(row("a", truth="yes"), [b"1", b"2"], seed=0)
    attention = [np.full(576, 1.0, dtype=np.float32) for _ in range(3)]
    attention[made.target] *= 6
    assert attention_ratio(made, Attended("no", tuple(attention), (0.5,))) == pytest.approx(0.75)
    inner = picture_in_picture(row("a", truth="yes"), plain("red"), plain("blue"), seed=1)
    assert attention_ratio(inner, Attended("no", even(1), (0.5,))) == pytest.approx(256 / 576)


def test_the_ratio_of_a_collage_counts_the_patches_of_its_tile(row) -> None:
    made = collage(row("a", truth="yes"), plain("red"), [plain("blue")], seed=4)
    values = np.zeros((24, 24), dtype=np.float32)
    left, _, right, _ = made.boxes[made.target]
    values[12, int(24 * (left + right) / 2)] = 3.0
    values[12, 11 if made.target else 13] += 1.0
    ratio = attention_ratio(made, Attended("no", (values.ravel(),), (0.5,)))
    assert ratio == pytest.approx(0.75)


def test_only_unsure_wrong_answers_that_looked_elsewhere_make_pairs(row) -> None:
    made = sequence(row("a", truth="yes"), [b"1"], seed=0)
    right = [np.ones(576, dtype=np.float32) for _ in range(2)]
    right[made.target] *= 9
    cases = {
        "": Attended("no", even(2), (0.5, 0.5)),
        "looked_at_the_target": Attended("no", tuple(right), (0.5,)),
        "too_sure": Attended("no", even(2), (0.95,)),
        "answered_right": Attended(" Yes", even(2), (0.5,)),
        "empty_answer": Attended(" ", even(2), (0.5,)),
    }
    assert {reason: rejects(made, attended) for reason, attended in cases.items()} == {
        reason: reason for reason in cases
    }
    long = sequence(row("a", truth="y" * 512), [b"1"], seed=0)
    assert rejects(long, cases[""]) == "long_answer"
    assert Attended("no", (), (0.5, 0.5)).perplexity == pytest.approx(2.0)


def test_limits_hold_at_equality_for_sequences_only(row) -> None:
    made = sequence(row("a", truth="yes"), [b"1"], seed=0)
    split = [np.full(1, 0.2), np.full(1, 0.2)]
    split[made.target] = np.full(1, 0.8)
    assert LIMITS["sequence", 2] == 0.8
    assert rejects(made, Attended("no", tuple(split), (0.5,))) == ""
    inner = picture_in_picture(row("a", truth="yes"), plain("red"), plain("blue"), seed=1)
    grid = np.zeros((24, 24))
    grid[12, 12], grid[0, 0] = 0.8, 0.2
    assert rejects(inner, Attended("no", (grid.ravel(),), (0.5,))) == "looked_at_the_target"


def test_pairs_are_made_in_every_layout_and_again_from_their_records(row, stages) -> None:
    rows = [row(name, "Is it red?", "yes", colour) for name, colour in zip("abc", COLOURS, strict=False)]
    seen = []

    def look(shown, seed):
        seen.extend(shown)
        return [Attended("no", even(len(one.images)), (0.5,)) for one in shown]

    pairs, counts = multi_image_pairs(rows, look, opened, stages)
    again, _ = multi_image_pairs(rows, look, opened, stages)
    assert len(seen) == 9
    assert [(one.row, one.columns) for one in again] == [(one.row, one.columns) for one in pairs]
    assert {pair.columns["layout"] for pair in pairs} == {"sequence", "collage", "picture_in_picture"}
    assert counts["rows"] == len(pairs) == 9
    assert pairs[0].chosen == "yes"
    assert pairs[0].rejected == "no"


def test_rows_without_one_image_or_others_to_stand_beside_are_refused(row) -> None:
    alone = row("a", truth="yes")
    with pytest.raises(ConfigError, match=r"sequence of row a: got \[0 other images\]"):
        compose(alone, [alone], "sequence", opened, seed=0)
    bare = row("b", truth="yes")
    with pytest.raises(ConfigError, match="row b images: got 0, expected 1"):
        compose(type(bare)(prompt="p", candidates=(), id="b"), [alone], "sequence", opened, seed=0)
