"""The `audio` section of a run: how sound files become latents."""

from typing import Literal

from pydantic import Field, model_validator

from mmalign.train.sections import Section

__all__ = ["AudioConfig"]


class AudioConfig(Section):
    """How clips become latents."""

    duration: float | None = Field(
        None, gt=0, description="seconds; clips are cut or filled up with silence; default: the family's"
    )
    normalise: Literal["family", "peak", "none"] = Field(
        "family",
        description="level: peak takes the mean away and brings the largest amplitude to 0.5; none leaves "
        "clips as loud as they are; family is what the model was trained with",
    )
    channel: Literal["family", "first", "mean"] = Field(
        "family",
        description="what a model of one channel hears of several; family is what it was trained with",
    )
    prompt_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of rows trained without their prompt; Tango's `uncondition` is 0.1",
    )
    dropped_prompt: Literal["empty", "zeros"] = Field(
        "empty",
        description="what stands for a dropped prompt: the empty one, with which guidance contrasts, or text "
        "states of zero as in Tango's released trainer",
    )
    mix_augmentation: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of rows mixed with another row of the micro-batch, captions joined by `and`",
    )
    cache: str | None = Field(
        None, description="folder made by `mmalign data cache`; no encoders are needed then"
    )

    @model_validator(mode="after")
    def _mixtures_are_not_cached(self) -> "AudioConfig":
        if self.cache is not None and self.mix_augmentation > 0:
            message = (
                "audio.mix_augmentation needs the sound itself, and audio.cache holds latents: leave one out"
            )
            raise ValueError(message)
        return self
