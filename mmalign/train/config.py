"""The run configuration: one YAML file, one pydantic model, `section.key=value` overrides.

`load_run` reads the file, applies the overrides, fills what the file leaves open from the method's row for
the model family, and remembers what differs from that row. Messages carry file, line and the nearest valid
key.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign import registry
from mmalign.config_files import ConfigFile, read_config, validated
from mmalign.errors import UnknownNameError
from mmalign.train.audio_sections import AudioRunConfig
from mmalign.train.resolve import ROW_SETTINGS, Difference, ResolvedRun, resolve_with_row
from mmalign.train.sections import (
    AdapterConfig,
    ImageConfig,
    InversionConfig,
    LikelihoodConfig,
    LogConfig,
    ModelConfig,
    ReferenceConfig,
    RolloutConfig,
    RunConfig,
    SafeguardConfig,
    SamplesConfig,
    Section,
    TrainConfig,
)
from mmalign.train.token_sections import TokenRunConfig
from mmalign.train.video_sections import VideoRunConfig

__all__ = [
    "ROW_SETTINGS",
    "RUN_SECTIONS",
    "AdapterConfig",
    "Difference",
    "ImageConfig",
    "InversionConfig",
    "LikelihoodConfig",
    "LogConfig",
    "ModelConfig",
    "ReferenceConfig",
    "ResolvedRun",
    "RolloutConfig",
    "RunConfig",
    "SafeguardConfig",
    "SamplesConfig",
    "Section",
    "TrainConfig",
    "load_run",
    "resolve",
    "resolved_content",
]


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
    return _resolved(read_config(path, overrides, extra=extra))


def resolve(content: Mapping[str, Any]) -> ResolvedRun:
    """Validate nested settings and fill what they leave open from the method's row.

    Raises:
        ConfigError: as `load_run`.
        UnknownNameError: as `load_run`.
    """
    return _resolved(ConfigFile(dict(content)))


def _resolved(file: ConfigFile) -> ResolvedRun:
    return resolve_with_row(validated(file, _sections_of(file)), file.path)


def _sections_of(file: ConfigFile) -> type[RunConfig]:
    """What a run of the file's family may set; a family that does not exist is complained of later."""
    model = file.content.get("model")
    family = model.get("family") if isinstance(model, dict) else None
    try:
        modality = registry.modality(family) if isinstance(family, str) else ""
    except UnknownNameError:
        return RunConfig
    return RUN_SECTIONS.get(modality, RunConfig)


RUN_SECTIONS: Mapping[str, type[RunConfig]] = {
    "language": TokenRunConfig,
    "audio": AudioRunConfig,
    "video": VideoRunConfig,
}
"""What a run may set, by what its family makes; images are the default."""


def resolved_content(run: ResolvedRun) -> dict[str, Any]:
    """The configuration as it can be run again: everything explicit."""
    content = run.config.model_dump(mode="json")
    content["objective"] = dict(run.objective_arguments)
    return content
