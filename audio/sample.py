"""Make sounds of prompts with a base model and, beside it, with what a run trained, from the same noise.

A base model: python audio/sample.py --model declare-lab/tango2 --prompt "a dog barks, then a door slams"
With its run: python audio/sample.py --run runs/tango-dpo_lora --prompts-file prompts.txt --output sounds

The same command is `mmalign sample`; everything it does is in `mmalign.audio.comparing`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
