"""CLIP and SigLIP as Hugging Face publishes them: strict loading, prompts to ids, pictures to embeddings."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmalign.errors import CheckpointError, explain
from mmalign.rewards.pixels import Crop, Preprocessing
from mmalign.rewards.prompt_tokens import clip_names_as_text
from mmalign.rewards.weights import hashes

__all__ = [
    "HF_FILES",
    "DualEncoder",
    "HuggingFaceClip",
    "ImageEncoder",
    "as_embedding",
    "check_keys",
    "cut_keeping_end",
    "quietly",
    "weight_file",
]

HF_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
"""What is read besides the weights; `model.safetensors` or `pytorch_model.bin` completes it."""

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_OLD_KEYS = ("*.embeddings.position_ids",)
_TEXT_KEYS = ("text_model.*", "text_projection.*", "logit_scale", "logit_bias")


@runtime_checkable
class ImageEncoder(Protocol):
    """Pictures to embeddings."""

    preprocessing: Preprocessing
    feature_size: int

    def image_features(
        self, pixels: Float[Tensor, "sample 3 height width"]
    ) -> Float[Tensor, "sample feature"]:
        """Embeddings of preprocessed pictures, float32, of any length; keeps the graph."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Weight hashes and preprocessing, for the fingerprint."""
        ...


@runtime_checkable
class DualEncoder(ImageEncoder, Protocol):
    """Pictures and prompts to embeddings of one space."""

    log_scale: float
    text_limit: int

    def tokens(self, prompt: str) -> tuple[Int[Tensor, " token"], bool]:
        """Ids of a prompt, padded to `text_limit`, and whether it was cut; the end token is always kept."""
        ...

    def text_features(self, ids: Int[Tensor, "sample token"]) -> Float[Tensor, "sample feature"]:
        """Embeddings of prompts, float32, of any length."""
        ...


def as_embedding(output: Any) -> Float[Tensor, "sample feature"]:
    """The projected embedding in what `get_image_features` and the like return.

    Until transformers 4 that is a tensor; since 5 an output object whose `pooler_output` is the projected
    embedding, or with `return_dict=False` a tuple that has it second. None of them is sure to be normalised.

    Raises:
        TypeError: none of these.
    """
    found = output
    if isinstance(output, tuple) and not hasattr(output, "pooler_output"):
        found = output[1] if len(output) > 1 else None
    elif not isinstance(output, Tensor):
        found = getattr(output, "pooler_output", None)
    if not isinstance(found, Tensor):
        expected = "a tensor, an output with pooler_output, or a tuple that has the embedding second"
        raise TypeError(explain("embedding", got=type(output).__name__, expected=expected))
    return found


def check_keys(
    missing: Iterable[str], unexpected: Iterable[str], *, where: str, ignored: Iterable[str] = ()
) -> None:
    """Refuse a checkpoint that leaves something random or brings something that nobody reads.

    Raises:
        CheckpointError: names the keys.
    """
    patterns = tuple(ignored)
    lacking = sorted(missing)
    extra = sorted(key for key in unexpected if not any(fnmatch(key, pattern) for pattern in patterns))
    if not lacking and not extra:
        return
    parts = [f"lacks {', '.join(lacking)}"] if lacking else []
    parts += [f"has {', '.join(extra)}, which nothing here reads"] if extra else []
    message = f"{where}: the checkpoint {' and '.join(parts)}. Is it the model that the card names?"
    raise CheckpointError(message)


def cut_keeping_end(ids: list[int], limit: int, *, padding: int) -> tuple[Int[Tensor, " token"], bool]:
    """Ids of exactly `limit` tokens whose last one is the prompt's end token, and whether some were cut.

    CLIP reads its text embedding at the end token: a score of 26 became 17 where it was cut off.
    """
    cut = len(ids) > limit
    kept = [*ids[: limit - 1], ids[-1]] if cut else ids
    return torch.tensor(kept + [padding] * (limit - len(kept)), dtype=torch.int64), cut


class HuggingFaceClip:
    """A `CLIPModel` or `SiglipModel` in a folder of the hub's layout.

    Args:
        folder: with the files of `HF_FILES` and the weights.
        device: where it stands.
        dtype: of the network; the logit scale keeps the checkpoint's precision.
        crop: how odd crop margins are rounded, which the folder does not say.
        text: False loads the image side alone.

    Raises:
        CheckpointError: keys are missing or left over, or it is another kind of model.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str | torch.device,
        dtype: torch.dtype,
        crop: Crop = "even",
        text: bool = True,
    ) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.dtype = dtype
        self.preprocessing = Preprocessing.from_folder(folder, crop=crop)
        self.network, config = _network(folder, text=text)
        self.log_scale = float(self.network.logit_scale.detach()) if text else 0.0
        self.text_limit = int(config.text_config.max_position_embeddings)
        self.feature_size = int(getattr(config, "projection_dim", config.vision_config.hidden_size))
        self.network.requires_grad_(False).eval().to(self.device, dtype)
        self._tokenizer = _tokenizer(folder) if text else None

    def tokens(self, prompt: str) -> tuple[Int[Tensor, " token"], bool]:
        """Ids of a prompt, padded to `text_limit`, and whether it was cut; the end token is always kept.

        The names of special tokens in a prompt are read as the text they are, not as the tokens.
        """
        tokenizer: Any = self._tokenizer
        ids = tokenizer(clip_names_as_text(prompt), verbose=False)["input_ids"]
        return cut_keeping_end(list(ids), self.text_limit, padding=int(tokenizer.pad_token_id))

    def image_features(
        self, pixels: Float[Tensor, "sample 3 height width"]
    ) -> Float[Tensor, "sample feature"]:
        """Embeddings of preprocessed pictures, float32, of any length; keeps the graph."""
        given = pixels.to(self.device, self.dtype)
        if self._tokenizer is None:
            return torch.as_tensor(self.network(pixel_values=given).image_embeds).float()
        return as_embedding(self.network.get_image_features(pixel_values=given)).float()

    def text_features(self, ids: Int[Tensor, "sample token"]) -> Float[Tensor, "sample feature"]:
        """Embeddings of prompts, float32, of any length.

        All are padded to one length and no mask is given: the towers look back only (CLIP), or were trained
        like this (SigLIP).
        """
        return as_embedding(self.network.get_text_features(input_ids=ids.to(self.device))).float()

    def settings(self) -> Mapping[str, Any]:
        """Weight hashes, preprocessing and text limit, for the fingerprint."""
        files = (*HF_FILES, "vocab.json", "merges.txt", "special_tokens_map.json", "spiece.model")
        read = files if self._tokenizer is not None else HF_FILES[:2]
        text = {"limit": self.text_limit, "special tokens": "as text"} if self._tokenizer is not None else {}
        return {
            "weights": dict(hashes(self.folder, (*read, weight_file(self.folder)))),
            "preprocessing": self.preprocessing.settings(),
            "text": text,
        }


def weight_file(folder: Path) -> str:
    """Name of the file with the weights in a folder of the hub's layout.

    Raises:
        CheckpointError: there is none.
    """
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return name
    message = f"{folder}: got no weights, expected {' or '.join(_WEIGHT_FILES)}."
    raise CheckpointError(message)


def _network(folder: Path, *, text: bool) -> tuple[Any, Any]:
    """The float32 network of a folder, every key filled, and its configuration."""
    import transformers

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    kinds = {
        "clip": (transformers.CLIPModel, transformers.CLIPVisionModelWithProjection),
        "siglip": (transformers.SiglipModel, None),
    }
    both, vision = kinds.get(kind, (None, None))
    if both is None or (vision is None and not text):
        expected = "'clip' or 'siglip'" if text else "'clip'"
        raise CheckpointError(explain(f"{folder / 'config.json'} model_type", got=kind, expected=expected))
    config: Any = both.config_class.from_pretrained(str(folder))
    own = config
    if not text:
        own = config.vision_config
        own.projection_dim = config.projection_dim
    safe = weight_file(folder) == "model.safetensors"
    with quietly():  # it lists every key of the text side that nobody asked for; `check_keys` decides
        network, report = (both if text else vision).from_pretrained(
            str(folder),
            config=own,
            dtype=torch.float32,
            use_safetensors=safe,
            local_files_only=True,
            output_loading_info=True,
        )
    ignored = _OLD_KEYS if text else (*_OLD_KEYS, *_TEXT_KEYS)
    check_keys(report["missing_keys"], report["unexpected_keys"], where=str(folder), ignored=ignored)
    checked: nn.Module = network
    return checked, config


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's load report and progress bar."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
