"""What families of sound do differently when they sample.

A family file overrides what differs from Tango's habits; `mmalign.audio.sampling` asks here and nowhere else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from mmalign.diffusion.guided import Guide, GuidedModel

__all__ = ["AudioTraits", "Guide"]


class AudioTraits(GuidedModel):
    """How a family of sound samples."""

    told_duration: ClassVar[bool] = False
    """Whether the network is told how long a clip is: clips of any length are then made in one window."""
    one_duration: ClassVar[bool] = False
    """Whether all clips have the length that the model was loaded for."""

    def window_of(self, duration: float) -> float:
        """Seconds of the shortest clip that it can make and that lasts so long; the rest is to be cut away.

        Args:
            duration: seconds.
        """
        return duration

    @contextmanager
    def asked_for(self, seconds: float) -> Iterator[None]:
        """Make clips of so many seconds meanwhile; families that are told their duration tell it."""
        del seconds
        yield
