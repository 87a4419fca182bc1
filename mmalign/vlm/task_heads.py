"""Task Preference Optimization: special tokens whose hidden states feed heads of visual tasks.

A dialogue that asks for a box, a span of time or a mask is answered with a task token. Its hidden state goes
through a small head, the head's error is a differentiable loss, and the gradient teaches the language model
what to look at:

    loss = loss_mllm + loss_assign + sum over tasks of weight * loss_task

loss_mllm is the usual cross-entropy of answers, loss_assign that of the task tokens alone. The paper's
temporal and mask heads are whole networks (CG-DETR, SAM 2); here are small ones in their place, on hidden
states and on features that the caller has. Training code was never released: shapes, terms and weights of
the losses are ours where the docstrings do not name a source.

Source: arXiv 2412.19326; OpenGVLab/TPO ed733bd (inference only).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.likelihood import TokenStates, head_log_probs

__all__ = [
    "TASK_TOKENS",
    "MaskHead",
    "RegionHead",
    "SpanHead",
    "Task",
    "TaskLoss",
    "add_task_tokens",
    "assignment_loss",
    "mask_loss",
    "region_loss",
    "span_loss",
    "task_states",
    "tpo_loss",
]

Task = Literal["region", "temporal", "mask"]

TASK_TOKENS: Mapping[Task, str] = {"region": "<box>", "temporal": "<time>", "mask": "<track>"}
"""What a model writes to hand over to a head; the texts are ours."""


def add_task_tokens(
    tokenizer: Any, model: nn.Module, *, tokens: Mapping[Task, str] = TASK_TOKENS
) -> dict[Task, int]:
    """Ids of the task tokens; new ones join the vocabulary with the mean embedding of the old.

    Train the embedding and the output layer, or the new rows stay where they are. Done twice, it changes
    nothing the second time.

    Args:
        tokenizer: of transformers; gains the tokens.
        model: of transformers; its embeddings grow where ids do not fit.
        tokens: text of each task's token.

    Raises:
        ConfigError: two tasks share a text.
    """
    if len(set(tokens.values())) != len(tokens):
        message = explain(
            "task tokens", got=", ".join(tokens.values()), expected="another text for every task"
        )
        raise ConfigError(message)
    tokenizer.add_tokens(list(tokens.values()), special_tokens=True)
    found: dict[Task, int] = {task: tokenizer.convert_tokens_to_ids(text) for task, text in tokens.items()}
    grown: Any = model
    before = grown.get_input_embeddings().weight.shape[0]
    if max(found.values()) >= before:
        grown.resize_token_embeddings(max(found.values()) + 1, mean_resizing=False)
        for layer in (grown.get_input_embeddings(), grown.get_output_embeddings()):
            with torch.no_grad():
                layer.weight[before:] = layer.weight[:before].mean(0)
    return found


# ----------------------------------------------------------------------------------------------------- tokens


def task_states(
    states: TokenStates, tokens: Int[Tensor, " scored"], token: int
) -> Float[Tensor, "found feature"]:
    """Hidden states that are about to write a task token, in order; gradient flows.

    A state that predicts the token and not the one after it: the head reads what made the model choose the
    task, and no forward pass beyond the answer's is needed (ours).

    Args:
        states: of the scored tokens of answers.
        tokens: ids of those tokens.
        token: the task's id.

    Raises:
        ShapeError: another number of tokens than states.
    """
    if tokens.shape[0] != states.hidden.shape[0]:
        message = explain(
            "task_states tokens", got=tokens.shape[0], expected=f"{states.hidden.shape[0]}, one per state"
        )
        raise ShapeError(message)
    return states.hidden[tokens == token]


def assignment_loss(
    states: TokenStates, tokens: Int[Tensor, " scored"], ids: Sequence[int]
) -> Float[Tensor, ""]:
    """Cross-entropy of task tokens where answers have them, a mean in nats; 0 where there are none.

    loss_assign = mean over scored task tokens of -log p(task token | what stands before)

    Args:
        states: of the scored tokens.
        tokens: ids of those tokens.
        ids: of the task tokens.

    Source: arXiv 2412.19326, the assignment loss.
    """
    is_task = torch.isin(tokens, torch.tensor(list(ids), device=tokens.device))
    log_probs = head_log_probs(states.hidden[is_task], states.head, tokens[is_task])
    return -log_probs.sum() / is_task.sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------------ heads


class RegionHead(nn.Module):
    """A box from a task token's state: two layers, as the paper's.

    Args:
        features: of a hidden state.
        width: of the layer between; default: the same.
    """

    def __init__(self, features: int, width: int | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width or features), nn.GELU(), nn.Linear(width or features, 4)
        )

    def forward(self, states: Float[Tensor, "item feature"]) -> Float[Tensor, "item 4"]:
        """Corners (left, top, right, bottom) as shares of the image's sides; right > left, bottom > top."""
        # Centre and size in (0, 1): corners of a real box whatever the numbers are.
        boxes: Tensor = box_convert(self.layers(states).sigmoid(), "cxcywh", "xyxy")
        return boxes


class SpanHead(nn.Module):
    """A span of time from a task token's state; in the place of the paper's CG-DETR.

    Args:
        features: of a hidden state.
        width: of the layer between; default: the same.
    """

    def __init__(self, features: int, width: int | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width or features), nn.GELU(), nn.Linear(width or features, 2)
        )

    def forward(self, states: Float[Tensor, "item feature"]) -> Float[Tensor, "item 2"]:
        """(Start, end) as shares of the video's length; end > start."""
        centre, length = self.layers(states).sigmoid().unbind(1)
        return torch.stack([centre - 0.5 * length, centre + 0.5 * length], dim=1)


class MaskHead(nn.Module):
    """A mask from a task token's state and an image's features; in the place of the paper's SAM 2.

    An adapter maps the state to the features' space; a pixel's logit is its scaled product with the result.

    Args:
        features: of a hidden state.
        channels: of the image's features.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.adapter = nn.Sequential(
            nn.Linear(features, features), nn.GELU(), nn.Linear(features, channels + 1)
        )

    def forward(
        self, states: Float[Tensor, "item feature"], pixels: Float[Tensor, "item channel height width"]
    ) -> Float[Tensor, "item height width"]:
        """Logits of the mask, at the resolution of the features."""
        query, bias = self.adapter(states).split([pixels.shape[1], 1], dim=1)
        product = torch.einsum("ic,ichw->ihw", query, pixels) / math.sqrt(pixels.shape[1])
        logits: Tensor = product + bias.unsqueeze(-1)
        return logits


# ----------------------------------------------------------------------------------------------------- losses


def region_loss(
    boxes: Float[Tensor, "item 4"],
    targets: Float[Tensor, "item 4"],
    *,
    l1_weight: float = 1.0,
    giou_weight: float = 1.0,
) -> Float[Tensor, " item"]:
    """Distance of boxes: l1_weight * mean |difference| + giou_weight * (1 - generalised IoU).

    Args:
        boxes: corners in shares of the image's sides, with gradient.
        targets: the same.
        l1_weight: of the first term; ours.
        giou_weight: of the second, which lies in [0, 2]; ours.

    Raises:
        ShapeError: a target whose right or bottom does not lie behind its left or top.
    """
    if targets.device.type == "cpu" and bool((targets[:, 2:] <= targets[:, :2]).any()):
        message = explain(
            "region_loss targets", got="a box without area", expected="(left, top, right, bottom)"
        )
        raise ShapeError(message)
    distance = (boxes - targets).abs().mean(1)
    overlap: Tensor = generalized_box_iou_loss(boxes, targets, reduction="none")
    return l1_weight * distance + giou_weight * overlap


def span_loss(
    spans: Float[Tensor, "item 2"],
    targets: Float[Tensor, "item 2"],
    *,
    l1_weight: float = 1.0,
    iou_weight: float = 1.0,
) -> Float[Tensor, " item"]:
    """Distance of spans: l1_weight * mean |difference| + iou_weight * (1 - generalised IoU of time).

    generalised IoU = overlap / union - (hull - union) / hull: spans that do not meet still have a gradient.

    Args:
        spans: (start, end) in shares of the video's length, with gradient.
        targets: the same.
        l1_weight: of the first term; ours.
        iou_weight: of the second, which lies in [0, 2]; ours.

    Raises:
        ShapeError: a target that ends where it starts, or before.
    """
    if targets.device.type == "cpu" and bool((targets[:, 1] <= targets[:, 0]).any()):
        message = explain(
            "span_loss targets", got="a span without length", expected="(start, end), end > start"
        )
        raise ShapeError(message)
    distance = (spans - targets).abs().mean(1)
    first, last = torch.minimum(spans[:, 0], targets[:, 0]), torch.maximum(spans[:, 1], targets[:, 1])
    overlap = (torch.minimum(spans[:, 1], targets[:, 1]) - torch.maximum(spans[:, 0], targets[:, 0])).clamp(
        min=0.0
    )
    union = (spans[:, 1] - spans[:, 0]) + (targets[:, 1] - targets[:, 0]) - overlap
    hull = last - first
    generalised = overlap / union - (hull - union) / hull
    return l1_weight * distance + iou_weight * (1.0 - generalised)


def mask_loss(
    logits: Float[Tensor, "item height width"],
    targets: Bool[Tensor, "item height width"],
    *,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
) -> Float[Tensor, " item"]:
    """Distance of masks: bce_weight * mean binary cross-entropy + dice_weight * (1 - dice).

    dice = (2 * sum p t + 1) / (sum p + sum t + 1), p = sigmoid(logit); the 1 keeps empty masks defined.

    Args:
        logits: of every pixel, with gradient.
        targets: True inside.
        bce_weight: of the first term; ours.
        dice_weight: of the second; ours.
    """
    wanted = targets.to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").flatten(1).mean(1)
    share = logits.sigmoid()
    both, sizes = (share * wanted).flatten(1).sum(1), (share + wanted).flatten(1).sum(1)
    return bce_weight * entropy + dice_weight * (1.0 - (2.0 * both + 1.0) / (sizes + 1.0))


@dataclass(frozen=True)
class TaskLoss:
    """One training step's loss and its parts.

    Args:
        total: to be differentiated.
        mllm: cross-entropy of the answers.
        assign: cross-entropy of the task tokens.
        tasks: mean loss of each task with items, before its weight.
    """

    total: Float[Tensor, ""]
    mllm: Float[Tensor, ""]
    assign: Float[Tensor, ""]
    tasks: Mapping[Task, Float[Tensor, ""]]


def tpo_loss(
    mllm: Float[Tensor, ""],
    assign: Float[Tensor, ""],
    tasks: Mapping[Task, Float[Tensor, " item"]],
    *,
    weights: Mapping[Task, float] | None = None,
) -> TaskLoss:
    """The sum that is trained: loss_mllm + loss_assign + sum over tasks of weight * mean loss of its items.

    Args:
        mllm: cross-entropy of the answers, a mean over tokens.
        assign: of `assignment_loss`.
        tasks: losses of every item; a task without items in this batch counts 0.
        weights: of tasks; default 1, as the sum is written in the paper.

    Raises:
        ConfigError: a weight of an absent task, or one that is negative or not finite.

    Source: arXiv 2412.19326.
    """
    given = dict(weights or {})
    if not given.keys() <= tasks.keys() or not all(0 <= value < float("inf") for value in given.values()):
        message = explain(
            "tpo_loss weights", got=str(given), expected=f"numbers >= 0 of {', '.join(tasks) or 'no task'}"
        )
        raise ConfigError(message)
    means = {task: losses.mean() for task, losses in tasks.items() if losses.shape[0]}
    total = mllm + assign
    for task, mean in means.items():
        total = total + given.get(task, 1.0) * mean
    return TaskLoss(total, mllm, assign, means)
