"""What `mmalign pairs make` runs for sounds: model, prompts, recipe and selection, as one YAML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmalign.audio.pair_making.edits import EVENT_EDITS, ORDER_EDITS, EditKind
from mmalign.config_files import read_config, validated
from mmalign.data.config import DataConfig
from mmalign.data.pair_making.groups import GroupSelection
from mmalign.data.pair_making.sections import RewardChoice
from mmalign.train.sections import ModelConfig, Section

__all__ = [
    "AUDIO_RECIPES",
    "AudioPairPlan",
    "AudioRecipe",
    "ClipSampling",
    "EditsConfig",
    "read_audio_plan",
]

AudioRecipe = Literal["seeds", "quality", "events", "order", "candidates"]

AUDIO_RECIPES: dict[AudioRecipe, str] = {
    "seeds": "several clips of every prompt (Audio-Alpaca's resampling; TangoFlux's CRPO)",
    "quality": "clips of one prompt made with few and many steps (Audio-Alpaca's varying quality)",
    "events": "the prompt's clip over clips of prompts with events dropped, added or replaced (Audio-Alpaca)",
    "order": "the prompt's clip over clips of prompts with events in another order (Audio-Alpaca)",
    "candidates": "clips that exist, scored and paired; nothing is sampled",
}
"""Recipes and what they compare."""

DATA_SCORE = "data"
"""What columns call a score that the data themselves give."""


class ClipSampling(Section):
    """How clips are made."""

    num_samples: int = Field(4, ge=1, description="clips of a prompt; quality: one per number of steps")
    num_steps: int = Field(50, ge=1, description="sampler steps; quality has its own")
    guidance_scale: float = Field(3.0, ge=0)
    scheduler: str | None = Field(None, description="sampler by name; default: the model's own")
    duration: float | None = Field(None, gt=0, description="seconds; default: the model's")
    batch_size: int = Field(4, ge=1, description="clips in one call of the network")


class QualityConfig(Section):
    """Recipe quality."""

    steps: tuple[int, ...] = Field((5, 25, 50, 100), min_length=2, description="sampler steps, a clip each")


class EditsConfig(Section):
    """Recipes events and order."""

    kinds: tuple[EditKind, ...] = Field((), description="which edits; default: all of the recipe")
    count: int = Field(5, ge=1, description="edited prompts of a prompt, a clip each")
    file: str | None = Field(
        None, description="JSONL: id or prompt, and edits (a list of prompts); default: templates"
    )
    originals: int = Field(1, ge=1, description="clips of the prompt itself; the best may win")
    same_noise: bool = Field(False, description="clips of a prompt and of its edits start from equal noise")


class AudioPairPlan(Section):
    """One run of a pair maker."""

    recipe: AudioRecipe
    model: ModelConfig | None = Field(None, description="what makes the clips")
    adapter: str | None = Field(None, description="folder of a trained adapter, put on the model")
    maker: str | None = Field(
        None,
        description="module:function of yours in place of a model: (prompts, keys, seed, num_steps) to a "
        "clip each: (samples, sampling rate), encoded bytes, a file, or None",
    )
    data: DataConfig
    limit: int | None = Field(None, ge=1, description="prompts")
    exclude: tuple[str, ...] = Field(
        (), description="data files whose prompts must not be trained on: held-out captions, in any layout"
    )
    seed: int = 0
    block_rows: int = Field(8, ge=1, description="prompts worked on and written down together")
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"
    strategy: str | None = Field(None, description="value of the column `strategy`; default: the recipe")
    make: Literal["pairs", "rankings"] = Field("pairs", description="rankings: all scored clips of a prompt")
    container: Literal["flac", "wav"] = "flac"
    sampling: ClipSampling = Field(default_factory=ClipSampling)
    quality: QualityConfig = Field(default_factory=QualityConfig)
    events: EditsConfig = Field(default_factory=EditsConfig)
    order: EditsConfig = Field(default_factory=EditsConfig)
    scorers: tuple[RewardChoice, ...] = Field(
        (), description="rewards of sounds under the original prompt; the first decides"
    )
    selection: GroupSelection = Field(default_factory=GroupSelection)

    @model_validator(mode="after")
    def _has_a_maker(self) -> "AudioPairPlan":
        given = [name for name in ("model", "maker") if getattr(self, name) is not None]
        if len(given) != (self.recipe != "candidates"):
            expected = "none of model and maker" if self.recipe == "candidates" else "model or maker"
            message = f"recipe {self.recipe} needs {expected}, got {' and '.join(given) or 'neither'}"
            raise ValueError(message)
        if self.adapter is not None and self.model is None:
            message = "adapter is put on a model: give one"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _own_settings(self) -> "AudioPairPlan":
        """A section of another recipe would be read by nobody."""
        sections = {"quality", "events", "order", *({"sampling"} if self.recipe == "candidates" else set())}
        others = sorted((self.model_fields_set & sections) - {self.recipe})
        if others:
            message = f"got settings of {', '.join(others)}, expected those of recipe {self.recipe} alone"
            raise ValueError(message)
        if self.recipe in ("events", "order"):
            known = EVENT_EDITS if self.recipe == "events" else ORDER_EDITS
            strange = [kind for kind in self.edits.kinds if kind not in known]
            if strange:
                message = f"{self.recipe}.kinds: got {strange[0]}, expected some of {', '.join(known)}"
                raise ValueError(message)
        elif self.selection.rule == "perturbed_prompt":
            message = f"rule perturbed_prompt needs edited prompts, which recipe {self.recipe} does not make"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _scored(self) -> "AudioPairPlan":
        titles = [scorer.column for scorer in self.scorers]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            message = f"two scorers are called {twice[0]}: give one of them a title"
            raise ValueError(message)
        if not self.scorers and self.recipe != "candidates":
            message = "scorers: got none, expected at least one: unscored clips make no pairs"
            raise ValueError(message)
        for title in self.selection.titles():
            if title not in self.titles:
                message = f"selection: got {title}, expected a scorer ({', '.join(self.titles)})"
                raise ValueError(message)
        return self

    @property
    def titles(self) -> tuple[str, ...]:
        """What columns call the scores; the data's own where no scorer is named."""
        return tuple(scorer.column for scorer in self.scorers) or (DATA_SCORE,)

    @property
    def decides(self) -> str:
        """Title of the scorer that orders clips."""
        return self.selection.decides or self.titles[0]

    @property
    def chosen_by(self) -> GroupSelection:
        """The selection; clips of edited prompts never win unless a rule is named that lets them."""
        if self.recipe not in ("events", "order") or "rule" in self.selection.model_fields_set:
            return self.selection
        return self.selection.model_copy(update={"rule": "perturbed_prompt"})

    @property
    def edits(self) -> EditsConfig:
        """Settings of the recipe's edits."""
        return self.events if self.recipe == "events" else self.order

    @property
    def edit_kinds(self) -> tuple[EditKind, ...]:
        """Which edits the recipe makes."""
        return self.edits.kinds or (EVENT_EDITS if self.recipe == "events" else ORDER_EDITS)


def read_audio_plan(path: str | Path, overrides: Sequence[str] = ()) -> AudioPairPlan:
    """The plan of a YAML file, with `section.key=value` overrides.

    Raises:
        ConfigError: no such file, not YAML, or values that do not fit; each with its place.
    """
    return validated(read_config(path, overrides), AudioPairPlan)
