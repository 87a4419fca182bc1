"""`mmalign sample` for models of video: base and tuned from the same noise, as files and as a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.diffusion.sampling import read_prompts
from mmalign.errors import ConfigError, explain
from mmalign.files import atomic_write
from mmalign.train.sample_clips import clip_page, read_pictures, write_clips
from mmalign.video.trained import load_base, load_trained

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
    images: Sequence[str | Path] = (),
    output: Path = Path("samples"),
    device: str | None = None,
) -> int:
    """Make clips of prompts with a base model and, beside it, with what a run trained. Returns 0.

    Writes `base/00.mp4` with its strip `base/00.png`, `tuned/00.mp4`, ... and `comparison.html`.

    Args:
        model: hub id or folder; not beside a run, whose own base model is shown.
        run: run folder or checkpoint.
        prompts: what to make.
        prompts_file: one more per line.
        seed: noise of clip i comes from (seed, i).
        steps: of the sampler; default: the run's, else the model's.
        guidance_scale: default: the run's, else the model's.
        num_images: clips per prompt.
        images: pictures that the clips go on from, one per prompt, for models that do.
        output: folder to write to.
        device: where; default the best there is.

    Raises:
        ConfigError: not exactly one of a model and a run is given, there are no prompts, or pictures do not
            suit them or the model.
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
    if images:
        settings["images"] = read_pictures([str(path) for path in images])
    columns: dict[str, list[Path]] = {}
    with loaded.base_weights():
        columns["base"] = write_clips(output / "base", loaded.model.sample(lines, **settings))
    if run is not None:
        columns["tuned"] = write_clips(output / "tuned", loaded.model.sample(lines, **settings))
    captions = [line for line in lines for _ in range(num_images)]
    title = (
        str(model) if run is None else f"{loaded.config.method}, step {loaded.step}" if loaded.config else ""
    )
    atomic_write(output / PAGE, clip_page(title, captions, columns, output))
    print(f"{len(captions)} clips per model, seed {seed}: {output / PAGE}")
    return 0
