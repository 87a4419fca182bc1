"""UnifiedReward, two clips of one prompt."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward_video_pair")
build = partial(unified_reward.build, CARD)
