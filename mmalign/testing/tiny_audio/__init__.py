"""Tiny text-to-audio models with random weights, in the very folder layouts that real ones have."""

from mmalign.testing.tiny_audio.ace_step import write_tiny_ace_step
from mmalign.testing.tiny_audio.audioldm2 import write_tiny_audioldm2
from mmalign.testing.tiny_audio.stable_audio import write_tiny_stable_audio
from mmalign.testing.tiny_audio.tango import DURATION, write_tiny_tango
from mmalign.testing.tiny_audio.tangoflux import write_tiny_tangoflux

__all__ = [
    "DURATION",
    "write_tiny_ace_step",
    "write_tiny_audioldm2",
    "write_tiny_stable_audio",
    "write_tiny_tango",
    "write_tiny_tangoflux",
]
