"""Images and videos are spoilt as papers say, keep their size, and equal keys spoil alike."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.errors import ConfigError, HyperparameterError, UnknownNameError
from mmalign.vlm.corruptions import CORRUPTIONS, corrupt_row, corruption
from mmalign.vlm.corruptions.frames import groups_of, kept_of, shuffled
from mmalign.vlm.corruptions.images import noise_levels

ON_IMAGES = [name for name, entry in CORRUPTIONS.items() if entry.on_image]
ON_FRAMES = [name for name, entry in CORRUPTIONS.items() if entry.on_frames]


def picture(seed: int = 0, size: tuple[int, int] = (37, 29)) -> Image.Image:
    """A picture without two equal rows or columns."""
    values = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(values.to(torch.uint8).numpy())


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(number: int) -> Image.Image:
    """A frame whose colour is its number."""
    return Image.new("RGB", (5, 3), (number, number, number))


def numbers(frames) -> list[int]:
    return [frame.getpixel((0, 0))[0] for frame in frames]


@pytest.mark.parametrize("name", ON_IMAGES)
def test_a_spoilt_image_has_its_size_and_other_pixels(name: str) -> None:
    image = picture()
    made, drawn = CORRUPTIONS[name].image(image, generator=generator(), other=picture(1, (11, 13)))
    assert made.size == image.size
    assert made.mode == "RGB"
    assert np.abs(np.asarray(made, dtype=int) - np.asarray(image, dtype=int)).mean() > 5
    assert all(isinstance(value, float | int | str) for value in drawn.values())


@pytest.mark.parametrize("name", ON_FRAMES)
def test_a_spoilt_video_has_its_length_and_another_content(name: str) -> None:
    frames = tuple(plain(number) for number in range(1, 14))
    made, drawn = CORRUPTIONS[name].frames(frames, generator=generator())
    assert len(made) == 13
    assert numbers(made) != numbers(frames)
    assert {frame.size for frame in made} == {(5, 3)}
    assert drawn


@pytest.mark.parametrize("name", ON_IMAGES)
def test_equal_keys_spoil_alike_and_other_keys_otherwise(name: str) -> None:
    others = [picture(number, (7, 5)) for number in range(2, 9)]
    images = [picture(0), picture(1)]
    given = others if CORRUPTIONS[name].needs_other else []
    first = corrupt_row(images, name, key=5, others=given)
    again = corrupt_row(images, name, key=5, others=given)
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    if name not in ("black", "mean_colour"):
        drawn = {corrupt_row(images[:1], name, key=key, others=given)[0].tobytes() for key in range(6)}
        assert len(drawn) > 2


def test_images_of_one_row_draw_apart() -> None:
    same = [picture(), picture()]
    first, second = corrupt_row(same, "pixel_mask", key=7)
    assert first.tobytes() != second.tobytes()


def test_a_crop_keeps_one_to_twenty_percent_of_the_area() -> None:
    image = picture(size=(200, 160))
    shares = [CORRUPTIONS["crop"].image(image, generator=generator(seed))[1]["share"] for seed in range(200)]
    assert 0.009 < min(shares) < 0.03
    assert 0.17 < max(shares) < 0.203
    assert np.mean(shares) == pytest.approx(0.105, abs=0.012)


def test_a_crop_is_a_part_of_the_image() -> None:
    image = Image.new("RGB", (200, 160), (9, 9, 9))
    image.paste((200, 0, 0), (0, 0, 100, 160))
    made, drawn = CORRUPTIONS["crop"].image(image, generator=generator(1), strength=0.2)
    left = drawn["left"] + 0.5 * drawn["width"] / 200
    assert made.getpixel((0, 0)) == image.getpixel((int(left), drawn["top"]))
    aspect = drawn["width"] / drawn["height"]
    assert 0.7 < aspect < 1.4


def test_a_crop_of_a_sliver_stays_inside() -> None:
    made, drawn = CORRUPTIONS["crop"].image(picture(size=(300, 2)), generator=generator(), strength=1.0)
    assert made.size == (300, 2)
    assert drawn["left"] + drawn["width"] <= 300
    assert drawn["top"] + drawn["height"] <= 2


def test_noise_levels_are_those_of_the_sigmoid_schedule() -> None:
    levels = noise_levels()
    rate = 1 / (1 + np.exp(6)) * (5e-3 - 1e-5) + 1e-5
    assert levels[0] == pytest.approx(1 - rate, rel=1e-6)
    steps = np.linspace(-6, 6, 1000)
    product = 1.0
    for value in steps[:501]:
        product *= 1 - (1 / (1 + np.exp(-value)) * 4.99e-3 + 1e-5)
    assert levels[500] == pytest.approx(product, rel=1e-5)


def test_diffusion_noise_scales_the_picture_by_the_root_of_its_level() -> None:
    mean = (np.array([0.48145466, 0.4578275, 0.40821073]) * 255).round()
    image = Image.fromarray(np.tile((mean + np.array([30, -30, 20])).astype(np.uint8), (160, 160, 1)))
    made, drawn = CORRUPTIONS["diffusion_noise"].image(image, generator=generator())
    shift = np.asarray(made, dtype=float).mean(axis=(0, 1)) - mean
    assert shift == pytest.approx(np.array([30, -30, 20]) * drawn["signal"] ** 0.5, abs=1.5)
    spread = np.asarray(made, dtype=float)[..., 0].std() / 255
    assert spread == pytest.approx(0.26863 * (1 - drawn["signal"]) ** 0.5, rel=0.03)


def test_masks_hide_their_share_in_the_mean_colour() -> None:
    image = picture(size=(140, 112))
    mean = np.asarray(image, dtype=float).mean(axis=(0, 1))
    for name, tolerance in (("pixel_mask", 0.02), ("block_mask", 0.15)):
        made, drawn = CORRUPTIONS[name].image(image, generator=generator(), strength=0.3)
        hidden = (np.asarray(made) == mean.round().astype(np.uint8)).all(axis=-1)
        assert hidden.mean() == pytest.approx(0.3, abs=tolerance)
        assert hidden.mean() == pytest.approx(drawn["hidden"], abs=0.001)
        if name == "block_mask":
            cells = hidden.reshape(8, 14, 10, 14).mean(axis=(1, 3))
            assert set(np.unique(cells.round(1))) == {0.0, 1.0}


def test_mixup_is_the_weighted_mean_of_both_images() -> None:
    one, other = Image.new("RGB", (7, 5), (100, 0, 0)), Image.new("RGB", (3, 3), (0, 200, 0))
    made, _ = CORRUPTIONS["mixup"].image(one, generator=generator(), strength=0.25, other=other)
    assert made.getpixel((2, 2)) == (75, 50, 0)


def test_the_mean_colour_becomes_nearly_zero_under_the_processor() -> None:
    made, _ = CORRUPTIONS["mean_colour"].image(picture(), generator=generator())
    normalised = (np.asarray(made) / 255 - [0.48145466, 0.4578275, 0.40821073]) / 0.27
    assert np.abs(normalised).max() < 0.01


def test_all_frames_of_a_video_lose_the_same_part() -> None:
    frames = tuple(picture(0) for _ in range(3))
    made = corruption("crop").frames(frames, 11)
    assert len({frame.tobytes() for frame in made}) == 1
    assert made[0].tobytes() == corruption("crop")(frames[0], 11).tobytes()


def test_groups_are_as_large_as_the_number_of_frames_over_the_number_of_groups() -> None:
    assert groups_of(7, 2) == [[0, 1, 2], [3, 4, 5], [6]]
    assert groups_of(5, 16) == [[0], [1], [2], [3], [4]]
    with pytest.raises(HyperparameterError, match="number of groups"):
        groups_of(5, 0)


def test_frames_are_reversed_in_groups() -> None:
    frames = tuple(plain(number) for number in range(7))
    made, _ = CORRUPTIONS["reverse"].frames(frames, generator=generator(), strength=2.0)
    assert numbers(made) == [6, 3, 4, 5, 0, 1, 2]


def test_frames_are_shuffled_in_groups() -> None:
    frames = tuple(plain(number) for number in range(6))
    made, _ = CORRUPTIONS["shuffle"].frames(frames, generator=generator(), strength=3.0)
    found = numbers(made)
    assert sorted(found) == list(range(6))
    assert all(found[place + 1] == found[place] + 1 for place in (0, 2, 4))
    assert found != list(range(6))


def test_an_order_is_never_the_given_one_unless_there_is_no_other() -> None:
    assert all(shuffled(2, generator(seed)) == [1, 0] for seed in range(9))
    assert shuffled(1, generator()) == [0]


def test_dropped_frames_show_the_nearest_kept_one() -> None:
    frames = tuple(plain(number) for number in range(12))
    made, drawn = CORRUPTIONS["drop"].frames(frames, generator=generator(), strength=4.0)
    kept = [int(place) for place in drawn["kept"].split()]
    assert len(kept) == 3
    assert set(numbers(made)) == set(kept)
    assert numbers(made) == sorted(numbers(made))
    assert len(kept_of(3, 16, generator())) == 1


def test_a_clip_is_one_stretch_slowed_down() -> None:
    frames = tuple(plain(number) for number in range(12))
    made, drawn = CORRUPTIONS["clip"].frames(frames, generator=generator(), strength=0.25)
    start = drawn["start"]
    assert numbers(made) == sorted([start, start + 1, start + 2] * 4)


def test_masked_frames_are_black() -> None:
    frames = tuple(plain(number) for number in range(1, 8))
    made, _ = CORRUPTIONS["frame_mask"].frames(frames, generator=generator(), strength=0.3)
    assert numbers(made).count(0) == 3


def test_settings_that_cannot_be_used_are_refused_before_any_row() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown corruption 'crup'.*crop"):
        corruption("crup")
    with pytest.raises(ConfigError, match=r"crop strength: got 3.0, expected 0.01 to 1"):
        corruption("crop", 3.0)
    with pytest.raises(ConfigError, match="an image of another row"):
        corruption("mixup")
    with pytest.raises(ConfigError, match="it has no degrees"):
        corruption("black", 0.5)
    with pytest.raises(ConfigError, match="a share above 0"):
        corruption("clip", 0.0)
    with pytest.raises(ConfigError, match="a standard deviation"):
        corruption("gaussian", -1.0)


def test_an_order_of_frames_cannot_spoil_an_image() -> None:
    with pytest.raises(ConfigError, match=r"expected a video.*Of images: crop"):
        corruption("reverse")(picture(), 0)
