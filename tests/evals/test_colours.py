"""Colours by CLIP: what is cut out, and the classifier against a straight-line computation."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from mmalign.evals.benchmarks._scene_checks import COLOURS
from mmalign.evals.colours import load_colours, object_alone
from mmalign.evals.detectors import Detection
from mmalign.testing.reward_checkpoints.clip import write_clip_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_folder(tmp_path_factory.mktemp("clip"), seed=5)


def picture(seed, width=70, height=50):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def masked(box, shape=(50, 70)):
    mask = np.zeros(shape, dtype=bool)
    left, top, right, bottom = (int(edge) for edge in box)
    mask[top:bottom:2, left:right] = True
    return Detection("dog", 0.9, box, mask)


def test_everything_but_the_object_is_grey_and_cut_to_its_box():
    image = picture(1)
    alone = np.asarray(object_alone(image, masked((10.0, 20.0, 30.0, 40.0))))
    whole = np.asarray(image)
    assert alone.shape == (20, 20, 3)
    assert (alone[0::2] == whole[20:40:2, 10:30]).all()
    assert (alone[1::2] == 0x99).all()


def test_paint_and_cut_can_be_left_out():
    image, found = picture(1), masked((10.0, 20.0, 30.0, 40.0))
    assert object_alone(image, found, crop=False).size == (70, 50)
    kept = object_alone(image, found, background=None)
    assert (np.asarray(kept) == np.asarray(image)[20:40, 10:30]).all()
    boxed = Detection("dog", 0.9, (10.4, 19.6, 30.2, 40.1))
    assert (np.asarray(object_alone(image, boxed)) == np.asarray(kept)).all()


def test_a_box_thinner_than_a_pixel_is_one_pixel_wide():
    assert object_alone(picture(1), Detection("dog", 0.9, (3.2, 5.1, 3.4, 5.3))).size == (1, 1)


def straight(folder, crops, name):
    """The released script's steps, written out: mean of normalised texts, cosine, best."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    classifier = []
    with torch.inference_mode():
        for colour in COLOURS:
            texts = [
                f"a photo of a {colour} {name}",
                f"a photo of a {colour}-colored {name}",
                f"a photo of a {colour} object",
            ]
            rows = [
                model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
                for text in texts
            ]
            mean = torch.stack([row / row.norm() for row in rows]).mean(0)
            classifier.append(mean / mean.norm())
        named = []
        for crop in crops:
            width, height = crop.size
            side = min(width, height)
            resized = crop.resize((28 * width // side, 28 * height // side), Image.Resampling.BICUBIC)
            left, top = round((resized.width - 28) / 2), round((resized.height - 28) / 2)
            pixels = np.asarray(resized.crop((left, top, left + 28, top + 28)), dtype=np.float32) / 255
            mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
            std = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
            given = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1))[None]
            image = model.get_image_features(pixel_values=given).pooler_output[0]
            scores = torch.stack([row @ image for row in classifier])
            named.append(COLOURS[int(scores.argmax())])
    return named


def test_colours_equal_a_straight_line_computation(folder):
    colours = load_colours(weights=folder)
    boxes = [
        (0.0, 0.0, 30.0, 40.0),
        (20.0, 10.0, 60.0, 50.0),
        (5.0, 5.0, 35.0, 45.0),
        (40.0, 0.0, 70.0, 30.0),
    ]
    answers = set()
    for seed in range(5):
        image = picture(seed)
        found = [masked(box) for box in boxes]
        named = colours(image, found, "fire hydrant")
        assert named == straight(folder, [object_alone(image, one) for one in found], "fire hydrant")
        assert named == [colours(image, [one], "fire hydrant")[0] for one in found]
        answers.update(named)
    assert len(answers) > 1
    assert colours(picture(1), [], "dog") == []


def test_provenance_tells_how_objects_were_shown(folder):
    provenance = load_colours(weights=folder).provenance()
    assert provenance["background"] == "#999999"
    assert provenance["crop"] is True
    assert "model.safetensors" in provenance["encoder"]["weights"]
