"""What `mmalign pairs make` runs for clips: model, data, recipe, scores and selection, as one YAML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mmalign.config_files import read_config, validated
from mmalign.data.config import DataConfig
from mmalign.data.pair_making.sections import RewardChoice
from mmalign.data.video_damage import DAMAGES, Damage
from mmalign.data.video_writers import Container
from mmalign.train.sections import ModelConfig, Section
from mmalign.train.video_sections import VideoConfig, of_clips
from mmalign.video.pair_making.selection import MOTION, TOTAL, ClipSelection

__all__ = [
    "VIDEO_RECIPES",
    "CorruptConfig",
    "DamageConfig",
    "GroupSampling",
    "SegmentsConfig",
    "VideoPairPlan",
    "VideoRecipe",
    "read_video_plan",
]

VideoRecipe = Literal["groups", "existing_clips", "corrupt_and_denoise", "damage", "segments"]

VIDEO_RECIPES: dict[VideoRecipe, str] = {
    "groups": "several clips of every prompt, scored and paired (VideoDPO, MPO, UnifiedReward)",
    "existing_clips": "clips that exist, scored and paired; nothing is made",
    "corrupt_and_denoise": "a real clip noised and denoised twice (StructuralDPO, DenseDPO); real over made",
    "damage": "real clips over the same with frames reversed, shuffled or noised (DF-DPO)",
    "segments": "pairs that exist, labelled second by second (DenseDPO)",
}
"""Recipes and what they compare."""

DATA_SCORE = "data"
"""What columns call a score that the data themselves give."""

_SAMPLED = ("groups",)
_REAL = ("corrupt_and_denoise", "damage")


class GroupSampling(Section):
    """How a model makes clips."""

    num_samples: int = Field(4, ge=1, description="clips of a prompt")
    num_steps: int = Field(50, ge=1, description="sampler steps of the whole way from noise to data")
    guidance_scale: float = Field(5.0, ge=0)
    scheduler: str | None = Field(
        None, description="recipe groups: sampler by name; default: the model's own"
    )
    batch_size: int = Field(1, ge=1, description="clips in one call of the network")


class CorruptConfig(Section):
    """Recipe corrupt_and_denoise."""

    least: float = Field(0.65, ge=0, le=1, description="least share of noise")
    most: float = Field(0.8, ge=0, le=1, description="greatest share; drawn once per clip, for all members")
    members: int = Field(2, ge=1, description="clips made of one real clip, each from noise of its own")
    real: Literal["no", "candidate", "chosen"] = Field(
        "no",
        description="the real clip: left out, one more candidate, or chosen over every member (Reg-DPO)",
    )

    @model_validator(mode="after")
    def _range(self) -> "CorruptConfig":
        if self.least > self.most:
            message = f"least {self.least} is above most {self.most}"
            raise ValueError(message)
        if self.real == "no" and self.members < 2:
            message = "one member alone makes no pair: give two, or real"
            raise ValueError(message)
        return self


class DamageConfig(Section):
    """Recipe damage."""

    kinds: tuple[Damage, ...] = Field(DAMAGES, min_length=1, description="damaged copies, one pair each")
    still: float = Field(
        0.004,
        ge=0,
        description="clips of less motion are left out: their frames in another order show nothing; of 1 for "
        "black to white in an eighth of a second",
    )


class SegmentsConfig(Section):
    """Labels of every stretch of a pair."""

    seconds: float = Field(1.0, gt=0, description="of a stretch")
    fps: float = Field(8.0, gt=0, description="frames a second that the annotator is shown")
    by: Literal["reward", "judge"] = Field("reward", description="what tells the two apart")
    annotator: RewardChoice = Field(
        description="reward: its value of each side's frames; judge: a pairwise judge, asked in both orders"
    )
    margin: float = Field(0.0, ge=0, description="reward: values that differ by no more are a tie")
    min_decided: float = Field(
        0.2, ge=0, lt=1, description="pairs with no more decided stretches than this share are left out"
    )

    @model_validator(mode="after")
    def _frames_in_each(self) -> "SegmentsConfig":
        """A stretch without a frame would be skipped, and all labels behind it stand too early."""
        if self.seconds * self.fps < 1:
            message = (
                f"stretches of {self.seconds:g} s at {self.fps:g} frames a second hold less than a frame"
            )
            raise ValueError(message)
        return self


class VideoPairPlan(Section):
    """One run of a pair maker."""

    recipe: VideoRecipe
    model: ModelConfig | None = Field(None, description="what makes the clips")
    adapter: str | None = Field(None, description="folder of a trained adapter, put on the model")
    maker: str | None = Field(
        None,
        description="recipe groups: module:function of yours in place of a model: (prompts, keys, seed, "
        "num_steps) to a clip each: (frames [frame, 3, height, width], fps), encoded bytes, a file, or None",
    )
    video: VideoConfig = Field(
        default_factory=VideoConfig, description="frames, size and rate of the clips; which part of real ones"
    )
    data: DataConfig
    limit: int | None = Field(None, ge=1, description="rows")
    exclude: tuple[str, ...] = Field(
        (), description="data files whose prompts must not be trained on: held-out prompts, in any layout"
    )
    seed: int = 0
    block_rows: int = Field(4, ge=1, description="rows worked on and written down together")
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    strategy: str | None = Field(None, description="value of the column `strategy`; default: the recipe")
    make: Literal["pairs", "rankings"] = Field("pairs", description="rankings: all scored clips of a prompt")
    container: Container = Field("mp4", description="mkv is lossless; webp and gif need no extra")
    quality: int = Field(12, ge=0, le=51, description="mp4: x264's constant rate factor, 0 is lossless")
    sampling: GroupSampling = Field(default_factory=GroupSampling)
    corrupt: CorruptConfig = Field(default_factory=CorruptConfig)
    damage: DamageConfig = Field(default_factory=DamageConfig)
    segments: SegmentsConfig | None = Field(
        None, description="recipes segments and corrupt_and_denoise: labels in time in place of scores"
    )
    scorers: tuple[RewardChoice, ...] = Field(
        (), description="rewards of clips, or of pictures (their mean over frames); the first decides"
    )
    frames: int = Field(
        8, ge=1, description="frames of a clip, at even distances, that rewards of pictures see"
    )
    judge: RewardChoice | None = Field(
        None, description="rule disjoint: a pairwise judge, asked in both orders; default: the score decides"
    )
    selection: ClipSelection = Field(default_factory=ClipSelection)

    @field_validator("data", mode="after")
    @classmethod
    def _clips(cls, value: DataConfig) -> DataConfig:
        return of_clips(value)

    @model_validator(mode="after")
    def _has_a_maker(self) -> "VideoPairPlan":
        given = [name for name in ("model", "maker") if getattr(self, name) is not None]
        allowed = {"groups": "model or maker", "corrupt_and_denoise": "a model"}
        expected = allowed.get(self.recipe, "none of model and maker")
        fits = len(given) == (self.recipe in allowed)
        if not fits or (self.recipe == "corrupt_and_denoise" and self.maker is not None):
            message = f"recipe {self.recipe} needs {expected}, got {' and '.join(given) or 'neither'}"
            raise ValueError(message)
        if self.adapter is not None and self.model is None:
            message = "adapter is put on a model: give one"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _own_settings(self) -> "VideoPairPlan":
        """A section that another recipe has would be read by nobody."""
        readers: dict[str, tuple[str, ...]] = {
            "sampling": ("groups", "corrupt_and_denoise"),
            "corrupt": ("corrupt_and_denoise",),
            "damage": ("damage",),
            "segments": ("segments", "corrupt_and_denoise"),
            "scorers": ("groups", "existing_clips", "corrupt_and_denoise"),
            "selection": ("groups", "existing_clips", "corrupt_and_denoise"),
            "video": ("groups", "corrupt_and_denoise", "damage"),
        }
        for name, recipes in readers.items():
            if name in self.model_fields_set and self.recipe not in recipes and getattr(self, name):
                message = f"got {name}, which recipe {self.recipe} does not read"
                raise ValueError(message)
        if self.recipe == "corrupt_and_denoise" and self.sampling.scheduler is not None:
            message = "sampling.scheduler: recipe corrupt_and_denoise takes the model's own"
            raise ValueError(message)
        if self.judge is not None and self.selection.rule != "disjoint":
            message = f"judge is asked by rule disjoint alone, got rule {self.selection.rule}"
            raise ValueError(message)
        if self.make == "rankings" and not self.scored:
            message = f"rankings need scores, which recipe {self.recipe} does not make here"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _told_apart(self) -> "VideoPairPlan":
        """What decides must be there, once."""
        if self.recipe == "segments" and self.segments is None:
            message = "recipe segments needs the section segments: who labels, and how"
            raise ValueError(message)
        if self.segments is not None and (self.scorers or self.corrupt.real != "no"):
            message = "segments decide pairs in place of scores and of the real clip: give one of them"
            raise ValueError(message)
        titles = [scorer.column for scorer in self.scorers]
        for title in titles:
            if (*titles, TOTAL, MOTION).count(title) > 1:
                message = f"two scores are called {title}: give one of them another title"
                raise ValueError(message)
        needs = self.recipe == "groups" or (self.recipe == "corrupt_and_denoise" and self.scored)
        if needs and not self.scorers:
            message = "scorers: got none, expected at least one: unscored clips make no pairs"
            raise ValueError(message)
        for title in self.selection.titles() if self.scored else ():
            if title not in self.titles:
                message = f"selection: got {title}, expected a scorer ({', '.join(self.titles)})"
                raise ValueError(message)
        return self

    @property
    def scored(self) -> bool:
        """Whether scores say which clip is better; else labels in time do, or that one clip is real."""
        if self.recipe in ("damage", "segments") or self.segments is not None:
            return False
        return self.recipe != "corrupt_and_denoise" or self.corrupt.real != "chosen"

    @property
    def titles(self) -> tuple[str, ...]:
        """What columns call the scores; the data's own where no scorer is named."""
        own = (DATA_SCORE,) if self.recipe == "existing_clips" else ()
        return tuple(scorer.column for scorer in self.scorers) or own

    @property
    def columns(self) -> tuple[str, ...]:
        """Titles of all scores that rows have: the weighted sum comes last."""
        return (*self.titles, TOTAL) if self.selection.weights and self.scored else self.titles

    @property
    def decides(self) -> str:
        """Title of the score that orders clips."""
        if self.selection.decides is not None:
            return self.selection.decides
        return TOTAL if self.selection.weights else self.titles[0]

    @property
    def works_on_prompts(self) -> bool:
        """Whether rows need prompts alone."""
        return self.recipe in _SAMPLED

    @property
    def works_on_real_clips(self) -> bool:
        """Whether rows need one clip each."""
        return self.recipe in _REAL


def read_video_plan(path: str | Path, overrides: Sequence[str] = ()) -> VideoPairPlan:
    """The plan of a YAML file, with `section.key=value` overrides.

    Raises:
        ConfigError: no such file, not YAML, or values that do not fit; each with its place.
    """
    return validated(read_config(path, overrides), VideoPairPlan)
