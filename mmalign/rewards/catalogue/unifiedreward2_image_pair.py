"""UnifiedReward 2.0, two pictures: shares of alignment, coherence and style."""

from functools import partial

from mmalign.rewards import unified_reward

CARD = unified_reward.card("unifiedreward2_image_pair")
build = partial(unified_reward.build, CARD)
