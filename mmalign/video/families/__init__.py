"""One file per family of video models."""
