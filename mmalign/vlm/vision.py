"""Images and videos seen once: features of all distinct media of a micro-batch, put where they are shown.

With a frozen tower and projector the features are constants: they are computed before the forward pass and
serve every candidate, the policy and its reference. Where tower or projector train, each network computes its
own, still once per distinct medium; gradients of all places add up in it.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.errors import ShapeError, explain
from mmalign.vlm.inputs import Features, MediaKind, VlmInputs
from mmalign.vlm.traits import VlmTraits

__all__ = ["deep_rows", "encode_media", "shown"]


def encode_media(traits: VlmTraits, base: object, inputs: VlmInputs) -> dict[MediaKind, Features]:
    """Features of every distinct medium, by kind, media after media.

    Raises:
        ShapeError: a tower made another number of features than the prompts have placeholders for.
    """
    found: dict[MediaKind, Features] = {}
    for kind, groups in inputs.media.items():
        made = [traits.features(base, kind, group) for group in groups]
        depth = len(made[0].deep)
        found[kind] = Features(
            torch.cat([features.values for features in made]),
            tuple(torch.cat([features.deep[level] for features in made]) for level in range(depth)),
        )
    return found


def shown(
    embedded: Float[Tensor, "row position feature"],
    inputs: VlmInputs,
    features: Mapping[MediaKind, Features],
) -> Float[Tensor, "row position feature"]:
    """Embedded tokens with features in the places of their placeholders."""
    flat = embedded.flatten(0, 1)
    for kind, visual in inputs.visual.items():
        values = features[kind].values.to(flat.dtype)
        flat = flat.index_copy(0, visual.place, values.index_select(0, visual.source))
    return flat.view(embedded.shape)


def deep_rows(
    inputs: VlmInputs, features: Mapping[MediaKind, Features], place: Int[Tensor, " visual"]
) -> tuple[Float[Tensor, "visual feature"], ...]:
    """Deep features of every visual token at `place`, which lists the places of all kinds in order.

    Raises:
        ShapeError: one kind of media has deep features and another has not.
    """
    depths = {len(features[kind].deep) for kind in inputs.visual}
    if len(depths) > 1:
        message = explain("deep features", got=sorted(depths), expected="as many for images as for videos")
        raise ShapeError(message)
    rows = []
    for level in range(depths.pop() if depths else 0):
        values = {kind: features[kind].deep[level] for kind in inputs.visual}
        first = next(iter(values.values()))
        flat = first.new_zeros(inputs.ids.numel(), first.shape[1])
        for kind, visual in inputs.visual.items():
            flat = flat.index_copy(0, visual.place, values[kind].index_select(0, visual.source))
        rows.append(flat.index_select(0, place))
    return tuple(rows)
