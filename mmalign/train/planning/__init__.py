"""What a run needs and how long it takes, counted on shapes: no weights are read for it."""
