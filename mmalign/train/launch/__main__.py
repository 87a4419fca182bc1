"""`python -m mmalign.train.launch [NAME]`: where a file for launching lies; without a name, all of them."""

import sys

from mmalign.errors import MmalignError
from mmalign.train.launch import launch_file, launch_files


def main(arguments: list[str]) -> int:
    """Print a path, or names with the first line of each file. Returns the exit code."""
    if not arguments:
        for name, path in launch_files().items():
            lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line[:2] == "# ")
            print(f"{name:<12} {next(lines)[2:]}")
        return 0
    try:
        print(launch_file(arguments[0]))
    except MmalignError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
