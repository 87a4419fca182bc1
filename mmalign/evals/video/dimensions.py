"""Which dimensions of VBench are measured here, by which tool, and what the others lack."""

from collections.abc import Mapping, Sequence

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.evals.benchmarks.vbench import DIMENSIONS

__all__ = ["MEASURED", "MISSING", "require_dimensions"]

MEASURED: Mapping[str, str] = {
    "subject consistency": "subject",
    "background consistency": "background",
    "temporal flickering": "pixels",
    "dynamic degree": "flow",
    "aesthetic quality": "aesthetic",
    "appearance style": "style",
}
"""Dimension to the tool that measures it."""

_GRIT = "GRiT (grit_b_densecap_objectdet.pth), an object detector built on detectron2"
_VICLIP = "ViCLIP (ViClip-InternVid-10M-FLT.pth), a network of the InternVideo code"

MISSING: Mapping[str, str] = {
    "motion smoothness": "AMT-S (amt-s.pth), a network of frame interpolation with code of its own",
    "imaging quality": "MUSIQ on SPAQ (musiq_spaq_ckpt-358bb6af.pth) as the package pyiqa has it",
    "object class": _GRIT,
    "multiple objects": _GRIT,
    "color": _GRIT,
    "spatial relationship": _GRIT,
    "human action": "UMT (l16_ptk710_ftk710_ftk400_f16_res224.pth), a classifier with code of its own",
    "scene": "Tag2Text (tag2text_swin_14m.pth), a captioner with code of its own",
    "temporal style": _VICLIP,
    "overall consistency": _VICLIP,
}
"""Dimension to what the official package measures it with, which is not here."""

_NAMED = {
    "style": "It is loaded where it is named: tools.style=vit-b-32 (of the hub), or a folder of CLIP's."
}
"""What to do about tools without a default."""


def require_dimensions(asked: Sequence[str], tools: Sequence[str]) -> None:
    """Refuse dimensions that will not be measured.

    Args:
        asked: names as VBench writes them; `_` may stand for a space.
        tools: that are there.

    Raises:
        UnknownNameError: VBench has no such dimension.
        ConfigError: its network is not here, or its tool was left out; says what is missing.
    """
    for written in asked:
        name = written.strip().replace("_", " ").lower()
        if name not in DIMENSIONS:
            raise unknown_name("VBench dimension", written, DIMENSIONS)
        if name in MISSING:
            message = explain(
                f"VBench {name}",
                got="[not measured here]",
                expected=f"one of {', '.join(MEASURED)}",
                do=f"It takes {MISSING[name]}. Measure it with the official package and read its results: "
                "the benchmark vbench (answers:RESULTS).",
            )
            raise ConfigError(message)
        if MEASURED[name] not in tools:
            message = explain(
                f"VBench {name}",
                got=f"tools.{MEASURED[name]}=none",
                expected="the tool that measures it",
                do=_NAMED.get(MEASURED[name], ""),
            )
            raise ConfigError(message)
