"""`mmalign demo audio`: align the toy world of sound by Diffusion-DPO, as Tango 2 was.

An Audio-Alpaca parquet file, the recipe `audio/configs/toy/dpo.yaml`, and clips of held-out captions made by
both models from the same noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.toy.demo import run_demo
from mmalign.toy.paired_demo import PairedDemo

if TYPE_CHECKING:
    from torch import Tensor

    from mmalign.audio.family import AudioModel
    from mmalign.toy.audio_comparison import ClipComparison
    from mmalign.toy.report import Report

__all__ = ["AUDIO_RECIPE", "AudioDemo", "main"]

AUDIO_RECIPE = "audio/configs/toy/dpo.yaml"


@dataclass(frozen=True)
class AudioDemo(PairedDemo["ClipComparison"]):
    """The demo of sound, and how much work it does.

    Args:
        num_pairs: preference pairs that are made.
        num_prompts: held-out captions that are compared.
        num_steps: sampler steps per clip.
        guidance_scale: classifier-free guidance of both models.
        batch_size: clips made at once.
        overrides: `section.key=value` over the recipe.
        recipe: name of its file.
    """

    num_pairs: int = 384
    num_prompts: int = 64
    num_steps: int = 25
    guidance_scale: float = 2.5
    batch_size: int = 32
    overrides: tuple[str, ...] = ()
    recipe: str = AUDIO_RECIPE

    command = "mmalign demo audio"
    promise = "teach a small model of Tango's structure to play sounds in the order asked for"
    duration = "About a minute on one CPU core. No download, no GPU."
    num_threads = 1
    things = "clips"
    pairing = "making"
    making = "playing"
    real = "Tango"
    libraries = ("mmalign.toy.audio_comparison", "mmalign.toy.audio_pipeline", "mmalign.train.run")
    packages = ("diffusers", "transformers", "peft")

    def stages(self, report: Path) -> Sequence[str]:
        """What will be done, a line each."""
        return (
            f"make {self.num_pairs} preference pairs in an Audio-Alpaca parquet file: the chosen clip plays "
            "the events of its caption in its order",
            f"train LoRA weights by Diffusion-DPO with the recipe {self.recipe}",
            f"let base and aligned play {self.num_prompts} held-out captions from the same noise",
            f"judge both by an exact reward and write {report}",
        )

    def base(self) -> Path:
        """Folder of the base model."""
        from mmalign.toy.audio_pipeline import ASSETS

        return ASSETS

    def write_pairs(self, path: Path, seed: int) -> None:
        """Chosen clips play the events of their captions in order."""
        from mmalign.toy.audio_pairs import edited_pairs, write_pairs

        write_pairs(edited_pairs(self.num_pairs, seed), path)

    def encode(self, model: "AudioModel", table: Any, folder: Path) -> None:
        """Clips and captions."""
        from mmalign.toy.encoding import cache_clips

        cache_clips(model, table, folder)

    def held_out(self, seed: int) -> Sequence[str]:
        """Captions with orders of events that nobody has named."""
        from mmalign.toy.audio_scenes import held_out_prompts

        return held_out_prompts(self.num_prompts, seed=seed)

    def made(self, model: "AudioModel", prompts: Sequence[str], seed: int) -> "list[Tensor]":
        """Clips."""
        from mmalign.toy.audio_pipeline import sample

        return sample(
            model,
            prompts,
            seed=seed,
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
            batch_size=self.batch_size,
        )

    def judged(
        self, prompts: Sequence[str], base: "Sequence[Tensor]", aligned: "Sequence[Tensor]"
    ) -> "ClipComparison":
        """By presence and order of events."""
        from mmalign.toy.audio_comparison import ClipComparison
        from mmalign.toy.audio_reward import score_clips

        scores = [score_clips(clips, prompts) for clips in (base, aligned)]
        return ClipComparison(prompts, base, aligned, *scores)

    def axes(self) -> Sequence[tuple[str, str]]:
        """The exact reward, its parts, and the share of perfect clips."""
        from mmalign.toy.audio_comparison import AXES

        return [(axis, title) for axis, title, _ in AXES]

    def settings(self) -> Mapping[str, str]:
        """The sampler's."""
        return {
            "sampler": f"DDPM, {self.num_steps} steps, guidance {self.guidance_scale:g}",
            "sound of spectrograms": "Griffin and Lim, 32 rounds",
        }

    def render(self, report: "Report[ClipComparison]") -> str:
        """The page as HTML text."""
        from mmalign.toy.audio_demo_report import render_sound_report

        return render_sound_report(report)

    def write_more(self, comparison: "ClipComparison", home: Path) -> None:
        """Write the first clips of both models as WAV files: the first prompts, not a selection."""
        from mmalign.files import atomic_write
        from mmalign.toy.audio_comparison import wav_bytes

        for side, clips in (("base", comparison.base), ("aligned", comparison.aligned)):
            for number, wave in enumerate(clips[:6]):
                atomic_write(home / "clips" / f"{number:02d}_{side}.wav", wav_bytes(wave))

    def commands(self) -> Sequence[tuple[str, str]]:
        """From one's own pairs to Tango."""
        return (
            (
                "Look at your own pairs of sounds first: counts, silence, clipping, damaged files, players.",
                "mmalign data check PAIRS --html pairs.html",
            ),
            (
                "See the plan: resolved settings, what differs from the paper, trained weights, memory.",
                "mmalign train audio/configs/tango/dpo_lora.yaml data.source=PAIRS --dry-run",
            ),
            (
                "Train Tango, on one GPU or on several.",
                "accelerate launch audio/train.py audio/configs/tango/dpo_lora.yaml data.source=PAIRS",
            ),
            (
                "Play base beside aligned from the same noise.",
                'mmalign sample --run RUN --prompt "a dog barks, then a car passes by"',
            ),
        )


def main(output: Path = Path("runs/demo"), seed: int = 0, *, demo: AudioDemo | None = None) -> int:
    """Run the demo and print what came of it. Returns 0.

    Args:
        output: folder to write; where it holds something already, the next free name is taken.
        seed: of the pairs, the adapter, the order, the noise.
        demo: how much work.

    Raises:
        ConfigError: the recipe is not installed, or `output` is a file.
    """
    return run_demo(demo or AudioDemo(), output, seed)
