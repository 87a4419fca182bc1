"""Pixel geometry against the libraries that published rewards used, and its corner cases."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.errors import CheckpointError, ConfigError, ShapeError
from mmalign.rewards.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    Preprocessing,
    crop_offset,
    longest_pad,
    longest_size,
    pad_margins,
    shortest_crop,
    shortest_size,
)

SIZES = [(61, 43), (37, 59), (53, 53), (29, 83), (224, 97), (225, 224), (28, 31)]


@pytest.fixture
def picture(make_generator):
    def make(height, width):
        values = torch.randint(
            0, 256, (height, width, 3), generator=make_generator(height), dtype=torch.uint8
        )
        return Image.fromarray(values.numpy())

    return make


def plain_normal(pixels):
    return (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_equals_torchvision(picture, height, width):
    from torchvision import transforms

    chain = transforms.Compose(
        [
            transforms.Resize(28, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(28),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    image = picture(height, width)
    torch.testing.assert_close(Preprocessing(28)(image), chain(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_with_floored_margins_equals_hugging_face(picture, height, width):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    image = picture(height, width)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(Preprocessing(28, crop="floor")(image), expected, rtol=0, atol=1e-5)


def test_the_two_rules_of_odd_margins_are_one_pixel_apart(picture):
    image = picture(28, 31)
    assert (crop_offset(31, 28, rule="even"), crop_offset(31, 28, rule="floor")) == (2, 1)
    even, floor = (shortest_crop(image, 28, crop=rule) for rule in ("even", "floor"))
    assert torch.equal(even[..., :-1], floor[..., 1:])


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pad_equals_a_plain_resize_on_black(picture, height, width, antialias):
    image = picture(height, width)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0
    scale = 29 / max(height, width)
    tall, wide = round(height * scale), round(width * scale)
    resized = torch.nn.functional.interpolate(
        pixels[None], size=(tall, wide), mode="bicubic", align_corners=False, antialias=antialias
    )[0]
    expected = torch.zeros(3, 29, 29)
    top, left = (29 - tall) // 2, (29 - wide) // 2
    expected[:, top : top + tall, left : left + wide] = resized
    found = Preprocessing(29, fit="pad", backend="tensor", antialias=antialias)(image)
    torch.testing.assert_close(found, plain_normal(expected), rtol=0, atol=1e-5)


def test_open_clip_pads_the_same_by_pillow(picture):
    from open_clip.transform import image_transform

    for height, width in SIZES:
        image = picture(height, width)
        expected = image_transform(29, is_train=False, mean=CLIP_MEAN, std=CLIP_STD, resize_mode="longest")(
            image
        )
        torch.testing.assert_close(Preprocessing(29, fit="pad")(image), expected, rtol=0, atol=1e-6)


def test_antialias_moves_pixels(picture):
    image = picture(223, 151)
    smooth, rough = (
        Preprocessing(29, fit="pad", backend="tensor", antialias=antialias)(image)
        for antialias in (True, False)
    )
    assert float((smooth - rough).abs().mean()) > 0.05


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("backend", ["pil", "tensor"])
def test_tensors_and_files_go_nearly_the_same_way(picture, fit, backend):
    image = picture(61, 43)
    preprocessing = Preprocessing(28, fit=fit, backend=backend)
    pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0)[None].requires_grad_()
    found = preprocessing.tensor(pixels)
    distance = (found[0] - preprocessing(image)).abs()
    # Pillow rounds and clips to 8 bits after each of its two passes; on noise that is seen beside edges.
    assert float(distance.mean()) < (0.006 if backend == "pil" else 1e-6)
    assert float(distance.max()) < (0.1 if backend == "pil" else 1e-5)
    (slope,) = torch.autograd.grad(found.sum(), pixels)
    assert bool(torch.isfinite(slope).all())
    assert bool(slope.any())


def test_a_thin_picture_keeps_at_least_one_pixel(picture):
    assert longest_size(1, 2000, 28) == (1, 28)
    assert longest_pad(picture(1, 2000), 28).shape == (3, 28, 28)


def test_an_odd_pad_pixel_goes_right_or_bottom():
    assert pad_margins(28, 23, 28) == (2, 0, 3, 0)
    assert pad_margins(23, 28, 28) == (0, 2, 0, 3)


def test_longer_sides_are_floored_or_rounded_to_nearest():
    assert shortest_size(900, 1200, 224) == (224, 298)
    assert shortest_size(900, 1200, 224, rounding="nearest") == (224, 299)
    assert shortest_size(1200, 900, 224) == (298, 224)


def test_pillow_without_antialiasing_is_refused():
    with pytest.raises(ConfigError, match=r"antialias=False with backend='pil'.*expected antialias=True"):
        Preprocessing(antialias=False)
    with pytest.raises(ConfigError, match="antialias=False on 8-bit pictures"):
        shortest_crop(Image.new("RGB", (5, 7)), 3, antialias=False)


def test_an_unknown_backend_is_refused(untyped):
    with untyped, pytest.raises(ConfigError, match="got 'cv2', expected 'pil' or 'tensor'"):
        Preprocessing(backend="cv2")


def test_pixels_of_another_shape_are_refused(untyped):
    with untyped, pytest.raises(ShapeError, match=r"torch.uint8 \[2, 3, 5, 7\].*expected floating point"):
        Preprocessing().tensor(torch.zeros(2, 3, 5, 7, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"size": 28, "crop_size": 28, "resample": 3}, Preprocessing(28)),
        ({"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}, Preprocessing(28)),
        (
            {
                "size": {"height": 28, "width": 28},
                "resample": 2,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            },
            Preprocessing(28, fit="squash", resample="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
        ),
    ],
)
def test_published_preprocessing_files_are_read(tmp_path, stored, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    assert Preprocessing.from_folder(tmp_path) == expected


@pytest.mark.parametrize(
    "stored",
    [
        {"size": 28, "crop_size": 20},
        {"size": 28, "resample": 0},
        {"size": 28, "do_center_crop": False},
        {"size": 28, "rescale_factor": 1.0},
    ],
)
def test_preprocessing_that_is_something_else_is_refused(tmp_path, stored):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json.*expected a resize to one side"):
        Preprocessing.from_folder(tmp_path)


def test_settings_are_json_and_name_every_field():
    settings = Preprocessing(28, fit="pad").settings()
    assert json.loads(json.dumps(settings)) == settings
    assert set(settings) == {"size", "fit", "crop", "backend", "antialias", "resample", "mean", "std"}
