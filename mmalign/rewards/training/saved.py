"""A trained reward as a folder: `reward.safetensors` (the head) and `reward.json` (all else about it)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from mmalign.errors import CheckpointError, explain
from mmalign.files import read_json, save_tensors, write_json
from mmalign.rewards.checkpoints import fill, read_state
from mmalign.rewards.ideal_point_models import PalHead, PalSettings
from mmalign.rewards.training.adapters import ADAPTER
from mmalign.rewards.training.heads import HeadSettings, PreferenceHead
from mmalign.rewards.training.scoring import Head
from mmalign.rewards.weights import file_sha256

__all__ = [
    "DESCRIPTION_FILE",
    "WEIGHTS_FILE",
    "Description",
    "head_description",
    "load_head",
    "read_adapter",
    "read_description",
    "save_reward",
]

WEIGHTS_FILE = "reward.safetensors"
DESCRIPTION_FILE = "reward.json"

_FORMAT = 1


@dataclass(frozen=True)
class Description:
    """What `reward.json` holds.

    Args:
        name: what tables call the reward.
        method: the row it was trained by.
        backbone: kind, name, weights and options, as `make_backbone` takes them.
        backbone_settings: what the features depended on: weight hashes, preprocessing, templates.
        head: kind ("preference" or "pal"), settings, and users of a PAL head.
        temperature: rewards are divided by it, so that sigmoid of a difference is a probability.
        sha256: of the weights.
        context: whether samples bring one.
        adapter: settings of LoRA in the backbone, empty without it.
        measures: on the test pairs, after calibration, and the error before it.
        training: settings, sizes and steps of the run.
    """

    name: str
    method: str
    backbone: Mapping[str, Any]
    backbone_settings: Mapping[str, Any]
    head: Mapping[str, Any]
    temperature: float
    sha256: str = ""
    context: bool = False
    adapter: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def head_description(head: Head) -> dict[str, Any]:
    """Kind, settings and users of a head, as JSON types."""
    if isinstance(head, PreferenceHead):
        return {"kind": "preference", "settings": asdict(head.settings)}
    return {"kind": "pal", "settings": asdict(head.settings), "users": list(head.users)}


def save_reward(folder: str | Path, head: Head, description: Description) -> Path:
    """Write a reward's two files. Returns the folder.

    Args:
        folder: made if it is not there.
        head: trained.
        description: its `head` and `sha256` are filled in here.
    """
    folder = Path(folder)
    save_tensors(folder / WEIGHTS_FILE, head.state_dict())
    content = {"format": _FORMAT, **asdict(description)}
    content |= {"head": head_description(head), "sha256": file_sha256(folder / WEIGHTS_FILE)}
    write_json(folder / DESCRIPTION_FILE, json.loads(json.dumps(content)))
    return folder


def read_description(folder: str | Path) -> Description:
    """What a folder's `reward.json` says.

    Raises:
        CheckpointError: it is not there, is no such file, or belongs to other weights.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION_FILE
    if not path.is_file() or not (folder / WEIGHTS_FILE).is_file():
        message = explain(
            str(folder),
            got="[no trained reward]",
            expected=f"{DESCRIPTION_FILE} and {WEIGHTS_FILE}, as `mmalign train` of a reward row writes them",
            do="A run that has not finished has only checkpoints: run its config again.",
        )
        raise CheckpointError(message)
    content = read_json(path)
    known = {entry.name for entry in fields(Description)}
    if (
        not isinstance(content, dict)
        or content.get("format") != _FORMAT
        or set(content) - {"format"} != known
    ):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        expected = f"a description of format {_FORMAT}"
        raise CheckpointError(explain(str(path), got=f"[{found}]", expected=expected))
    del content["format"]
    found_hash = file_sha256(folder / WEIGHTS_FILE)
    if content["sha256"] != found_hash:
        message = explain(
            str(folder / WEIGHTS_FILE),
            got=f"[SHA-256 {found_hash[:12]}...]",
            expected=f"{content['sha256'][:12]}..., the weights that {DESCRIPTION_FILE} describes",
            do="Copy both files from the same run.",
        )
        raise CheckpointError(message)
    return Description(**content)


def load_head(folder: str | Path, description: Description) -> Head:
    """The head, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: a kind or a setting that does not exist, or weights that do not fit.
    """
    path = Path(folder) / WEIGHTS_FILE
    given = description.head
    where = str(Path(folder) / DESCRIPTION_FILE)
    kinds: dict[Any, type[HeadSettings] | type[PalSettings]] = {
        "preference": HeadSettings,
        "pal": PalSettings,
    }
    kind = kinds.get(given.get("kind"))
    if kind is None:
        raise CheckpointError(explain(f"{where} head", got=given.get("kind"), expected=" or ".join(kinds)))
    settings = dict(given.get("settings", {}))
    unknown = sorted(set(settings) - {entry.name for entry in fields(kind)})
    if unknown:
        expected = f"settings of {kind.__name__}"
        raise CheckpointError(explain(f"{where} head", got=f"[{unknown[0]}]", expected=expected))
    head: Head = (
        PreferenceHead(HeadSettings(**settings))
        if kind is HeadSettings
        else PalHead(PalSettings(**settings), given.get("users", ()))
    )
    prefix = f"{ADAPTER}."
    own = {name: value for name, value in read_state(path).items() if not name.startswith(prefix)}
    fill(head, own, where=str(path))
    return head.eval()


def read_adapter(folder: str | Path) -> dict[str, Tensor]:
    """LoRA's weights of a folder; empty where the backbone was frozen."""
    prefix = f"{ADAPTER}."
    state = read_state(Path(folder) / WEIGHTS_FILE)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
