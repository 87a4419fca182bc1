"""Training rewards on labelled pairs: heads on frozen features, calibrated, saved as the reward `trained`.

`mmalign train CONFIG` with a reward row runs it; from Python:

    config, row = load_reward_run("reward.yaml")
    run = train_reward(config, say=print)
    reward = mmalign.rewards.load("trained", weights=run.folder)
"""

from mmalign.rewards.training.config import REWARD_ROWS, RewardRunConfig, load_reward_run
from mmalign.rewards.training.run import TrainedRun, train_reward

__all__ = ["REWARD_ROWS", "RewardRunConfig", "TrainedRun", "load_reward_run", "train_reward"]
