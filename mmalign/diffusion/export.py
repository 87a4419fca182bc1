"""Trained weights in the formats other tools load, each loaded back and compared before anybody relies on it.

A LoRA file whose keys a loader does not know is dropped in silence, and one without its alpha is applied at
another strength; both look like "training did nothing". So every export is read by the plain library, run on
the same inputs as the trained network, and refused if the outputs differ.
"""

import copy
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor

from mmalign.diffusion.adapter_files import (
    LORA_FILE,
    PEFT_FILE,
    adapter_file,
    comfyui_tensors,
    load_adapter,
    save_adapter,
)
from mmalign.diffusion.family import ImageModel
from mmalign.diffusion.model_card import model_card
from mmalign.diffusion.sampling import build_pipeline
from mmalign.diffusion.trained import TrainedModel, load_trained
from mmalign.errors import CheckpointError, explain
from mmalign.files import atomic_directory, atomic_write, save_tensors
from mmalign.train.quantization import require_wide

__all__ = [
    "LORA_FILE",
    "PEFT_FILE",
    "Comparison",
    "compare",
    "main",
    "merged_network",
    "save_adapter",
    "save_comfyui",
    "save_network",
    "save_pipeline",
]

_ARCHITECTURES = {
    ("sdxl", "epsilon"): ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    ("sd15", "epsilon"): ("stable-diffusion-v1", "sd_v1"),
    ("sd15", "v_prediction"): ("stable-diffusion-v2-768-v", "sd_v2_v"),
    ("sd3", "flow"): ("stable-diffusion-3", "sd3"),
    ("flux", "flow"): ("flux-1", "flux1"),
}
"""(family, prediction) to the names of model browsers: modelspec.architecture, ss_base_model_version."""


# --- adapters -----------------------------------------------------------------------------------------------


def save_comfyui(trained: TrainedModel, path: str | Path) -> Path:
    """Write one file for ComfyUI and kin, with the metadata their browsers show. Returns `path`."""
    return save_tensors(path, comfyui_tensors(trained.model), metadata=_browser_metadata(trained))


def _browser_metadata(trained: TrainedModel) -> dict[str, str]:
    model, config = trained.model, trained.config
    lora = model.bare_network.peft_config["default"]
    # Transformers carry the strength inside their weights, which is to say that alpha is the rank.
    alpha = lora.lora_alpha if model.network_part == "unet" else lora.r
    architecture, version = _ARCHITECTURES.get((model.family, model.prediction), (model.family, model.family))
    size = model.image.resolution
    metadata = {
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.r),
        "ss_network_alpha": str(float(alpha)),
        "ss_resolution": f"({size}, {size})",
        "ss_steps": str(trained.step),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": trained.folder.name if trained.folder else model.family,
        "modelspec.date": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "modelspec.prediction_type": {"v_prediction": "v"}.get(model.prediction, model.prediction),
        "modelspec.resolution": f"{size}x{size}",
    }
    if config is not None:
        metadata |= {
            "ss_learning_rate": str(config.train.learning_rate),
            "ss_seed": str(config.train.seed),
            "ss_sd_model_name": _public_name(config.model.source),
            "modelspec.description": f"Preference-aligned with {config.method} by mmalign.",
        }
    return metadata


def _public_name(source: str) -> str:
    """A hub id as it is; the last part of a path, which says nothing about somebody's disk."""
    return source if _is_hub_id(source) else Path(source).name


def _is_hub_id(source: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not Path(source).exists()


# --- whole networks -----------------------------------------------------------------------------------------


def merged_network(network: Any) -> Any:
    """A copy of the network with its adapters folded into its weights; the network itself is unchanged.

    Raises:
        CheckpointError: its weights are quantised.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    require_wide(network, "merging adapters")
    merged = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # as files have it
    if not getattr(merged, "peft_config", None):
        return merged
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent_name, _, child = name.rpartition(".")
            setattr(merged.get_submodule(parent_name), child, module.get_base_layer())
    del merged.peft_config
    merged._hf_peft_config_loaded = False
    return merged.requires_grad_(False)


def save_network(network: Any, folder: str | Path) -> Path:
    """Write a network's diffusers folder (config and safetensors), adapters merged in. Returns it."""
    with atomic_directory(folder) as partial:
        merged_network(network).save_pretrained(str(partial), safe_serialization=True)
    return Path(folder)


@contextmanager
def _standing_in(model: ImageModel, network: Any) -> Iterator[None]:
    trained, model.bare_network = model.bare_network, network
    try:
        yield
    finally:
        model.bare_network = trained


def save_pipeline(model: ImageModel, folder: str | Path, *, network: Any = None) -> Path:
    """Write a whole pipeline folder for `from_pretrained`. Returns it.

    Args:
        model: whose pipeline it is.
        folder: replaced when it exists.
        network: written as its UNet or transformer; default the trained network, adapters merged in.
    """
    network = merged_network(model.bare_network) if network is None else network
    with _standing_in(model, network), atomic_directory(folder) as partial:
        build_pipeline(model).save_pretrained(str(partial), safe_serialization=True)
    return Path(folder)


# --- loading back -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """How an export differs from the trained network, on the same inputs.

    Args:
        difference: largest absolute difference of the outputs.
        effect: largest absolute change that training made to the outputs.
        scale: largest absolute output.
    """

    difference: float
    effect: float
    scale: float

    @property
    def holds(self) -> bool:
        """Whether the export is the trained network: equal up to rounding, and nearer to it than the base.

        The first bound alone would pass a small adapter that was dropped, the second alone a network that did
        not move.
        """
        rounding = 1e-4 * self.scale
        return self.difference <= rounding and (
            self.effect == 0 or self.difference <= 0.05 * self.effect + 1e-6 * self.scale
        )

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"max difference {self.difference:.3g} (training moved the outputs by up to {self.effect:.3g}; "
            f"outputs reach {self.scale:.3g})"
        )


def _probe(model: ImageModel) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Fixed inputs at several noise levels."""
    generator = torch.Generator().manual_seed(0)
    count = 2
    noised = torch.randn(count, *model.latent_shape, generator=generator).to(model.device)
    timestep = torch.tensor([20, 700][:count], device=model.device)
    prompts = ["a red circle above a blue square", "a portrait of a cat in the rain"]
    return noised, timestep, model.prompt_conditioning(prompts).rows(1)


@torch.no_grad()
def compare(trained: TrainedModel, exported: Any) -> Comparison:
    """Run the trained, the base and the exported network on the same inputs.

    Args:
        trained: what was exported.
        exported: a network as the plain library loaded it.
    """
    model = trained.model
    inputs = _probe(model)
    wanted = model.denoise(*inputs, network=model.bare_network).float()
    with trained.base_weights():
        base = model.denoise(*inputs, network=model.bare_network).float()
    got = model.denoise(*inputs, network=exported.to(model.device).eval()).float()
    return Comparison(
        difference=(got - wanted).abs().max().item(),
        effect=(wanted - base).abs().max().item(),
        scale=wanted.abs().max().item(),
    )


def _checked(trained: TrainedModel, exported: Any, what: str) -> Comparison:
    result = compare(trained, exported)
    if not result.holds:
        message = (
            f"{what}: loaded back, it is not the trained model: {result}. Nothing was left in place. Please "
            "report this with the versions in training_summary.json."
        )
        raise CheckpointError(message)
    return result


def _with_adapter(trained: TrainedModel, folder: Path, name: str) -> Any:
    """The network of a fresh base pipeline with an adapter file put on, as anybody would load it."""
    model = trained.model
    network = model.source.part(model.network_part, dtype=next(model.bare_network.parameters()).dtype)
    with _standing_in(model, network):
        return load_adapter(model, folder, name)


def _network_at(trained: TrainedModel, folder: Path, *, dtype: torch.dtype) -> Any:
    """A network as plain diffusers reads it from a pipeline folder."""
    model = trained.model
    network_class = getattr(diffusers, model.network_class)
    return network_class.from_pretrained(str(folder / model.network_part), use_safetensors=True, dtype=dtype)


# --- the command --------------------------------------------------------------------------------------------


def _to_diffusers(trained: TrainedModel, folder: Path) -> Comparison:
    model = trained.model
    if trained.trainables is not None and trained.trainables.lora is not None:
        save_adapter(model, folder)
        return _checked(trained, _with_adapter(trained, folder, adapter_file(model)), "diffusers adapter")
    save_network(model.bare_network, folder / model.network_part)
    loaded = _network_at(trained, folder, dtype=torch.float32)
    return _checked(trained, loaded, f"diffusers {model.network_part}")


def _to_comfyui(trained: TrainedModel, folder: Path) -> Comparison:
    name = f"{trained.folder.name if trained.folder else trained.model.family}.safetensors"
    save_comfyui(trained, folder / name)
    return _checked(trained, _with_adapter(trained, folder, name), "ComfyUI adapter")


def _to_merged(trained: TrainedModel, folder: Path) -> Comparison:
    save_pipeline(trained.model, folder / "pipeline")
    dtype = next(trained.model.bare_network.parameters()).dtype
    loaded = _network_at(trained, folder / "pipeline", dtype=dtype)
    result = _checked(trained, loaded, "merged pipeline")
    for part in (folder / "pipeline").iterdir():
        os.replace(part, folder / part.name)
    (folder / "pipeline").rmdir()
    return result


_FORMATS: dict[str, Callable[[TrainedModel, Path], Comparison]] = {
    "diffusers": _to_diffusers,
    "comfyui": _to_comfyui,
    "merged": _to_merged,
}


def export(
    trained: TrainedModel, to: Literal["diffusers", "comfyui", "merged"], folder: str | Path
) -> Comparison:
    """Write one export with its model card; it appears under `folder` after it was loaded back and compared.

    Raises:
        CheckpointError: the export differs from the trained model, or the disk refused.
    """
    with atomic_directory(folder) as partial:
        result = _FORMATS[to](trained, partial)
        atomic_write(partial / "README.md", model_card(trained, to=to, comparison=str(result)))
        if trained.folder is not None and (trained.folder / "training_summary.json").is_file():
            summary: Mapping[str, Any] = json.loads((trained.folder / "training_summary.json").read_text())
            atomic_write(partial / "training_summary.json", json.dumps(summary, indent=2) + "\n")
    return result


def main(*, run: Path, to: Literal["diffusers", "comfyui", "merged"], output: Path | None = None) -> int:
    """`mmalign export`: write a run's weights for other tools, load them back, compare. Returns 0.

    Raises:
        CheckpointError: the run has no checkpoint, cannot be exported to this format, or the export differs.
    """
    # float32, and no narrow weights: a difference then means a wrong export and not rounding.
    trained = load_trained(run, dtype=torch.float32, quantised=False)
    if to == "comfyui" and trained.trainables is not None and trained.trainables.lora is None:
        message = explain(
            "mmalign export --to comfyui",
            got="a fully trained network",
            expected="a LoRA run",
            do="Use --to merged: ComfyUI loads diffusers pipelines with its own loader node.",
        )
        raise CheckpointError(message)
    place = output if output is not None else (trained.folder or run) / "export" / to
    result = export(trained, to, place)
    print(f"{place}: step {trained.step}, {trained.weights} weights")
    print(f"loaded back with plain diffusers: {result}")
    return 0
