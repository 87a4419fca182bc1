"""What benchmarks of pictures, clips and sounds need besides answers, by the names their `tools` list."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmalign.errors import unknown_name
from mmalign.evals.audio.listeners import (
    ClapListener,
    load_clap_sounds,
    load_panns_listener,
    load_vggish_listener,
)
from mmalign.evals.colours import load_colours
from mmalign.evals.detectors import load_detector
from mmalign.evals.questions import BlipQuestions, load_questions
from mmalign.evals.video.aesthetic import load_aesthetic
from mmalign.evals.video.consistency import load_background, load_subject
from mmalign.evals.video.flow import load_flow
from mmalign.evals.video.pixels import load_pixels
from mmalign.evals.video.quality import load_clip_rewards
from mmalign.evals.video.style import load_style
from mmalign.rewards.base import Reward
from mmalign.rewards.clip_backbones import load_backbone
from mmalign.rewards.clip_models import DualEncoder
from mmalign.rewards.clip_scores import cosine
from mmalign.rewards.loading import load

__all__ = ["TOOLS", "ClipSimilarity", "YesProbabilities", "load_similarity", "load_tool"]


class ClipSimilarity:
    """Cosine of a picture and a text in CLIP's space; T2I-CompBench reads non-spatial prompts by it.

    Args:
        encoder: pictures and texts to embeddings; the released script uses OpenAI's ViT-B/32.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self._encoder = encoder

    @torch.inference_mode()
    def __call__(self, picture: Image.Image, text: str) -> float:
        """In [-1, 1]; texts beyond CLIP's limit are cut."""
        pixels = self._encoder.preprocessing(picture.convert("RGB"))[None]
        ids = self._encoder.tokens(text)[0][None]
        return float(cosine(self._encoder.image_features(pixels), self._encoder.text_features(ids)))

    def provenance(self) -> Mapping[str, Any]:
        """Weights and preprocessing; JSON types."""
        return dict(self._encoder.settings())


def load_similarity(
    backbone: str = "vit-b-32",
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClipSimilarity:
    """Similarity by a CLIP model of the hub or of a folder; arguments as of `load_colours`."""
    return ClipSimilarity(
        load_backbone(backbone, weights=weights, reward="similarity", device=device, dtype=dtype)
    )


class YesProbabilities:
    """The probabilities of a model that answers questions, with its provenance.

    Args:
        questions: the model.
    """

    def __init__(self, questions: BlipQuestions) -> None:
        self.name = questions.name
        self._questions = questions

    def provenance(self) -> Mapping[str, Any]:
        """The model's own; JSON types."""
        return self._questions.provenance()

    def __call__(self, picture: Image.Image, asked: Sequence[str]) -> list[float]:
        """Probability of yes for each question."""
        return self._questions.probabilities(picture, asked)


def _yes(*arguments: Any, **options: Any) -> YesProbabilities:
    """The probabilities of BLIP, as T2I-CompBench asks for them."""
    return YesProbabilities(load_questions(*arguments, **options))


def _clap(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Reward:
    """CLAP score as a reward: of a checkpoint's short name, a hub id, or a folder."""
    named = _clap_named(weights)
    return load("clap", device=device, dtype=dtype, **named)


def _clap_sounds(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClapListener:
    """CLAP's embeddings of sounds: of a checkpoint's short name, a hub id, or a folder."""
    return load_clap_sounds(device=device, dtype=dtype, **_clap_named(weights))


def _clap_named(source: str | Path | None) -> dict[str, Any]:
    """Checkpoint and weights: a folder is itself, anything else a name."""
    if source is None or Path(source).is_dir():
        return {"weights": source}
    return {"checkpoint": str(source)}


TOOLS: Mapping[str, Callable[..., Any]] = {
    "detector": load_detector,
    "colours": load_colours,
    "vqa": load_questions,
    "yes": _yes,
    "similarity": load_similarity,
    "panns": load_panns_listener,
    "vggish": load_vggish_listener,
    "clap": _clap,
    "clap_sounds": _clap_sounds,
    "rewards": load_clip_rewards,
    "subject": load_subject,
    "background": load_background,
    "aesthetic": load_aesthetic,
    "style": load_style,
    "flow": load_flow,
    "pixels": load_pixels,
}
"""Name in `Benchmark.tools` to what loads a default for it; `judge` and `reward` are the user's choice."""


def load_tool(name: str, **options: Any) -> Any:
    """The default tool of a name.

    Args:
        name: one of `TOOLS`.
        options: of its loader: `weights` (folder or hub id), `device`, `dtype`, ...

    Raises:
        UnknownNameError: nothing here is called that.
        CheckpointError: its weights are nowhere; says what fetches them.
    """
    if name not in TOOLS:
        msg = "tool"
        raise unknown_name(msg, name, TOOLS)
    return TOOLS[name](**options)
