"""UnifiedReward, one clip: quality, consistency, motion, alignment and facts in one score."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward_video")
build = partial(unified_reward.build, CARD)
