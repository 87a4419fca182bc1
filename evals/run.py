r"""Paint, score and compare models: the same as `mmalign eval`.

One process:      python evals/run.py evals/suites/toy.yaml --model base --model tuned
Four processes:   for i in 0 1 2 3; do python evals/run.py SUITE --model A --model B --shard $i/4 & done; wait
                  python evals/run.py SUITE --model A --model B --stage report
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
