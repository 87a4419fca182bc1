"""Rewards as measures of clips: of pictures over frames, of clips as they are; what is missing is named."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.evals.video.vision_reward import CAVEAT
from mmalign.rewards import loading
from mmalign.rewards.base import Reward
from mmalign.rewards.frame_mean import FrameMean

if TYPE_CHECKING:
    from mmalign.evals.benchmark_tool_store import ToolStore

__all__ = ["MISSING", "ClipRewards", "load_clip_rewards", "outputs_of"]

DEFAULT = ("pickscore_v1", "aesthetic_v1")
"""Of pictures, small, and with weights that are published; VideoDPO reports rewards of frames too."""

_FRAMES = 8

MISSING: Mapping[str, str] = {
    "videoscore": (
        "TIGER-Lab/VideoScore is a Mantis-Idefics2 with a head of five scores; its class is in the package "
        "`mantis`, not in transformers. Score clips with its own script and read the values as a column of "
        "your table."
    ),
    "videoscore_v1.1": "As videoscore: the class of TIGER-Lab/VideoScore-v1.1 is in the package `mantis`.",
}
"""Known rewards of clips that cannot be loaded here, and what they lack."""


class ClipRewards:
    """Several rewards of clips, each under the name it was asked for by.

    Args:
        rewards: name to reward; those of pictures are averaged over frames.
    """

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.rewards = dict(rewards)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of them."""
        return (
            (CAVEAT,) if any(one.card.name == "visionreward_video" for one in self.rewards.values()) else ()
        )

    def provenance(self) -> Mapping[str, Any]:
        """Of every reward, by name."""
        return {name: reward.provenance() for name, reward in self.rewards.items()}

    def stored(self, kind: str, store: "ToolStore") -> "ClipRewards":
        """The same with a store in front of every reward."""
        return ClipRewards(
            {name: store.wrap(f"{kind} {name}", reward) for name, reward in self.rewards.items()}
        )


def load_clip_rewards(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    frames: int = _FRAMES,
) -> ClipRewards:
    """Rewards by their names.

    Args:
        weights: `NAME, NAME=FOLDER, module:function, ...`; a name may say how many frames it reads:
            `hpsv21@16`; `@0` gives the clip itself, to functions and judges of yours. None takes PickScore
            and the first aesthetic predictor.
        device: where they stand.
        dtype: of the networks.
        frames: of a clip that a reward of pictures reads, where its name does not say it.

    Raises:
        UnknownNameError: nobody provides a reward.
        ConfigError: one that scores neither pictures nor clips, or named twice.
        CheckpointError: weights are nowhere, or cannot be read here; says what is missing.
    """
    listed = DEFAULT if weights is None else [one.strip() for one in str(weights).split(",") if one.strip()]
    found: dict[str, Reward] = {}
    for written in listed:
        name, _, folder = written.partition("=")
        name, _, count = name.partition("@")
        if count and not count.isdigit():
            raise ConfigError(explain(f"reward {name}", got=f"@{count}", expected="frames, as in hpsv21@16"))
        reward = _load(name, folder or None, device=device, dtype=dtype)
        title = name.rpartition(":")[2]
        number = int(count or frames)
        if reward.card.modality == "image" and number:
            reward = FrameMean(reward, number)
            title = f"{title}, mean over {number} frames"
        elif reward.card.modality not in ("image", "video"):
            got = f"a reward of {reward.card.modality}"
            raise ConfigError(explain(f"reward {name}", got=got, expected="one of pictures or clips"))
        if title in found:
            raise ConfigError(explain("rewards", got=f"{name} twice", expected="each once"))
        found[title] = reward
    return ClipRewards(found)


def _load(name: str, folder: str | None, *, device: str | torch.device, dtype: torch.dtype) -> Reward:
    """One reward.

    Raises:
        CheckpointError: one that is known to be missing here; says why.
    """
    if name in MISSING:
        message = explain(f"reward {name}", got="[not to be had here]", expected="another", do=MISSING[name])
        raise CheckpointError(message)
    if ":" in name:
        return loading.load(name)
    return loading.load(name, weights=folder, device=device, dtype=dtype)


def outputs_of(rewards: ClipRewards) -> Sequence[tuple[str, str, str]]:
    """(Title of a metric, name of its reward, output) of every output of every reward."""
    return [
        (name if place == 0 else f"{name}: {output}", name, output)
        for name, reward in rewards.rewards.items()
        for place, output in enumerate(reward.card.outputs)
    ]
