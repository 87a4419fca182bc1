"""What `mmalign pairs make` runs: models, prompts, a recipe and its settings, as one YAML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmalign.config_files import read_config, validated
from mmalign.data.config import DataConfig
from mmalign.train.sections import ModelConfig, Section
from mmalign.train.token_sections import TokensConfig
from mmalign.vlm.pair_making.multi_image import Layout
from mmalign.vlm.pair_making.scored_sections import (
    ConditionedConfig,
    PromptWriterConfig,
    RewriteReward,
    Rows,
)
from mmalign.vlm.pair_making.self_judging import FOLLOW_UPS

__all__ = ["RECIPES", "DialoguePairPlan", "Recipe", "SamplingConfig", "read_pair_plan"]

Recipe = Literal[
    "correct",
    "score",
    "claims",
    "self_judged",
    "multi_image",
    "captions",
    "mistakes",
    "bias_driven",
    "clips",
    "csr",
    "prompt_writer",
]

RECIPES: dict[Recipe, str] = {
    "correct": "the model's own answers, corrected by an expert in a file (OPA-DPO, RLHF-V)",
    "score": "several own answers, scored in a file; best against worst, or all that differ (CheXalign)",
    "claims": "several own answers, scored by their refuted claims (RLAIF-V)",
    "self_judged": "own answers, judged by the model itself (SIMA, agreement, follow-ups)",
    "multi_image": "questions asked again among several images, answers that looked elsewhere (MIA-DPO)",
    "captions": "summaries of a video's clips, true and perturbed (TEMPLE)",
    "mistakes": "true answers over the same with plausible mistakes written in (POVID)",
    "bias_driven": "true answers over the model's guess with the image hidden (BDHS)",
    "clips": "true answers beside their video over the same beside a spoilt clip, close to far (PaMi-VDPO)",
    "csr": "answers written sentence by sentence, each judged by the model and by CLIP (CSR)",
    "prompt_writer": "rewrites of prompts, scored by what a diffusion model paints of them (Prompt-A-Video)",
}
"""Recipes and what they make."""

_SCORED = frozenset({"score", "claims", "self_judged", "csr", "prompt_writer"})

_NEED_TRUTH = frozenset({"self_judged", "multi_image", "mistakes", "bias_driven", "clips"})


class SamplingConfig(Section):
    """How answers are drawn."""

    num_answers: int = Field(10, ge=1, description="per prompt; recipes with one answer do not read it")
    max_new_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.7, ge=0, description="0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, description="1 is none; TEMPLE: 1.05")


class CorrectConfig(Section):
    """Recipe correct."""

    file: str | None = Field(
        None,
        description="JSONL: id, revised, and if known standard, own, report, author; absent: write answers",
    )


class ScoreConfig(Section):
    """Recipe score."""

    file: str | None = Field(
        None, description="JSONL: id, scores (one per answer, null for none); absent: write answers"
    )
    pairs: Literal["extremes", "all"] = Field(
        "extremes", description="best against worst, or all that differ"
    )
    spread: float = Field(1e-8, ge=0, description="extremes: scores must differ by more")
    difference: float = Field(1.0, gt=0, description="all: least difference of a pair")
    max_per_prompt: int | None = Field(None, ge=1, description="all: pairs of one prompt, drawn")


class ClaimsConfig(Section):
    """Recipe claims."""

    difference: float = Field(1.0, gt=0, description="least difference in refuted claims")
    max_per_prompt: int | None = Field(2, ge=1, description="pairs of one prompt, drawn")
    balance_lengths: bool = Field(True, description="drop pairs until mean lengths are nearest")


class SelfJudgedConfig(Section):
    """Recipe self_judged."""

    judges: Literal["sima", "agreement", "follow_ups"] = Field(
        "sima",
        description="SIMA's one judgement with the true answer; several wordings that must agree; or "
        "sampling.num_answers answers, best against worst by how likely a content follow-up is",
    )
    follow_ups: tuple[str, ...] = Field(FOLLOW_UPS, min_length=1, description="what the user says next")
    least_odds: float = Field(0.0, ge=0, description="|log-odds| of every judgement must exceed it")


class MultiImageConfig(Section):
    """Recipe multi_image."""

    layouts: tuple[Layout, ...] = Field(("sequence", "collage", "picture_in_picture"), min_length=1)
    layer: int = Field(16, ge=0, description="whose attention counts, from 0")
    noise: float = Field(0.0, ge=0, description="standard deviation on the other images of one picture")


class CaptionsConfig(Section):
    """Recipe captions."""

    num_frames: int = Field(64, ge=4, description="key frames of a video, two to a clip")
    difficulties: tuple[int, ...] = Field((16, 8, 4, 2), min_length=1, description="numbers of groups")


class BiasDrivenConfig(Section):
    """Recipe bias_driven."""

    similarity: str = Field(
        "sentence-transformers/all-mpnet-base-v2", description="folder or hub id of a sentence encoder"
    )
    hidden: float = Field(0.99, ge=0, le=1, description="probability that a visual token is hidden")
    similar: float = Field(0.97, ge=-1, le=1, description="cosine from which a sentence is drawn again")
    rounds: int = Field(5, ge=1)
    swap: float = Field(
        0.5, ge=0, le=1, description="probability that a leading yes becomes a no, or the reverse"
    )


class ClipsConfig(Section):
    """Recipe clips; no number was published."""

    versions: int = Field(5, ge=1, description="spoilt clips per row, of which one is taken")
    kinds: tuple[str, ...] = Field(
        ("reverse", "shuffle", "clip", "frame_mask", "crop"),
        min_length=1,
        description="corruptions that take turns",
    )
    similar: float = Field(0.8, ge=-1, le=1, description="least cosine of visual features")


class CsrConfig(Section):
    """Recipe csr."""

    beams: int = Field(5, ge=2, description="answers that are held from sentence to sentence")
    branches: int = Field(2, ge=1, description="next sentences drawn of each of them")
    sentence_tokens: int = Field(70, ge=1, description="of one sentence")
    sentences: int = Field(8, ge=1, description="of an answer, at most")
    image_share: float = Field(
        0.9, ge=0, le=1, description="lambda: weight of CLIP's judgement; the rest is the model's own"
    )
    combine: Literal["ranks", "values"] = Field(
        "ranks", description="ranks among what is compared, as released; or the values themselves"
    )
    reward: RewriteReward = Field(
        default_factory=lambda: RewriteReward(name="clipscore", options={"variant": "torchmetrics"}),
        description="picture and sentence to a number",
    )


class DialoguePairPlan(Section):
    """One run of a pair maker."""

    recipe: Recipe
    model: ModelConfig
    adapter: str | None = Field(None, description="folder of a trained adapter, put on the model")
    judge: ModelConfig | None = Field(None, description="claims: who sees the image and says yes or no")
    writer: ModelConfig | None = Field(
        None, description="who works on words alone; default: judge, else model"
    )
    tokens: TokensConfig = Field(default_factory=TokensConfig)
    data: DataConfig
    limit: int | None = Field(None, ge=1, description="prompts")
    seed: int = 0
    block_rows: int = Field(
        8, ge=1, description="rows worked on and written down together; draws depend on it"
    )
    batch_size: int = Field(8, ge=1, description="requests in one call of the network; draws depend on it")
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    rows: Rows = Field(
        "pairs",
        description="recipes that score several answers: pairs; best, the best answer alone (rejection "
        "sampling); or conditioned, every answer under its marks (SteerLM): the last two train with `sft`",
    )
    conditioned: ConditionedConfig = Field(default_factory=ConditionedConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    correct: CorrectConfig = Field(default_factory=CorrectConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    claims: ClaimsConfig = Field(default_factory=ClaimsConfig)
    self_judged: SelfJudgedConfig = Field(default_factory=SelfJudgedConfig)
    multi_image: MultiImageConfig = Field(default_factory=MultiImageConfig)
    captions: CaptionsConfig = Field(default_factory=CaptionsConfig)
    bias_driven: BiasDrivenConfig = Field(default_factory=BiasDrivenConfig)
    clips: ClipsConfig = Field(default_factory=ClipsConfig)
    csr: CsrConfig = Field(default_factory=CsrConfig)
    prompt_writer: PromptWriterConfig | None = None

    @model_validator(mode="after")
    def _own_settings(self) -> "DialoguePairPlan":
        """A section of another recipe would be read by nobody."""
        sections = set(RECIPES) & set(type(self).model_fields)
        others = sorted((self.model_fields_set & sections) - {self.recipe})
        if others:
            message = f"got settings of {', '.join(others)}, expected those of recipe {self.recipe} alone"
            raise ValueError(message)
        if self.recipe == "prompt_writer" and self.prompt_writer is None:
            message = "recipe prompt_writer needs the section prompt_writer: a painter and rewards"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _scored_rows(self) -> "DialoguePairPlan":
        judged_alone = self.recipe == "self_judged" and self.self_judged.judges != "follow_ups"
        if self.rows != "pairs" and (self.recipe not in _SCORED or judged_alone):
            message = f"rows {self.rows} needs scores of several answers, which {self.recipe} does not give"
            raise ValueError(message)
        if self.rows != "conditioned" and "conditioned" in self.model_fields_set:
            message = f"got settings of conditioned rows, expected none with rows {self.rows}"
            raise ValueError(message)
        return self

    @property
    def needs_truth(self) -> bool:
        """Whether rows must have an answer of the data."""
        return self.recipe in _NEED_TRUTH


def read_pair_plan(path: str | Path, overrides: Sequence[str] = ()) -> DialoguePairPlan:
    """The plan of a YAML file, with `section.key=value` overrides.

    Raises:
        ConfigError: no such file, not YAML, or values that do not fit; each with its place.
    """
    return validated(read_config(path, overrides), DialoguePairPlan)
