r"""Align a text-to-video model with pairs of clips, labels in time, thumbs, or its own scored clips.

One process:        python video/train.py video/configs/wan/flow_dpo_lora.yaml data.source=pairs.parquet
Several GPUs:       accelerate launch video/train.py CONFIG [section.key=value ...]
Several machines:   accelerate launch --num_machines 2 --machine_rank 0 --main_process_ip HOST \
                        video/train.py CONFIG

The same run is `mmalign train CONFIG`; everything it does is in `mmalign.train`.
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
