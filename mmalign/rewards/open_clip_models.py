"""CLIP as open_clip publishes it: a state dict of one file, its tokenizer inside the package."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.rewards.checkpoints import fill, read_state
from mmalign.rewards.clip_models import cut_keeping_end
from mmalign.rewards.pixels import Preprocessing
from mmalign.rewards.weights import file_sha256

__all__ = ["CONFIG_FILE", "OpenClip"]

CONFIG_FILE = "open_clip_config.json"
"""Beside the weights: an architecture other than the one that the reward names."""

_SPECIAL = re.compile(r"<(?=(?:start|end)_of_text>)", re.IGNORECASE)


class OpenClip:
    """An open_clip model from a state dict.

    Args:
        path: `.pt` or `.safetensors`; the state dict itself, or under "state_dict".
        architecture: open_clip's name of the network, unless `open_clip_config.json` lies beside the file.
        preprocessing: from pictures to what it reads.
        device: where it stands.
        dtype: of the network; the logit scale keeps the checkpoint's precision.

    Raises:
        CheckpointError: keys are missing, left over or of another shape.
    """

    def __init__(
        self,
        path: Path,
        *,
        architecture: str,
        preprocessing: Preprocessing,
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.path = path
        self.device = torch.device(device)
        self.dtype = dtype
        self.architecture, described = _architecture(path.parent, architecture)
        state = read_state(path)
        self.network = _filled(described, state, where=str(path))
        self.log_scale = float(state["logit_scale"].float())
        self.network.requires_grad_(False).eval().to(self.device, dtype)
        self.text_limit = int(self.network.context_length)
        self.feature_size = int(described["embed_dim"])
        self.preprocessing = preprocessing
        self._tokenizer = SimpleTokenizer(context_length=self.text_limit)
        self._tokenizer.clean_fn = _as_text(self._tokenizer.clean_fn)

    def tokens(self, prompt: str) -> tuple[Int[Tensor, " token"], bool]:
        """Ids of a prompt, zeros up to `text_limit`, and whether it was cut; the end token is always kept.

        The names of special tokens in a prompt are read as the text they are, not as the tokens.
        """
        read = self._tokenizer
        ids = [read.sot_token_id, *read.encode(prompt), read.eot_token_id]
        return cut_keeping_end(ids, self.text_limit, padding=0)

    def image_features(
        self, pixels: Float[Tensor, "sample 3 height width"]
    ) -> Float[Tensor, "sample feature"]:
        """Embeddings of preprocessed pictures, float32, of any length; keeps the graph."""
        found: Tensor = self.network.encode_image(pixels.to(self.device, self.dtype))
        return found.float()

    def text_features(self, ids: Int[Tensor, "sample token"]) -> Float[Tensor, "sample feature"]:
        """Embeddings of prompts, float32, of any length."""
        found: Tensor = self.network.encode_text(ids.to(self.device))
        return found.float()

    def settings(self) -> Mapping[str, Any]:
        """Weight and vocabulary hashes, architecture, preprocessing and text limit, for the fingerprint."""
        from open_clip.tokenizer import default_bpe

        vocabulary = Path(default_bpe())
        return {
            "weights": {self.path.name: file_sha256(self.path), vocabulary.name: file_sha256(vocabulary)},
            "architecture": self.architecture,
            "preprocessing": self.preprocessing.settings(),
            "text": {"limit": self.text_limit, "special tokens": "as text"},
        }


def _as_text(clean: Callable[[str], str]) -> Callable[[str], str]:
    """A cleaning step after which no token's name is left in the text; it also undoes HTML entities."""
    return lambda text: _SPECIAL.sub("< ", clean(text))


def _architecture(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """What the fingerprint says of the network, and the arguments that build it."""
    import open_clip

    beside = folder / CONFIG_FILE
    if beside.is_file():
        found = json.loads(beside.read_text(encoding="utf-8"))["model_cfg"]
        return found, dict(found)
    return name, dict(open_clip.get_model_config(name))


def _filled(described: Mapping[str, Any], state: Mapping[str, Tensor], *, where: str) -> Any:
    """The network in float32 with all its weights from `state`.

    Built without memory or random numbers of its own: a billion weights would be drawn to be overwritten.
    """
    from open_clip.model import CLIP

    with torch.device("meta"):
        network: Any = CLIP(**described)
    fill(network, {name: value.float() for name, value in state.items()}, where=where, assign=True)
    size = network.context_length
    network.attn_mask = torch.full((size, size), -torch.inf).triu_(1)  # the one buffer a file does not hold
    return network
