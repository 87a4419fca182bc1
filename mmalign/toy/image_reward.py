"""The exact reward of the toy world of images, measured on pixels alone.

Two axes, both in [0, 1]: faithfulness is the share of the caption's facts that hold in the picture, style is
the share of the border that is a dark frame. Any picture of any model can be judged; nothing is learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mmalign.errors import RowError, explain
from mmalign.toy.scenes import (
    COLOURS,
    FRAME_WIDTH,
    SHAPES,
    Facts,
    Group,
    Mark,
    Scene,
    parse_caption,
    render,
    to_tensor,
)


@dataclass(frozen=True)
class Part:
    """One connected region of one colour; `shape` is None when it looks like none of the four."""

    colour: str
    shape: str | None
    x: float
    y: float
    area: int


@dataclass(frozen=True)
class Score:
    """What the reward says about one picture. All values lie in [0, 1].

    total = faithfulness * (1 + style) / 2: style is worth nothing where the caption is not followed, and
    at most as much as following it.
    """

    faithfulness: float
    style: float
    facts: tuple[tuple[str, bool], ...] = ()

    @property
    def total(self) -> float:
        """The reward: faithfulness * (1 + style) / 2."""
        return self.faithfulness * (1.0 + self.style) / 2.0


_PALETTE = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255.0
_FOREGROUND = 0.33  # distance from the background in RGB of [0, 1] from which a pixel counts as painted
_SMALLEST = 20  # pixels: smaller regions are specks and not shapes
_CROP = 16
_LUMA = torch.tensor([0.299, 0.587, 0.114])
_DARKER = 0.6  # difference in luminance from the background: more than any of the six colours has


def background_of(images: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3"]:
    """The median colour inside the place of the frame; shapes cover less than half of it."""
    return images[:, :, ~_border(images, FRAME_WIDTH)].median(dim=-1).values


def _border(images: Float[Tensor, "image 3 height width"], width: int) -> Bool[Tensor, "height width"]:
    """True at the outermost `width` pixels."""
    border = torch.ones(images.shape[-2:], dtype=torch.bool)
    border[width:-width, width:-width] = False
    return border


def style_score(images: Float[Tensor, "image 3 height width"]) -> Float[Tensor, " image"]:
    """The share of the border whose luminance lies at least 0.6 below that of the background.

    The innermost pixel of the frame's place does not count: an autoencoder may blur it.
    """
    border = images[:, :, _border(images, FRAME_WIDTH - 1)]
    contrast = ((background_of(images)[:, :, None] - border) * _LUMA[None, :, None]).sum(dim=1)
    return (contrast >= _DARKER).float().mean(dim=1)


def _unframed(images: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height width"]:
    """The pictures with the background where a frame is: a frame is a style and not a shape."""
    frame = (style_score(images) > 0.5)[:, None, None, None] & _border(images, FRAME_WIDTH + 1)
    return torch.where(frame, background_of(images)[:, :, None, None], images)


def _colour_masks(
    images: Float[Tensor, "image 3 height width"],
) -> Float[Tensor, "image colour height width"]:
    """Which pixels carry which colour: unlike the background, nearest in the palette, without fringes."""
    unlike = (images - background_of(images)[:, :, None, None]).norm(dim=1) > _FOREGROUND
    distance = (images[:, None] - _PALETTE[None, :, :, None, None]).norm(dim=2)
    nearest = functional.one_hot(distance.argmin(dim=1), len(COLOURS)).permute(0, 3, 1, 2).bool()
    masks = (nearest & unlike[:, None]).float()
    opened = _dilated(-_dilated(-masks)) * masks
    reopened: Tensor = _dilated(_dilated(opened) * masks) * masks  # tips and corners of what is left
    return reopened


def _dilated(maps: Float[Tensor, "image colour height width"]) -> Float[Tensor, "image colour height width"]:
    """The largest value among a pixel and its four neighbours; a plus, since it keeps circles round."""
    upright = functional.max_pool2d(maps, (3, 1), stride=1, padding=(1, 0))
    return torch.maximum(upright, functional.max_pool2d(maps, (1, 3), stride=1, padding=(0, 1)))


def _connected(masks: Float[Tensor, "mask height width"]) -> Int[Tensor, "mask height width"]:
    """A positive label per connected region, its largest pixel index; 0 outside. Corners connect."""
    height, width = masks.shape[-2:]
    labels = masks * torch.arange(1, height * width + 1, dtype=torch.float32).view(height, width)
    while len(masks):
        grown = labels
        for _ in range(8):  # a look at whether anything changed costs as much as a step
            grown = functional.max_pool2d(grown, 3, stride=1, padding=1) * masks
        if torch.equal(grown, labels):
            break
        labels = grown
    return labels.long()


def _crop(mask: Bool[Tensor, "height width"]) -> tuple[Float[Tensor, "side side"], float]:
    """The region's bounding box resized to a square, and the ratio of its longer to its shorter side."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    box = mask[top:bottom, left:right].float()[None, None]
    square = functional.interpolate(box, (_CROP, _CROP), mode="bilinear", align_corners=False, antialias=True)
    aspect = (bottom - top) / (right - left)
    return square[0, 0], max(aspect, 1.0 / aspect)


@lru_cache(maxsize=1)
def _templates() -> Float[Tensor, "shape side side"]:
    """What the four shapes look like to the reward: rendered, segmented and cropped like any picture."""
    sizes = [(6.5 + 0.25 * step, 32.0 + 0.37 * (step % 3)) for step in range(10)]
    marks = [[Mark("blue", shape, centre, centre, radius) for radius, centre in sizes] for shape in SHAPES]
    pictures = to_tensor([render(Scene((mark,))) for row in marks for mark in row])
    masks = _colour_masks(pictures)[:, list(COLOURS).index("blue")].bool()
    crops = torch.stack([_crop(mask)[0] for mask in masks])
    return crops.view(len(SHAPES), len(sizes), _CROP, _CROP).mean(dim=1)


def _classify(mask: Bool[Tensor, "height width"]) -> str | None:
    """The shape whose template overlaps most (intersection over union), None below 0.7 or when squashed."""
    crop, aspect = _crop(mask)
    templates = _templates()
    overlap = torch.minimum(crop, templates).sum(dim=(1, 2)) / torch.maximum(crop, templates).sum(dim=(1, 2))
    best = int(overlap.argmax())
    return SHAPES[best] if float(overlap[best]) >= 0.70 and aspect <= 1.6 else None


def find_parts(images: Float[Tensor, "image 3 height width"]) -> list[list[Part]]:
    """The coloured regions of every picture with their shape and centre."""
    masks = _colour_masks(_unframed(images))
    owner, colour = (masks.sum(dim=(2, 3)) >= _SMALLEST).nonzero(as_tuple=True)
    found: list[list[Part]] = [[] for _ in range(len(images))]
    names = list(COLOURS)
    for image, index, labels in zip(
        owner.tolist(), colour.tolist(), _connected(masks[owner, colour]), strict=True
    ):
        found[image].extend(_parts(labels, names[index]))
    return found


def _parts(labels: Int[Tensor, "height width"], colour: str) -> Iterator[Part]:
    for label, area in zip(*(value.tolist() for value in labels.unique(return_counts=True)), strict=True):
        if label > 0 and area >= _SMALLEST:
            mask = labels == label
            y, x = mask.nonzero().float().mean(dim=0).tolist()
            yield Part(colour, _classify(mask), x + 0.5, y + 0.5, area)


def _group_facts(group: Group, parts: list[Part]) -> list[tuple[str, bool]]:
    own = [part for part in parts if part.colour == group.colour]
    return [
        (f"{group.colour} is there", bool(own)),
        (
            f"all {group.colour} are {group.shape}",
            bool(own) and all(part.shape == group.shape for part in own),
        ),
        (f"{group.colour} number {group.count}", len(own) == group.count),
    ]


def _relation_holds(facts: Facts, parts: list[Part]) -> bool:
    """Whether all centres of the first group lie beyond all of the second in the stated direction."""
    across = facts.relation in {"left of", "right of"}
    first, second = (
        [part.x if across else part.y for part in parts if part.colour == group.colour]
        for group in facts.groups
    )
    if not first or not second:
        return False
    return max(first) < min(second) if facts.relation in {"left of", "above"} else min(first) > max(second)


def check_facts(facts: Facts, parts: list[Part]) -> tuple[tuple[str, bool], ...]:
    """Every fact of the caption with whether it holds: three per group, the relation, nothing else."""
    checked = [fact for group in facts.groups for fact in _group_facts(group, parts)]
    if facts.relation is not None:
        checked.append((facts.relation, _relation_holds(facts, parts)))
    named = {group.colour for group in facts.groups}
    checked.append(("nothing else", bool(parts) and all(part.colour in named for part in parts)))
    return tuple(checked)


def score_tensor(images: Float[Tensor, "image 3 height width"], prompts: Sequence[str]) -> list[Score]:
    """The exact reward of every picture (RGB in [0, 1]) for its caption."""
    captions = [_facts_or_raise(prompt) for prompt in prompts]
    found, styles = find_parts(images.float().cpu()), style_score(images.float().cpu()).tolist()
    scores = []
    for facts, parts, style in zip(captions, found, styles, strict=True):
        checked = check_facts(facts, parts)
        scores.append(Score(sum(holds for _, holds in checked) / len(checked), style, checked))
    return scores


def score_images(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
    """The exact reward of every picture for its caption; pictures of another size are resized to 64 x 64."""
    return score_tensor(to_tensor(images), prompts) if images else []


def _facts_or_raise(prompt: str) -> Facts:
    facts = parse_caption(prompt)
    if facts is None:
        message = explain(
            "toy reward",
            got=prompt,
            expected='a caption of the toy grammar such as "two red circles left of a blue square"',
            do="Draw prompts with held_out_prompts() or preference_pairs().",
        )
        raise RowError(message, "outside_grammar")
    return facts
