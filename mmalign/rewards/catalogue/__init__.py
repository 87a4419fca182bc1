"""The built-in rewards: one file per name, each with a `CARD` and a function `build`.

A file is imported to read its card, so it imports models and libraries inside `build` only.
"""
