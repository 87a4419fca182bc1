"""The run configuration: one YAML file, one pydantic model, `section.key=value` overrides.

`load_run` reads the file, applies the overrides, fills what the file leaves open from the method's row for
the model family, and remembers what differs from that row. Messages carry file, line and the nearest valid
key.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmalign.data.config import DataConfig
from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.methods.row import Default, Method

__all__ = [
    "AdapterConfig",
    "Difference",
    "ImageConfig",
    "LikelihoodConfig",
    "LogConfig",
    "ModelConfig",
    "ReferenceConfig",
    "ResolvedRun",
    "RunConfig",
    "SamplesConfig",
    "Section",
    "TrainConfig",
    "load_run",
]


class Section(BaseModel):
    """A part of the run configuration: unknown keys are errors, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """Which network, and how it is held in memory."""

    family: str = Field(description="family name: `mmalign families` lists them")
    source: str = Field(description="hub id, diffusers folder, or a single .safetensors file")
    revision: str | None = Field(None, description="hub revision to pin")
    variant: str | None = Field(None, description="file variant of the hub repository, for example fp16")
    config_source: str | None = Field(
        None, description="diffusers folder or hub id whose configs describe a single file"
    )
    vae: str | None = Field(
        None, description="replacement VAE: hub id or folder (SDXL in fp16 needs the fp16 fix)"
    )
    attention: Literal["sdpa", "xformers", "flash"] = Field("sdpa", description="attention backend, verified")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    offload_encoders: bool = Field(False, description="keep VAE and text encoders on the CPU between uses")


class ImageConfig(Section):
    """How images become latents."""

    resolution: int = Field(ge=16, description="pixels; shorter side after resizing, and the crop")
    crop: Literal["center", "random"] = "center"
    flip: bool = Field(
        True, description="horizontal flip with probability 0.5, the same for both images of a pair"
    )
    micro_conditioning: Literal["constant", "true"] = Field(
        "constant",
        description="SDXL size conditioning: constant (matches inference) or the images' true sizes",
    )
    prompt_dropout: float = Field(0.0, ge=0, le=1, description="share of rows trained with the empty prompt")
    cache: str | None = Field(
        None, description="folder made by `mmalign data cache`; no encoders are needed then"
    )


class LikelihoodConfig(Section):
    """How the timestep-sampled bound is drawn."""

    timesteps: Literal["uniform", "logit_normal", "listed"] = "uniform"
    low: int | float = Field(0, ge=0, description="uniform: first timestep (flow models: lowest sigma)")
    high: int | float | None = Field(
        None, description="uniform: one past the last timestep (flow models: highest sigma); default all"
    )
    values: tuple[int, ...] = Field(
        (), description="listed: the timesteps, for example those of a Turbo model"
    )
    logit_mean: float = 0.0
    logit_std: float = Field(1.0, gt=0)
    stratified: bool = Field(False, description="spread the timesteps of one optimiser step evenly")
    share_noise: bool = Field(True, description="the candidates of a prompt share the noise")
    share_timestep: bool = Field(True, description="the candidates of a prompt share the timestep")
    error_space: Literal["native", "epsilon", "v_prediction", "sample", "flow"] = "native"
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="over the elements of one sample; decides beta's unit"
    )


class ReferenceConfig(Section):
    """What the policy is compared with."""

    kind: Literal["auto", "adapters_off", "frozen", "ema", "synced", "stored", "none"] = Field(
        "auto",
        description="auto: the method's own if it moves, else adapters_off with LoRA, frozen copy with full "
        "fine-tuning, none if not needed",
    )
    offload: bool = Field(False, description="frozen: keep the copy on the CPU between uses")
    decay: float = Field(0.999, ge=0, le=1, description="ema: decay per optimiser step")
    sync_every: int | None = Field(
        None, ge=1, description="synced: optimiser steps between two moves; default: the row, else 512"
    )
    mixing: float | None = Field(
        None,
        ge=0,
        le=1,
        description="synced: share of the policy in the new reference (1: all); default: the row, else 0.6",
    )
    draws_per_row: int = Field(
        4, ge=1, description="stored: size of the fixed bank of (timestep, noise) per row"
    )


class AdapterConfig(Section):
    """LoRA through peft, or none for full fine-tuning."""

    kind: Literal["lora", "none"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0, description="default: equal to rank")
    targets: tuple[str, ...] | str | None = Field(
        None, description="module name endings, or one regular expression; default: the family's"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="0 keeps the policy equal to the reference at the start"
    )
    use_dora: bool = False
    use_rslora: bool = False
    init: Literal["gaussian", "default"] = "gaussian"


class TrainConfig(Section):
    """The optimisation."""

    output: str = Field(description="run folder: checkpoints, metrics.jsonl, samples, resolved config")
    seed: int = 0
    steps: int | None = Field(None, ge=1, description="optimiser steps; default: the method's row")
    batch_size: int = Field(1, ge=1, description="prompts (pairs) per device and micro-step")
    accumulation: int = Field(1, ge=1, description="micro-steps per optimiser step")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="effective: used as it stands, never multiplied by batch or devices; default: the row",
    )
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] | None = None
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int | None = Field(None, ge=0, description="optimiser steps; default: the row, else 0")
    max_grad_norm: float | None = Field(1.0, gt=0, description="null switches clipping off")
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    ema_decay: float | None = Field(None, ge=0, lt=1, description="keep an average of the trained weights")
    max_nonfinite: int = Field(10, ge=1, description="dropped updates in a row that end the run")
    checkpoint_every: int = Field(200, ge=1, description="optimiser steps")
    keep_checkpoints: int = Field(2, ge=1)
    resume: str = Field(
        "auto", description="auto: continue the run in `output` if there is one; none; or a checkpoint"
    )
    num_workers: int | None = Field(
        None, ge=0, description="loader processes; default min(4, cores per device)"
    )
    allow_tf32: bool = Field(True, description="TF32 matrix products on CUDA for float32 parts")
    device: Literal["auto", "cpu"] = "auto"

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        # YAML 1.1 reads a bare `no` as False.
        return "no" if value is False else value


class LogConfig(Section):
    """What is written while training. `metrics.jsonl` is always written."""

    every: int = Field(10, ge=1, description="optimiser steps between records")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    project: str = "mmalign"
    run_name: str | None = None


class SamplesConfig(Section):
    """Grids on fixed prompts and noise while training."""

    prompts: tuple[str, ...] = ()
    every: int | None = Field(None, ge=1, description="optimiser steps; default: only at the end")
    seed: int = 0
    num_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(5.0, ge=1)


class RunConfig(Section):
    """One training run."""

    method: str
    model: ModelConfig
    image: ImageConfig
    data: DataConfig
    objective: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="arguments of the method's objective, for example beta"
    )
    likelihood: LikelihoodConfig = Field(default_factory=LikelihoodConfig)
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    train: TrainConfig
    log: LogConfig = Field(default_factory=LogConfig)
    samples: SamplesConfig = Field(default_factory=SamplesConfig)

    @field_validator("objective")
    @classmethod
    def _no_yaml_surprises(cls, value: dict[str, Any]) -> dict[str, Any]:
        # PyYAML reads 1e-5 as text; a number is meant.
        return {name: _number_if_possible(item) for name, item in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.reference.kind == "adapters_off" and self.adapter.kind == "none":
            message = (
                "reference.kind adapters_off needs adapter.kind lora (there is no adapter to switch off); "
                "use reference.kind frozen, stored or auto"
            )
            raise ValueError(message)
        if self.likelihood.timesteps == "listed" and not self.likelihood.values:
            message = "likelihood.timesteps listed needs likelihood.values, for example [249, 499, 749, 999]"
            raise ValueError(message)
        if self.reference.kind in ("stored", "ema", "synced") and self.adapter.dropout > 0:
            # Stored errors have no dropout in them; an average would be evaluated under it.
            message = f"reference.kind {self.reference.kind} needs adapter.dropout 0"
            raise ValueError(message)
        if self.reference.kind == "stored" and self.likelihood.stratified:
            message = (
                "reference.kind stored needs likelihood.stratified false: a stratified timestep depends on "
                "the place in the step, a stored one must not"
            )
            raise ValueError(message)
        return self


def _number_if_possible(value: object) -> object:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


# --- reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A setting that differs from the method's row."""

    setting: str
    value: object
    row_value: object
    mark: str


@dataclass(frozen=True)
class ResolvedRun:
    """A configuration with everything decided.

    Args:
        config: the file, the overrides and the row's defaults merged.
        method: the method's row.
        objective_arguments: what the objective is built with.
        filled: settings the row supplied, with their evidence.
        differences: settings that differ from the row.
        path: the file, for messages.
    """

    config: RunConfig
    method: Method
    objective_arguments: dict[str, float | int | str | bool]
    filled: dict[str, Default] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    path: str = ""


class _Marks:
    """File, line and column of every key path of a YAML document."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: dict[tuple[str | int, ...], str] = {}

    def put(self, place: tuple[str | int, ...], mark: yaml.Mark) -> None:
        self.lines[place] = f"{self.path}:{mark.line + 1}:{mark.column + 1}"

    def at(self, location: Sequence[str | int]) -> str:
        place = tuple(location)
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, f"{self.path}:1:1")


def _collect(node: yaml.Node, marks: _Marks, at: tuple[str | int, ...] = ()) -> None:
    """Remember where each key stands; refuse a key that appears twice (PyYAML would keep the last)."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            place = (*at, str(key.value))
            if key.value in seen:
                message = (
                    f"{marks.path}:{key.start_mark.line + 1}: key {'.'.join(map(str, place))!r} "
                    "appears twice. Remove one of them."
                )
                raise ConfigError(message)
            seen.add(key.value)
            marks.put(place, key.start_mark)
            _collect(value, marks, place)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            marks.put((*at, number), value.start_mark)
            _collect(value, marks, (*at, number))


def _read_yaml(path: Path) -> tuple[dict[str, Any], _Marks]:
    marks = _Marks(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = (
            f"{path}: cannot be read ({error.strerror}). `mmalign recipes` lists the recipes that exist."
        )
        raise ConfigError(message) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        message = f"{path}: not valid YAML: {error}"
        raise ConfigError(message) from error
    if node is not None:
        _collect(node, marks)
    if not isinstance(content, dict):
        message = explain(
            str(path), got=type(content).__name__, expected="a mapping of sections (method, model, ...)"
        )
        raise ConfigError(message)
    return content, marks


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _read_with_bases(path: Path, seen: tuple[Path, ...] = ()) -> tuple[dict[str, Any], _Marks]:
    """A YAML file over the file it `extends` (a path relative to it)."""
    if path.resolve() in seen:
        message = f"{path}: `extends` goes round in a circle: {' -> '.join(map(str, (*seen, path)))}."
        raise ConfigError(message)
    content, marks = _read_yaml(path)
    base = content.pop("extends", None)
    if base is None:
        return content, marks
    parent, parent_marks = _read_with_bases(path.parent / str(base), (*seen, path.resolve()))
    # A mistake is shown in the file it stands in.
    marks.lines = {**parent_marks.lines, **marks.lines}
    return _merge(parent, content), marks


def _apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            message = explain(
                "command line",
                got=override,
                expected="section.key=value",
                do="Example: train.learning_rate=1e-5",
            )
            raise ConfigError(message)
        try:
            value = yaml.safe_load(text) if text != "" else ""
        except yaml.YAMLError as error:
            message = f"command line {override!r}: the value is not valid YAML ({error})."
            raise ConfigError(message) from error
        nested: dict[str, Any] = {}
        inner = nested
        parts = key.strip().removeprefix("--").split(".")
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
        inner[parts[-1]] = value
        content = _merge(content, nested)
    return content


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """Field names of the section an error points into."""
    model: type[BaseModel] | None = RunConfig
    for part in location:
        info = model.model_fields.get(str(part)) if model else None
        annotation = info.annotation if info else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        if model is None:
            return []
    return list(model.model_fields) if model else []


def _describe(error: Mapping[str, Any], marks: _Marks, overridden: set[str]) -> str:
    location = tuple(error["loc"])
    name = ".".join(str(part) for part in location)
    where = "command line" if name in overridden else marks.at(location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(known)}." if known else ""
        return f"{where}: {name}: unknown key.{hint}"
    if error["type"] == "missing":
        return f"{where}: {name}: missing; it has no default."
    return f"{where}: {name}: {error['msg']} (got {error['input']!r})"


def load_run(
    path: str | Path, overrides: Sequence[str] = (), *, extra: Mapping[str, Any] | None = None
) -> ResolvedRun:
    """The resolved run of a YAML file.

    Args:
        path: YAML file.
        overrides: `section.key=value` strings; values are YAML.
        extra: nested settings laid over the file before the overrides (for callers from Python).

    Raises:
        ConfigError: every mistake at once, with file, line and the nearest valid key.
        UnknownNameError: the method or an objective argument does not exist.
    """
    content, marks = _read_with_bases(Path(path))
    if extra:
        content = _merge(content, extra)
    content = _apply_overrides(content, overrides)
    return resolve(
        content, marks=marks, overridden={item.partition("=")[0].removeprefix("--") for item in overrides}
    )


def resolve(
    content: Mapping[str, Any], *, marks: _Marks | None = None, overridden: set[str] | None = None
) -> ResolvedRun:
    """Validate nested settings and fill what they leave open from the method's row.

    Raises:
        ConfigError: as `load_run`.
        UnknownNameError: as `load_run`.
    """
    marks = marks or _Marks("config")
    try:
        config = RunConfig.model_validate(dict(content))
    except ValidationError as error:
        lines = [_describe(item, marks, overridden or set()) for item in error.errors()]
        message = "\n".join(lines)
        raise ConfigError(message) from None
    return _resolve_with_row(config, marks.path)


# What a step of a denoiser hands to an objective besides the policy's scores.
_SUPPLIED = frozenset({"reference"})


def _require_suits(method: Method, path: str) -> None:
    """Refuse a row whose objective means nothing on this likelihood, or needs what no step supplies."""
    from mmalign import objectives

    likelihood = method.likelihood or "elbo"
    row = objectives.row(method.objective)
    missing = row.needs - _SUPPLIED
    if likelihood in row.refuses:
        reason = f"makes no sense on the likelihood {likelihood!r}: {row.refuses[likelihood]}"
    elif missing:
        reason = f"needs {', '.join(sorted(missing))} of every candidate, which these runs do not supply"
    else:
        return
    message = f"{path}: method: {method.name!r} {reason}. `mmalign methods` lists the others."
    raise ConfigError(message)


def _resolve_with_row(config: RunConfig, path: str) -> ResolvedRun:
    from mmalign import methods, objectives

    method = methods.find(config.method)
    if method.function and method.function not in _FUNCTIONS:
        message = explain(
            f"{path}: method",
            got=method.name,
            expected="a method that is its objective and its reference, and nothing else",
            do=f"This one needs {method.function}: call it in a loop of your own.",
        )
        raise ConfigError(message)
    _require_suits(method, path)
    defaults = method.defaults_for(config.model.family)
    parameters = objectives.signature(method.objective).parameters
    arguments: dict[str, float | int | str | bool] = {
        name: item.value for name, item in defaults.items() if name in parameters
    }
    arguments |= dict(method.objective_arguments)
    for name in config.objective:
        if name not in parameters:
            kind = f"argument of objective {method.objective!r} (config section objective):"
            raise unknown_name(kind, name, parameters)
    row_arguments = dict(arguments)
    arguments |= config.objective

    filled: dict[str, Default] = {
        f"objective.{name}": item
        for name, item in defaults.items()
        if name in parameters and name not in config.objective
    }
    updates: dict[str, Any] = {}
    for name in ("steps", "learning_rate", "optimizer", "warmup_steps"):
        if getattr(config.train, name) is None and name in defaults:
            updates[name] = defaults[name].value
            filled[f"train.{name}"] = defaults[name]
    fallback = {"optimizer": "adamw", "warmup_steps": 0}
    for name, value in fallback.items():
        if getattr(config.train, name) is None and name not in updates:
            updates[name] = value
    train = TrainConfig.model_validate({**config.train.model_dump(), **updates})
    for name in ("steps", "learning_rate"):
        if getattr(train, name) is None:
            message = (
                f"{path}: train.{name}: missing, and method {method.name!r} has no default for family "
                f"{config.model.family!r}. Set train.{name}."
            )
            raise ConfigError(message)
    reference = _resolve_reference(config, method, defaults, filled, path)
    config = config.model_copy(update={"train": train, "reference": reference})
    return ResolvedRun(
        config=config,
        method=method,
        objective_arguments=arguments,
        filled=filled,
        differences=_differences(config, defaults, arguments, row_arguments),
        path=path,
    )


# What a training run does besides the objective; a method with another function needs its own loop.
_FUNCTIONS = frozenset({"mmalign.likelihood.reference_rules.SyncRule"})

# TRL's values, for methods without their own.
_SYNC = {"sync_every": 512, "mixing": 0.6}


def _resolve_reference(
    config: RunConfig, method: Method, defaults: Mapping[str, Default], filled: dict[str, Default], path: str
) -> ReferenceConfig:
    """The reference with the settings of a moving one decided; a method whose own moves gets it from `auto`.

    Raises:
        ConfigError: settings of a synced reference with another one, or a dropout that would blur it.
    """
    reference = config.reference
    is_synced = reference.kind == "synced" or (reference.kind == "auto" and method.reference == "synced")
    given = [name for name in _SYNC if getattr(reference, name) is not None]
    if not is_synced:
        if given:
            message = explain(
                f"{path}: reference.{given[0]}",
                got=getattr(reference, given[0]),
                expected=f"no value: the reference {reference.kind} does not follow the policy by it",
                do="Set reference.kind=synced, or take the setting out.",
            )
            raise ConfigError(message)
        return reference
    if config.adapter.dropout > 0:
        message = f"{path}: the synced reference of method {method.name} needs adapter.dropout 0"
        raise ConfigError(message)
    missing = [name for name in _SYNC if name not in given]
    filled |= {f"reference.{name}": defaults[name] for name in missing if name in defaults}
    values = {name: defaults[name].value if name in defaults else _SYNC[name] for name in missing}
    return ReferenceConfig.model_validate({**reference.model_dump(), "kind": "synced", **values})


def _differences(
    config: RunConfig,
    defaults: Mapping[str, Default],
    arguments: Mapping[str, object],
    row_arguments: Mapping[str, object],
) -> tuple[Difference, ...]:
    """What this run does otherwise than the row recommends."""
    actual: dict[str, tuple[str, object]] = {
        **{name: (f"objective.{name}", value) for name, value in arguments.items()},
        **{
            name: (f"train.{name}", getattr(config.train, name))
            for name in (
                "steps",
                "learning_rate",
                "optimizer",
                "warmup_steps",
                "schedule",
                "weight_decay",
                "max_grad_norm",
            )
        },
        "effective_batch": (
            "effective batch on one device",
            config.train.batch_size * config.train.accumulation,
        ),
        "resolution": ("image.resolution", config.image.resolution),
        "prompt_dropout": ("image.prompt_dropout", config.image.prompt_dropout),
        "rank": ("adapter.rank", config.adapter.rank if config.adapter.kind == "lora" else None),
        **{name: (f"reference.{name}", getattr(config.reference, name)) for name in _SYNC},
    }
    found = []
    for name, (setting, value) in actual.items():
        default = defaults.get(name)
        expected = default.value if default else row_arguments.get(name)
        if expected is not None and value is not None and value != expected:
            found.append(Difference(setting, value, expected, default.mark if default else "row"))
    return tuple(found)
