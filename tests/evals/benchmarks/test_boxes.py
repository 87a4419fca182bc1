"""Boxes: overlaps and relations worked by hand."""

import pytest

from mmalign.evals.benchmarks._boxes import iou, keep_best, relations
from mmalign.evals.detectors import Detection

NEAR, FAR = (0.0, 0.0, 40.0, 20.0), (100.0, 0.0, 160.0, 20.0)


def test_overlap_with_and_without_the_corner_pixel():
    first, second = (0.0, 0.0, 9.0, 9.0), (5.0, 0.0, 14.0, 9.0)
    assert iou(first, second) == pytest.approx(4 * 9 / (2 * 81 - 36))
    assert iou(first, second, pixel=1.0) == pytest.approx(5 * 10 / (2 * 100 - 50))


def test_boxes_apart_or_empty_do_not_overlap():
    assert iou(NEAR, FAR) == 0.0
    assert iou((3.0, 3.0, 3.0, 3.0), (3.0, 3.0, 3.0, 3.0)) == 0.0
    assert iou(NEAR, NEAR) == 1.0


def test_relations_are_seen_from_the_first_box():
    assert relations(NEAR, FAR) == {"left of"}
    assert relations(FAR, NEAR) == {"right of"}
    below = (0.0, 200.0, 40.0, 220.0)
    assert relations(below, NEAR) == {"below"}
    assert relations(NEAR, below) == {"above"}
    assert relations(NEAR, (300.0, 300.0, 340.0, 320.0)) == {"left of", "above"}


def test_objects_whose_centres_are_within_the_dead_zone_are_in_no_relation():
    # Widths 100 and 100: centres must be more than 20 apart.
    assert relations((0.0, 0.0, 100.0, 10.0), (20.0, 0.0, 120.0, 10.0)) == frozenset()
    # 45 apart, 25 of them count: 25 / 45 is more than one half.
    assert relations((0.0, 0.0, 100.0, 10.0), (45.0, 0.0, 145.0, 10.0)) == {"left of"}
    assert relations((0.0, 0.0, 100.0, 10.0), (39.0, 0.0, 139.0, 10.0)) == frozenset()
    assert relations((0.0, 0.0, 100.0, 10.0), (21.0, 0.0, 121.0, 10.0), dead_zone=0.0) == {"left of"}
    assert relations(NEAR, NEAR) == frozenset()


def test_the_best_of_overlapping_objects_stays():
    best = Detection("dog", 0.9, (0.0, 0.0, 9.0, 9.0))
    shadow = Detection("dog", 0.8, (0.0, 0.0, 9.0, 8.0))
    other = Detection("dog", 0.7, (50.0, 50.0, 59.0, 59.0))
    weak = Detection("dog", 0.3, (90.0, 90.0, 99.0, 99.0))
    detections = [shadow, weak, other, best]
    assert keep_best(detections, threshold=0.3, limit=16) == [best, shadow, other]
    assert keep_best(detections, threshold=0.3, limit=16, max_overlap=0.5) == [best, other]
    assert keep_best(detections, threshold=0.3, limit=2, max_overlap=0.5) == [best]
    assert keep_best(detections, threshold=0.2, limit=16, max_overlap=0.5) == [best, other, weak]
