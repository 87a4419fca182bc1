"""Makers of preference pairs of clips: sampled, corrupted and denoised, damaged, or there already."""
