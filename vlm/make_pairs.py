"""Make preference pairs with a vision-language model, by a recipe of vlm/configs/pairs.

Own answers, corrected:              python vlm/make_pairs.py vlm/configs/pairs/correct.yaml --output runs/own
The same once corrections are there: python vlm/make_pairs.py ... correct.file=corrections.jsonl
Judged claim by claim (RLAIF-V):     python vlm/make_pairs.py vlm/configs/pairs/claims.yaml --output runs/rv

The same command is `mmalign pairs make`; everything it does is in `mmalign.vlm.pair_making`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pairs", "make", *sys.argv[1:]]))
