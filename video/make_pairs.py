"""Make preference pairs of clips: from prompts by a model of video, or from real clips.

Four clips of a prompt:        python video/make_pairs.py video/configs/pairs/groups.yaml --output runs/groups
A real clip, denoised twice:   python video/make_pairs.py video/configs/pairs/densedpo.yaml --output runs/ddpo
Real over damaged, no model:   python video/make_pairs.py video/configs/pairs/damage.yaml --output runs/damage

The same command is `mmalign pairs make`; everything it does is in `mmalign.video.pair_making`. A run that was
killed goes on where it stopped; another `selection` makes no clip and no score again. At the end it says how
much the two sides move: pairs whose chosen side moves less teach a model to stand still.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pairs", "make", *sys.argv[1:]]))
