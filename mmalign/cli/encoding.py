"""`mmalign data cache CONFIG`: load the encoders of a run and fill its cache."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

__all__ = ["encode_run"]


def encode_run(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    batch_size: int = 8,
    dtype: str = "float16",
) -> Any:
    """Encode every image or clip and every prompt of a run's data. Returns what was encoded, and what not.

    Args:
        config_path: YAML file of the run.
        overrides: `section.key=value`.
        output: folder; default `image.cache` (or `audio.cache`, `video.cache`) of the config.
        batch_size: images or clips encoded at once.
        dtype: of the stored moments: float16, bfloat16 or float32.

    Raises:
        ConfigError: no folder is named, random crops, or the folder belongs to another model.
    """
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mmalign import registry
    from mmalign.data.cache_build import build_cache
    from mmalign.data.readers import open_rows
    from mmalign.diffusion.images import ImageLoader
    from mmalign.errors import ConfigError
    from mmalign.train.config import load_run

    run = load_run(config_path, overrides).config
    makes = registry.modality(run.model.family)
    section = makes if makes in ("audio", "video") else "image"
    media: Any = getattr(run, section)
    folder = output or media.cache
    if folder is None:
        message = f"{config_path}: neither {section}.cache nor --output names a folder to write the cache to."
        raise ConfigError(message)
    table = open_rows(run.data)
    print(table.describe())
    # The encoders are loaded for real: the cache they fill does not exist yet.
    media = media.model_copy(update={"cache": None})
    use_cuda = torch.cuda.is_available() and run.train.device == "auto"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.train.mixed_precision, torch.float32)
    family = registry.find("families", run.model.family)
    model = family.load(run.model, media, device="cuda" if use_cuda else "cpu", dtype=half)
    crop, flip = "center", False
    loader: Any
    if section in ("audio", "video"):
        getattr(model, f"limit_{section}")(getattr(run.data, section))
        loader = model.clips
    else:
        crop, flip = media.crop, media.flip
        loader = ImageLoader(media.resolution, crop=crop, flip=flip, limits=run.data.images)
    # Of every candidate, once more for its mirror image.
    entries = 2 * len(table) * (2 if flip else 1)
    size = entries * model.numbers_per_entry * (4 if dtype == "float32" else 2)
    Path(folder).mkdir(parents=True, exist_ok=True)
    needed, free = size / 2**30, shutil.disk_usage(folder).free / 2**30
    print(f"{folder}: at most {needed:.2f} GiB of moments will be written, {free:.1f} GiB are free")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=False) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        report = build_cache(
            table,
            model,
            replace(model.cache_identity(), dtype=dtype),
            folder,
            loader=loader,
            crop=crop,
            flip=flip,
            batch_size=batch_size,
            progress=progress,
        )
    print(f"{folder}: {report.summary()}. Train with {section}.cache={folder}")
    report.check(run.data.max_bad_share)
    return report
