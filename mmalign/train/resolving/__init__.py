"""Each section of a run, filled from its method's row; `mmalign.train.resolve` calls them."""
