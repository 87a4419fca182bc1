"""Shifts move pictures as their formulas say, the same every time, and places follow the seed."""

import numpy as np
import pytest
from PIL import Image

from mmalign.errors import ConfigError
from mmalign.evals.image_shifts import (
    ShiftInput,
    crop,
    cutmix,
    mixup,
    overlay,
    rotate,
    shrink,
    standard_shifts,
    stretch,
)


def picture(size=(70, 50), seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def given(**changes):
    return ShiftInput(
        **{"image": picture(), "auxiliary": picture((31, 23), 1), "text": "two words", **changes}
    )


def pixels(image):
    return np.asarray(image).astype(int)


def test_mixup_is_the_weighted_mean_and_its_ends_are_the_pictures():
    item = given()
    other = pixels(item.auxiliary.resize((70, 50), Image.Resampling.BICUBIC))
    for share in (0, 0.25, 1):
        expected = share * pixels(item.image) + (1 - share) * other
        assert np.abs(pixels(mixup(share).apply(item)) - expected).max() <= 1


def test_cutmix_covers_its_share_with_the_auxiliary_and_leaves_the_rest():
    item = given(image=Image.new("RGB", (70, 50)), auxiliary=Image.new("RGB", (3, 5), (255, 0, 0)))
    covered = pixels(cutmix(0.25).apply(item))[..., 0] == 255
    assert covered.mean() == pytest.approx(0.25, abs=0.01)
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert pixels(cutmix(0).apply(item)).max() == 0
    assert (pixels(cutmix(1).apply(item))[..., 0] == 255).all()


def test_random_places_follow_the_seed_and_the_shift():
    one, same, other = (pixels(cutmix(0.25).apply(given(seed=seed))) for seed in (3, 3, 4))
    assert (one == same).all()
    assert (one != other).any()


def test_places_reach_every_edge():
    item = Image.new("RGB", (11, 7))
    lefts = set()
    for seed in range(60):
        shifted = cutmix(0.3).apply(
            given(image=item, auxiliary=Image.new("RGB", (5, 5), (255, 255, 255)), seed=seed)
        )
        lefts.add(int(np.flatnonzero(pixels(shifted)[..., 0].any(axis=0))[0]))
    assert lefts == set(range(6))


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (270, 3), (-90, 3), (360, 0), (0, 0)])
def test_quarter_turns_move_pixels_and_change_none(degrees, turns):
    item = given()
    assert (pixels(rotate(degrees).apply(item)) == np.rot90(pixels(item.image), turns)).all()


def test_other_turns_grow_the_canvas_and_fill_it_with_grey():
    turned = rotate(15).apply(given(image=Image.new("RGB", (70, 50), (255, 255, 255))))
    assert turned.size[0] > 70
    assert turned.size[1] > 50
    assert turned.getpixel((0, 0)) == (127, 127, 127)


def test_a_crop_is_an_enlarged_part():
    item = given(
        image=Image.fromarray(np.repeat(np.arange(70, dtype=np.uint8)[None, :, None] * 3, 50, 0).repeat(3, 2))
    )
    shifted = pixels(crop(0.25).apply(item))
    assert shifted.shape == (50, 70, 3)
    assert np.ptp(shifted) == pytest.approx(35 * 3, abs=8)  # half the width of the ramp
    assert (pixels(crop(1).apply(item)) == pixels(item.image)).all()


def test_shrinking_loses_detail_and_keeps_the_size():
    item = given()
    shifted = shrink(0.2).apply(item)
    assert shifted.size == item.image.size
    assert pixels(shifted).std() < 0.4 * pixels(item.image).std()


def test_stretching_changes_the_width_alone():
    assert stretch(2).apply(given()).size == (140, 50)
    assert stretch(0.1).apply(given(image=picture((3, 5)))).size == (1, 5)


def test_an_overlay_writes_the_text_and_different_texts_differ():
    plain = given(image=Image.new("RGB", (140, 110), (90, 90, 90)))
    written = pixels(overlay(0.1).apply(plain))
    changed = (written != 90).any(axis=2)
    assert changed[:55].sum() == 0
    assert written.max() > 240
    assert written.min() < 15
    assert (written != pixels(overlay(0.1).apply(given(image=plain.image, text="other")))).any()
    assert (pixels(overlay().apply(given(image=plain.image, text=""))) == 90).all()


def test_long_texts_are_broken_into_lines_that_stay_inside():
    item = given(image=Image.new("RGB", (140, 110), (90, 90, 90)), text="many words " * 9)
    changed = (pixels(overlay(0.1).apply(item)) != 90).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert np.ptp(rows) > 50
    assert columns[0] > 0
    assert columns[-1] < 139


@pytest.mark.parametrize("shift", standard_shifts(), ids=lambda shift: shift.name)
def test_every_standard_shift_is_deterministic_and_leaves_its_input_alone(shift):
    item = given()
    before = pixels(item.image).copy()
    assert (pixels(shift.apply(item)) == pixels(shift.apply(item))).all()
    assert (pixels(item.image) == before).all()
    assert shift.apply(item).mode == "RGB"
    assert shift.apply(given(image=picture((1, 1)))).size >= (1, 1)


def test_standard_shifts_have_different_names_and_know_which_mix():
    names = [shift.name for shift in standard_shifts()]
    assert len(set(names)) == len(names) == 22
    assert not any(shift.mixes for shift in standard_shifts(mixing=False))


def test_settings_out_of_range_and_missing_pictures_are_refused():
    with pytest.raises(ConfigError, match=r"mixup share: got 1.5, expected 0 to 1"):
        mixup(1.5)
    with pytest.raises(ConfigError, match=r"crop area: got 0, expected 0.0001 to 1"):
        crop(0)
    with pytest.raises(ConfigError, match=r"shift mixup 0.3: got 'no auxiliary picture', expected one"):
        mixup(0.3).apply(given(auxiliary=None))
