"""What a run of a video model trained, for other tools; each export is loaded back and compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor

from mmalign.diffusion.adapter_files import LORA_FILE
from mmalign.diffusion.export import Comparison
from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.files import atomic_directory
from mmalign.video.saving import put_adapter_on, save_comfyui
from mmalign.video.trained import TrainedVideo, load_trained

__all__ = ["main"]

Format = Literal["diffusers", "comfyui", "merged", "official"]


def main(run: Path, to: Format, output: Path | None = None) -> int:
    """`mmalign export` of a run of video. Returns 0.

    Args:
        run: run folder or checkpoint; the average of the weights where the run kept one.
        to: diffusers: the adapter for `load_lora_weights` (`load_into_transformer_2=True` for the second of
            two experts), or the whole network of full fine-tuning; comfyui: the adapter under the names of
            the model's own code; merged: a whole pipeline folder, adapters folded in; official: what the
            model's own code reads, of families whose own layout is another than that of diffusers.
        output: folder, default RUN/export/FORMAT.

    Raises:
        CheckpointError: it is not a run, has no checkpoint yet, or the export is not the trained model.
        ConfigError: official, of a family without a layout of its own.
    """
    # float32: a difference then means a wrong export and not rounding.
    trained = load_trained(run, device="cpu", dtype=torch.float32, quantised=False)
    lora = trained.trainables is not None and trained.trainables.lora is not None
    if to == "comfyui" and not lora:
        message = explain(
            "mmalign export --to comfyui",
            got="a fully trained network",
            expected="a LoRA run, or --to merged",
        )
        raise CheckpointError(message)
    if to == "official" and not hasattr(trained.model, "save_official"):
        message = explain(
            "mmalign export --to official",
            got=f"a run of {trained.model.family}",
            expected="a family with a layout of its own: videocrafter",
            do="Use --to merged, a pipeline folder, or --to comfyui.",
        )
        raise ConfigError(message)
    whole = {"merged": _merged, "official": _official}
    write = {**whole, "comfyui": _comfyui, "diffusers": _adapter if lora else _network}[to]
    place = output if output is not None else (trained.folder or run) / "export" / to
    with atomic_directory(place) as partial:
        network = write(trained, partial)
        result = _compared(trained, network)
        if not result.holds:
            message = f"{to}: loaded back, it is not the trained model: {result}. Nothing was left in place."
            raise CheckpointError(message)
    print(f"{place}: step {trained.step}, {trained.weights} weights")
    print(f"loaded back with plain diffusers: {result}")
    return 0


Writer = Callable[[TrainedVideo, Path], Any]


def _fresh(trained: TrainedVideo) -> Any:
    return trained.model.source.part(trained.model.trained_part, dtype=torch.float32)


def _adapter(trained: TrainedVideo, folder: Path) -> Any:
    trained.model.save_adapter(folder)
    return put_adapter_on(trained.model, _fresh(trained), folder, LORA_FILE)


def _comfyui(trained: TrainedVideo, folder: Path) -> Any:
    name = f"{trained.folder.name if trained.folder else trained.model.family}.safetensors"
    save_comfyui(trained.model, folder / name)
    return put_adapter_on(trained.model, _fresh(trained), folder, name)


def _network(trained: TrainedVideo, folder: Path) -> Any:
    part = folder / trained.model.trained_part
    trained.model.bare_network.save_pretrained(str(part), safe_serialization=True)
    return _read(trained, part)


def _merged(trained: TrainedVideo, folder: Path) -> Any:
    _lift(trained.model.save_model(folder / "pipeline"))
    return trained.model.saved_network(folder)


def _official(trained: TrainedVideo, folder: Path) -> Any:
    model: Any = trained.model  # who else has it was refused before
    _lift(model.save_official(folder / "official"))
    return model.saved_network(folder)


def _lift(inner: Path) -> None:
    """What was written into a folder of its own, one folder up."""
    for part in inner.iterdir():
        part.rename(inner.parent / part.name)
    inner.rmdir()


def _read(trained: TrainedVideo, folder: Path) -> Any:
    network_class = getattr(diffusers, trained.model.network_class)
    return network_class.from_pretrained(str(folder), use_safetensors=True, dtype=torch.float32)


def _probe(trained: TrainedVideo) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Fixed inputs at two noise levels, small numbers in the place of text and pictures."""
    noised, _, rows = trained.model.meta_inputs(2)
    generator = torch.Generator().manual_seed(0)

    def real(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator)
        return torch.ones(value.shape, dtype=value.dtype)

    schedule = trained.model.schedule
    levels = schedule.network_time(schedule.timestep_at(torch.tensor([0.2, 0.8])))
    return real(noised), levels, {name: real(value) for name, value in rows.items()}


@torch.no_grad()
def _compared(trained: TrainedVideo, exported: Any) -> Comparison:
    """The trained, the base and the exported network on the same inputs."""
    model, inputs = trained.model, _probe(trained)
    wanted = model.denoise(*inputs, network=model.bare_network).float()
    with trained.base_weights():
        base = model.denoise(*inputs, network=model.bare_network).float()
    got = model.denoise(*inputs, network=exported.eval()).float()
    return Comparison(
        difference=(got - wanted).abs().max().item(),
        effect=(wanted - base).abs().max().item(),
        scale=wanted.abs().max().item(),
    )
