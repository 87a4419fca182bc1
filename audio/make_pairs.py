"""Make preference pairs of sounds with a text-to-audio model and CLAP scores.

Several clips of a prompt:  python audio/make_pairs.py audio/configs/pairs/seeds.yaml --output runs/seeds
Best and worst of five:     python audio/make_pairs.py audio/configs/pairs/crpo.yaml --output runs/crpo1
Events in another order:    python audio/make_pairs.py audio/configs/pairs/order.yaml --output runs/order

The same command is `mmalign pairs make`; everything it does is in `mmalign.audio.pair_making`. A run that was
killed goes on where it stopped; another `selection` makes no clip and no score again.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pairs", "make", *sys.argv[1:]]))
