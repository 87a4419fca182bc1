"""`python -m benchmarks`, from a checkout: see run.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from run import main

if __name__ == "__main__":
    main()
