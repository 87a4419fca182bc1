"""Statistics of the harness."""
