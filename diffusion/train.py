r"""Align an image model with preference pairs, lists or thumbs.

One process:        python diffusion/train.py diffusion/configs/sdxl/dpo_lora.yaml data.source=pairs.parquet
Several GPUs:       accelerate launch diffusion/train.py CONFIG [section.key=value ...]
Several machines:   accelerate launch --num_machines 2 --machine_rank 0 --main_process_ip HOST \
                        diffusion/train.py CONFIG

The same run is `mmalign train CONFIG`; everything it does is in `mmalign.train`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
