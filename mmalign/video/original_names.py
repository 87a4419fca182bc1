"""Names of modules in the models' own code, which ComfyUI reads, beside those of diffusers."""

import re
from collections.abc import Sequence

__all__ = ["WAN_NAMES", "original_name"]

WAN_NAMES: tuple[tuple[str, str], ...] = (
    (r"^blocks\.(\d+)\.attn1\.to_(q|k|v)$", r"blocks.\1.self_attn.\2"),
    (r"^blocks\.(\d+)\.attn1\.to_out\.0$", r"blocks.\1.self_attn.o"),
    (r"^blocks\.(\d+)\.attn2\.to_(q|k|v)$", r"blocks.\1.cross_attn.\2"),
    (r"^blocks\.(\d+)\.attn2\.to_out\.0$", r"blocks.\1.cross_attn.o"),
    (r"^blocks\.(\d+)\.attn2\.add_(k|v)_proj$", r"blocks.\1.cross_attn.\2_img"),
    (r"^blocks\.(\d+)\.ffn\.net\.0\.proj$", r"blocks.\1.ffn.0"),
    (r"^blocks\.(\d+)\.ffn\.net\.2$", r"blocks.\1.ffn.2"),
    (r"^condition_embedder\.time_embedder\.linear_1$", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2$", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1$", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2$", "text_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2$", "img_emb.proj.3"),
    (r"^patch_embedding$", "patch_embedding"),
    (r"^proj_out$", "head.head"),
)
"""(pattern of a diffusers name, name in Wan's own code). Source: Wan-Video/Wan2.1, wan/modules/model.py."""


def original_name(name: str, table: Sequence[tuple[str, str]]) -> str | None:
    """The name by a table of (pattern, replacement); None where it has none."""
    for pattern, replacement in table:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return None
