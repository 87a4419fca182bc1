"""mmalign: preference alignment for image, video, audio and vision-language models.

Importing it loads nothing heavy. `from mmalign import objectives` loads torch and nothing above it:
log-probabilities in, losses out, in anybody's training script. The sub-packages are found on first use:

    >>> import mmalign
    >>> mmalign.methods.find("diffusion_dpo").paper
    '2311.12908'
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

# What a user's script may reach as `mmalign.<name>`. The floors below `methods` are reachable too, by import.
_PUBLIC = (
    "batch",
    "data",
    "diffusion",
    "errors",
    "likelihood",
    "methods",
    "objectives",
    "registry",
    "testing",
    "toy",
    "train",
)

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> ModuleType:
    """The sub-package `name`, imported now (PEP 562)."""
    if name in _PUBLIC:
        return importlib.import_module(f"mmalign.{name}")
    message = f"module 'mmalign' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
