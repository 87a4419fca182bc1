"""UnifiedReward, one picture: alignment, coherence and style."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward_image_acs")
build = partial(unified_reward.build, CARD)
