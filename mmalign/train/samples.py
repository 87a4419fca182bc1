"""Grids on fixed prompts and fixed noise, the base model above the policy: what changes is the model."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mmalign.files import atomic_write
from mmalign.train.adapters import Trainables
from mmalign.train.config import SamplesConfig
from mmalign.train.model import PreferenceModel

__all__ = ["SampleGrids", "grid"]


def grid(rows: Sequence[Sequence[Image.Image]], *, gap: int = 4) -> Image.Image:
    """One picture of several rows of equally large pictures."""
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * (width + gap), number * (height + gap)))
    return sheet


class SampleGrids:
    """Writes `samples/step-NNNNNNNN.png` of a run.

    Args:
        model: draws the pictures.
        trainables: switches the adapters off for the base model's row.
        config: prompts, seed, sampler steps, guidance.
        folder: where the grids go.
    """

    def __init__(
        self, model: PreferenceModel, trainables: Trainables, config: SamplesConfig, folder: Path
    ) -> None:
        self.model, self.trainables, self.config, self.folder = model, trainables, config, folder
        self.base: list[Image.Image] | None = None

    def _draw(self) -> list[Image.Image]:
        return self.model.sample(
            self.config.prompts,
            seed=self.config.seed,
            num_steps=self.config.num_steps,
            guidance_scale=self.config.guidance_scale,
        )

    def write(self, step: int) -> Path:
        """Draw the policy (and, once, the base model if adapters can be switched off); write the grid."""
        if self.base is None and self.trainables.layers:
            with self.trainables.disabled():
                self.base = self._draw()
        rows = [row for row in (self.base, self._draw()) if row is not None]
        path = self.folder / f"step-{step:08d}.png"
        import io

        buffer = io.BytesIO()
        grid(rows).save(buffer, format="PNG")
        return atomic_write(path, buffer.getvalue())
