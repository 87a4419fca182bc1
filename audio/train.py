r"""Align a text-to-audio model with preference pairs, thumbs, labels in time, or its own scored sounds.

One process:        python audio/train.py audio/configs/tango/dpo_lora.yaml data.source=pairs.parquet
Several GPUs:       accelerate launch audio/train.py CONFIG [section.key=value ...]
Several machines:   accelerate launch --num_machines 2 --machine_rank 0 --main_process_ip HOST \
                        audio/train.py CONFIG

The same run is `mmalign train CONFIG`; everything it does is in `mmalign.train`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
