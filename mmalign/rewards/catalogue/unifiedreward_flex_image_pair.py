"""UnifiedReward-Flex, two pictures compared along dimensions it picks."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward_flex_image_pair")
build = partial(unified_reward.build, CARD)
