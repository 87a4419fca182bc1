"""A suite: prompts, how pictures are made, which rewards score them, what the report leads with."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mmalign.errors import ConfigError, explain

__all__ = [
    "DiversityConfig",
    "GenerationConfig",
    "ModelSpec",
    "RewardSpec",
    "Section",
    "StatisticsConfig",
    "Suite",
    "read_document",
    "read_suite",
    "read_suite_as",
    "validated",
]


class Section(BaseModel):
    """A part of a suite: fixed once read, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerationConfig(Section):
    """How every model paints; None takes what suits the model, and the value is recorded."""

    seed: int = Field(0, ge=0, description="noise of an image comes from (seed, item id, copy)")
    num_steps: int | None = Field(None, ge=1, description="sampler steps")
    guidance_scale: float | None = Field(None, ge=0, description="classifier-free guidance")
    scheduler: str | None = Field(None, description="ddim, euler, ... as in `mmalign sample`")
    images_per_prompt: int = Field(1, ge=1, description="images of each prompt")
    batch_size: int = Field(4, ge=1, description="images per network call")
    format: Literal["png", "jpeg"] = Field("png", description="png is lossless; jpeg is quality 95, 4:4:4")
    duration: float | None = Field(
        None, gt=0, description="seconds of sounds whose prompts say none; default: as the model was trained"
    )
    num_frames: int | None = Field(None, ge=1, description="of clips; default: as the model was trained")
    height: int | None = Field(None, ge=1, description="pixels of clips, the same")
    width: int | None = Field(None, ge=1, description="pixels of clips, the same")
    fps: float | None = Field(None, gt=0, description="frames per second of clips, the same")


class RewardSpec(Section):
    """One reward of a suite."""

    name: str = Field(description="name, module:function or http address")
    weights: str | None = Field(None, description="folder with its files")
    dtype: str = "float32"
    batch_size: int = Field(16, ge=1)
    frames: int = Field(
        8, ge=0, description="of a clip that a reward of pictures reads, for their mean; 0: the clip itself"
    )
    options: dict[str, Any] = Field(default_factory=dict)
    title: str | None = Field(None, description="what tables call it; its name by default")
    role: Literal["held_out", "training"] = Field(
        "held_out", description="training: a tuned model was trained on it, so its gain proves nothing"
    )


class ModelSpec(Section):
    """One model of a comparison."""

    name: str
    source: str = Field(description="hub id, folder, run, images:FOLDER, videos:FOLDER or sounds:FOLDER")
    weights: Literal["trained", "base"] = Field("trained", description="of a run folder: which side of it")


class StatisticsConfig(Section):
    """Intervals and tests."""

    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(2000, ge=100)
    seed: int = Field(0, ge=0)


class DiversityConfig(Section):
    """How far the pictures of one prompt are apart, measured beside the rewards."""

    encoder: str = Field("vit-l-14", description="CLIP: vit-b-32, vit-l-14, ... or a hub id")
    weights: str | None = Field(None, description="folder with its files; the hub's cache by default")
    lpips: str | None = Field(None, description="folder with LPIPS's two files; left out by default")
    batch_size: int = Field(16, ge=1, description="pictures in one forward")


def _as_section(value: Any) -> Any:
    """`diversity: vit-l-14` and `diversity: true` as sections."""
    if isinstance(value, bool):
        return {} if value else None
    return {"encoder": value} if isinstance(value, str) else value


class Suite(Section):
    """What `mmalign eval` runs."""

    name: str = Field(min_length=1)
    description: str = ""
    prompts: list[str] = Field(min_length=1, description="files or names of public sets")
    limit: int | None = Field(None, ge=1, description="first so many prompts of each set")
    generation: GenerationConfig = GenerationConfig()
    rewards: list[RewardSpec] = Field(min_length=1)
    primary: str | None = Field(None, description="reward the report leads with; the first by default")
    diversity: Annotated[DiversityConfig | None, BeforeValidator(_as_section)] = Field(
        None, description="measure it, by this encoder; needs two or more images_per_prompt"
    )
    statistics: StatisticsConfig = StatisticsConfig()
    models: dict[str, ModelSpec] = Field(
        default_factory=dict, description="short names for --model of this suite"
    )

    @model_validator(mode="after")
    def _several_pictures(self) -> "Suite":
        if self.diversity is not None and self.generation.images_per_prompt < 2:
            message = "diversity needs generation.images_per_prompt of 2 or more; 4 is usual"
            raise ValueError(message)
        return self


_Kind = TypeVar("_Kind", bound=Suite)
_Any = TypeVar("_Any", bound=Section)


def read_suite(path: str | Path, overrides: list[str] | None = None) -> Suite:
    """The suite of a YAML file, with `section.key=value` overrides.

    Rewards may stand as bare names, models as bare sources.

    Raises:
        ConfigError: no such file, not YAML, or a value that does not fit; names the file and the key.
    """
    return read_suite_as(Suite, path, overrides)


def read_suite_as(kind: type[_Kind], path: str | Path, overrides: list[str] | None = None) -> _Kind:
    """The same for a suite with further sections, such as a plan of pairs.

    Raises:
        ConfigError: no such file, not YAML, or a value that does not fit; names the file and the key.
    """
    loaded = read_document(path, overrides)
    for name in ("rewards", "prompts"):
        if isinstance(loaded.get(name), str):
            loaded[name] = [loaded[name]]
    if not isinstance(loaded.get("rewards") or [], list):
        raise ConfigError(explain(f"{path} rewards", got=loaded["rewards"], expected="a list of rewards"))
    loaded["rewards"] = [
        {"name": reward} if isinstance(reward, str) else reward for reward in loaded.get("rewards") or []
    ]
    suite = validated(kind, loaded, path)
    titles = [reward.title or reward.name for reward in suite.rewards]
    if len(set(titles)) < len(titles):
        msg = f"{path} rewards: two have the same title; give one of them a `title`."
        raise ConfigError(msg)
    if suite.primary is not None and suite.primary not in titles:
        message = explain(f"{path} primary", got=suite.primary, expected=f"one of {', '.join(titles)}")
        raise ConfigError(message)
    return suite


def read_document(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Keys and values of a suite's file with the overrides in their places; `models` as settings by name.

    Raises:
        ConfigError: no such file, not YAML, or models without a source; names the file.
    """
    path = Path(path)
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        message = explain("suite", got=str(path), expected="a YAML file", do="evals/suites/ holds examples.")
        raise ConfigError(message) from error
    except yaml.YAMLError as error:
        msg = f"{path}: not YAML ({error})."
        raise ConfigError(msg) from error
    if not isinstance(loaded, dict):
        raise ConfigError(explain(str(path), got=type(loaded).__name__, expected="keys and values"))
    for override in overrides or []:
        _apply(loaded, override)
    models = loaded.get("models") or {}
    if not isinstance(models, dict) or not all(isinstance(model, (str, dict)) for model in models.values()):
        message = explain(f"{path} models", got=models, expected="short names with a source, or its settings")
        raise ConfigError(message)
    loaded["models"] = {
        name: {"name": name, "source": model} if isinstance(model, str) else {"name": name, **model}
        for name, model in models.items()
    }
    return loaded


def validated(kind: type[_Any], loaded: dict[str, Any], path: str | Path) -> _Any:
    """The suite of a document.

    Raises:
        ConfigError: values that do not fit; names the file and every such key.
    """
    try:
        return kind.model_validate(loaded)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (got {problem['input']!r})"
            for problem in error.errors()
        )
        msg = f"{path}: {problems}."
        raise ConfigError(msg) from error


def _apply(loaded: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into the loaded document.

    Raises:
        ConfigError: no `=`, a value that is no YAML, or a section that is none.
    """
    key, separator, text = override.partition("=")
    section = loaded
    *parents, last = key.split(".")
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            message = explain(override, got=f"{parent}, which has no keys", expected="section.key=value")
            raise ConfigError(message)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(explain(override, got=text, expected="a value as YAML writes it")) from error
    if not separator:
        raise ConfigError(explain("override", got=override, expected="key=value"))
    section[last] = value
