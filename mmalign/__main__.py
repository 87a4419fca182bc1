"""`python -m mmalign` is the `mmalign` command."""

import sys

from mmalign.cli.main import main

sys.exit(main())
