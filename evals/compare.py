r"""Put several evaluations into one table, where numbers may stand together: the same as `mmalign compare`.

python evals/compare.py runs/evals/first/results.json runs/evals/second/results.json
"""

import sys

from mmalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
