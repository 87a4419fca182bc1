"""Training: configuration, one step as a function, the loop, checkpoints, the panel.

`mmalign.train.run.train(load_run(path))` is what `mmalign train` does. Importing this package loads nothing:
a configuration can be read without the libraries that training needs.
"""
