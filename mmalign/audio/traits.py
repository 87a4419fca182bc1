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

    @contextmanager
    def asked_for(self, seconds: float) -> Iterator[None]:
        """Make clips of so many seconds meanwhile; families that are told their duration tell it."""
        del seconds
        yield
