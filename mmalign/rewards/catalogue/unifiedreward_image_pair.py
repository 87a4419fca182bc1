"""UnifiedReward, two pictures of one prompt."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward_image_pair")
build = partial(unified_reward.build, CARD)
