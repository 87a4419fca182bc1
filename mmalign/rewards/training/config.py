"""The YAML file of a reward's training: settings, what a row of the method table fills in, overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmalign import methods
from mmalign.config_files import read_config, validated
from mmalign.data.config import DataConfig
from mmalign.errors import unknown_name
from mmalign.methods.rewards import REWARD_ROWS
from mmalign.methods.row import Method

__all__ = [
    "REWARD_ROWS",
    "AdapterConfig",
    "BackboneConfig",
    "ColumnsConfig",
    "HeadConfig",
    "LossConfig",
    "RewardRunConfig",
    "TrainConfig",
    "ValidationConfig",
    "load_reward_run",
]


class _Section(BaseModel):
    """A part of the file: unknown keys are errors, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(_Section):
    """What the head reads."""

    kind: Literal["clip", "blip", "chat", "pixels"] = Field(
        description="clip: embeddings of CLIP or SigLIP; blip: ImageReward's BLIP; chat: the last state of a "
        "vision-language model; pixels: a small copy and counts of words, no network"
    )
    name: str = Field("", description="clip: short name or hub id; chat: hub id")
    weights: str | None = Field(
        None, description="folder with the files; default: the hub's cache, or the hub"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(32, ge=1, description="samples per call; features do not depend on it")
    cache: str | None = Field(None, description="folder for features; default: inside the run's folder")
    question: str | None = Field(None, description="chat: what is asked, with {prompt}")
    max_pixels: int | None = Field(None, ge=1, description="chat: larger pictures are scaled down to it")
    size: int | None = Field(None, ge=1, description="pixels: side of the copy")
    colours: int | None = Field(None, ge=1, description="pixels: steps per channel of the histogram")
    words: int | None = Field(None, ge=1, description="pixels: width of a text's features")

    def options(self) -> dict[str, Any]:
        """What only some kinds take, where it is set."""
        names = ("question", "max_pixels", "size", "colours", "words")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class ColumnsConfig(_Section):
    """Columns that say more than which candidate is better."""

    user: str = Field("", description="who chose; needed by reward_pal")
    context: str = Field("", description="text under which was chosen; needed by reward_context")
    task: str = Field(
        "", description="reward_more: which preference a row is about; default: its data source"
    )


class HeadConfig(_Section):
    """The head that is trained."""

    width: int = Field(256, ge=1, description="of the layers; reward_pal: of the space of preferences")
    hidden: int = Field(1, ge=0, description="layers between the first and the last one")
    dropout: float = Field(0.0, ge=0, lt=1)
    form: Literal["a", "b"] = Field("b", description="reward_pal: ideal points among items, or per prompt")
    prototypes: int = Field(2, ge=1, description="reward_pal: of which users are mixtures")


class AdapterConfig(_Section):
    """Training the backbone with the head, by LoRA; without it features are computed once."""

    rank: int = Field(0, ge=0, description="0 leaves the backbone frozen")
    alpha: float | None = Field(None, gt=0, description="default: the rank")
    targets: str = Field("", description="regular expression of module names; default: queries and values")


class LossConfig(_Section):
    """The loss."""

    margin: float | None = Field(
        None, ge=0, description="logits (reward_pal form a: distance); default 0, reward_pal form a 1"
    )
    per_prompt: bool = Field(
        False, description="the pairs of a prompt weigh 1 together, as Pick-a-Pic's trainer has it"
    )
    expectation: Literal["likelihood", "loss"] = Field(
        "likelihood", description="reward_pearl: -log E sigmoid (calibrated), or E -log sigmoid (published)"
    )
    entropy_weight: float = Field(0.0, ge=0, description="reward_pearl: of the shortfall of entropy")
    entropy_floor: float = Field(0.0, description="reward_pearl: nats; 1.4189 is a deviation of 1")


class TrainConfig(_Section):
    """The optimisation."""

    output: str = Field(description="run folder: the reward, checkpoints, metrics.jsonl")
    seed: int = 0
    epochs: float | None = Field(None, gt=0, description="passes over the training pairs; default 20")
    steps: int | None = Field(None, ge=1, description="optimiser steps, instead of epochs")
    batch_size: int = Field(256, ge=1, description="pairs per step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="pairs whose graph is in memory at once; default: the whole step"
    )
    learning_rate: float | None = Field(None, gt=0, description="peak; default: the row")
    adapter_learning_rate: float | None = Field(None, gt=0, description="of LoRA; default: learning_rate")
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "cosine", description="after the warm-up; linear falls to 0 from the end of the warm-up on"
    )
    max_grad_norm: float | None = Field(1.0, gt=0)
    evaluate_every: int | None = Field(None, ge=1, description="steps; default: an epoch")
    patience: int = Field(
        5, ge=1, description="evaluations without a lower validation NLL that end the training"
    )
    keep_checkpoints: int = Field(2, ge=1)
    resume: Literal["auto", "none"] = Field("auto", description="auto: go on where the folder's run stopped")
    device: str = Field("auto", description="auto: the best there is; or cpu, cuda, cuda:1, mps")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if self.epochs is not None and self.steps is not None:
            message = "set epochs or steps, not both"
            raise ValueError(message)
        return self


class ValidationConfig(_Section):
    """Pairs that are not trained on, by prompt."""

    validation_share: float = Field(
        0.1, gt=0, lt=1, description="of prompts: early stopping, temperature, threshold of ties"
    )
    test_share: float = Field(0.1, gt=0, lt=1, description="of prompts: what is reported; decides nothing")
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_pairs(self) -> "ValidationConfig":
        if self.validation_share + self.test_share >= 1:
            message = "validation_share and test_share leave nothing to train on"
            raise ValueError(message)
        return self


class RewardRunConfig(_Section):
    """One training of a reward."""

    method: str
    name: str = Field("", description="what the reward is called in tables; default: the method")
    backbone: BackboneConfig
    data: DataConfig
    columns: ColumnsConfig = Field(default_factory=ColumnsConfig)
    head: HeadConfig = Field(default_factory=HeadConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    train: TrainConfig
    validation: ValidationConfig = Field(default_factory=ValidationConfig)

    @model_validator(mode="after")
    def _has_its_column(self) -> "RewardRunConfig":
        for method, column in (("reward_pal", "user"), ("reward_context", "context")):
            if self.method == method and not getattr(self.columns, column):
                message = f"{method} reads who or what was chosen for: set columns.{column} to a column"
                raise ValueError(message)
            if self.method != method and getattr(self.columns, column):
                message = f"columns.{column} is read by {method} alone; take it out, or set method: {method}"
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _keeps_steps_whole(self) -> "RewardRunConfig":
        if self.method == "reward_more" and self.train.micro_batch_size is not None:
            message = "reward_more weighs the tasks of a whole step: take train.micro_batch_size out"
            raise ValueError(message)
        return self


# --------------------------------------------------------------------------------------------- the file


def load_reward_run(path: str | Path, overrides: Sequence[str] = ()) -> tuple[RewardRunConfig, Method]:
    """The settings of a YAML file, filled from its method's row, and that row.

    Args:
        path: YAML file.
        overrides: `section.key=value`; values are YAML.

    Raises:
        ConfigError: every mistake at once, each with its place and the nearest valid key.
        UnknownNameError: a method that trains no reward.
    """
    config = validated(read_config(path, overrides), RewardRunConfig)
    if config.method not in REWARD_ROWS:
        raise unknown_name("reward method", config.method, REWARD_ROWS)
    row = methods.find(config.method)
    defaults = row.defaults_for("")
    updates: dict[str, Any] = {}
    if config.train.learning_rate is None:
        updates["learning_rate"] = defaults["learning_rate"].value
    if config.train.epochs is None and config.train.steps is None:
        updates["epochs"] = 20.0
    train = TrainConfig.model_validate({**config.train.model_dump(), **updates})
    return config.model_copy(update={"train": train}), row
