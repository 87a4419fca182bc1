"""Settings of the data section: where rows come from, what columns mean, what ties and bad rows become.

Only declarations; nothing here reads a file. The run configuration embeds `DataConfig` as its section `data`,
and `mmalign data check` builds one from its options.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "AudioLimits",
    "DataConfig",
    "DialogueConfig",
    "ImageLimits",
    "ListPolicy",
    "Media",
    "SourceConfig",
    "TiePolicy",
    "VideoLimits",
]

TiePolicy = Literal["drop", "random", "soft"]
"""What a tie means: no row, a seeded coin per row, or preference 0.5."""

ListPolicy = Literal["keep", "pairs", "best_worst"]
"""What a ranking becomes: one row, every pair of unequal candidates, or one pair of its ends."""

Media = Literal["image", "text", "audio", "video", "dialogue"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageLimits(_Section):
    """Sizes beyond which an image is refused instead of decoded."""

    max_pixels: int = Field(
        2**26, ge=1, description="pixels of one image (width times height) before resizing"
    )
    max_bytes: int = Field(2**28, ge=1, description="bytes of one encoded image")
    min_side: int = Field(
        16, ge=1, description="pixels of the shorter side; smaller ones are placeholders, not images"
    )
    max_aspect_ratio: float = Field(
        8.0,
        ge=1,
        description="longer side over shorter side; beyond it the crop shows a sliver and resizing explodes",
    )


class AudioLimits(_Section):
    """Which sound files are refused."""

    max_bytes: int = Field(2**28, ge=1, description="bytes of one encoded clip")
    max_seconds: float = Field(600.0, gt=0, description="longer clips are refused, before they are decoded")
    min_seconds: float = Field(0.1, ge=0, description="shorter clips are refused")
    max_samples: int = Field(
        2**27, ge=1, description="samples of one clip, over all channels (2**27: 512 MiB)"
    )
    silence: Literal["note", "refuse"] = Field("note", description="silent clips: count them, or refuse them")
    silence_peak: float = Field(1e-4, ge=0, lt=1, description="a clip whose peak is no higher is silent")


class VideoLimits(_Section):
    """Which clips are refused."""

    max_bytes: int = Field(2**31, ge=1, description="bytes of one encoded clip")
    max_pixels: int = Field(2**24, ge=1, description="pixels of one frame (width times height)")
    max_seconds: float = Field(600.0, gt=0, description="longer clips are refused, before they are decoded")
    min_seconds: float = Field(0.1, ge=0, description="shorter clips are refused")
    max_frames: int = Field(2**15, ge=1, description="frames of one clip; clips of more are refused")
    min_frames: int = Field(2, ge=1, description="clips of fewer frames are refused: they are pictures")
    max_kept_pixels: int = Field(
        2**30, ge=1, description="pixels of all frames that are kept in memory at once (2**30: 3 GiB)"
    )
    min_side: int = Field(16, ge=1, description="pixels of the shorter side; smaller clips are refused")
    max_aspect_ratio: float = Field(8.0, ge=1, description="longer side over shorter side")
    max_fps: float = Field(
        1000.0, gt=0, description="frames per second; beyond it the head of the file is damaged"
    )
    frames_fps: float | None = Field(
        None,
        gt=0,
        description="frames per second of clips that lie as images, where the row has no column fps; "
        "default: those that the model is given",
    )


class DialogueConfig(_Section):
    """What is made of the records of vision-language data."""

    aspect: str | None = Field(
        None, description="VLFeedback: rate answers by this aspect alone; default: the mean of all aspects"
    )
    min_gap: float = Field(0.0, ge=0, description="pairs whose rewards differ by less are left out")
    phrases: Literal["auto", "markers", "align", "none"] = Field(
        "auto",
        description="spans of phrases that differ: auto (RRPO rows: by markers, else by words), markers "
        "(RRPO rows: by their markers or not at all), align (any pair: by words) or none",
    )
    questions: tuple[str, ...] = Field(
        ("Describe this image in detail.",),
        min_length=1,
        description="HA-DPO descriptions come without a question: one of these is drawn per record",
    )


class SourceConfig(_Section):
    """One data set."""

    path: str = Field(
        description="parquet, JSON, JSONL, CSV or TSV file; parquet shards, saved `datasets` folder, "
        "a folder with metadata.jsonl or metadata.csv, two matched folders (chosen/, rejected/), "
        "a folder with VideoDPO's pair.json and metadata.json, or a hub data set id (owner/name); "
        "with data.streaming the address of shards"
    )
    format: str = Field(
        "auto",
        description="layout: auto, pickapic, chosen_rejected, two_images, two_videos, rankings, "
        "ranked_images, unpaired, captioned (single examples without a label); "
        "of dialogues: trl, llama_factory, ms_swift, rlaif_v, rlhf_v, vlfeedback, mm_rlhf, povid, "
        "mdpo_pairs, hsa_dpo, ha_dpo, mia_dpo, opa_dpo, mllm_dpo, llava_hound, temple, rrpo, chexalign, "
        "trajectories, mapped",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="role: column name, where not recognised, e.g. {prompt: caption, a: left, b: right, "
        "label: preferred}; `mmalign data check` lists the roles",
    )
    media: Media = Field(
        "image",
        description="what the candidates are; sound, clips and dialogues (answers about images or "
        "videos) are recognised where this is left out",
    )
    dialogue: DialogueConfig = Field(default_factory=DialogueConfig)
    split: str | None = Field(None, description="split of the data set (file name, column or hub split)")
    revision: str | None = Field(None, description="hub revision to pin")
    root: str | None = Field(
        None, description="folder that relative media paths start from; default: beside the file"
    )
    allow_outside: bool = Field(
        False, description="accept media paths that leave `root` (also through symbolic links)"
    )
    lists: ListPolicy = Field(
        "keep", description="rankings: keep as lists, or make pairs or best_worst pairs of them"
    )
    weight: float = Field(
        1.0, gt=0, description="visits of each row per epoch when several sources are mixed"
    )
    limit: int | None = Field(None, ge=1, description="use only the first rows that pass the filters")

    @field_validator("columns", mode="before")
    @classmethod
    def _text_columns(cls, value: Any) -> Any:
        # A CSV without header has columns named 0, 1, ...: YAML reads those as numbers.
        return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else value


class DataConfig(_Section):
    """Where rows come from and what is done with unusable ones."""

    source: SourceConfig | None = Field(None, description="one data set: a path or hub id, or its settings")
    sources: tuple[SourceConfig, ...] = Field((), description="several data sets, mixed by weight")
    tie_policy: TiePolicy = Field(
        "drop", description="ties: drop the row, decide by a seeded coin, or keep as preference 0.5 (soft)"
    )
    identical: Literal["drop", "keep"] = Field(
        "drop",
        description="pairs of twice the same file: most objectives have no gradient there",
    )
    allow_empty_prompt: bool = Field(False, description="accept rows without a prompt")
    max_bad_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of unusable rows (unreadable, malformed) above which the run ends",
    )
    seed: int = Field(0, description="of the coin for ties")
    shuffle: bool = Field(True, description="a new seeded order every epoch; false keeps the file's order")
    streaming: bool = Field(
        False,
        description="read parquet or tar shards from their address (s3://, gs://, hf://, https://, a folder) "
        "as the run goes, without a copy on the disk",
    )
    shuffle_buffer: int = Field(
        1000,
        ge=1,
        description="streaming: rows that wait in the memory of each lane, one of which is drawn at a time",
    )
    stream_lanes: int | None = Field(
        None,
        ge=1,
        description="streaming: places at which the shards are read side by side, over all processes; "
        "default: processes times loader workers, at the first start",
    )
    images: ImageLimits = Field(default_factory=ImageLimits)
    audio: AudioLimits = Field(default_factory=AudioLimits)
    video: VideoLimits = Field(default_factory=VideoLimits)

    @field_validator("source", mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("sources", mode="before")
    @classmethod
    def _paths_alone(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple({"path": item} if isinstance(item, str) else item for item in value)

    @model_validator(mode="after")
    def _has_a_source(self) -> "DataConfig":
        if (self.source is None) == (not self.sources):
            message = "set exactly one of source (one data set) and sources (a list of them)"
            raise ValueError(message)
        return self

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """The data sets, however many were given."""
        return (self.source,) if self.source is not None else self.sources
