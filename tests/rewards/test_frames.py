"""Sizes and frames of rewards built on Qwen2-VL against transformers' own functions."""

import pytest
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as published

from mmalign.errors import RowError
from mmalign.rewards.frames import even_frames, num_frames, smart_resize


@pytest.mark.parametrize("limits", [(3136, 12845056), (200704, 200704), (100352, 200704)])
def test_sizes_equal_the_published_processor(limits):
    sides = (28, 97, 224, 449, 768, 1337, 2048)
    for height in sides:
        for width in sides:
            found = smart_resize(height, width, min_pixels=limits[0], max_pixels=limits[1])
            assert found == published(height, width, factor=28, min_pixels=limits[0], max_pixels=limits[1])


def test_a_ribbon_is_refused():
    with pytest.raises(
        RowError, match=r"picture: got \[7 x 1401\], expected a longer side of at most 200"
    ) as caught:
        smart_resize(7, 1401)
    assert caught.value.reason == "bad_aspect_ratio"


def test_frames_are_even_in_number_and_no_more_than_the_clip_has():
    assert num_frames(121, 24.0) == 10
    assert num_frames(5, 8.0) == 4
    assert num_frames(3, 8.0) == 2
    assert num_frames(100_000, 25.0) == 768
    with pytest.raises(RowError, match=r"clip: got \[1 frames\], expected at least 2"):
        num_frames(1, 8.0)


def test_frames_run_from_the_first_to_the_last():
    assert even_frames(121, 10).tolist() == [0, 13, 27, 40, 53, 67, 80, 93, 107, 120]
    assert even_frames(5, 4).tolist() == [0, 1, 3, 4]
