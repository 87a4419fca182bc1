"""What the pixels alone say of a clip: flicker, and how much changes from frame to frame."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.errors import RowError, explain
from mmalign.evals.benchmarks._clip_measures import temporal_flickering
from mmalign.evals.video.footage import Footage, read_footage
from mmalign.evals.video.watching import Watching
from mmalign.rewards.sample import Sample

__all__ = ["PixelWatcher", "frame_difference", "load_pixels", "mean_frame_difference"]


def mean_frame_difference(clip: Footage) -> float:
    """Mean |next frame - frame| of 8-bit values, per step, in [0, 255]; 0 is a still picture.

    A measure of motion that needs no optical flow. It cannot tell motion from flicker, and grows with
    contrast; it falls with the frame rate.
    """
    return 255.0 * (1.0 - temporal_flickering(clip.frames.permute(0, 2, 3, 1)))


class PixelWatcher(Watching):
    """Temporal flickering as VBench has it, and the mean difference of neighbouring frames."""

    name = "pixels"

    def provenance(self) -> Mapping[str, Any]:
        """The rule; there are no weights."""
        return {"name": self.name, "frames": "all, 8 bits", "source": "Vchitect/VBench temporal_flickering"}

    def watch(self, clip: Footage) -> dict[str, Any]:
        """Both numbers, and what the clip is."""
        height, width = clip.frames.shape[-2:]
        return {
            "flickering": temporal_flickering(clip.frames.permute(0, 2, 3, 1)),
            "difference": mean_frame_difference(clip),
            "shape": [len(clip.frames), height, width, clip.fps],
        }


def load_pixels(**_: Any) -> PixelWatcher:
    """The watcher; it takes any option of a loader and needs none."""
    return PixelWatcher()


def frame_difference(samples: Sequence[Sample]) -> list[float]:
    """Mean frame difference of clips as a reward of suites: `mmalign.evals.video.pixels:frame_difference`.

    In a suite it stands with `frames: 0`, so that it is given the clip and not a frame of it.

    Raises:
        RowError: a sample without a clip, or one that cannot be read.
    """
    found = []
    for sample in samples:
        if sample.video is None:
            expected = "a clip (in a suite: frames: 0)"
            message = explain("frame_difference", got="[a sample without video]", expected=expected)
            raise RowError(message, reason="missing_video")
        found.append(mean_frame_difference(read_footage(sample.video)))
    return found
