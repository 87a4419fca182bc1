"""Encode a table of pairs once, so that training needs neither the VAE nor the text encoders."""

from pathlib import Path

from mmalign.audio.family import AudioModel
from mmalign.data.cache_build import build_cache
from mmalign.data.readers import RowTable
from mmalign.diffusion.family import ImageModel
from mmalign.diffusion.images import ImageLoader
from mmalign.video.family import VideoModel

__all__ = ["cache_clips", "cache_latents"]


def cache_latents(model: ImageModel, table: RowTable, folder: Path, *, batch_size: int = 64) -> None:
    """Fill `folder` with the moments and text states of a table and make the model read from it.

    Args:
        model: encodes; afterwards its examples come from the cache.
        table: rows to encode.
        folder: completed if it holds a cache of the same model.
        batch_size: pictures per call of the VAE.

    Raises:
        ConfigError: random crops, or the folder belongs to another model.
    """
    image = model.image
    report = build_cache(
        table,
        model,
        model.cache_identity(),
        folder,
        loader=ImageLoader(image.resolution, crop=image.crop, flip=image.flip),
        crop=image.crop,
        flip=image.flip,
        batch_size=batch_size,
    )
    report.check(0.0)
    model.attach_cache(folder)


def cache_clips(
    model: AudioModel | VideoModel, table: RowTable, folder: Path, *, batch_size: int = 32
) -> None:
    """`cache_latents` for clips of sound or video.

    Args:
        model: encodes; afterwards its examples come from the cache.
        table: rows to encode.
        folder: completed if it holds a cache of the same model.
        batch_size: clips per call of the VAE.

    Raises:
        ConfigError: the folder belongs to another model.
    """
    report = build_cache(
        table, model, model.cache_identity(), folder, loader=model.clips, batch_size=batch_size
    )
    report.check(0.0)
    model.attach_cache(folder)
