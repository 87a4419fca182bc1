"""Tiny vision-language models with random weights, in the folder layout of the hub.

`AutoProcessor` and `AutoModelForImageTextToText` load them offline, so that a test runs the code that the
published model would run: tower, projector, language model, processor, chat template, tokenizer. A picture
becomes 4 to 40 tokens, a folder takes well under a second.
"""

from collections.abc import Mapping
from pathlib import Path

from mmalign.errors import unknown_name
from mmalign.testing.tiny_vlm.llava import LLAVA
from mmalign.testing.tiny_vlm.parts import TinyVlm, write_folder
from mmalign.testing.tiny_vlm.qwen import QWEN2_5_VL

__all__ = ["TINY_VLMS", "TinyVlm", "tiny_vlm"]

TINY_VLMS: Mapping[str, TinyVlm] = {
    "llava": LLAVA,
    "qwen2_5_vl": QWEN2_5_VL,
}
"""Every tiny model by the name of its family."""


def tiny_vlm(name: str, folder: str | Path, *, seed: int = 0) -> Path:
    """Write the tiny model of a family. Returns its folder, replaced when it existed.

    Args:
        name: a key of `TINY_VLMS`.
        folder: where to write.
        seed: decides the random weights; everything else is the same at every call.

    Raises:
        UnknownNameError: there is no tiny model of that name.
    """
    if name not in TINY_VLMS:
        raise unknown_name("tiny model", name, TINY_VLMS)
    return write_folder(TINY_VLMS[name], folder, seed=seed)
