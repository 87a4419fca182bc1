"""Motion by optical flow: RAFT on frames thinned to about 8 a second, judged as VBench judges it."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import ShapeError, explain
from mmalign.evals.benchmarks._clip_measures import frame_interval, judge_motion, top_flow
from mmalign.evals.video.footage import Footage
from mmalign.evals.video.watching import Watching
from mmalign.rewards.card import Weights
from mmalign.rewards.checkpoints import read_state
from mmalign.rewards.clip_models import check_keys
from mmalign.rewards.weights import file_sha256, resolve

__all__ = ["RAFT", "FlowWatcher", "load_flow"]

RAFT = Weights(
    "torchvision/raft_large_C_T_V1",
    ("raft_large_C_T_V1-22a6c225.pth",),
    sha256={"raft_large_C_T_V1-22a6c225.pth": "22a6c225"},
    host="web",
    address="https://download.pytorch.org/models",
)
"""The authors' weights (raft-things, which VBench loads) as torchvision publishes them."""

_UPDATES = 20
_SMALLEST = 128
"""Pixels; RAFT compares features at an eighth of the size over four levels."""


class FlowWatcher(Watching):
    """Flow between neighbouring frames of about 8 a second.

    Args:
        network: RAFT as torchvision has it: two batches of frames in [-1, 1] to a list of flows.
        weights: hash of its file, or what stands for it.
        device: where it stands.
        updates: of the flow, per pair; VBench takes 20.
    """

    name = "RAFT"

    def __init__(
        self,
        network: nn.Module,
        *,
        weights: str,
        device: str | torch.device = "cpu",
        updates: int = _UPDATES,
    ) -> None:
        self.network = network.requires_grad_(False).eval().to(device)
        self.device, self.updates, self._weights = torch.device(device), updates, weights

    def provenance(self) -> Mapping[str, Any]:
        """Weights, frames, updates, thresholds."""
        return {
            "name": self.name,
            "weights": self._weights,
            "frames": "every round(fps / 8)th, at least every one",
            "updates": self.updates,
            "padding": "to the next multiple of 8 on all sides, edges repeated, not cut off again",
            "a pair moves": "mean of the top 5 % above 6 * min(height, width) / 256 pixels",
            "dynamic": "round(4 * frames / 16) pairs move, halves to even",
        }

    @torch.inference_mode()
    def watch(self, clip: Footage) -> dict[str, Any]:
        """Whether it moves by VBench's rule; flow in pixels: mean of the top 5 %, mean of all.

        Raises:
            ShapeError: a side shorter than 128 pixels, or fewer than two frames after thinning.
        """
        thin = clip.thinned(frame_interval(clip.fps))
        count, _, height, width = thin.frames.shape
        if min(height, width) < _SMALLEST or count < 2:
            got = f"[{count} frames of {height}x{width} at {thin.fps:g} a second]"
            expected = f"two or more, sides of at least {_SMALLEST} pixels"
            raise ShapeError(explain("optical flow", got=got, expected=expected))
        flows = [self.flow(before, after) for before, after in pairwise(thin.frames)]
        tops = [top_flow(flow) for flow in flows]
        motion = judge_motion(tops, height=height, width=width, num_frames=count)
        lengths = [float(torch.hypot(flow[0], flow[1]).mean()) for flow in flows]
        return {
            "dynamic": motion.dynamic,
            "top": motion.mean_flow,
            "mean": sum(lengths) / len(lengths),
            "moving": motion.moving,
            "needed": motion.needed,
            "pairs": len(flows),
        }

    @torch.inference_mode()
    def flow(self, before: Tensor, after: Tensor) -> Float[Tensor, "2 padded_height padded_width"]:
        """Displacement (x, y) of every pixel of the padded frames, in pixels, on the CPU.

        Args:
            before: bytes [3, height, width].
            after: the same.
        """
        pair = torch.stack([before, after]).to(self.device).float() / 127.5 - 1.0
        tall, wide = ((-side) % 8 for side in pair.shape[-2:])
        margins = (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)
        padded = F.pad(pair, margins, mode="replicate")
        found: Tensor = self.network(padded[:1], padded[1:], num_flow_updates=self.updates)[-1]
        return found[0].float().cpu()


def load_flow(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FlowWatcher:
    """RAFT from torchvision's published file.

    Args:
        weights: the file itself (.pth or .safetensors), or a folder with it; None looks where downloads lie,
            and downloads it.
        device: where it stands.
        dtype: not used: the flow is float32, as VBench's.

    Raises:
        CheckpointError: the file is nowhere, or is another network's.
        ConfigError: `weights` lacks it.
    """
    from torchvision.models.optical_flow import raft_large

    del dtype
    if weights is not None and Path(weights).is_file():
        path = Path(weights)
    else:
        path = resolve(RAFT, folder=weights, reward="optical flow") / RAFT.files[0]
    network = raft_large(weights=None)
    report = network.load_state_dict(read_state(path), strict=False)
    check_keys(report.missing_keys, report.unexpected_keys, where=str(path))
    return FlowWatcher(network, weights=file_sha256(path), device=device)
