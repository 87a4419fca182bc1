"""Image diffusion: families over diffusers pipelines, encoding, generation, export."""
