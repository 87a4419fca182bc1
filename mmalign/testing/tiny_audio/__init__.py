"""Tiny text-to-audio models with random weights, in the very folder layouts that real ones have."""

from mmalign.testing.tiny_audio.tango import DURATION, write_tiny_tango

__all__ = ["DURATION", "write_tiny_tango"]
