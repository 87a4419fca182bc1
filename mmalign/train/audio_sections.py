"""Runs of models of sound: the `audio` section, and what the other sections mean there."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mmalign.data.config import DataConfig, SourceConfig
from mmalign.train.sections import ImageConfig, MediaConfig, RunConfig, SamplesConfig

__all__ = ["AudioConfig", "AudioRunConfig", "SoundSamplesConfig"]


class AudioConfig(MediaConfig):
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
    text_encoder_dropout: bool = Field(
        False,
        description="let the text encoder drop out while training, as Tango's released trainer did unawares",
    )
    mix_augmentation: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of rows mixed with another row of the micro-batch, captions joined by `and`",
    )

    @model_validator(mode="after")
    def _what_changes_is_not_cached(self) -> "AudioConfig":
        if self.cache is not None and self.mix_augmentation > 0:
            message = (
                "audio.mix_augmentation needs the sound itself, and audio.cache holds latents: leave one out"
            )
            raise ValueError(message)
        if self.cache is not None and self.text_encoder_dropout:
            message = (
                "audio.text_encoder_dropout makes other text states at every visit, and audio.cache holds "
                "one: leave one out"
            )
            raise ValueError(message)
        return self


class SoundSamplesConfig(SamplesConfig):
    """Sounds of fixed prompts and noise while training."""

    num_steps: int = Field(100, ge=1, description="of the model's own sampler; the papers evaluate with 200")
    guidance_scale: float = Field(3.0, ge=1)


_SOUND = {"media": "audio"}


class AudioRunConfig(RunConfig):
    """One training run of a model of sound."""

    media_name: ClassVar[str] = "audio"

    audio: AudioConfig = Field(default_factory=AudioConfig)
    samples: SoundSamplesConfig = Field(default_factory=SoundSamplesConfig)
    # The section of image models, which nobody sets here.
    image: ImageConfig = Field(default_factory=lambda: ImageConfig(resolution=16), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _no_sections_of_images(cls, value: Any) -> Any:
        if isinstance(value, dict) and "image" in value:
            message = "got the section image for a model of sound: its settings are in the section audio"
            raise ValueError(message)
        return value

    @field_validator("data", mode="after")
    @classmethod
    def _sounds(cls, value: DataConfig) -> DataConfig:
        # Candidates are sounds unless the file says otherwise.
        def named(source: SourceConfig) -> SourceConfig:
            return source if "media" in source.model_fields_set else source.model_copy(update=_SOUND)

        source = None if value.source is None else named(value.source)
        return value.model_copy(
            update={"source": source, "sources": tuple(named(each) for each in value.sources)}
        )
