"""Paint prompts with a base model and, beside it, with what a run trained, from the same noise.

A base model: python diffusion/sample.py --model stabilityai/stable-diffusion-xl-base-1.0 --prompt "a red fox"
With its run: python diffusion/sample.py --run runs/sdxl-dpo_lora --prompts-file prompts.txt --num-images 4

The same command is `mmalign sample`; everything it does is in `mmalign.diffusion.sampling`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
