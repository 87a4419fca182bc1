"""A painter without a network for the harness tests, also imported by the processes they kill."""

from contextlib import contextmanager

import torch
from PIL import Image

from mmalign.evals import generation
from mmalign.seeding import generator_for


class FakePainter:
    """Pictures that depend on model, prompt, sample and recipe alone; counts what it paints."""

    def __init__(self) -> None:
        self.painted: list[str] = []
        self.loaded: list[str] = []

    @contextmanager
    def load(self, spec, settings, device):
        self.loaded.append(spec.name)

        def paint(jobs):
            self.painted += [f"{spec.name}:{job.sample_id}" for job in jobs]
            return [self.picture(spec, job, settings.seed) for job in jobs]

        recipe = generation.recipe_of(settings, num_steps=settings.num_steps or 7, guidance_scale=3.0)
        yield generation.Painter(paint, recipe)

    def picture(self, spec, job, seed) -> Image.Image:
        generator = generator_for(seed, "fake", job.sample_id)
        noise = torch.randint(0, 200, (3, 16, 16), generator=generator, dtype=torch.uint8)
        noise[0] += 30 if "tuned" in spec.source else 0  # what the fake training did: more red
        return Image.fromarray(noise.permute(1, 2, 0).numpy())
