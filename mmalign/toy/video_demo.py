"""`mmalign demo video`: align the toy world of video by Flow-DPO, and look whether it keeps moving.

A parquet file of pairs of clips, the recipe `video/configs/toy/flow_dpo.yaml`, and clips of held-out
captions made by both models from the same noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.errors import ConfigError, explain
from mmalign.toy.demo import run_demo
from mmalign.toy.paired_demo import PairedDemo

if TYPE_CHECKING:
    from torch import Tensor

    from mmalign.toy.report import Report
    from mmalign.toy.video_comparison import MotionComparison
    from mmalign.video.family import VideoModel

__all__ = ["NUM_HELD_OUT", "VIDEO_RECIPE", "VideoDemo", "main"]

VIDEO_RECIPE = "video/configs/toy/flow_dpo.yaml"

NUM_HELD_OUT = 48
"""Captions of the held-out side of the split."""


@dataclass(frozen=True)
class VideoDemo(PairedDemo["MotionComparison"]):
    """The demo of video, and how much work it does.

    Args:
        num_pairs: preference pairs that are made.
        num_prompts: held-out captions that are compared, each once; there are 48.
        overrides: `section.key=value` over the recipe.
        recipe: name of its file.

    Raises:
        ConfigError: more captions than there are.
    """

    num_pairs: int = 256
    num_prompts: int = NUM_HELD_OUT
    overrides: tuple[str, ...] = ()
    recipe: str = VIDEO_RECIPE

    command = "mmalign demo video"
    promise = "teach a small model of Wan's structure to move shapes the way it is asked to"
    duration = "About a minute on one CPU core. No download, no GPU."
    num_threads = 1
    things = "clips"
    pairing = "making"
    making = "making clips"
    real = "Wan"
    libraries = ("mmalign.toy.video_comparison", "mmalign.toy.video_pipeline", "mmalign.train.run")
    packages = ("diffusers", "transformers", "peft", "av")

    def __post_init__(self) -> None:
        """Refuse more captions than there are, before anything is made."""
        if self.num_prompts > NUM_HELD_OUT:
            expected = f"{NUM_HELD_OUT} or fewer"
            raise ConfigError(explain("num_prompts", got=self.num_prompts, expected=expected))

    def stages(self, report: Path) -> Sequence[str]:
        """What will be done, a line each."""
        return (
            f"make {self.num_pairs} pairs of clips in a parquet file: one shows what its caption says, the "
            "other goes astray, backwards, flickers, jumps or stands still",
            f"train LoRA weights by Flow-DPO with the recipe {self.recipe}",
            f"let base and aligned make clips of {self.num_prompts} held-out captions from the same noise",
            f"judge both by an exact reward, motion apart, and write {report}",
        )

    def base(self) -> Path:
        """Folder of the base model."""
        from mmalign.toy.video_pipeline import ASSETS

        return ASSETS

    def write_pairs(self, path: Path, seed: int) -> None:
        """Chosen clips go the way their captions say."""
        from mmalign.toy.video_pairs import edited_pairs, write_pairs

        write_pairs(edited_pairs(self.num_pairs, seed), path)

    def encode(self, model: "VideoModel", table: Any, folder: Path) -> None:
        """Clips and captions."""
        from mmalign.toy.encoding import cache_clips

        cache_clips(model, table, folder)

    def held_out(self, seed: int) -> Sequence[str]:
        """Captions with combinations that nobody has named, each once."""
        from mmalign.toy.video_scenes import every_held_out

        return every_held_out(seed=seed)[: self.num_prompts]

    def made(self, model: "VideoModel", prompts: Sequence[str], seed: int) -> "list[Tensor]":
        """Clips."""
        from mmalign.toy.video_pipeline import sample

        return sample(model, prompts, seed=seed)

    def judged(
        self, prompts: Sequence[str], base: "Sequence[Tensor]", aligned: "Sequence[Tensor]"
    ) -> "MotionComparison":
        """By direction, smoothness, identity and motion."""
        from mmalign.toy.video_comparison import MotionComparison
        from mmalign.toy.video_reward import score_clips

        scores = [score_clips(clips, prompts) for clips in (base, aligned)]
        return MotionComparison(prompts, base, aligned, *scores)

    def axes(self) -> Sequence[tuple[str, str]]:
        """The exact reward, its parts, the share of right ways, and motion in pixels."""
        from mmalign.toy.video_comparison import AXES

        return [(axis, title) for axis, title, _ in AXES]

    def settings(self) -> Mapping[str, str]:
        """The sampler's."""
        from mmalign.toy.video_pipeline import GUIDANCE_SCALE, NUM_STEPS

        return {"sampler": f"UniPC, {NUM_STEPS} steps, guidance {GUIDANCE_SCALE:g}"}

    def render(self, report: "Report[MotionComparison]") -> str:
        """The page as HTML text."""
        from mmalign.toy.video_demo_report import render_motion_report

        return render_motion_report(report)

    def write_more(self, comparison: "MotionComparison", home: Path) -> None:
        """Write the first clips of both models as files: the first prompts, not a selection."""
        from mmalign.data.video_writers import write_clip
        from mmalign.toy.video_scenes import FPS

        for side, clips in (("base", comparison.base), ("aligned", comparison.aligned)):
            for number, clip in enumerate(clips[:6]):
                write_clip(home / "clips" / f"{number:02d}_{side}.webp", clip, FPS, quality=5)

    def commands(self) -> Sequence[tuple[str, str]]:
        """From one's own pairs to Wan."""
        return (
            (
                "Look at your own pairs of clips first: counts, sizes, frame rates, damaged files.",
                "mmalign data check PAIRS --html pairs.html",
            ),
            (
                "See the plan: resolved settings, what differs from the paper, trained weights, memory.",
                "mmalign train video/configs/wan/flow_dpo_lora.yaml data.source=PAIRS --dry-run",
            ),
            (
                "Train Wan, on one GPU or on several.",
                "accelerate launch video/train.py video/configs/wan/flow_dpo_lora.yaml data.source=PAIRS",
            ),
            (
                "Make clips of base beside aligned from the same noise.",
                'mmalign sample --run RUN --prompt "a dog runs to the left, then jumps"',
            ),
        )


def main(output: Path = Path("runs/demo"), seed: int = 0, *, demo: VideoDemo | None = None) -> int:
    """Run the demo and print what came of it. Returns 0.

    Args:
        output: folder to write; where it holds something already, the next free name is taken.
        seed: of the pairs, the adapter, the order, the noise.
        demo: how much work.

    Raises:
        ConfigError: the recipe is not installed, or `output` is a file.
    """
    return run_demo(demo or VideoDemo(), output, seed)
