"""Video: families of text-to-video models, their clips, caches, generation and saving."""
