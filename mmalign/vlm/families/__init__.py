"""One file per family: what differs from the others, and nothing else."""
