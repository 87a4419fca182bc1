"""Preference pairs of sounds that a model makes: sampled, scored, selected; see `mmalign pairs make`."""
