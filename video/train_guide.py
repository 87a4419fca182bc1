"""Train a small reward on a config's pairs that guides a flow model while it samples (Flow-NRG).

Train it:  python video/train_guide.py video/configs/wan/flow_dpo_lora.yaml --output runs/guide
Use it:    python video/sample.py --model MODEL --prompt "a kite rises" --guide runs/guide --guide-weight 1

The same command is `mmalign guide`; everything it does is in `mmalign.diffusion.guide_training`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["guide", *sys.argv[1:]]))
