"""Encoded images to pixels: exotic ones come out right, broken ones say what is wrong with them."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmalign.data.config import ImageLimits
from mmalign.data.media import decode_image, image_ending, read_media, safe_path
from mmalign.errors import RowError

LIMITS = ImageLimits()


def decode(data, limits=LIMITS, **options):
    return decode_image(data, where="rows.parquet:7 jpg_0", limits=limits, **options)


def saved(image, format="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


KNOWN_OUTCOMES = {
    *("RGB", "truncated_image", "damaged_image", "not_an_image"),
    *("too_many_pixels", "too_small", "extreme_aspect"),
}


def outcome(data):
    """Mode of the decoded image, or the reason why there is none; any other error fails the test."""
    try:
        return decode(data).image.mode
    except RowError as error:
        return error.reason


def refused(data, reason, message, limits=LIMITS):
    with pytest.raises(RowError, match=message) as caught:
        decode(data, limits)
    assert caught.value.reason == reason
    assert "rows.parquet:7 jpg_0" in str(caught.value)


def test_a_plain_jpeg_decodes_to_rgb_with_its_size(encoded):
    found = decode(encoded(size=(40, 32)))
    assert found.image.mode == "RGB"
    assert found.image.size == (40, 32)
    assert found.original_size == (32, 40)


def test_a_truncated_jpeg_is_refused_by_name(encoded):
    data = encoded(size=(200, 150))
    refused(data[: len(data) // 2], "truncated_image", "truncated")


def test_a_truncated_png_is_refused(encoded):
    data = encoded(size=(200, 150), format="PNG")
    with pytest.raises(RowError, match=r"truncated|damaged"):
        decode(data[: len(data) // 2])


def test_text_in_place_of_an_image_is_refused():
    refused(b"<html>404 not found</html>", "not_an_image", "starts with b'<html>40'")


def test_postscript_is_not_handed_to_an_interpreter():
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "not_an_image", "expected an image")


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    header = b"\x89PNG\r\n\x1a\n"
    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(size)) + b"IHDR" + size + struct.pack(">I", zlib.crc32(b"IHDR" + size))
    data = header + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    refused(data, "too_many_pixels", "pixels")


def test_an_image_above_the_pixel_limit_says_how_to_raise_it(encoded):
    refused(encoded(), "too_many_pixels", r"40 x 32 = 1280 pixels.*max_pixels", ImageLimits(max_pixels=1000))


def test_a_placeholder_of_one_pixel_is_refused():
    refused(saved(Image.new("RGB", (1, 1))), "too_small", "1 x 1 pixels")


def test_an_extreme_aspect_ratio_is_refused(encoded):
    refused(encoded(size=(400, 20)), "extreme_aspect", "max_aspect_ratio")


def test_cmyk_keeps_its_colour():
    cyan = saved(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG", quality=95)
    red, green, blue = np.array(decode(cyan).image)[16, 16]
    assert red < 40
    assert green > 200
    assert blue > 200


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.full((32, 32), 0x8000, dtype=np.uint16)
    found = np.array(decode(saved(Image.fromarray(values))).image)
    assert found.shape == (32, 32, 3)
    assert (found == 128).all()


def test_thirty_two_bit_float_images_are_scaled_from_the_unit_range():
    values = np.full((32, 32), 0.5, dtype=np.float32)
    assert (np.array(decode(saved(Image.fromarray(values), "TIFF")).image) == 128).all()


def test_alpha_is_laid_over_white():
    half = saved(Image.new("RGBA", (32, 32), (0, 0, 0, 0)))
    assert (np.array(decode(half).image) == 255).all()
    grey_alpha = saved(Image.new("LA", (32, 32), (0, 0)))
    assert (np.array(decode(grey_alpha).image) == 255).all()


def test_a_transparent_palette_colour_becomes_white():
    image = Image.new("P", (32, 32), 3)
    image.putpalette([0, 0, 0] * 3 + [200, 10, 10])
    assert (np.array(decode(saved(image, transparency=3)).image) == 255).all()
    assert tuple(np.array(decode(saved(image)).image)[0, 0]) == (200, 10, 10)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_images_become_rgb(mode):
    assert decode(saved(Image.new(mode, (32, 32)))).image.mode == "RGB"


def test_exif_orientation_turns_the_image_upright():
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 32))  # left red, right blue
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    found = decode(saved(image, "JPEG", exif=exif, quality=95))
    pixels = np.array(found.image)
    assert found.original_size == (64, 32)
    assert pixels.shape == (64, 32, 3)
    assert pixels[10, 16, 0] > 200  # red is on top now
    assert pixels[54, 16, 2] > 200


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    found = np.array(decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])).image)
    assert tuple(found[0, 0]) == (255, 0, 0)


def test_a_large_jpeg_is_decoded_small_but_keeps_its_original_size(encoded):
    found = decode(encoded(size=(640, 480)), shorter_side=100)
    assert found.original_size == (480, 640)
    assert 100 <= min(found.image.size) < 480


def test_a_small_jpeg_is_never_decoded_below_the_wanted_side(encoded):
    for side in (47, 100, 120, 121, 240, 241):
        assert min(decode(encoded(size=(640, 480)), shorter_side=side).image.size) >= side


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 10_000),
    value=st.integers(0, 255),
    format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF"]),
)
def test_flipped_bytes_give_an_image_or_a_row_error_never_another_error(encoded, place, value, format):
    data = bytearray(encoded(size=(32, 32), format=format))
    data[place % len(data)] = value
    assert outcome(bytes(data)) in KNOWN_OUTCOMES


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.99), format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]))
def test_truncation_anywhere_gives_an_image_or_a_row_error(encoded, share, format):
    data = encoded(size=(32, 32), format=format)
    assert outcome(data[: int(len(data) * share)]) in KNOWN_OUTCOMES


def test_a_zero_byte_file_is_named(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(RowError, match=r"got 0 bytes in .*empty.jpg") as caught:
        read_media(str(path), where="rows.csv:3 chosen", max_bytes=100)
    assert caught.value.reason == "empty_file"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        RowError, match=r"no such file: .*gone.jpg. Is it relative to another folder"
    ) as caught:
        read_media(str(tmp_path / "gone.jpg"), where="rows.csv:3 chosen", max_bytes=100)
    assert caught.value.reason == "missing_file"


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(RowError, match="expected a file") as caught:
        read_media(str(tmp_path), where="rows.csv:3", max_bytes=10**6)
    assert caught.value.reason == "missing_file"


def test_too_many_bytes_are_refused_before_reading(tmp_path):
    path = tmp_path / "big.jpg"
    path.write_bytes(b"x" * 101)
    with pytest.raises(RowError, match=r"101 bytes.*at most 100.*max_bytes") as caught:
        read_media(str(path), where="rows.csv:3", max_bytes=100)
    assert caught.value.reason == "too_many_bytes"


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "/etc/passwd"])
def test_a_path_that_leaves_its_folder_is_refused(tmp_path, path):
    with pytest.raises(RowError, match=r"expected a file inside .*allow_outside") as caught:
        safe_path(path, root=tmp_path, where="rows.jsonl:3 chosen")
    assert caught.value.reason == "path_outside"
    assert os.path.isabs(safe_path(path, root=tmp_path, where="rows.jsonl:3 chosen", allow_outside=True))


def test_a_symbolic_link_that_leaves_its_folder_is_refused(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    root.mkdir()
    outside.touch()
    (root / "link.png").symlink_to(outside)
    with pytest.raises(RowError, match=r"leads to .*outside.png"):
        safe_path("link.png", root=root, where="rows.jsonl:3")
    assert safe_path("link.png", root=tmp_path / "root", where="", allow_outside=True).endswith("link.png")


def test_an_absolute_path_inside_the_folder_is_fine(tmp_path):
    inside = tmp_path / "a.png"
    assert safe_path(str(inside), root=tmp_path, where="") == str(inside.resolve())


def test_an_address_is_not_fetched(tmp_path):
    with pytest.raises(RowError, match="Download the media first") as caught:
        safe_path("https://example.org/a.jpg", root=tmp_path, where="rows.csv:3")
    assert caught.value.reason == "remote_path"


@pytest.mark.parametrize("path", ["", "  ", "a\0b"])
def test_an_empty_path_is_refused(tmp_path, path):
    with pytest.raises(RowError, match="expected the name of a file"):
        safe_path(path, root=tmp_path, where="rows.csv:3")


@pytest.mark.parametrize(
    ("format", "ending"), [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")]
)
def test_endings_follow_the_bytes(encoded, format, ending):
    assert image_ending(encoded(format=format)) == ending


def test_a_path_with_half_a_surrogate_pair_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="expected a name the file system can hold") as caught:
        safe_path("\ud83d.png", root=tmp_path, where="rows.jsonl:3 image")
    assert caught.value.reason == "bad_path"
