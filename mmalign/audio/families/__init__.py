"""One file per family of text-to-audio models; the registry finds them by file name."""
