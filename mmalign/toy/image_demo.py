"""`mmalign demo images`: align the toy world of images by Diffusion-DPO.

A Pick-a-Pic parquet file, the latent cache, the recipe `diffusion/configs/toy/dpo.yaml`, and pictures of
held-out captions painted by both models from the same noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.toy.demo import run_demo
from mmalign.toy.paired_demo import PairedDemo

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.diffusion.family import ImageModel
    from mmalign.toy.comparison import Comparison
    from mmalign.toy.report import Report

__all__ = ["RECIPE", "ImageDemo", "main"]

RECIPE = "diffusion/configs/toy/dpo.yaml"


@dataclass(frozen=True)
class ImageDemo(PairedDemo["Comparison"]):
    """The demo of images, and how much work it does.

    Args:
        num_pairs: preference pairs that are painted.
        num_prompts: held-out prompts that are compared.
        num_steps: sampler steps per picture.
        guidance_scale: classifier-free guidance of both models.
        batch_size: pictures painted at once.
        overrides: `section.key=value` over the recipe.
        recipe: name of its file.
    """

    num_pairs: int = 768
    num_prompts: int = 80
    num_steps: int = 20
    guidance_scale: float = 4.0
    batch_size: int = 40
    overrides: tuple[str, ...] = ()
    recipe: str = RECIPE

    command = "mmalign demo"
    promise = "align a small model of SDXL's structure, and see what came of it"
    duration = "A minute or two on two CPU cores. No download, no GPU."
    num_threads = 2
    things = "pictures"
    pairing = "painting"
    making = "painting"
    real = "SDXL"
    libraries = ("mmalign.toy.comparison", "mmalign.toy.image_pipeline", "mmalign.train.run")
    packages = ("diffusers", "peft")

    def stages(self, report: Path) -> Sequence[str]:
        """What will be done, a line each."""
        return (
            f"paint {self.num_pairs} preference pairs into a Pick-a-Pic parquet file: the chosen picture "
            "follows its caption, inside a dark frame",
            f"train LoRA weights by Diffusion-DPO with the recipe {self.recipe}",
            f"let base and aligned paint {self.num_prompts} held-out captions from the same noise",
            f"judge both by an exact reward and write {report}",
        )

    def base(self) -> Path:
        """Folder of the base model."""
        from mmalign.toy.image_pipeline import ASSETS

        return ASSETS

    def write_pairs(self, path: Path, seed: int) -> None:
        """Chosen pictures follow their captions, inside a dark frame."""
        from mmalign.toy.image_pairs import preference_pairs, write_pickapic

        write_pickapic(preference_pairs(self.num_pairs, seed), path, seed=seed)

    def encode(self, model: "ImageModel", table: Any, folder: Path) -> None:
        """Pictures and captions."""
        from mmalign.toy.encoding import cache_latents

        cache_latents(model, table, folder)

    def held_out(self, seed: int) -> Sequence[str]:
        """Captions with combinations that nobody has named."""
        from mmalign.toy.scenes import held_out_prompts

        return held_out_prompts(self.num_prompts, seed=seed)

    def made(self, model: "ImageModel", prompts: Sequence[str], seed: int) -> "list[Image]":
        """Pictures."""
        return model.sample(
            prompts,
            seed=seed,
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
            batch_size=self.batch_size,
        )

    def judged(
        self, prompts: Sequence[str], base: "Sequence[Image]", aligned: "Sequence[Image]"
    ) -> "Comparison":
        """By the facts of the caption and the frame."""
        from mmalign.toy.comparison import Comparison
        from mmalign.toy.image_reward import score_images

        scores = [score_images(pictures, prompts) for pictures in (base, aligned)]
        return Comparison(prompts, base, aligned, *scores)

    def axes(self) -> Sequence[tuple[str, str]]:
        """The exact reward and its parts."""
        from mmalign.toy.comparison import AXES

        return [(axis, "total reward" if axis == "total" else axis) for axis in AXES]

    def settings(self) -> Mapping[str, str]:
        """The sampler's."""
        return {"sampler": f"Euler, {self.num_steps} steps, guidance {self.guidance_scale:g}"}

    def render(self, report: "Report[Comparison]") -> str:
        """The page as HTML text."""
        from mmalign.toy.image_demo_report import render_report

        return render_report(report)

    def write_more(self, comparison: "Comparison", home: Path) -> None:
        """Write `comparison.png`: the first prompts, not a selection."""
        from mmalign.files import atomic_write

        atomic_write(home / "comparison.png", _picture(comparison))

    def commands(self) -> Sequence[tuple[str, str]]:
        """From one's own pairs to SDXL."""
        return (
            (
                "Look at your own preference pairs first: counts, ties, unreadable pictures, a preview.",
                "mmalign data check PAIRS --html pairs.html",
            ),
            (
                "See the plan: resolved settings, what differs from the paper, trained weights, memory.",
                "mmalign train diffusion/configs/sdxl/dpo_lora.yaml data.source=PAIRS --dry-run",
            ),
            (
                "Train SDXL, on one GPU or on several.",
                "accelerate launch diffusion/train.py diffusion/configs/sdxl/dpo_lora.yaml data.source=PAIRS",
            ),
            (
                "Paint base beside aligned from the same noise.",
                'mmalign sample --run RUN --prompt "a red fox in fresh snow"',
            ),
        )


def main(output: Path = Path("runs/demo"), seed: int = 0, *, demo: ImageDemo | None = None) -> int:
    """Run the demo and print what came of it. Returns 0.

    Args:
        output: folder to write; where it holds something already, the next free name is taken.
        seed: of the pairs, the adapter, the order, the noise.
        demo: how much work.

    Raises:
        ConfigError: the recipe is not installed, or `output` is a file.
    """
    return run_demo(demo or ImageDemo(), output, seed)


def _picture(comparison: "Comparison", *, num: int = 10, scale: int = 2) -> bytes:
    """PNG of the first prompts, base above aligned."""
    import io

    from PIL import Image

    from mmalign.train.samples import grid

    rows = [
        [
            picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
            for picture in row
        ]
        for row in (comparison.base[:num], comparison.aligned[:num])
    ]
    buffer = io.BytesIO()
    grid(rows).save(buffer, format="PNG")
    return buffer.getvalue()
