"""UnifiedReward 2.0, one picture: alignment, coherence and style."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward2_image_acs")
build = partial(unified_reward.build, CARD)
