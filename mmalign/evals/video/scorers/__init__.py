"""Measures of clips that are rewards by name, as those of `mmalign.rewards.catalogue` are."""
