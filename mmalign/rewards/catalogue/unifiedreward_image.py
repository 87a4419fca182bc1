"""UnifiedReward, one picture: alignment and quality in one score."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward_image")
build = partial(unified_reward.build, CARD)
