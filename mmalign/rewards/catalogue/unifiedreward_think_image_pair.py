"""UnifiedReward-Think, two pictures compared after reasoning."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward_think_image_pair")
build = partial(unified_reward.build, CARD)
