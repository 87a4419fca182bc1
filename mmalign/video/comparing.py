"""`mmalign sample` for models of video: base and tuned from the same noise, as files and as a page."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmalign.diffusion.guides import load_guide
from mmalign.diffusion.reopening import check_one_of
from mmalign.diffusion.reward_guidance import Guide
from mmalign.diffusion.sampling import read_prompts
from mmalign.errors import ConfigError, explain
from mmalign.files import atomic_write
from mmalign.train.sample_clips import clip_page, read_pictures, write_clips
from mmalign.train.video_sections import VideoConfig
from mmalign.video.trained import TrainedVideo, load_base, load_trained

__all__ = ["PAGE", "main"]

PAGE = "comparison.html"

_RANGES = {
    "num_frames": "1 or more",
    "height": "16 pixels or more",
    "width": "16 pixels or more",
    "fps": "a number above 0",
}


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
    guide: Path | None = None,
    guide_weight: float | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    output: Path = Path("samples"),
    device: str | None = None,
) -> int:
    """Make clips of prompts with a base model and, beside it, with what a run trained. Returns 0.

    Writes `base/00.mp4` with its strip `base/00.png`, `tuned/00.mp4`, ... and `comparison.html`; under a
    reward's guidance the last model once more, as `guided/00.mp4`, ...

    Args:
        model: hub id, folder or checkpoint; not beside a run, whose own base model is shown.
        run: run folder or checkpoint.
        prompts: what to make.
        prompts_file: one more per line.
        seed: noise of clip i comes from (seed, i).
        steps: of the sampler; default: the run's, else the model's.
        guidance_scale: default: the run's, else the model's.
        num_images: clips per prompt.
        images: pictures that the clips go on from, one per prompt, for models that do.
        guide: folder of a reward that `mmalign guide` trained, for models of rectified flow.
        guide_weight: how strongly it counts; 0 not at all, below 0 the other way.
        num_frames: of the clips; default: the run's, else the model's.
        height: of the clips, pixels; the same.
        width: of the clips, pixels; the same.
        fps: frames per second; the same.
        output: folder to write to.
        device: where; default the best there is.

    Raises:
        ConfigError: not exactly one of a model and a run is given, there are no prompts, pictures do not
            suit them or the model, a size is out of range, or the reward is of another model.
        CheckpointError: the run or the reward cannot be read.
    """
    check_one_of(model, run)
    if (guide is None) != (guide_weight is None):
        got = "--guide alone" if guide_weight is None else "--guide-weight alone"
        raise ConfigError(explain("mmalign sample", got=got, expected="--guide FOLDER --guide-weight NUMBER"))
    lines = read_prompts(prompts, prompts_file)
    asked = {"num_frames": num_frames, "height": height, "width": width, "fps": fps}
    clip = _clip({name: value for name, value in asked.items() if value is not None})
    if run is not None:
        loaded = load_trained(run, device=device, clip=clip)
    else:
        loaded = load_base(str(model), device=device, video=clip)
    settings = loaded.sampler_settings(
        seed=seed, steps=steps, guidance_scale=guidance_scale, copies=num_images
    )
    if images:
        settings["images"] = read_pictures([str(path) for path in images])
    guides = [] if guide is None or guide_weight is None else [_guide(loaded, guide, guide_weight)]

    def written(name: str, **more: Any) -> list[Path]:
        return write_clips(output / name, loaded.model.sample(lines, **settings, **more))

    columns = loaded.base_and_tuned(written)
    if guides:
        columns["guided"] = written("guided", guides=guides)
    captions = [line for line in lines for _ in range(num_images)]
    atomic_write(output / PAGE, clip_page(loaded.title, captions, columns, output))
    print(f"{len(captions)} clips per model, seed {seed}: {output / PAGE}")
    return 0


def _clip(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of clips that the options say.

    Raises:
        ConfigError: one is out of range.
    """
    try:
        VideoConfig(**asked)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        option = f"--{name.replace('_', '-')}"
        raise ConfigError(explain(option, got=asked[name], expected=_RANGES[name])) from error
    return dict(asked)


def _guide(loaded: TrainedVideo, folder: Path, weight: float) -> Guide:
    """The reward of a folder; it reads the states of the base model where adapters can be taken off."""
    lora = loaded.trainables is not None and loaded.trainables.lora is not None
    return load_guide(loaded.model, folder, weight, as_base=loaded.base_weights if lora else nullcontext)
