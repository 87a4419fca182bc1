"""Rank attempts at tasks by GRAPE's reward and cut them into windows that `mmalign train` reads.

python vlm/rank_trajectories.py attempts.jsonl windows/windows.jsonl --model openvla-like-model
"""

import sys

from mmalign.vlm.rank_trajectories import main

if __name__ == "__main__":
    sys.exit(main())
