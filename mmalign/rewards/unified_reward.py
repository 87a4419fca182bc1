"""The UnifiedReward family: chat models tuned to judge pictures and clips, each with its published question.

The questions are the publisher's: they are read from a copy of CodeGoat24/UnifiedReward (its Python files are
searched, nothing in them is run) or a text file, and recognised by their hash.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mmalign.errors import ConfigError, explain
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card, Weights
from mmalign.rewards.judge_models import PairJudge, ScoreJudge, TemplateAsker
from mmalign.rewards.published_texts import published_text
from mmalign.rewards.verdicts import (
    ACS,
    APS,
    Choice,
    axis_scores,
    final_score,
    flex_verdict,
    pair_choice,
    relative_axis_scores,
    tagged_choice,
)
from mmalign.rewards.vision_language import MODEL_FILES, load_chat_model

__all__ = ["PAIR_OUTPUTS", "VARIANTS", "Variant", "build", "card"]

PAIR_OUTPUTS = ("preference", "in_order", "swapped")

Pointwise = Callable[[str], Sequence[float] | None]
Pairwise = Callable[[str], Choice | float | None]


def _final(high: float) -> Pointwise:
    def read(text: str) -> Sequence[float] | None:
        found = final_score(text, low=1.0, high=high)
        return None if found is None else [found]

    return read


def _axes(axes: Sequence[str]) -> Pointwise:
    def read(text: str) -> Sequence[float] | None:
        found = axis_scores(text, axes)
        if found is None:
            return None
        values = [found[axis] for axis in axes]
        return [sum(values) / len(values), *values]

    return read


def _phrase(noun: str) -> Pairwise:
    return lambda text: pair_choice(text, noun=noun)


def _shares(text: str) -> float | None:
    """The first one's share, mean over the axes."""
    found = relative_axis_scores(text)
    return None if found is None else sum(first for first, _ in found.values()) / len(found)


def _flex(text: str) -> Choice | None:
    found = flex_verdict(text)
    return None if found is None else found.choice


@dataclass(frozen=True)
class Variant:
    """One member of the family.

    Args:
        title: what it is.
        template: first 16 digits of the question's SHA-256, `{}` at the place of the prompt.
        length: characters of the question.
        file: where the question stands in the publisher's repository.
        model: hub id of the default model.
        media: what it judges.
        outputs: names of its numbers.
        scale: of them, in words.
        tokens: of an answer at most.
        read: reader of a pointwise answer, or None.
        choose: reader of a pairwise answer, or None.
    """

    title: str
    template: str
    length: int
    file: str
    model: str
    media: Literal["image", "video"]
    outputs: tuple[str, ...]
    scale: str
    tokens: int
    read: Pointwise | None = None
    choose: Pairwise | None = None


_V1, _V2 = "CodeGoat24/UnifiedReward-qwen-7b", "CodeGoat24/UnifiedReward-2.0-qwen-7b"
_THINK, _FLEX = "CodeGoat24/UnifiedReward-Think-qwen-7b", "CodeGoat24/UnifiedReward-Flex-qwen3vl-8b"
_PAIR = "1 = the sample's own is better, 0 = the other; 0.5 = tie or contradiction; both orders are asked"
_FIVE = "each 1 to 5; the first is their mean"
_NEW = "inference_qwen/UnifiedReward-2.0-inference"

VARIANTS: dict[str, Variant] = {
    "unifiedreward_image": Variant(
        title="UnifiedReward, one picture: alignment and quality in one score",
        template="b691b5ff2d2a0a37",
        length=804,
        file="inference_qwen/image_generation/qwen_point_score_image_generation.py",
        model=_V1,
        media="image",
        outputs=("score",),
        scale="1 to 5",
        tokens=512,
        read=_final(5.0),
    ),
    "unifiedreward_image_acs": Variant(
        title="UnifiedReward, one picture: alignment, coherence and style",
        template="776575c9a5e4e899",
        length=1350,
        file="inference_qwen/image_generation/qwen_point_score_ACS_image_generation.py",
        model=_V1,
        media="image",
        outputs=("mean", *ACS),
        scale=_FIVE,
        tokens=4096,
        read=_axes(ACS),
    ),
    "unifiedreward2_image_acs": Variant(
        title="UnifiedReward 2.0, one picture: alignment, coherence and style",
        template="26b7b69f0ac7e571",
        length=727,
        file=f"{_NEW}/point_score_ACS_image_generation.py",
        model=_V2,
        media="image",
        outputs=("mean", *ACS),
        scale=_FIVE,
        tokens=4096,
        read=_axes(ACS),
    ),
    "unifiedreward_video": Variant(
        title="UnifiedReward, one clip: quality, consistency, motion, alignment and facts in one score",
        template="9fd22d429c1c3dd9",
        length=1286,
        file="inference_qwen/video_generation/qwen_point_score_video_generation.py",
        model=_V1,
        media="video",
        outputs=("score",),
        scale="1 to 10",
        tokens=1024,
        read=_final(10.0),
    ),
    "unifiedreward2_video_aps": Variant(
        title="UnifiedReward 2.0, one clip: alignment, physics and style",
        template="c65c7e4953fe911c",
        length=707,
        file=f"{_NEW}/point_score_APS_video_generation.py",
        model=_V2,
        media="video",
        outputs=("mean", *APS),
        scale=_FIVE,
        tokens=4096,
        read=_axes(APS),
    ),
    "unifiedreward_image_pair": Variant(
        title="UnifiedReward, two pictures of one prompt",
        template="9fa0115144d4037d",
        length=816,
        file="inference_qwen/image_generation/qwen_pair_rank_image_generation.py",
        model=_V1,
        media="image",
        outputs=PAIR_OUTPUTS,
        scale=_PAIR,
        tokens=512,
        choose=_phrase("Image"),
    ),
    "unifiedreward_video_pair": Variant(
        title="UnifiedReward, two clips of one prompt",
        template="897f9fe5beeffb3b",
        length=933,
        file="inference_qwen/video_generation/qwen_pair_rank_video_generation.py",
        model=_V1,
        media="video",
        outputs=PAIR_OUTPUTS,
        scale=_PAIR,
        tokens=1024,
        choose=_phrase("Video"),
    ),
    "unifiedreward2_image_pair": Variant(
        title="UnifiedReward 2.0, two pictures: shares of alignment, coherence and style",
        template="749fa5ec25a14930",
        length=1127,
        file=f"{_NEW}/pair_score_image_generation.py",
        model=_V2,
        media="image",
        outputs=PAIR_OUTPUTS,
        scale="mean share of the sample's own over three axes and both orders, 0 to 1",
        tokens=4096,
        choose=_shares,
    ),
    "unifiedreward_think_image_pair": Variant(
        title="UnifiedReward-Think, two pictures compared after reasoning",
        template="b105cd00913f198f",
        length=1586,
        file="UnifiedReward-Think/inference_qwen/image_generation/qwen_infer_cot_image_generation.py",
        model=_THINK,
        media="image",
        outputs=PAIR_OUTPUTS,
        scale=_PAIR,
        tokens=4096,
        choose=lambda text: tagged_choice(text),
    ),
    "unifiedreward_flex_image_pair": Variant(
        title="UnifiedReward-Flex, two pictures compared along dimensions it picks",
        template="c52d1b6c9d29cc6a",
        length=1945,
        file="UnifiedReward-Flex/flex_pair_rank_image_generation.py",
        model=_FLEX,
        media="image",
        outputs=PAIR_OUTPUTS,
        scale=_PAIR,
        tokens=4096,
        choose=_flex,
    ),
}
"""The family by reward name."""


def card(name: str) -> Card:
    """The card of one member."""
    variant = VARIANTS[name]
    pair = variant.choose is not None
    thing = "picture" if variant.media == "image" else "clip (frames)"
    return Card(
        name=name,
        title=variant.title,
        modality=variant.media,
        outputs=variant.outputs,
        scale=variant.scale,
        weights=(Weights(variant.model, MODEL_FILES),),
        paper={_THINK: "2505.03318"}.get(variant.model, "2503.05236"),
        official_code="CodeGoat24/UnifiedReward",
        licence="unknown (code: MIT)",
        pixels=f"one {thing} at native size, within the processor's limits",
        needs=("other",) if pair else (),
        options={
            "model": "another model of the family: hub id, hub id@revision, or folder",
            "template": f"file or folder that holds the published question ({variant.file})",
            "template_sha256": "hash of another question: another reward",
            "max_new_tokens": f"length of the answer, {variant.tokens}",
            "max_pixels": "larger pictures are scaled down to this area; default none",
        },
        departures=(
            "No revision is pinned: the files' hashes are in the fingerprint.",
            "Greedy: the checkpoint's temperature and top-p are not used, its repetition penalty is.",
            "An answer without one clear verdict is NaN; published scripts make it 0, or a win of the first.",
            *(("Both orders are asked; published scripts ask one.",) if pair else ()),
        ),
    )


def build(
    card: Card,
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    model: str | None = None,
    template: str | Path | None = None,
    template_sha256: str | None = None,
    max_new_tokens: int | None = None,
    max_pixels: int | None = None,
) -> Reward:
    """A member of the family from a folder or the hub; its question from where the user has it."""
    variant = VARIANTS[card.name]
    judge = load_chat_model(
        weights=weights,
        model=model or variant.model,
        reward=card.name,
        device=device,
        dtype=dtype,
        max_pixels=max_pixels,
    )
    text = published_text(
        template_sha256 or variant.template,
        places=(template, judge.folder),
        what=f"{card.name} question",
        do=f"Pass template=FILE, {variant.file} of CodeGoat24/UnifiedReward (nothing of it is run).",
    )
    tokens = max_new_tokens or variant.tokens
    if variant.choose is not None:
        asker = TemplateAsker(text, pair=True)
        return PairJudge(card, judge, asker, read=variant.choose, reader=card.name, max_new_tokens=tokens)
    if variant.read is None:
        message = explain(f"variant {card.name}", got=None, expected="a reader of one kind of answer")
        raise ConfigError(message)
    return ScoreJudge(
        card, judge, TemplateAsker(text), read=variant.read, reader=card.name, max_new_tokens=tokens
    )
