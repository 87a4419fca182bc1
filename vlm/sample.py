"""Answer questions with a base model and, beside it, with what a run trained.

Once:               python vlm/sample.py --run runs/llava-dpo --prompt "What is this?" --image photo.jpg
Many:               python vlm/sample.py --run runs/llava-dpo --prompts-file questions.jsonl --output answers

The same command is `mmalign sample`; everything it does is in `mmalign.vlm.sampling`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
