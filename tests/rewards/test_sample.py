"""What is scored: one picture however it comes, hashes of content and of nothing else."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.errors import RowError
from mmalign.rewards.sample import Sample, media_hash, to_image, to_pixels


@pytest.fixture
def colours(generator):
    return torch.randint(0, 256, (3, 5, 7), generator=generator, dtype=torch.uint8)


def encoded(image, **options):
    buffer = BytesIO()
    image.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


def test_a_picture_is_the_same_in_every_form(colours, tmp_path):
    rows = colours.permute(1, 2, 0).numpy()
    image = Image.fromarray(rows)
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(image))
    forms = [path, str(path), path.read_bytes(), image, rows, colours.numpy(), colours]
    forms += [colours.permute(1, 2, 0), colours[None], colours.float() / 255.0, colours.double() / 255.0]
    for media in forms:
        assert np.array_equal(np.asarray(to_image(media)), rows)
        assert torch.equal(to_pixels(media), colours.float() / 255.0)


def test_grey_pictures_get_three_equal_channels(colours):
    grey = colours[:1]
    expected = grey.expand(3, -1, -1).float() / 255.0
    assert torch.equal(to_pixels(grey), expected)
    assert torch.equal(to_pixels(grey.permute(1, 2, 0).numpy()), expected)
    assert torch.equal(to_pixels(Image.fromarray(grey[0].numpy())), expected)


@pytest.mark.parametrize("form", ["file", "pil", "array", "tensor"])
def test_transparency_is_laid_over_white(form):
    rows = np.zeros((5, 7, 4), dtype=np.uint8)
    rows[:, :3] = (255, 0, 0, 255)
    rows[:, 3:] = (9, 9, 9, 0)
    image = Image.fromarray(rows, mode="RGBA")
    media = {
        "file": encoded(image),
        "pil": image,
        "array": rows,
        "tensor": torch.from_numpy(rows).permute(2, 0, 1),
    }
    found = to_pixels(media[form])
    assert torch.equal(found[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(found[:, 0, 6], torch.ones(3))
    assert found.shape == (3, 5, 7)


def test_pictures_are_turned_upright_once(colours):
    image = Image.fromarray(colours.permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned = encoded(image, exif=exif)
    expected = np.rot90(np.asarray(image), k=-1)
    assert np.array_equal(np.asarray(to_image(turned)), expected)
    assert np.array_equal(np.asarray(to_image(Image.open(BytesIO(turned)))), expected)


@pytest.mark.parametrize(
    ("media", "message"),
    [
        (torch.zeros(3, 5, 7) - 0.5, "from -0.5 to -0.5.*expected uint8.*x \\+ 1"),
        (torch.full((3, 5, 7), 200.0), "from 200 to 200"),
        (torch.full((3, 5, 7), torch.nan), "from nan"),
        (torch.zeros(3, 5, 7, dtype=torch.int64), "torch.int64"),
        (np.zeros((5, 7, 3), dtype=np.uint16), "torch.uint16"),
        (torch.zeros(5, 7), r"\[5, 7\].*expected \[3, height, width\]"),
        (torch.zeros(3, 0, 7), r"\[3, 0, 7\]"),
        (torch.zeros(2, 3, 5, 7), r"\[2, 3, 5, 7\]"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(media, message):
    with pytest.raises(RowError, match=message) as caught:
        to_pixels(media)
    assert caught.value.reason == "not_an_image"


def test_things_that_are_no_media_are_refused(untyped):
    with untyped, pytest.raises(RowError, match="got 'int', expected a path, encoded bytes"):
        to_image(5)


def test_missing_and_broken_files_say_so(tmp_path):
    with pytest.raises(RowError, match="no such file") as caught:
        to_image(tmp_path / "nowhere.png")
    assert caught.value.reason == "missing_file"
    with pytest.raises(RowError) as caught:
        to_image(b"these bytes are no picture")
    assert caught.value.reason == "not_an_image"


def test_hash_is_of_the_file_and_not_of_its_name(colours, tmp_path):
    data = encoded(Image.fromarray(colours.permute(1, 2, 0).numpy()))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(data)
    hashes = {media_hash(media) for media in (tmp_path / "a.png", str(tmp_path / "b.png"), data)}
    assert len(hashes) == 1


def test_hash_sees_type_shape_and_values(colours):
    other = colours.clone()
    other[2, 4, 6] ^= 1
    media = [
        colours,
        other,
        colours.float() / 255.0,
        colours.permute(0, 2, 1),
        colours.numpy(),
        colours[:, :4],
    ]
    media += [torch.tensor(3.0), torch.tensor(3.0, dtype=torch.bfloat16)]
    assert len({media_hash(one) for one in media}) == len(media)
    assert media_hash(colours) == media_hash(colours.clone())


def test_hash_sees_palette_transparency_and_orientation():
    indices = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) % 2, mode="P")
    variants = [indices.copy() for _ in range(4)]
    variants[0].putpalette([0, 0, 0, 255, 255, 255])
    variants[1].putpalette([9, 9, 9, 255, 255, 255])
    variants[2].putpalette([0, 0, 0, 255, 255, 255])
    variants[2].info["transparency"] = 0
    variants[3].putpalette([0, 0, 0, 255, 255, 255])
    variants[3].getexif()[0x0112] = 6
    assert len({media_hash(one) for one in variants}) == 4


def test_content_hash_is_of_everything_that_can_change_a_score(colours):
    sample = Sample("a cat", image=colours, extras={"weights": [1, 2]})
    same = Sample("a cat", image=colours.clone(), extras={"weights": [1, 2]}, id="other name")
    others = [
        Sample("a dog", image=colours, extras={"weights": [1, 2]}),
        Sample("a cat", image=colours.flip(2), extras={"weights": [1, 2]}),
        Sample("a cat", frames=[colours], extras={"weights": [1, 2]}),
        Sample("a cat", frames=[colours, colours], extras={"weights": [1, 2]}),
        Sample("a cat", image=colours, text="", extras={"weights": [1, 2]}),
        Sample("a cat", image=colours, extras={"weights": [2, 1]}),
        Sample("a cat", image=colours, extras={"weights": [1, 2], "mask": colours}),
    ]
    assert same.content_hash() == sample.content_hash()
    assert len({one.content_hash() for one in [sample, *others]}) == len(others) + 1


def test_extras_without_a_hash_are_refused():
    with pytest.raises(TypeError, match="got 'object', expected text, numbers, lists or media"):
        Sample("a", extras={"thing": object()}).content_hash()
