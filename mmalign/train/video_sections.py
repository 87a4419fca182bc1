"""Runs of models of video: the `video` section, and what the other sections mean there."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mmalign.data.config import DataConfig, SourceConfig
from mmalign.train.sections import ImageConfig, MediaConfig, RunConfig, SamplesConfig

__all__ = ["VideoConfig", "VideoRunConfig", "VideoSamplesConfig", "of_clips"]


class VideoConfig(MediaConfig):
    """How clips become latents."""

    num_frames: int | None = Field(
        None,
        ge=1,
        description="frames of a clip: a multiple of the VAE's step in time, plus one (Wan 81); "
        "default: the family's",
    )
    height: int | None = Field(None, ge=16, description="pixels; default: the family's")
    width: int | None = Field(None, ge=16, description="pixels; default: the family's")
    fps: float | None = Field(
        None, gt=0, description="frames per second that clips are sampled at; default: the family's"
    )
    start: Literal["first", "random", "middle"] = Field(
        "first",
        description="which part of longer clips: random is decided by the row's key, the same for all of its "
        "candidates",
    )
    conditioning: Literal["text", "image"] | None = Field(
        None,
        description="image: clips go on from a picture, the row's or their own first frame; default: what "
        "the checkpoint was made for",
    )
    image_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of rows whose picture the network is not told of, of all candidates of a row "
        "together; CogVideoX's own training 0.05",
    )
    expert: Literal["high", "low"] | None = Field(
        None,
        description="of a model of two networks: the one that is trained, on noise levels of its own range; "
        "default: high, where there are two",
    )
    flow_shift: float | None = Field(
        None,
        gt=0,
        description="of flow models, in training as in sampling: Wan 3 at 480p, 5 at 720p; default: the "
        "checkpoint's",
    )
    posterior: Literal["family", "sample", "mean"] = Field(
        "family",
        description="latents of clips: a sample of the VAE's posterior or its mean; family: as in training",
    )
    vae_tiling: bool = Field(
        False, description="encode and decode large clips in overlapping tiles: less memory, faint seams"
    )

    @model_validator(mode="after")
    def _what_changes_is_not_cached(self) -> "VideoConfig":
        if self.cache is not None and self.start == "random":
            message = (
                "video.start random takes another part at every visit, and video.cache holds one: set "
                "start to first or middle, or leave the cache out"
            )
            raise ValueError(message)
        return self


class VideoSamplesConfig(SamplesConfig):
    """Clips of fixed prompts and noise while training."""

    num_steps: int = Field(30, ge=1, description="of the model's own sampler")
    guidance_scale: float = Field(5.0, ge=1)
    images: tuple[str, ...] = Field(
        (), description="files of pictures that the clips go on from, one per prompt, for such models"
    )

    @model_validator(mode="after")
    def _one_picture_per_prompt(self) -> "VideoSamplesConfig":
        if self.images and len(self.images) != len(self.prompts):
            message = f"samples.images has {len(self.images)} for {len(self.prompts)} prompts: one per prompt"
            raise ValueError(message)
        return self


def of_clips(data: DataConfig) -> DataConfig:
    """The same data, whose candidates are clips unless a source says otherwise."""

    def named(source: SourceConfig) -> SourceConfig:
        told = "media" in source.model_fields_set
        return source if told else source.model_copy(update={"media": "video"})

    source = None if data.source is None else named(data.source)
    return data.model_copy(update={"source": source, "sources": tuple(named(each) for each in data.sources)})


class VideoRunConfig(RunConfig):
    """One training run of a model of video."""

    media_name: ClassVar[str] = "video"

    video: VideoConfig = Field(default_factory=VideoConfig)
    samples: VideoSamplesConfig = Field(default_factory=VideoSamplesConfig)
    # The section of image models, which nobody sets here.
    image: ImageConfig = Field(default_factory=lambda: ImageConfig(resolution=16), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _no_sections_of_images(cls, value: Any) -> Any:
        if isinstance(value, dict) and "image" in value:
            message = "got the section image for a model of video: its settings are in the section video"
            raise ValueError(message)
        return value

    @field_validator("data", mode="after")
    @classmethod
    def _clips(cls, value: DataConfig) -> DataConfig:
        return of_clips(value)
