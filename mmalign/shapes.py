"""Axis vocabulary and the shape checks that also run in production.

Annotations such as `Float[Tensor, "prompt candidate"]` are checked while tests run; the functions here guard
the few public entry points a user's own script calls directly.

Legend, one for the project:

    prompt      prompts (groups) of the micro-batch
    candidate   responses per prompt: 2 for pairs (0 = chosen, 1 = rejected), k for lists, 1 for unpaired rows
    inner       axis inside one candidate: tokens, segments, frames or timesteps
    *event      all axes of one data point (latents: channel height width), when the code does not care which
    row         prompt and candidate flattened, prompt-major: what networks see
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.errors import ShapeError

__all__ = [
    "align_to_event",
    "flatten_candidates",
    "require_same_shape",
    "require_shape",
    "unflatten_candidates",
]


def require_shape(where: str, value: Tensor, shape: tuple[int | None, ...], axes: str) -> None:
    """Raise `ShapeError` unless `value` has `shape`; `None` allows any size.

    Args:
        where: the function or argument, for the message.
        value: tensor to check.
        shape: sizes, None for any.
        axes: names of the axes in words, for the message.
    """
    ok = value.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, value.shape, strict=True)
    )
    if not ok:
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        message = f"{where}: got shape {list(value.shape)}, expected {wanted} ({axes})."
        raise ShapeError(message)


def require_same_shape(where: str, first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raise `ShapeError` unless both tensors have one shape (nothing broadcasts by accident)."""
    if first.shape != second.shape:
        message = (
            f"{where}: {names[0]} has shape {list(first.shape)}, {names[1]} {list(second.shape)}; "
            "both need one value per prompt and candidate. Were the candidates scored on the same batch?"
        )
        raise ShapeError(message)


def flatten_candidates(value: Shaped[Tensor, "prompt candidate *event"]) -> Shaped[Tensor, " row *event"]:
    """`[prompt, candidate, ...]` to `[prompt * candidate, ...]`, prompt-major."""
    return value.flatten(0, 1)


def unflatten_candidates(
    value: Shaped[Tensor, " row *event"], num_candidates: int
) -> Shaped[Tensor, "prompt candidate *event"]:
    """Inverse of `flatten_candidates`."""
    return torch.unflatten(value, 0, (-1, num_candidates))


def align_to_event(value: Float[Tensor, "*batch"], event: Tensor) -> Float[Tensor, "..."]:
    """`value` with trailing axes of size 1, so that it multiplies `event` along its leading axes.

    The one place where a timestep or a weight meets the event axes: broadcasting from the right by accident
    would scale columns instead of samples.
    """
    if tuple(value.shape) != tuple(event.shape[: value.ndim]):
        message = (
            f"align_to_event: got leading shape {list(value.shape)} for an event tensor of shape "
            f"{list(event.shape)}; the leading axes must agree."
        )
        raise ShapeError(message)
    return torch.reshape(value, value.shape + (1,) * (event.ndim - value.ndim))
