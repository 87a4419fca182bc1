r"""Align a vision-language model, or a language model that sees nothing, with pairs, lists or thumbs.

One process:        python vlm/train.py vlm/configs/llava/dpo.yaml data.source=pairs.parquet
Several GPUs:       accelerate launch vlm/train.py CONFIG [section.key=value ...]
Several machines:   accelerate launch --num_machines 2 --machine_rank 0 --main_process_ip HOST \
                        vlm/train.py CONFIG

The same run is `mmalign train CONFIG`; everything it does is in `mmalign.train`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
