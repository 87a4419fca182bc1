"""Sections of a pair plan about scored answers: what becomes of them, and how rewrites are scored."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from mmalign.data.pair_making.sections import RewardChoice
from mmalign.train.sections import Section

__all__ = [
    "INSTRUCTION",
    "ConditionedConfig",
    "PainterConfig",
    "PromptWriterConfig",
    "RewriteReward",
    "Rows",
]

Rows = Literal["pairs", "best", "conditioned"]
"""What scored answers become: preference pairs; the best one, to imitate; all, with their marks asked for."""

Combination = Literal["sum", "mean_z", "mean_minmax", "mean_rank", "mean_win_probability", "min_minmax"]

INSTRUCTION = (
    "Rewrite the prompt below for a model that makes {medium} of texts. Keep everything it asks for, "
    "add what makes the result better, and answer with the new prompt alone.\n\nPrompt: {prompt}"
)
"""What the prompt writer is asked; `{prompt}` is the user's, `{medium}` is pictures or videos."""


class ConditionedConfig(Section):
    """Rows `conditioned`: the marks of an answer stand in its prompt (SteerLM)."""

    levels: int = Field(5, ge=2, description="marks go from 0 to levels - 1")
    name: str = Field("quality", min_length=1, description="of the mark where an answer has one score")
    bounds: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="name: [low, high], scores of the lowest and the highest mark; default: equal counts",
    )
    wording: str = Field("{name}: {mark}", description="of one mark")
    position: Literal["behind", "before"] = Field("behind", description="the words of the last user turn")

    @field_validator("wording")
    @classmethod
    def _says_the_mark(cls, value: str) -> str:
        if "{mark}" not in value:
            message = f"got {value!r}, expected a wording with {{mark}}"
            raise ValueError(message)
        return value


CLIP_SHAPE = ("num_frames", "height", "width", "fps")
"""Settings of a painter of videos alone."""


class PainterConfig(Section):
    """What makes pictures or videos of the rewrites."""

    source: str = Field(
        description="hub id, diffusers folder or run folder of a model of pictures, or of videos (medium: "
        "videos); module:function of yours, (prompts, keys, seed) to a picture, a file or a list of frames "
        "each, None where it failed"
    )
    weights: Literal["trained", "base"] = Field("trained", description="of a run folder: which side of it")
    num_steps: int | None = Field(None, ge=1, description="sampler steps; default: what suits the model")
    guidance_scale: float | None = Field(None, ge=0, description="default: what suits the model")
    scheduler: str | None = Field(None, description="ddim, euler, ... as in `mmalign sample`")
    batch_size: int = Field(4, ge=1, description="pictures in one call of the network")
    medium: Literal["pictures", "videos"] = "pictures"
    num_frames: int | None = Field(None, ge=2, description="of videos; default: the model's own")
    height: int | None = Field(None, ge=16, description="of videos; default: the model's own")
    width: int | None = Field(None, ge=16, description="of videos; default: the model's own")
    fps: float | None = Field(None, gt=0, description="of videos; default: the model's own")

    @model_validator(mode="after")
    def _shape_of_videos(self) -> "PainterConfig":
        given = [name for name in CLIP_SHAPE if getattr(self, name) is not None]
        if given and (self.medium != "videos" or ":" in self.source):
            message = f"{given[0]} is of models that paint videos; set medium to videos, or leave it out"
            raise ValueError(message)
        return self


class RewriteReward(RewardChoice):
    """One reward of what was painted."""

    weight: float = Field(1.0, ge=0, description="in the combination")
    least: float | None = Field(None, description="what a chosen rewrite must exceed, in the reward's unit")
    frames: int = Field(8, ge=1, description="of a video that a reward of pictures reads, for their mean")


class PromptWriterConfig(Section):
    """Recipe prompt_writer."""

    painter: PainterConfig
    rewards: tuple[RewriteReward, ...] = Field(min_length=1)
    instruction: str = Field(INSTRUCTION, description="what the writer is asked, with {prompt}")
    copies: int = Field(1, ge=1, description="pictures of every rewrite, from equal noise; their mean counts")
    judged_for: Literal["original", "rewrite"] = Field(
        "original", description="the prompt that rewards read: what the user asked, or what was painted"
    )
    combine: Combination = Field(
        "sum", description="rewards as one number: weighted sum, or standing among the prompt's rewrites"
    )
    winners: int = Field(1, ge=1, description="how many of the best may be chosen")
    against: Literal["worst", "all"] = Field("worst", description="whom a winner meets: of those below it")
    difference: float = Field(1e-8, ge=0, description="combined scores of a pair must differ by more")
    agree: bool = Field(False, description="the winner of a pair must be no worse by any reward")
    beat_original: bool = Field(False, description="paint the user's own prompt, too; winners must beat it")
    max_words: int | None = Field(None, ge=1, description="of a chosen rewrite")
    similarity: str | None = Field(
        "sentence-transformers/all-mpnet-base-v2",
        description="sentence encoder of semantic_distance: folder or hub id; null: no such column",
    )
    max_distance: float | None = Field(
        None, ge=0, le=2, description="semantic distance of a chosen rewrite from the prompt"
    )

    @field_validator("instruction")
    @classmethod
    def _holds_the_prompt(cls, value: str) -> str:
        if "{prompt}" not in value:
            message = f"got {value[:60]!r}, expected an instruction with {{prompt}}"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "PromptWriterConfig":
        titles = [reward.column for reward in self.rewards]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            message = f"two rewards are called {twice[0]}: give one of them a title"
            raise ValueError(message)
        if self.max_distance is not None and self.similarity is None:
            message = "max_distance needs similarity, which measures it"
            raise ValueError(message)
        return self
