"""The implicit reward of a tuned language model, from two folders: `load("implicit", weights=FOLDER)`."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.rewards.base import Reward
from mmalign.rewards.implicit import TokenLogRatio, implicit_card
from mmalign.rewards.weights import hashes

CARD = dataclasses.replace(
    implicit_card(),
    options={
        "tuned": "folder or hub id of the tuned model, or of its peft adapter (default: WEIGHTS/tuned)",
        "reference": "folder or hub id of the model before tuning (default: WEIGHTS/reference, if it exists; "
        "a peft adapter needs none: it is switched off)",
        "beta": "factor of the log-ratio (default 0.1)",
        "average": "mean over the answer's tokens instead of their sum (default false)",
        "max_length": "tokens that are read (default 4096)",
    },
    departures=(
        *implicit_card().departures,
        "there are no published weights: the user's own two models are compared, by the hash of their files",
    ),
)

_HASHED = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "merges.txt")


def build(
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    tuned: str | None = None,
    reference: str | None = None,
    **options: Any,
) -> Reward:
    """The reward of two models.

    Raises:
        ConfigError: no model was named, or a full model without a reference.
        CheckpointError: a model cannot be read.
    """
    first = tuned or _part(weights, "tuned")
    second = reference or _part(weights, "reference")
    if first is None:
        message = explain(
            "reward implicit",
            got="[no model]",
            expected="the option tuned, or a weights folder with tuned/ and reference/ in it",
        )
        raise ConfigError(message)
    places = {"tuned": _local(first)}
    adapter = (places["tuned"] / "adapter_config.json").is_file()
    if second is not None:
        places["reference"] = _local(second)
    elif not adapter:
        message = explain(
            "reward implicit",
            got=f"[the full model {first} and no reference]",
            expected="the option reference: the model it was tuned from",
        )
        raise ConfigError(message)
    networks = {name: _network(place, dtype) for name, place in places.items()}
    from transformers import AutoTokenizer

    base = places.get("reference", places["tuned"])
    has_own = any((places["tuned"] / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = AutoTokenizer.from_pretrained(str(places["tuned"] if has_own else base))
    identity: dict[str, Any] = {name: dict(hashes(place, _HASHED)) for name, place in places.items()}
    if adapter:
        identity["base"] = _base_identity(networks["tuned"])
    return TokenLogRatio(
        networks["tuned"],
        networks.get("reference"),
        tokenizer,
        identity=identity,
        device=device,
        dtype=dtype,
        **options,
    )


def _part(weights: str | Path | None, name: str) -> str | None:
    folder = None if weights is None else Path(weights) / name
    return str(folder) if folder is not None and folder.is_dir() else None


def _local(source: str) -> Path:
    """The folder of a model; a hub id is taken from the cache or fetched."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source))
    except (OSError, ValueError) as error:
        message = f"reward implicit: {source} is no folder, and the hub has no such model ({error})."
        raise CheckpointError(message) from error


def _network(place: Path, dtype: torch.dtype) -> Any:
    """A causal language model, with its adapter where the folder holds one."""
    from transformers import AutoModelForCausalLM

    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            str(place), dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        message = f"reward implicit: {place} cannot be loaded as a causal language model ({error})."
        raise CheckpointError(message) from error
    lacking = sorted(report.get("missing_keys") or [])
    if lacking:
        message = f"reward implicit: {place} lacks weights of its network: {', '.join(lacking[:5])}."
        raise CheckpointError(message)
    return network.requires_grad_(False)


def _base_identity(network: Any) -> str:
    """Name or folder of the model an adapter sits on; a folder counts by its files."""
    source = str(getattr(network, "name_or_path", ""))
    if Path(source).is_dir():
        return str(sorted(hashes(Path(source), _HASHED).items()))
    return source
