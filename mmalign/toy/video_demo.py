"""`mmalign demo video`: align the toy world of video by Flow-DPO, and look whether it keeps moving.

A parquet file of pairs of clips, the recipe `video/configs/toy/flow_dpo.yaml`, and clips of held-out
captions made by both models from the same noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmalign.toy.demo import Clock, Demo, run_demo

if TYPE_CHECKING:
    from torch import Tensor

    from mmalign.toy.comparison import Interval
    from mmalign.toy.report import Report
    from mmalign.toy.video_comparison import MotionComparison
    from mmalign.train.config import ResolvedRun
    from mmalign.train.run import RunResult
    from mmalign.video.family import VideoModel

__all__ = ["VIDEO_RECIPE", "VideoDemo", "main"]

VIDEO_RECIPE = "video/configs/toy/flow_dpo.yaml"


@dataclass(frozen=True)
class VideoDemo(Demo["MotionComparison"]):
    """The demo of video, and how much work it does.

    Args:
        num_pairs: preference pairs that are made.
        num_prompts: held-out captions that are compared, each once; there are 48.
        overrides: `section.key=value` over the recipe.
        recipe: name of its file.
    """

    num_pairs: int = 256
    num_prompts: int = 48
    overrides: tuple[str, ...] = ()
    recipe: str = VIDEO_RECIPE

    command = "mmalign demo video"
    promise = "teach a small model of Wan's structure to move shapes the way it is asked to"
    duration = "About a minute on one CPU core. No download, no GPU."
    num_threads = 1
    libraries = ("mmalign.toy.video_comparison", "mmalign.toy.video_pipeline", "mmalign.train.run")
    packages = ("diffusers", "transformers", "peft", "av")

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

    def align(self, run: "ResolvedRun", home: Path, seed: int, clock: Clock) -> "RunResult":
        """Make pairs, encode them once, train."""
        import torch

        from mmalign.data.readers import open_rows
        from mmalign.toy.encoding import cache_clips
        from mmalign.toy.video_pairs import edited_pairs, write_pairs
        from mmalign.train.parts import load_model
        from mmalign.train.run import train

        with clock.stage("making pairs", "making preference pairs"):
            write_pairs(edited_pairs(self.num_pairs, seed), home / "pairs.parquet")
        with clock.stage("encoding pairs", "encoding clips and captions once"):
            table = open_rows(run.config.data, kind=run.method.data)
            model = load_model(run, torch.device("cpu"))
            cache_clips(cast("VideoModel", model), table, home / "cache")
        with clock.stage("training"):
            return train(run, model=model, table=table)

    def compare(self, result: "RunResult", seed: int, clock: Clock) -> "MotionComparison":
        """Both models' clips of held-out captions, scored."""
        from mmalign.toy.video_comparison import MotionComparison
        from mmalign.toy.video_pipeline import sample
        from mmalign.toy.video_reward import score_clips
        from mmalign.toy.video_scenes import every_held_out

        prompts = every_held_out(seed=seed)[: self.num_prompts]
        model = cast("VideoModel", result.model)

        def make(name: str) -> "list[Tensor]":
            with clock.stage(f"making clips, {name}", f"making clips of held-out captions, {name}"):
                return sample(model, prompts, seed=seed)

        aligned = make("aligned")
        with result.trainables.disabled():
            base = make("base")
        with clock.stage("scoring"):
            scores = [score_clips(clips, prompts) for clips in (base, aligned)]
        return MotionComparison(prompts, base, aligned, *scores)

    def settings(self) -> Mapping[str, str]:
        """The sampler's."""
        from mmalign.toy.video_pipeline import GUIDANCE_SCALE, NUM_STEPS

        return {"sampler": f"UniPC, {NUM_STEPS} steps, guidance {GUIDANCE_SCALE:g}"}

    def results(
        self, comparison: "MotionComparison"
    ) -> Sequence[tuple[str, tuple[float, float], "Interval | None"]]:
        """The exact reward, its parts, the share of right ways, and motion in pixels."""
        from mmalign.toy.video_comparison import AXES

        return [(title, comparison.means(axis), comparison.gain(axis)) for axis, title, _ in AXES]

    def numbers(self, comparison: "MotionComparison") -> dict[str, Any]:
        """The report's numbers for programs; the same seed gives the same file on one machine."""
        from mmalign.toy.video_comparison import AXES

        return comparison.numbers([axis for axis, _, _ in AXES])

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

    def next_step(self) -> tuple[str, str]:
        """The plan of Wan."""
        explanation, command = self.commands()[1]
        return f"Real Wan. {explanation}", command


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
