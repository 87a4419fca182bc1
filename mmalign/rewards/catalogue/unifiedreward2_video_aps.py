"""UnifiedReward 2.0, one clip: alignment, physics and style."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward2_video_aps")
build = partial(unified_reward.build, CARD)
