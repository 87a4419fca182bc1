"""CLAP as Hugging Face publishes it: strict loading, sounds to mel windows, sounds and prompts to embeddings.

The library's own preparation of sounds draws random crops of clips longer than ten seconds and, of fused
models, a random clip of a batch that is treated as long. Nothing is drawn here: a sound is its first ten
seconds, all of its windows, or (fused) an overview with crops at fixed places.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import CheckpointError, ConfigError, explain, unknown_name
from mmalign.rewards.card import Weights
from mmalign.rewards.clip_models import HF_FILES, as_embedding, check_keys, quietly, weight_file
from mmalign.rewards.sounds import decibel_mels
from mmalign.rewards.weights import file_sha256, hashes, resolve

__all__ = ["CLAP_CHECKPOINTS", "ClapEncoder", "Windows", "clap_weights", "load_clap"]

Windows = Literal["first", "all", "overview"]
"""What is heard of a long sound: `first` its first ten seconds, `all` every ten seconds (cosines are
averaged), `overview` (fused checkpoints) the whole shrunk to ten seconds beside three crops."""

TEXT_LIMIT = 77
"""Tokens of a prompt that the released code reads."""

_SAVED_BEFORE = ("*.position_ids", "*.token_type_ids", "*.relative_position_index", "*.attn_mask")


def _weights(repository: str) -> Weights:
    return Weights(repository, (*HF_FILES, "*model.*"), role="model")


CLAP_CHECKPOINTS: dict[str, Weights] = {
    "htsat-unfused": _weights("laion/clap-htsat-unfused"),
    "htsat-fused": _weights("laion/clap-htsat-fused"),
    "larger-general": _weights("laion/larger_clap_general"),
    "larger-music": _weights("laion/larger_clap_music"),
    "larger-music-speech": _weights("laion/larger_clap_music_and_speech"),
}
"""LAION's checkpoints: `htsat-unfused` is of the kind of `630k-audioset-best`, `htsat-fused` of its twin."""


def clap_weights(name: str) -> Weights:
    """Weights of a short name, or of any hub id ("org/model"), whose revision is not pinned.

    Raises:
        UnknownNameError: neither.
    """
    if name in CLAP_CHECKPOINTS:
        return CLAP_CHECKPOINTS[name]
    if "/" in name:
        return _weights(name)
    raise unknown_name("CLAP checkpoint", name, CLAP_CHECKPOINTS)


class ClapEncoder:
    """A `ClapModel` in a folder of the hub's layout.

    Args:
        folder: with configuration, weights, tokenizer and `preprocessor_config.json`.
        windows: what is heard of a long sound.
        device: where it stands.
        dtype: of the network.

    Raises:
        CheckpointError: keys are missing or left over, or it is another kind of model.
        ConfigError: an overview, and the checkpoint is not fused.
    """

    def __init__(
        self,
        folder: Path,
        *,
        windows: Windows = "first",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoTokenizer, ClapFeatureExtractor

        self.folder, self.windows = folder, windows
        self.device, self.dtype = torch.device(device), dtype
        self.network, self.fused = _network(folder)
        if windows not in get_args(Windows) or (windows == "overview" and not self.fused):
            expected = " or ".join(get_args(Windows) if self.fused else get_args(Windows)[:2])
            do = "" if windows not in get_args(Windows) else "Only fused checkpoints read an overview."
            raise ConfigError(explain("CLAP windows", got=windows, expected=expected, do=do))
        self.network.requires_grad_(False).eval().to(self.device, dtype)
        self.feature_size = int(self.network.config.projection_dim)
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        heard: Any = ClapFeatureExtractor.from_pretrained(str(folder), local_files_only=True)
        self.sampling_rate, self._hop = int(heard.sampling_rate), int(heard.hop_length)
        self.window_samples = int(heard.nb_max_samples)
        # The library's rule: the bank of fused models is torchaudio's, that of others librosa's.
        bank = heard.mel_filters if self.fused else heard.mel_filters_slaney
        self._bank = torch.from_numpy(bank).float()
        self._described = {name: getattr(heard, name) for name in ("frequency_min", "frequency_max")}

    # ---------------------------------------------------------------------------------------------- sounds

    def mels(self, samples: Float[Tensor, " sample"]) -> Float[Tensor, "window view frame mel"]:
        """Mel spectra of a sound's windows, 4 views of each for fused checkpoints; deterministic.

        Args:
            samples: one channel at `sampling_rate`, at least one sample. What is shorter than a window is
                repeated as often as it fits whole, then filled with silence.
        """
        if self.windows == "overview" and len(samples) > self.window_samples:
            return self._overview(samples)[None]
        spectra = decibel_mels(torch.stack(self._windows(samples)), self._bank, hop=self._hop)
        return spectra[:, None].expand(-1, 4 if self.fused else 1, -1, -1).contiguous()

    def _windows(self, samples: Float[Tensor, " sample"]) -> list[Float[Tensor, " window"]]:
        size = self.window_samples
        if len(samples) <= size:
            repeated = samples.repeat(size // len(samples))
            return [F.pad(repeated, (0, size - len(repeated)))]
        if self.windows != "all":
            return [samples[:size]]
        starts = [
            *range(0, len(samples) - size, size),
            len(samples) - size,
        ]  # the last one ends with the sound
        return [samples[start : start + size] for start in starts]

    def _overview(self, samples: Float[Tensor, " sample"]) -> Float[Tensor, "view frame mel"]:
        """The whole, shrunk, and a crop from the middle of each third of the places a crop can start at."""
        whole = decibel_mels(samples, self._bank, hop=self._hop)
        frames = self.window_samples // self._hop + 1
        if len(whole) <= frames:
            return whole[:frames].expand(4, -1, -1)
        shrunk = F.interpolate(
            whole[None, None], size=[frames, whole.shape[1]], mode="bilinear", align_corners=False
        )[0, 0]
        places = torch.arange(len(whole) - frames + 1).tensor_split(3)
        starts = [int(part[len(part) // 2]) if len(part) else 0 for part in places]
        return torch.stack([shrunk, *(whole[start : start + frames] for start in starts)])

    def sound_features(self, mels: Float[Tensor, "window view frame mel"]) -> Float[Tensor, "window feature"]:
        """Unit embeddings of windows, float32.

        Fused checkpoints take every window for a long one, as the released code does when it is given one
        clip at a time; given several short ones it picks one of them at random.
        """
        longer = torch.ones(len(mels), 1, dtype=torch.bool, device=self.device)
        output = self.network.get_audio_features(
            input_features=mels.to(self.device, self.dtype), is_longer=longer
        )
        return F.normalize(as_embedding(output).float(), dim=1)

    # --------------------------------------------------------------------------------------------- prompts

    def tokens(self, prompt: str) -> tuple[Int[Tensor, " token"], Bool[Tensor, " token"], bool]:
        """(Ids padded to 77, which of them are the prompt's, whether it was cut); the end token is kept."""
        tokenizer: Any = self._tokenizer
        full = tokenizer(prompt, verbose=False)["input_ids"]
        cut = len(full) > TEXT_LIMIT
        ids = [*full[: TEXT_LIMIT - 1], full[-1]] if cut else list(full)
        padded = ids + [int(tokenizer.pad_token_id)] * (TEXT_LIMIT - len(ids))
        mask = torch.arange(TEXT_LIMIT) < len(ids)
        return torch.tensor(padded, dtype=torch.int64), mask, cut

    def text_features(
        self, ids: Int[Tensor, "sample token"], mask: Bool[Tensor, "sample token"]
    ) -> Float[Tensor, "sample feature"]:
        """Unit embeddings of prompts, float32."""
        output = self.network.get_text_features(
            input_ids=ids.to(self.device), attention_mask=mask.long().to(self.device)
        )
        return F.normalize(as_embedding(output).float(), dim=1)

    @property
    def mark(self) -> str:
        """First eight digits of the SHA-256 of the weights: two revisions of a checkpoint are told apart."""
        return file_sha256(self.folder / weight_file(self.folder))[:8]

    def settings(self) -> Mapping[str, Any]:
        """Weight hashes, rate, windows and bands, for the fingerprint."""
        files = (*HF_FILES, "vocab.json", "merges.txt", "special_tokens_map.json", weight_file(self.folder))
        return {
            "weights": dict(hashes(self.folder, files)),
            "sampling_rate": self.sampling_rate,
            "window_seconds": self.window_samples / self.sampling_rate,
            "windows": self.windows,
            "fused": self.fused,
            "bands": self._described,
            "text": {"limit": TEXT_LIMIT},
        }


def _network(folder: Path) -> tuple[Any, bool]:
    """The float32 network of a folder, every key filled, and whether it fuses views."""
    from transformers import ClapConfig, ClapModel

    config: Any = ClapConfig.from_pretrained(str(folder))
    if config.model_type != "clap" or not (folder / "preprocessor_config.json").is_file():
        expected = "a ClapModel with its preprocessor_config.json"
        raise CheckpointError(explain(str(folder), got=config.model_type, expected=expected))
    with quietly():
        network, report = ClapModel.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            use_safetensors=weight_file(folder) == "model.safetensors",
            local_files_only=True,
            output_loading_info=True,
        )
    check_keys(report["missing_keys"], report["unexpected_keys"], where=str(folder), ignored=_SAVED_BEFORE)
    return network, bool(config.audio_config.enable_fusion)


def load_clap(
    checkpoint: str,
    *,
    weights: str | Path | None,
    reward: str,
    windows: Windows = "first",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClapEncoder:
    """A checkpoint from the user's folder or the hub.

    Args:
        checkpoint: short name, or hub id.
        weights: folder of the user's, or None.
        reward: who asks, for messages.
        windows: what is heard of a long sound.
        device: where it stands.
        dtype: of the network.

    Raises:
        UnknownNameError: no such checkpoint.
        CheckpointError: it is not there, or is another model.
        ConfigError: `weights` lacks its files.
    """
    folder = resolve(clap_weights(checkpoint), folder=weights, reward=reward)
    return ClapEncoder(folder, windows=windows, device=device, dtype=dtype)
