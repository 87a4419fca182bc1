"""Motion LoRAs under the names of AnimateDiff's own code, which ComfyUI's extensions for it read.

Source: guoyww/AnimateDiff animatediff/utils/convert_lora_safetensor_to_diffusers.py, `load_diffusers_lora`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from mmalign.errors import CheckpointError, explain

__all__ = ["from_official", "to_official"]

_OURS = re.compile(
    r"^(?P<block>.*\.motion_modules\.\d+)\.(?P<inner>transformer_blocks\.\d+)\.attn(?P<number>[12])\."
    r"to_(?P<layer>q|k|v|out)(?:\.0)?\.lora_(?P<side>[AB])\.weight$"
)
_OFFICIAL = re.compile(
    r"^(?P<block>.*\.motion_modules\.\d+)\.temporal_transformer\.(?P<inner>transformer_blocks\.\d+)\."
    r"attention_blocks\.(?P<number>[01])\.processor\.to_(?P<layer>q|k|v|out)_lora\.(?P<side>down|up)\.weight$"
)


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a motion LoRA under official names.

    Args:
        tensors: under diffusers' names, strength multiplied in.

    Raises:
        CheckpointError: a layer is no attention of a motion module.
    """
    found = {}
    for name, value in tensors.items():
        match = _OURS.match(name)
        if match is None:
            message = explain(
                "mmalign export --to comfyui",
                got=f"an adapter on {name.rsplit('.lora_', 1)[0]}",
                expected="attention of motion modules, as motion LoRAs have it",
                do="Use --to diffusers, or --to merged.",
            )
            raise CheckpointError(message)
        side = {"A": "down", "B": "up"}[match["side"]]
        attention = f"attention_blocks.{int(match['number']) - 1}.processor.to_{match['layer']}_lora"
        found[f"{match['block']}.temporal_transformer.{match['inner']}.{attention}.{side}.weight"] = value
    return found


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights under diffusers' names; None where the names are no motion LoRA's."""
    found = {}
    for name, value in tensors.items():
        match = _OFFICIAL.match(name)
        if match is None:
            return None
        side = {"down": "A", "up": "B"}[match["side"]]
        layer = f"to_{match['layer']}{'.0' if match['layer'] == 'out' else ''}"
        attention = f"attn{int(match['number']) + 1}.{layer}"
        found[f"{match['block']}.{match['inner']}.{attention}.lora_{side}.weight"] = value
    return found
