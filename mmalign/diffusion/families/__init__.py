"""One module per model family: its file name is its name in configs, its `FAMILY` what the registry finds."""
