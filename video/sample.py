"""Make clips of prompts with a base model and, beside it, with what a run trained, from the same noise.

A base model: python video/sample.py --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompt "waves at night"
With its run: python video/sample.py --run runs/wan-flow_dpo_lora --prompts-file prompts.txt --output clips

The same command is `mmalign sample`; everything it does is in `mmalign.video.comparing`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
