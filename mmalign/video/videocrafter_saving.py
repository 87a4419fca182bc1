"""Trained VideoCrafter2 networks in the official layout."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from mmalign.diffusion.export import merged_network
from mmalign.files import atomic_directory, save_tensors
from mmalign.video.videocrafter_keys import NETWORK_PREFIX, fold_frame_rate, to_official

if TYPE_CHECKING:
    from mmalign.video.families.videocrafter import VideoCrafter

__all__ = ["save_checkpoint"]


def save_checkpoint(model: "VideoCrafter", folder: str | Path, *, official: bool = False) -> Path:
    """Write one checkpoint, its settings and the tokenizer, adapters merged in. Returns the folder.

    Weights that were not trained are those of the source, bit for bit.

    Args:
        model: loaded model.
        folder: replaced when it exists.
        official: `model.ckpt`, which the official code reads, instead of safetensors.
    """
    source = model.source
    trained = merged_network(model.bare_network).float().to("cpu").state_dict()
    before = source.under(NETWORK_PREFIX)
    plain = fold_frame_rate(trained, before, source.told_fps, back=True)
    network = to_official(plain, source.network_settings)
    whole = {**source.state, **{f"{NETWORK_PREFIX}{name}": value for name, value in network.items()}}
    whole = {name: value.detach().clone().contiguous() for name, value in whole.items()}
    with atomic_directory(folder) as partial:
        if official:
            # The official code opens this name, in this format, and no other.
            torch.save({"state_dict": whole}, partial / "model.ckpt")
        else:
            save_tensors(partial / "model.safetensors", whole, {"format": "pt"})
        settings = yaml.safe_dump({"model": {"params": source.settings}}, sort_keys=False)
        (partial / "config.yaml").write_text(settings, encoding="utf-8")
        model.tokenizers[0].save_pretrained(str(partial / "tokenizer"))
    return Path(folder)
