"""What a run leaves for plain transformers and peft: adapter files, or a whole model with its processor."""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.errors import CheckpointError, explain
from mmalign.files import atomic_directory, atomic_write, save_tensors
from mmalign.train.quantization import require_wide
from mmalign.vlm.network import bare

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["save_adapter", "save_model"]

ADAPTER_FILE, SETTINGS_FILE = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def save_adapter(model: "VlmModel", folder: str | Path) -> Path:
    """`PeftModel.from_pretrained(model, folder)` puts the adapter on. Returns the folder.

    Args:
        model: with an adapter on its network.
        folder: made when it is not there.

    Raises:
        CheckpointError: there is no adapter.
    """
    from peft import get_peft_model_state_dict

    network = bare(model.network)
    configs = getattr(network, "peft_config", {})
    if "default" not in configs:
        message = explain(
            "save_adapter", got="[a model without adapter]", expected="one that was trained with LoRA"
        )
        raise CheckpointError(message)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(network, adapter_name="default")
    tensors = {
        f"{_PREFIX}{name.removeprefix('model.')}": value.detach().cpu().contiguous()
        for name, value in state.items()
    }
    settings: dict[str, Any] = {
        **configs["default"].to_dict(),
        "inference_mode": True,
        "base_model_name_or_path": model.settings.source,
        "revision": model.settings.revision,
    }
    ordered = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    save_tensors(folder / ADAPTER_FILE, tensors)
    atomic_write(folder / SETTINGS_FILE, json.dumps(ordered, indent=2, sort_keys=True, default=str) + "\n")
    return folder


def save_model(model: "VlmModel", folder: str | Path) -> Path:
    """The model as `from_pretrained` reads it, adapters merged in, with its processor. Returns the folder.

    Args:
        model: loaded, trained or not; not changed.
        folder: replaced when it is there.

    Raises:
        CheckpointError: its weights are quantised.
    """
    network: Any = bare(model.network)
    require_wide(network, "save_model")
    if getattr(network, "peft_config", None):
        network = merged(network)
    with atomic_directory(folder) as partial:
        network.model.save_pretrained(str(partial), safe_serialization=True)
        model.traits.processor.save_pretrained(str(partial))
    return Path(folder)


def merged(network: Any) -> Any:
    """A copy with its adapters added to the weights and taken off."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    network = copy.deepcopy(network)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config
    return network
