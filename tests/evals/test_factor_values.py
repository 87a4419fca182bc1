"""Factors of pictures and texts whose values can be worked out by hand."""

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mmalign.evals.factor_values import (
    IMAGE_FACTORS,
    TEXT_FACTORS,
    image_factors,
    prompt_factors,
    text_factors,
)


def flat(red, green, blue, size=(14, 10)):
    return Image.new("RGB", size, (red, green, blue))


@pytest.fixture(scope="module")
def photo():
    """A smooth picture with noise on it, coloured and brighter to one side."""
    ramp = np.linspace(40, 200, 35)[None, :, None] * np.ones((21, 1, 3)) * np.array([1.0, 0.7, 0.5])
    noise = np.random.default_rng(0).normal(0, 12, ramp.shape)
    return Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8))


def test_every_factor_is_described_and_measured(photo):
    assert image_factors(photo).keys() == IMAGE_FACTORS.keys()
    assert text_factors("One.").keys() == TEXT_FACTORS.keys()


def test_a_flat_colour_has_the_values_of_its_formulas():
    found = image_factors(flat(255, 102, 51))
    assert found["brightness"] == pytest.approx(0.299 + 0.587 * 0.4 + 0.114 * 0.2)
    assert found["saturation"] == pytest.approx(0.8)
    assert found["warmth"] == pytest.approx(0.8)
    opponents = (255 - 102, (255 + 102) / 2 - 51)
    assert found["colourfulness"] == pytest.approx(0.3 * math.hypot(*opponents))
    assert found["contrast"] == pytest.approx(0, abs=1e-9)
    assert found["sharpness"] == pytest.approx(0, abs=1e-9)
    assert found["megapixels"] == pytest.approx(140e-6)
    assert found["aspect"] == pytest.approx(math.log(1.4))


def test_black_and_white_have_no_colour_and_are_clipped():
    for value in (0, 255):
        found = image_factors(flat(value, value, value))
        assert (found["saturation"], found["colourfulness"], found["clipped"]) == (0.0, 0.0, 1.0)


def test_halves_of_black_and_white_have_the_greatest_contrast():
    image = flat(0, 0, 0)
    image.paste((255, 255, 255), (7, 0, 14, 10))
    assert image_factors(image)["contrast"] == pytest.approx(0.5)


def test_blurring_takes_sharpness_and_bytes_and_greying_takes_colour(photo):
    plain = image_factors(photo)
    blurred = image_factors(photo.filter(ImageFilter.GaussianBlur(2)))
    grey = image_factors(photo.convert("L"))
    assert blurred["sharpness"] < 0.2 * plain["sharpness"]
    assert blurred["bytes_per_pixel"] < plain["bytes_per_pixel"]
    assert plain["colourfulness"] > 10 > 1e-9 > grey["colourfulness"]
    assert grey["brightness"] == pytest.approx(plain["brightness"], abs=0.01)


def test_sharpness_of_large_pictures_is_measured_at_one_size():
    checks = (np.indices((256, 260)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = Image.fromarray(checks).convert("RGB")
    large = small.resize((780, 768), Image.Resampling.NEAREST)
    assert image_factors(large)["sharpness"] == pytest.approx(image_factors(small)["sharpness"], rel=1e-3)


def test_a_picture_of_two_pixels_has_no_sharpness():
    assert math.isnan(image_factors(flat(1, 2, 3, size=(2, 2)))["sharpness"])


def test_a_text_has_the_counts_of_its_parts():
    text = (
        "# Results\n\nI think there may be 3 cats, or 1,200. You can clearly see them!\n\n"
        "- **one** cat\n- two dogs\n1. first\n\n```\ncode\n```\nIs it so?"
    )
    found = text_factors(text)
    words = 26
    assert found["words"] == words
    assert found["sentences"] == 3
    assert (found["list_items"], found["headings"], found["bold"], found["code_blocks"]) == (3, 1, 1, 1)
    assert (found["numbers"], found["questions"], found["exclamations"]) == (3, 1, 1)
    assert found["hedges"] == pytest.approx(2 * 100 / words)  # "I think", "may"
    assert found["boosters"] == pytest.approx(100 / words)
    assert found["first_person"] == pytest.approx(100 / words)
    assert found["second_person"] == pytest.approx(100 / words)


def test_distinct_words_ignore_case_and_word_length_counts_letters():
    found = text_factors("The the THE cat")
    assert found["distinct_words"] == 0.5
    assert found["word_length"] == 3.0


def test_an_empty_text_is_all_zeros():
    assert set(text_factors("  \n").values()) == {0.0}


def test_prompts_count_words_and_commas():
    assert prompt_factors("a cat, oil painting, 4k") == {"prompt_words": 5.0, "prompt_commas": 2.0}
