"""Files that start a run on many devices: for `accelerate launch`, SLURM and Kubernetes."""

from pathlib import Path

from mmalign.errors import unknown_name

__all__ = ["LAUNCHES", "launch_file", "launch_files"]

LAUNCHES = ("single", "ddp", "fsdp2", "fsdp2_keep", "zero1", "zero2", "zero3")
"""Ways for processes to share a run; of each there is a file for accelerate on one machine."""


def launch_files() -> dict[str, Path]:
    """The files by name: of accelerate (.yaml), of SLURM (.sbatch), of Kubernetes."""
    folder = Path(__file__).parent
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".sbatch")}


def launch_file(name: str) -> Path:
    """Where a file lies.

    Raises:
        UnknownNameError: there is no such file.
    """
    files = launch_files()
    if name not in files:
        raise unknown_name("launch file", name, tuple(files))
    return files[name]
