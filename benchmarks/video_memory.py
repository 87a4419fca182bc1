"""Device memory of the recipes of video, counted on networks of the real sizes that hold no weights.

    python benchmarks/video_memory.py      # every recipe as it stands: the table of video/README.md
    python benchmarks/video_memory.py wan/flow_dpo_lora video.num_frames=33 train.split_backward=false

The networks are built on the meta device from the settings of the released ones (`NETWORKS`), get the adapter
of the recipe, and are called on a micro-batch of its size; what autograd would keep is counted as in
`mmalign train --dry-run`, with which tests hold these numbers equal. Latents and texts come from a cache.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mmalign import registry
from mmalign.train.adapters import attach
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.parts import DTYPES, reference_kind
from mmalign.train.plan import GIB, MemoryItem, count_activations, memory_estimate
from mmalign.train.rollout_memory import rows_with_gradient

CONFIGS = Path(__file__).parents[1] / "video" / "configs"
CARDS = (24, 48, 80)
"""Sizes of cards, GB as they are sold."""
ROOM = 0.9
"""Share of a card that a count may take: workspaces and fragments need the rest."""

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What a network is called on.

    Args:
        rows: of a micro-batch, with gradients.
        frames: of latents.
        height: of latents.
        width: of latents.
        dtype: of inputs.
        pictured: whether clips go on from a picture.
    """

    rows: int
    frames: int
    height: int
    width: int
    dtype: torch.dtype
    pictured: bool

    def new(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of the rows, on the meta device."""
        return torch.empty(self.rows, *size, dtype=dtype or self.dtype, device="meta")


@dataclass(frozen=True)
class Released:
    """A released network.

    Args:
        class_name: of diffusers.
        settings: where they differ from the class's own, which are those of one release each.
        inputs: of its `forward`.
        ratios: (frames, pixels along one side) per latent.
        clip: (frames, height, width) unless the recipe says otherwise.
        source: of the settings.
    """

    class_name: str
    settings: Mapping[str, Any]
    inputs: Callable[[Shape], Inputs]
    ratios: tuple[int, int]
    clip: tuple[int, int, int]
    source: str


def wan(
    channels: int = 16,
    *,
    text: int = 4096,
    pictured: bool = False,
    seen: bool = False,
    own_times: bool = False,
) -> Any:
    """Inputs of a Wan of these latent and text channels."""

    def inputs(shape: Shape) -> Inputs:
        given = 2 * channels + 4 if pictured else channels
        tokens = shape.frames * (shape.height // 2) * (shape.width // 2)
        found = {
            "hidden_states": shape.new(given, shape.frames, shape.height, shape.width),
            "timestep": shape.new(tokens if own_times else 1, dtype=torch.float32)
            if own_times
            else torch.empty(shape.rows, device="meta"),
            "encoder_hidden_states": shape.new(512, text),
        }
        return {**found, "encoder_hidden_states_image": shape.new(257, 1280)} if seen else found

    return inputs


def _cogvideox(*, pictured: bool = False, rotary: bool = False) -> Any:
    def inputs(shape: Shape) -> Inputs:
        channels = 32 if pictured else 16
        found: Inputs = {
            "hidden_states": shape.new(shape.frames, channels, shape.height, shape.width),
            "timestep": torch.empty(shape.rows, dtype=torch.int64, device="meta"),
            "encoder_hidden_states": shape.new(226, 4096),
        }
        if rotary:
            tokens = shape.frames * (shape.height // 2) * (shape.width // 2)
            found["image_rotary_emb"] = tuple(torch.empty(tokens, 64, device="meta") for _ in range(2))
        return found

    return inputs


def _ltx(shape: Shape) -> Inputs:
    return {
        "hidden_states": shape.new(shape.frames * shape.height * shape.width, 128),
        "timestep": torch.empty(shape.rows, device="meta"),
        "encoder_hidden_states": shape.new(128, 4096),
        "encoder_attention_mask": shape.new(128, dtype=torch.bool),
        "num_frames": shape.frames,
        "height": shape.height,
        "width": shape.width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def _hunyuan(shape: Shape) -> Inputs:
    return {
        "hidden_states": shape.new(16, shape.frames, shape.height, shape.width),
        "timestep": torch.empty(shape.rows, device="meta"),
        "encoder_hidden_states": shape.new(256, 4096),
        "encoder_attention_mask": shape.new(256, dtype=torch.bool),
        "pooled_projections": shape.new(768),
        "guidance": shape.new(dtype=torch.float32),
    }


def _unet(width: int, *, per_frame: bool) -> Any:
    def inputs(shape: Shape) -> Inputs:
        text = shape.new(77, width)
        return {
            "sample": shape.new(4, shape.frames, shape.height, shape.width),
            "timestep": torch.empty(shape.rows, dtype=torch.int64, device="meta"),
            "encoder_hidden_states": text.repeat_interleave(shape.frames, dim=0) if per_frame else text,
        }

    return inputs


_WAN, _COG, _CONVERT = "WanTransformer3DModel", "CogVideoXTransformer3DModel", "diffusers scripts/convert_"
_480P = (81, 480, 832)
NETWORKS: Mapping[str, Released] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Released(
        _WAN,
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        wan(),
        (4, 8),
        _480P,
        f"{_CONVERT}wan_to_diffusers.py",
    ),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": Released(
        _WAN, {}, wan(), (4, 8), _480P, "the class's own; 2503.20314"
    ),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": Released(
        _WAN,
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
        wan(pictured=True, seen=True),
        (4, 8),
        _480P,
        f"{_CONVERT}wan_to_diffusers.py",
    ),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": Released(
        _WAN, {}, wan(), (4, 8), _480P, "each of two experts; the class's own"
    ),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": Released(
        _WAN,
        {
            "num_attention_heads": 24,
            "ffn_dim": 14336,
            "num_layers": 30,
            "in_channels": 48,
            "out_channels": 48,
        },
        wan(48, own_times=True),
        (4, 16),
        (121, 704, 1280),
        f"{_CONVERT}wan_to_diffusers.py",
    ),
    "zai-org/CogVideoX-2b": Released(
        _COG, {}, _cogvideox(), (4, 8), (49, 480, 720), "the class's own; 2408.06072"
    ),
    "zai-org/CogVideoX-5b": Released(
        _COG,
        {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
        _cogvideox(rotary=True),
        (4, 8),
        (49, 480, 720),
        f"{_CONVERT}cogvideox_to_diffusers.py",
    ),
    "zai-org/CogVideoX-5b-I2V": Released(
        _COG,
        {
            "num_attention_heads": 48,
            "num_layers": 42,
            "in_channels": 32,
            "use_rotary_positional_embeddings": True,
            "use_learned_positional_embeddings": True,
        },
        _cogvideox(pictured=True, rotary=True),
        (4, 8),
        (49, 480, 720),
        f"{_CONVERT}cogvideox_to_diffusers.py",
    ),
    "Lightricks/LTX-Video": Released(
        "LTXVideoTransformer3DModel", {}, _ltx, (8, 32), (161, 512, 704), "the class's own; 2501.00103"
    ),
    "hunyuanvideo-community/HunyuanVideo": Released(
        "HunyuanVideoTransformer3DModel",
        {},
        _hunyuan,
        (4, 8),
        (129, 720, 1280),
        "the class's own; 2412.03603",
    ),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Released(
        "UNetMotionModel",
        {"cross_attention_dim": 768, "num_attention_heads": 8, "use_motion_mid_block": False},
        _unet(768, per_frame=True),
        (1, 8),
        (16, 512, 512),
        "Stable Diffusion 1.5 with motion modules v3 (mid block: v2 alone); diffusers' class",
    ),
    "ali-vilab/text-to-video-ms-1.7b": Released(
        "UNet3DConditionModel", {}, _unet(1024, per_frame=False), (1, 8), (16, 256, 256), "the class's own"
    ),
    "VideoCrafter/VideoCrafter2": Released(
        "UNet3DConditionModel", {}, _unet(1024, per_frame=False), (1, 8), (16, 320, 512), "2401.09047"
    ),
}
"""By hub id; sizes only."""


def outline(released: Released, dtype: torch.dtype) -> nn.Module:
    """A network without weights, on the meta device."""
    import diffusers

    with torch.device("meta"):
        network: nn.Module = getattr(diffusers, released.class_name)(**released.settings)
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, parameter in network.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)
    return network.requires_grad_(False).eval()


def shape_of(run: ResolvedRun, released: Released, dtype: torch.dtype) -> Shape:
    """What the network of a run is called on in one pass with gradients."""
    video: Any = run.config.media
    frames, height, width = released.clip
    frames, height, width = video.num_frames or frames, video.height or height, video.width or width
    step, side = released.ratios
    pictured = int(released.settings.get("in_channels", 16)) in (32, 36)
    return Shape(
        rows_with_gradient(run), (frames - 1) // step + 1, height // side, width // side, dtype, pictured
    )


def memory_of(run: ResolvedRun, released: Released | None = None) -> list[MemoryItem]:
    """What a run needs on its device, with a cache of latents and texts.

    Args:
        run: a recipe.
        released: its network; default what `NETWORKS` says of its source.
    """
    released = NETWORKS[run.config.model.source] if released is None else released
    half = DTYPES[run.config.train.mixed_precision]
    full = run.config.adapter.kind == "none"
    network = outline(released, torch.float32 if full else half)
    model: Any = registry.find("families", run.config.model.family).model
    if run.config.model.gradient_checkpointing:
        model.recompute(SimpleNamespace(settings=run.config.model), network)
    trainables = attach(
        network,
        run.config.adapter,
        default_targets=model.adapter_targets,
        seed=0,
        trains=(lambda name: model.trains(None, name)) if hasattr(model, "trains") else None,
    )
    inputs = released.inputs(shape_of(run, released, torch.float32 if full else half))
    activations = count_activations(
        network,
        lambda called: called(**inputs, return_dict=False)[0],
        autocast=None if half is torch.float32 else half,
    )
    return memory_estimate(
        run,
        trainables,
        encoders={},
        activation_bytes=activations.kept,
        reference_kind=reference_kind(run),
        recomputed_bytes=activations.recomputed,
    )


def card_for(num_bytes: float) -> int | None:
    """GB of the smallest card that holds a count with room left; None where none does."""
    return next((card for card in CARDS if num_bytes <= ROOM * card * 1e9), None)


def recipes() -> list[str]:
    """Names of the recipes with a released network, as `wan/densedpo`."""
    found = sorted(CONFIGS.glob("*/*.yaml"))
    return [f"{path.parent.name}/{path.stem}" for path in found if path.parent.name not in ("toy", "pairs")]


def row_of(name: str, overrides: list[str]) -> list[str]:
    """A line of the table: clip, parts, sum, card."""
    run = load_run(CONFIGS / f"{name}.yaml", overrides)
    released = NETWORKS[run.config.model.source]
    items = {item.component: item.num_bytes for item in memory_of(run)}
    video: Any = run.config.media
    frames, height, width = released.clip
    weights = items.pop("network, frozen weights") + items.pop("network, trained weights (float32)")
    kept = sum(items.pop(key) for key in list(items) if key.startswith("activations"))
    block = items.pop("largest recomputed block", 0)
    total = weights + kept + block + sum(items.values())
    size = f"{video.num_frames or frames} x {video.width or width} x {video.height or height}"
    numbers = [f"{value / GIB:.1f}" for value in (weights, sum(items.values()), kept, block, total)]
    card = card_for(total)
    return [name, size, str(rows_with_gradient(run)), *numbers, "more than 80" if card is None else str(card)]


HEAD = ["recipe", "clip", "clips at once", "weights", "gradients, optimiser, reference"]
HEAD += ["activations", "recomputed block", "GiB in all", "card, GB"]


def main(arguments: list[str]) -> int:
    """Print the table. Returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", help="recipes, and key=value of all of them")
    words = parser.parse_args(arguments).words
    names = [word for word in words if "=" not in word] or recipes()
    overrides = [word for word in words if "=" in word]
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for name in names:
        print(f"| {' | '.join(row_of(name, overrides))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
