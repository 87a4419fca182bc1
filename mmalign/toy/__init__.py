"""Toy worlds: small but real models with an exact reward, for the demo, tests and benchmarks.

`mmalign.toy.images` paints, judges and pairs pictures without loading diffusers; `mmalign.toy.image_model`
holds the model.
"""
