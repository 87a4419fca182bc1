r"""Train a reward of your own on preference pairs, to judge or to align image models with.

    python diffusion/train_reward.py evals/configs/rewards/pickapic_clip.yaml data.source=pairs.parquet

The same run is `mmalign train CONFIG`; everything it does is in `mmalign.rewards.training`. What it writes is
the reward `trained`: `{name: trained, weights: FOLDER}` in a suite, an ensemble or `mmalign serve-reward`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
