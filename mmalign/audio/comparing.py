"""`mmalign sample` for models of sound: base and tuned from the same noise, as files and as a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.audio.trained import load_base, load_trained
from mmalign.data.audio_media import DecodedAudio
from mmalign.diffusion.sampling import read_prompts
from mmalign.errors import ConfigError, explain
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
    if (model is None) == (run is None):
        got = "both" if run is not None else "neither"
        raise ConfigError(explain("mmalign sample", got=got, expected="one of --model and --run"))
    lines = read_prompts(prompts, prompts_file)
    loaded = load_trained(run, device=device) if run is not None else load_base(str(model), device=device)
    settings: dict[str, Any] = {
        "seed": seed,
        "num_steps": loaded.num_steps if steps is None else steps,
        "guidance_scale": loaded.guidance_scale if guidance_scale is None else guidance_scale,
        "copies": num_images,
    }
    made: dict[str, list[DecodedAudio]] = {}
    with loaded.base_weights():
        made["base"] = loaded.model.sample(lines, **settings)
    if run is not None:
        made["tuned"] = loaded.model.sample(lines, **settings)
    columns = {
        name: list(zip(write_sounds(output / name, sounds), sounds, strict=True))
        for name, sounds in made.items()
    }
    captions = [line for line in lines for _ in range(num_images)]
    title = (
        str(model) if run is None else f"{loaded.config.method}, step {loaded.step}" if loaded.config else ""
    )
    atomic_write(output / PAGE, sound_page(title, captions, columns, output))
    print(f"{len(captions)} sounds per model, seed {seed}: {output / PAGE}")
    return 0
