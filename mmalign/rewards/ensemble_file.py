"""An ensemble written down: the YAML file that a suite or a command names where it would name a reward.

how: mean_win_probability
members:
- {reward: pickscore_v1, weight: 2}
- {reward: hpsv21}
- {reward: "http://127.0.0.1:8765", output: alignment, name: remote}
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmalign.errors import ConfigError, explain
from mmalign.rewards.ensemble import Ensemble, Member
from mmalign.rewards.loading import load

__all__ = ["EnsembleFile", "MemberEntry", "load_ensemble", "read_ensemble"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScaleEntry(_Section):
    """Center and spread of a member's values."""

    center: float
    spread: float = Field(gt=0)


class MemberEntry(_Section):
    """One member."""

    reward: str = Field(description="name, module:function or address of a server")
    name: str = Field("", description="what its column is called; the reward's name by default")
    output: str = Field("", description="which of the reward's outputs; the first by default")
    weight: float = Field(1.0, ge=0)
    scale: ScaleEntry | None = Field(None, description="for how: mean, min or penalised")
    weights: str | None = Field(None, description="folder with the model's files; relative to the YAML file")
    options: dict[str, Any] = Field(default_factory=dict)


class EnsembleFile(_Section):
    """The file."""

    how: str = Field("mean_win_probability", description="a name of mmalign.rewards.aggregation.HOWS")
    members: list[MemberEntry] = Field(min_length=1)
    group: str = Field("prompt", description="prompt, all or extras.NAME")
    penalty: float = Field(1.0, ge=0)
    name: str = Field("", description="what tables call it; the file's name by default")


def read_ensemble(path: str | Path) -> EnsembleFile:
    """The parsed file; loads no reward.

    Raises:
        ConfigError: it cannot be read, is no YAML mapping, or has an entry that does not exist or fit.
    """
    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"ensemble {path}: cannot be read as YAML ({error})."
        raise ConfigError(message) from error
    if not isinstance(found, dict):
        expected = "a mapping with `members`"
        raise ConfigError(explain(f"ensemble {path}", got=type(found).__name__, expected=expected))
    try:
        return EnsembleFile.model_validate(found)
    except ValidationError as error:
        lines = [
            f"ensemble {path} {'.'.join(map(str, item['loc']))}: {item['msg']} (got {item['input']!r})"
            for item in error.errors()
        ]
        message = "\n".join(lines)
        raise ConfigError(message) from None


def load_ensemble(
    path: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
) -> Ensemble:
    """The ensemble a YAML file describes, with its members loaded.

    A reward that stands twice with the same weights and options is loaded once.

    Args:
        path: the file.
        weights: folder for members that name none.
        device: where the networks stand.
        dtype: of the networks.

    Raises:
        ConfigError: as `read_ensemble`; scales, names or weights that do not fit (see `Ensemble`).
        UnknownNameError: a reward or an output that nobody provides.
        CheckpointError: a member's weights are missing or do not fit.
    """
    path = Path(path)
    described = read_ensemble(path)
    loaded: dict[str, Any] = {}
    members = []
    for entry in described.members:
        folder = weights if entry.weights is None else path.parent / entry.weights
        key = repr((entry.reward, str(folder), sorted(entry.options.items())))
        if key not in loaded:
            loaded[key] = load(entry.reward, weights=folder, device=device, dtype=dtype, **entry.options)
        members.append(Member(loaded[key], output=entry.output, name=entry.name))
    scales = {
        member.title: (entry.scale.center, entry.scale.spread)
        for member, entry in zip(members, described.members, strict=True)
        if entry.scale is not None
    }
    return Ensemble(
        members,
        how=described.how,
        weights=[entry.weight for entry in described.members],
        scales=scales or None,
        group=described.group,
        penalty=described.penalty,
        name=described.name or path.stem,
    )
