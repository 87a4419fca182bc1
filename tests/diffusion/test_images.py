"""The images of a row: resized on their own, cropped and mirrored together, with the geometry SDXL wants."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import ImageLimits
from mmalign.diffusion.images import ImageLoader, augmentation_of, image_key, load_candidates
from mmalign.errors import ConfigError, RowError


def ramp(width, height):
    """Red grows to the right and green grows downwards: a pixel tells where it came from."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([across, down, np.zeros_like(across)], axis=-1).astype(np.uint8)


def png(pixels):
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def row_of(*images, **fields):
    return PreferenceRow(
        "x", tuple(Candidate(image=image) for image in images), source="rows.csv:3", **fields
    )


def load(row, **options):
    return load_candidates(row, **{"resolution": 32, "crop": "center", "flip": False, "key": 7} | options)


def test_candidates_come_out_as_one_uint8_tensor():
    loaded = load(row_of(png(ramp(64, 48)), png(ramp(40, 100))))
    assert loaded.pixels.shape == (2, 3, 32, 32)
    assert loaded.pixels.dtype == torch.uint8
    assert loaded.pixels.is_contiguous()
    assert not loaded.flipped


def test_each_image_keeps_its_aspect_ratio():
    """64 x 48 becomes 42 x 32 (42.67 rounded down), 5 cut left; 40 x 100 becomes 32 x 80, 24 cut above."""
    loaded = load(row_of(png(ramp(64, 48)), png(ramp(40, 100))))
    assert loaded.geometry.tolist() == [[48, 64, 0, 5, 32, 32], [100, 40, 24, 0, 32, 32]]


def test_resizing_and_cropping_equal_torchvision():
    """Up to one grey level of rounding: torchvision resizes the whole image, here only the crop is."""
    transforms = pytest.importorskip("torchvision.transforms")
    for width, height in ((100, 75), (33, 57), (200, 64)):
        image = Image.fromarray(
            np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        )
        expected = transforms.CenterCrop(32)(transforms.Resize(32)(image))
        found = load(row_of(png(np.array(image))))
        difference = found.pixels[0].permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()
        assert difference.abs().max() <= 1


def test_small_images_are_enlarged():
    assert load(row_of(png(ramp(20, 18)))).pixels.shape == (1, 3, 32, 32)


def test_the_same_images_get_the_same_crop_and_flip():
    image = png(ramp(128, 96))
    for key in range(20):
        loaded = load(row_of(image, image), crop="random", flip=True, key=key)
        assert torch.equal(loaded.pixels[0], loaded.pixels[1])
        assert torch.equal(loaded.geometry[0], loaded.geometry[1])


def test_images_of_other_sizes_share_the_relative_window():
    """A wide image and its enlargement are the same picture: the crops must show the same part of it."""
    small, large = png(ramp(96, 48)), png(ramp(288, 144))
    for key in range(10):
        loaded = load(row_of(small, large), crop="random", key=key).pixels.float()
        assert (loaded[0] - loaded[1]).abs().max() < 8.0


def test_random_windows_reach_both_ends_and_depend_on_the_key():
    image = png(ramp(96, 48))
    lefts = [int(load(row_of(image), crop="random", key=key).geometry[0, 3]) for key in range(300)]
    assert min(lefts) == 0
    assert max(lefts) == 32  # 64 wide after resizing
    assert lefts[:50] == [
        int(load(row_of(image), crop="random", key=key).geometry[0, 3]) for key in range(50)
    ]


def test_half_of_the_keys_flip():
    flips = [augmentation_of(key, crop="center", flip=True).flip for key in range(1000)]
    assert 430 < sum(flips) < 570
    assert not any(augmentation_of(key, crop="center", flip=False).flip for key in range(100))


def test_flip_and_window_are_independent_draws():
    draws = [augmentation_of(key, crop="random", flip=True) for key in range(2000)]
    values = np.array([[draw.flip, *draw.window] for draw in draws], dtype=float)
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.08
    assert values.min() >= 0.0
    assert values.max() < 1.0 or values[:, 1:].max() < 1.0


def test_a_flip_mirrors_the_crop_and_counts_its_offset_from_the_other_side():
    image = png(ramp(97, 48))
    loader = ImageLoader(resolution=32)
    row = row_of(image)
    plain, mirrored = (loader.centered(row, [image], flipped=flipped) for flipped in (False, True))
    assert torch.equal(mirrored.pixels, plain.pixels.flip(-1))
    assert mirrored.flipped
    width = 64  # 64.67 rounded down
    assert int(mirrored.geometry[0, 3]) == width - 32 - int(plain.geometry[0, 3])


def test_original_size_is_that_of_the_file_also_when_a_jpeg_is_decoded_small():
    buffer = BytesIO()
    Image.fromarray(ramp(512, 400)).save(buffer, "JPEG", quality=95)
    loaded = load(row_of(buffer.getvalue()))
    assert loaded.geometry[0].tolist() == [400, 512, 0, 4, 32, 32]
    reference = load(row_of(png(ramp(512, 400)))).pixels.float()
    assert (loaded.pixels.float() - reference).abs().mean() < 2.0


def test_an_unreadable_candidate_is_named():
    with pytest.raises(
        RowError, match=r"rows.csv:3 candidate 1 \(rejected\): got a file that starts with"
    ) as caught:
        load(row_of(png(ramp(32, 32)), b"not an image"))
    assert caught.value.reason == "not_an_image"


def test_a_row_without_images_is_named():
    with pytest.raises(RowError, match=r"rows.csv:3 candidate 0: got no image"):
        load(
            PreferenceRow(
                "x", (Candidate(text="words"),), kind="unpaired", desirable=True, source="rows.csv:3"
            )
        )


def test_limits_are_the_callers():
    with pytest.raises(RowError, match="max_pixels"):
        load(row_of(png(ramp(64, 64))), limits=ImageLimits(max_pixels=1000))


def test_a_cache_key_depends_on_everything_that_changes_pixels():
    first, second = png(ramp(64, 64)), png(ramp(65, 64))
    keys = {
        image_key(data, resolution=resolution, flipped=flipped)
        for data in (first, second)
        for resolution in (32, 64)
        for flipped in (False, True)
    }
    assert len(keys) == 8
    assert image_key(first, resolution=32, flipped=False) == ImageLoader(32).keys([first], flipped=False)[0]


def test_random_crops_have_no_cache_keys():
    with pytest.raises(ConfigError, match="got random, expected center with a cache"):
        ImageLoader(32, crop="random").keys([b"x"], flipped=False)
