"""Tiny text-to-video models with random weights, in the very folder layouts that real ones have."""
