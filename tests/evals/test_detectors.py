"""Detectors of transformers: instances from queries by hand, tiny networks from disk, lone pictures."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
    SwinConfig,
)

from mmalign.errors import CheckpointError, ConfigError
from mmalign.evals.detectors import Detector, instances_from_queries, load_detector

LABELS = {0: "dog", 1: "bench", 2: "apple"}
SIZE = {"shortest_edge": 48, "longest_edge": 96}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A Mask2Former of 0.1 M parameters, saved as the published ones are."""
    folder = tmp_path_factory.mktemp("mask2former")
    swin = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=32,
        mask_feature_size=32,
        feature_size=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        num_attention_heads=2,
        dim_feedforward=16,
        decoder_layers=2,
        num_queries=7,
        id2label=LABELS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Mask2FormerForUniversalSegmentation(config)
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size=SIZE, size_divisor=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def boxer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detr")
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=resnet,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
        id2label=LABELS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = DetrForObjectDetection(config)
    model.save_pretrained(folder)
    DetrImageProcessor(size=SIZE).save_pretrained(folder)
    return folder


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def rows(detections):
    return [(one.label, pytest.approx(one.score, rel=1e-4), pytest.approx(one.box)) for one in detections]


def test_an_instance_is_where_its_query_says_and_as_sure_as_class_and_mask_together():
    # Two queries over two classes and "nothing"; 4 x 6 masks at the picture's own size.
    classes = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 9.0]])
    masks = torch.full((2, 4, 6), -3.0)
    masks[0, 1:3, 2:5] = torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.5, 2.5]])
    (first, *others) = instances_from_queries(classes, masks, (4, 6), min_score=0.2)
    label, score, box, mask = first
    probability = float(np.exp(2) / (np.exp(2) + 1 + np.e))
    inside = np.mean([1 / (1 + np.exp(-value)) for value in (1.0, 2.0, 3.0, 0.5, 1.5, 2.5)])
    assert (label, box) == (0, (2.0, 1.0, 5.0, 3.0))
    assert score == pytest.approx(probability * inside, rel=1e-6)
    assert mask.sum() == 6
    assert mask[1:3, 2:5].all()
    assert others == []


def test_one_query_can_be_two_classes_and_an_empty_mask_is_nothing():
    classes = torch.tensor([[1.0, 1.0, -5.0], [4.0, 0.0, 0.0]])
    masks = torch.stack([torch.full((3, 5), 2.0), torch.full((3, 5), -2.0)])
    found = instances_from_queries(classes, masks, (6, 10), min_score=0.1)
    assert sorted((label, box) for label, _, box, _ in found) == [
        (0, (0.0, 0.0, 10.0, 6.0)),
        (1, (0.0, 0.0, 10.0, 6.0)),
    ]
    assert len(instances_from_queries(classes, masks, (6, 10), min_score=0.1, limit=2)) == 1


@pytest.mark.parametrize("kind", ["segmenter", "boxer"])
def test_a_tiny_detector_from_disk_finds_objects_in_pixels_of_the_picture(kind, request):
    detector = load_detector(request.getfixturevalue(kind), min_score=0.0)
    assert isinstance(detector, Detector)
    assert detector.labels == ("dog", "bench", "apple")
    image = picture(50, 40, seed=1)
    (found,) = detector.detect([image])
    assert found
    assert all(before.score >= after.score for before, after in pairwise(found))
    for one in found:
        left, top, right, bottom = one.box
        assert 0 <= left <= right <= 50
        assert 0 <= top <= bottom <= 40
        if kind == "segmenter":
            assert one.mask.shape == (40, 50)
            assert one.mask[int(top) : int(bottom), int(left) : int(right)].sum() == one.mask.sum()
        else:
            assert one.mask is None


@pytest.mark.parametrize("kind", ["segmenter", "boxer"])
def test_what_is_found_does_not_depend_on_the_other_pictures(kind, request):
    detector = load_detector(request.getfixturevalue(kind), min_score=0.0, batch_size=2)
    images = [picture(50, 40, 1), picture(30, 90, 2), picture(50, 40, 3), picture(50, 40, 5)]
    together = detector.detect(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image])
        assert rows(alone) == [(one.label, one.score, one.box) for one in found]
    assert rows(together[0]) != [(one.label, one.score, one.box) for one in together[2]]
    assert detector.detect([]) == []


def test_boxes_equal_those_of_the_network_by_hand(boxer):
    model = DetrForObjectDetection.from_pretrained(boxer)
    image = picture(50, 40, seed=7)
    with torch.inference_mode():
        outputs = model(**DetrImageProcessor.from_pretrained(boxer)(images=[image], return_tensors="pt"))
    probability, label = outputs.logits[0].softmax(-1)[:, :3].max(-1)
    x, y, width, height = outputs.pred_boxes[0].unbind(-1)
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    expected = corners * torch.tensor([50.0, 40.0, 50.0, 40.0])
    (found,) = load_detector(boxer, min_score=0.0).detect([image])
    order = probability.argsort(descending=True, stable=True).tolist()
    assert [one.score for one in found] == pytest.approx(probability[order].tolist(), rel=1e-5)
    assert sorted(one.box for one in found) == [
        pytest.approx(box, abs=1e-3) for box in sorted(map(tuple, expected.tolist()))
    ]
    assert {one.label for one in found} == {LABELS[int(number)] for number in label}


def test_provenance_names_weights_and_says_that_nothing_was_calibrated(segmenter):
    provenance = load_detector(segmenter).provenance()
    assert provenance["name"] == segmenter.name
    assert provenance["calibrated_for"] == []
    assert set(provenance["weights"]) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert provenance != load_detector(segmenter, min_score=0.2).provenance()
    assert provenance["size"] == SIZE


@pytest.mark.parametrize("kind", ["segmenter", "boxer"])
def test_pictures_can_be_shown_to_the_network_in_another_size(kind, request):
    folder, image = request.getfixturevalue(kind), picture(50, 40, seed=1)
    larger = {"shortest_edge": 64, "longest_edge": 128}
    detector = load_detector(folder, min_score=0.0, size=larger)
    (found,), (before,) = detector.detect([image]), load_detector(folder, min_score=0.0).detect([image])
    assert detector.provenance()["size"] == larger
    assert [one.score for one in found] != [one.score for one in before]
    assert all(one.box[2] <= 50 and one.box[3] <= 40 for one in found)


def test_weights_that_do_not_fill_the_network_are_refused(boxer, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in boxer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("class_labels_classifier.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no weights for class_labels_classifier\.weight"):
        load_detector(tmp_path)


def test_what_is_no_detector_is_refused(boxer, tmp_path):
    for file in boxer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model_type: got 'clip', expected a universal segmentation"):
        load_detector(tmp_path)


def test_a_folder_that_lacks_files_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"lacks config\.json"):
        load_detector(tmp_path)
