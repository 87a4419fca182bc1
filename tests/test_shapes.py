"""The shape checks that also run in production, and the two reshapes everything relies on."""

import pytest
import torch

from mmalign.errors import ShapeError
from mmalign.shapes import (
    align_to_event,
    flatten_candidates,
    require_same_shape,
    require_shape,
    unflatten_candidates,
)


def test_flattening_is_prompt_major():
    value = torch.arange(3 * 2 * 5).reshape(3, 2, 5)
    flat = flatten_candidates(value)
    assert flat.shape == (6, 5)
    for prompt in range(3):
        for candidate in range(2):
            assert torch.equal(flat[2 * prompt + candidate], value[prompt, candidate])


@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 5), (2, 7, 3, 5)])
def test_unflattening_is_the_inverse(shape):
    value = torch.arange(torch.Size(shape).numel()).reshape(shape)
    assert torch.equal(unflatten_candidates(flatten_candidates(value), shape[1]), value)


def test_alignment_multiplies_the_leading_axes():
    event = torch.ones(3, 2, 5, 7)
    assert align_to_event(torch.ones(3), event).shape == (3, 1, 1, 1)
    assert align_to_event(torch.ones(3, 2), event).shape == (3, 2, 1, 1)
    scaled = align_to_event(torch.tensor([1.0, 10.0, 100.0]), event) * event
    assert scaled[:, 0, 0, 0].tolist() == [1.0, 10.0, 100.0]


def test_alignment_refuses_what_would_scale_columns():
    with pytest.raises(ShapeError, match=r"align_to_event: got leading shape \[7\].*\[3, 2, 5, 7\]"):
        align_to_event(torch.ones(7), torch.ones(3, 2, 5, 7))


def test_alignment_refuses_more_axes_than_the_event_has():
    with pytest.raises(ShapeError, match="leading axes must agree"):
        align_to_event(torch.ones(3, 2, 5), torch.ones(3, 2))


def test_shape_check_names_the_argument_and_the_axes():
    require_shape("scores", torch.ones(3, 2), (None, 2), "prompt, candidate")
    with pytest.raises(ShapeError, match=r"scores: got shape \[3, 5\], expected \[any, 2\] \(prompt, c"):
        require_shape("scores", torch.ones(3, 5), (None, 2), "prompt, candidate")
    with pytest.raises(ShapeError, match=r"got shape \[3\]"):
        require_shape("scores", torch.ones(3), (None, 2), "prompt, candidate")


def test_same_shape_check_names_both_sides():
    require_same_shape("Scores", torch.ones(3, 2), torch.zeros(3, 2), ("policy", "reference"))
    with pytest.raises(ShapeError, match=r"policy has shape \[3, 2\], reference \[3, 1\].*same batch\?"):
        require_same_shape("Scores", torch.ones(3, 2), torch.ones(3, 1), ("policy", "reference"))
