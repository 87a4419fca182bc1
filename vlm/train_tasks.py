"""Task Preference Optimization: task tokens, their heads, and differentiable losses beside the answers.

python vlm/train_tasks.py rows.jsonl --model llava-hf/llava-1.5-7b-hf --output runs/tasks
"""

import sys

from mmalign.vlm.train_tasks import main

if __name__ == "__main__":
    sys.exit(main())
