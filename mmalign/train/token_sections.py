"""Sections of a run that trains a language model, with or without images and videos."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mmalign.data.config import DataConfig, SourceConfig
from mmalign.train.sections import (
    ImageConfig,
    OneStepConfig,
    RolloutConfig,
    RunConfig,
    SafeguardConfig,
    SamplesConfig,
    Section,
)

__all__ = [
    "AnswerRolloutConfig",
    "AnswersConfig",
    "CorruptionConfig",
    "DialogueSample",
    "TokenRunConfig",
    "TokensConfig",
    "tokens_of",
]


class CorruptionConfig(Section):
    """How an image is spoilt for methods that compare it with the whole one; drawn once per row."""

    kind: str | None = Field(
        None, description="a name of `mmalign.vlm.corruptions`; default: the row, else crop"
    )
    strength: float | None = Field(
        None, ge=0, description="as the corruption means it; default: the row, else the corruption's"
    )
    versions: int | None = Field(
        None,
        ge=1,
        description="spoilt versions of a row, of which the policy takes one, close to the true media and "
        "far in its predictions; default: the row, else 1",
    )
    kinds: tuple[str, ...] = Field(
        (), description="several versions: corruptions that take turns; default: kind, else the row"
    )
    similar: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="several versions: least cosine of visual features; default: the row, else 0.8",
    )
    weigh: bool | None = Field(
        None,
        description="several versions: rows count by how far predictions move; default: the row, else true",
    )

    @field_validator("kinds", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_strength(self) -> "CorruptionConfig":
        if self.strength is not None and len(set(self.kinds)) > 1:
            message = f"strength {self.strength} means another thing to each of {', '.join(self.kinds)}"
            raise ValueError(message)
        return self


class TokensConfig(Section):
    """How dialogues become tokens, and how the network computes their log-probabilities."""

    max_length: int | None = Field(
        None, ge=2, description="tokens of prompt, images and answer together; default: what the model takes"
    )
    max_completion_length: int | None = Field(
        None, ge=1, description="tokens of an answer; longer ones lose their end. Prompts are never cut"
    )
    fit: Literal["shrink", "drop", "error"] = Field(
        "shrink",
        description="rows whose prompt and images are too long: fewer pixels per image, no row, or an error",
    )
    min_pixels: int | None = Field(None, ge=1, description="of one image; default: the processor's")
    max_pixels: int | None = Field(None, ge=1, description="of one image; default: the processor's")
    num_frames: int | None = Field(None, ge=1, description="of a video, evenly spaced; default: by fps")
    fps: float | None = Field(None, gt=0, description="frames per second of a video; default: the family's")
    max_frames: int = Field(64, ge=1, description="of a video")
    system_prompt: str | None = Field(None, description="in front of dialogues that have none of their own")
    packing: Literal["auto", "packed", "plain"] = Field(
        "auto",
        description="candidates share their prompt and images in one row, or stand in rows of their own; "
        "auto: packed where a test at the start shows equal numbers",
    )
    share_vision: Literal["auto", "on", "off"] = Field(
        "auto", description="run the vision tower once per image of a micro-batch; auto: where it is exact"
    )
    train_vision: bool = Field(False, description="train the vision tower, too")
    train_projector: bool = Field(False, description="train the projector, too")
    vision_learning_rate: float | None = Field(None, gt=0, description="default: train.learning_rate")
    projector_learning_rate: float | None = Field(None, gt=0, description="default: train.learning_rate")
    head_chunk: int | None = Field(
        None, ge=1, description="positions whose logits exist together; default about 64 MiB of them"
    )
    corruption: CorruptionConfig = Field(default_factory=CorruptionConfig)

    @model_validator(mode="after")
    def _ordered(self) -> "TokensConfig":
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            message = f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}"
            raise ValueError(message)
        if self.num_frames is not None and self.fps is not None:
            message = "set num_frames or fps, not both"
            raise ValueError(message)
        for part in ("vision", "projector"):
            if getattr(self, f"{part}_learning_rate") is not None and not getattr(self, f"train_{part}"):
                message = f"{part}_learning_rate is the rate of a part that does not train: set train_{part}"
                raise ValueError(message)
        return self


class DialogueSample(Section):
    """A prompt whose answers are written while training."""

    prompt: str
    images: tuple[str, ...] = Field((), description="paths")
    videos: tuple[str, ...] = Field((), description="paths of files or folders of frames")

    @model_validator(mode="before")
    @classmethod
    def _words_alone(cls, value: Any) -> Any:
        return {"prompt": value} if isinstance(value, str) else value


class AnswersConfig(Section):
    """Answers to fixed prompts while training, the base model's beside the policy's."""

    prompts: tuple[DialogueSample, ...] = ()
    every: int | None = Field(None, ge=1, description="optimiser steps; default: only at the end")
    seed: int = 0
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token")


class AnswerRolloutConfig(RolloutConfig):
    """How a language model that learns from its own answers writes them; offline methods have none of it."""

    temperature: float | None = Field(
        None, gt=0, description="of the policy's answers; default: the row, else 1, its own distribution"
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="least probability of the tokens drawn from; default: the row, else 1"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="of an answer, its end included; default: the row, else 256"
    )
    written_together: int = Field(8, ge=1, description="answers that are written in one batch, per device")
    judged_as: Literal["answer", "caption"] = Field(
        "answer",
        description="what a reward reads: question and answer, or (rewards of a picture and its prompt) the "
        "answer as the picture's text",
    )
    offline_share: float | None = Field(
        None, ge=0, le=1, description="mixed: share of micro-batches of the data's pairs; default: the row"
    )
    hidden: float | None = Field(
        None, ge=0, le=1, description="bias_driven: share of hidden visual tokens; default: the row"
    )
    similar: float | None = Field(
        None, ge=-1, le=1, description="bias_driven: cosine from which a sentence is drawn again"
    )
    hiding_rounds: int | None = Field(
        None, ge=1, description="bias_driven: of drawing; the last one writes sentences anew. 1: anew at once"
    )
    swap: float | None = Field(
        None, ge=0, le=1, description="bias_driven: probability that a leading yes or no becomes the other"
    )
    similarity: str = Field(
        "sentence-transformers/all-mpnet-base-v2",
        description="bias_driven: sentence encoder, folder or hub id; equal: only equal words are similar",
    )

    one_step: OneStepConfig = Field(default_factory=OneStepConfig, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _no_samplers(cls, value: Any) -> Any:
        given = [name for name in _OF_SAMPLERS if isinstance(value, dict) and value.get(name) is not None]
        if given:
            message = f"got {', '.join(given)}: answers are written token by token, without sampler steps"
            raise ValueError(message)
        return value


_OF_SAMPLERS = (
    *("num_steps", "guidance_scale", "eta", "spacing", "divert_start", "inner_steps", "refresh_every"),
    *("capacity", "gradient_steps", "train_share", "one_step"),
)

_OF_IMAGES = {
    "image": "image sizes are settings of the section tokens (min_pixels, max_pixels)",
    "safeguard": "it mends denoising errors, of which a language model has none",
    "samples": "answers to prompts are set in the section answers",
}

_DIALOGUE = {"media": "dialogue"}


class TokenRunConfig(RunConfig):
    """One training run of a language model."""

    tokens: TokensConfig = Field(default_factory=TokensConfig)
    answers: AnswersConfig = Field(default_factory=AnswersConfig)
    rollout: AnswerRolloutConfig = Field(default_factory=AnswerRolloutConfig)
    # Sections of image models, which nobody sets here.
    image: ImageConfig = Field(default_factory=lambda: ImageConfig(resolution=16), exclude=True)
    samples: SamplesConfig = Field(default_factory=SamplesConfig, exclude=True)
    safeguard: SafeguardConfig = Field(default_factory=SafeguardConfig, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _no_sections_of_images(cls, value: Any) -> Any:
        given = [name for name in _OF_IMAGES if isinstance(value, dict) and name in value]
        if given:
            reasons = "; ".join(f"{name}: {_OF_IMAGES[name]}" for name in given)
            message = f"got sections of image models for a language model: {reasons}"
            raise ValueError(message)
        return value

    @field_validator("data", mode="after")
    @classmethod
    def _dialogues(cls, value: DataConfig) -> DataConfig:
        # Rows are dialogues unless the file says otherwise.
        def named(source: SourceConfig) -> SourceConfig:
            return source if "media" in source.model_fields_set else source.model_copy(update=_DIALOGUE)

        source = None if value.source is None else named(value.source)
        return value.model_copy(
            update={"source": source, "sources": tuple(named(each) for each in value.sources)}
        )

    @model_validator(mode="after")
    def _readable_prompts(self) -> "TokenRunConfig":
        for prompt in self.answers.prompts:
            for path in (*prompt.images, *prompt.videos):
                if not Path(path).expanduser().exists():
                    message = f"answers.prompts: got the path {path}, expected a file that exists"
                    raise ValueError(message)
        return self


def tokens_of(config: RunConfig) -> TokensConfig | None:
    """The tokens section of a run; None where an image model is trained."""
    return config.tokens if isinstance(config, TokenRunConfig) else None
