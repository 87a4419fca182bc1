"""`mmalign sample` for models of sound: base and tuned from the same noise, as files and as a page."""

from collections.abc import Sequence
from pathlib import Path

from mmalign.audio.trained import load_base, load_trained
from mmalign.diffusion.reopening import check_one_of
from mmalign.diffusion.sampling import read_prompts
from mmalign.files import atomic_write
from mmalign.train.sample_sounds import sound_page, write_sounds

__all__ = ["PAGE", "main"]

PAGE = "comparison.html"


def main(
    *,
    model: str | None = None,
    run: Path | None = None,
    prompts: Sequence[str] = (),
    prompts_file: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    num_images: int = 1,
    output: Path = Path("samples"),
    device: str | None = None,
) -> int:
    """Make sounds of prompts with a base model and, beside it, with what a run trained. Returns 0.

    Writes `base/00.wav`, `tuned/00.wav`, ... and `comparison.html`.

    Args:
        model: hub id or folder; not beside a run, whose own base model is heard.
        run: run folder or checkpoint.
        prompts: what to make.
        prompts_file: one more per line.
        seed: noise of sound i comes from (seed, i).
        steps: of the sampler; default: the run's, else the model's.
        guidance_scale: default: the run's, else the model's.
        num_images: sounds per prompt.
        output: folder to write to.
        device: where; default the best there is.

    Raises:
        ConfigError: not exactly one of a model and a run is given, or there are no prompts.
    """
    check_one_of(model, run)
    lines = read_prompts(prompts, prompts_file)
    loaded = load_trained(run, device=device) if run is not None else load_base(str(model), device=device)
    settings = loaded.sampler_settings(
        seed=seed, steps=steps, guidance_scale=guidance_scale, copies=num_images
    )
    made = loaded.base_and_tuned(lambda _: loaded.model.sample(lines, **settings))
    columns = {
        name: list(zip(write_sounds(output / name, sounds), sounds, strict=True))
        for name, sounds in made.items()
    }
    captions = [line for line in lines for _ in range(num_images)]
    atomic_write(output / PAGE, sound_page(loaded.title, captions, columns, output))
    print(f"{len(captions)} sounds per model, seed {seed}: {output / PAGE}")
    return 0
