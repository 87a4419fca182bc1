"""VGGish: 128 features of every 0.96 seconds of a clip, before its last rectifier, as audioldm_eval has them.

Modules bear the names of the published PyTorch checkpoint, so that it is filled in strictly.
"""

from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.errors import CheckpointError, ShapeError, explain
from mmalign.rewards.checkpoints import fill, read_state

__all__ = ["SAMPLING_RATE", "Vggish", "load_vggish", "log_mel_patches"]

SAMPLING_RATE = 16_000

_WINDOW, _HOP, _TRANSFORM = 400, 160, 512
"""Samples: 25 ms every 10 ms, transformed at the next power of two."""

_BANDS, _LOW, _HIGH = 64, 125.0, 7_500.0

_OFFSET = 0.01
"""Added before the logarithm."""

_FRAMES = 96
"""Frames of a patch; patches do not overlap, and what does not fill one is left out."""

SHORTEST = _WINDOW + (_FRAMES - 1) * _HOP
"""Samples of one patch."""

_WIDTHS = (64, 128, 256, 256, 512, 512)
_POOLED = (True, True, False, True, False, True)


@lru_cache(maxsize=1)
def _bank() -> Float[Tensor, "frequency mel"]:
    """Triangles over mel (1127 ln(1 + f / 700)), not normalised."""
    from transformers.audio_utils import mel_filter_bank

    found = mel_filter_bank(
        _TRANSFORM // 2 + 1,
        _BANDS,
        _LOW,
        _HIGH,
        SAMPLING_RATE,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(found).double()


def log_mel_patches(samples: Float[Tensor, " sample"]) -> Float[Tensor, "patch frame mel"]:
    """What VGGish sees of a clip: `ln(bank' |STFT| + 0.01)` in patches of 96 frames.

    Frames lie inside the clip (nothing is padded); the magnitude is not squared.

    Args:
        samples: one channel at 16 kHz in [-1, 1].

    Raises:
        ShapeError: shorter than one patch of 0.975 s.

    Source: tensorflow/models research/audioset/vggish (mel_features.py, vggish_params.py), which
        harritaylor/torchvggish repeats.
    """
    if len(samples) < SHORTEST:
        got = f"[{len(samples)} samples]"
        raise ShapeError(explain("VGGish", got=got, expected=f"at least {SHORTEST} for one patch"))
    window = torch.hann_window(_WINDOW, periodic=True, dtype=torch.float64)
    frames = samples.double().unfold(0, _WINDOW, _HOP) * window
    magnitudes = torch.fft.rfft(frames, n=_TRANSFORM).abs()
    mels: Tensor = (magnitudes @ _bank() + _OFFSET).log().float()
    count = len(mels) // _FRAMES
    return mels[: count * _FRAMES].reshape(count, _FRAMES, _BANDS)


class Vggish(nn.Module):
    """The network.

    Args:
        widths: channels of the six convolutions.
        hidden: of the two dense layers between them and the embedding.
        features: of the embedding.

    Source: harritaylor/torchvggish, torchvggish/vggish.py (arXiv 1609.09430).
    """

    def __init__(self, widths: tuple[int, ...] = _WIDTHS, hidden: int = 4096, features: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, pooled in zip((1, *widths), widths, _POOLED, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if pooled else []
        self.features = nn.Sequential(*layers)
        flat = widths[-1] * (_FRAMES // 16) * (_BANDS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, features),
        )

    def forward(self, patches: Float[Tensor, "patch frame mel"]) -> Float[Tensor, "patch feature"]:
        """Embeddings before the last rectifier."""
        values = self.features(patches[:, None])
        # The dense layers were trained on [frame, mel, channel].
        found: Tensor = self.embeddings(values.permute(0, 2, 3, 1).flatten(1))
        return found


def load_vggish(path: str | Path) -> Vggish:
    """The network of the published checkpoint file, in evaluation mode and frozen.

    Args:
        path: `vggish-10086976.pth`, or one with the same keys.

    Raises:
        CheckpointError: the file is no such checkpoint, or would have to run code.
    """
    state = read_state(path)
    convolutions = [name for name in state if name.startswith("features.") and name.endswith(".weight")]
    dense = [f"embeddings.{place}.weight" for place in (0, 2, 4)]
    lacking = [name for name in dense if name not in state]
    if lacking or len(convolutions) != len(_WIDTHS):
        got = f"[{len(convolutions)} convolutions, {3 - len(lacking)} dense layers]"
        raise CheckpointError(explain(str(path), got=got, expected="6 and 3, of VGGish"))
    places = sorted(convolutions, key=lambda name: int(name.split(".")[1]))
    widths = tuple(len(state[name]) for name in places)
    network = Vggish(widths, len(state[dense[0]]), len(state[dense[2]]))
    fill(network, state, where=str(path))
    return network.requires_grad_(False).eval()
