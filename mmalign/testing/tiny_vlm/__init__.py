"""Tiny vision-language models with random weights, in the folder layout of the hub.

`AutoProcessor` and `AutoModelForImageTextToText` load them offline, so that a test runs the code that the
published model would run: tower, projector, language model, processor, chat template, tokenizer. A picture
becomes 4 to 40 tokens, a folder takes well under a second.
"""

from collections.abc import Mapping
from pathlib import Path

from mmalign.errors import unknown_name
from mmalign.testing.tiny_vlm.gemma import GEMMA3, PALIGEMMA, PALIGEMMA2
from mmalign.testing.tiny_vlm.llava import LLAVA
from mmalign.testing.tiny_vlm.llava_more import LLAVA_NEXT, LLAVA_NEXT_VIDEO, LLAVA_ONEVISION, VIDEO_LLAVA
from mmalign.testing.tiny_vlm.parts import TinyVlm, write_folder
from mmalign.testing.tiny_vlm.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from mmalign.testing.tiny_vlm.text import CAUSAL_LM
from mmalign.testing.tiny_vlm.tiled import INTERNVL3, SMOLVLM

__all__ = ["TINY_VLMS", "VARIANTS", "TinyVlm", "tiny_vlm"]

TINY_VLMS: Mapping[str, TinyVlm] = {
    "llava": LLAVA,
    "llava_next": LLAVA_NEXT,
    "llava_onevision": LLAVA_ONEVISION,
    "qwen2_vl": QWEN2_VL,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
    "internvl": INTERNVL3,
    "smolvlm": SMOLVLM,
    "gemma3": GEMMA3,
    "paligemma": PALIGEMMA,
    "llava_next_video": LLAVA_NEXT_VIDEO,
    "video_llava": VIDEO_LLAVA,
    "causal_lm": CAUSAL_LM,
}
"""The tiny model of every family, by the family's name."""

VARIANTS: Mapping[str, TinyVlm] = {"paligemma2": PALIGEMMA2}
"""Further models of a family: what they have and its first one has not."""


def tiny_vlm(name: str, folder: str | Path, *, seed: int = 0) -> Path:
    """Write the tiny model of a family. Returns its folder, replaced when it existed.

    Args:
        name: a key of `TINY_VLMS` or `VARIANTS`.
        folder: where to write.
        seed: decides the random weights; everything else is the same at every call.

    Raises:
        UnknownNameError: there is no tiny model of that name.
    """
    known = {**TINY_VLMS, **VARIANTS}
    if name not in known:
        raise unknown_name("tiny model", name, known)
    return write_folder(known[name], folder, seed=seed)
