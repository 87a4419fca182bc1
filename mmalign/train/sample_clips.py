"""Clips of fixed prompts from fixed noise, the base model's beside the policy's: only the model changes."""

import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mmalign.data.config import ImageLimits
from mmalign.data.media import decode_image, read_media
from mmalign.data.video_writers import clip_strip, write_clip
from mmalign.errors import ConfigError, explain
from mmalign.files import atomic_write
from mmalign.train.adapters import Trainables
from mmalign.train.model import PreferenceModel
from mmalign.train.video_sections import VideoSamplesConfig

__all__ = ["SampleClips", "ShownFrames", "clip_page", "read_pictures", "write_clips"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.5rem}"
    "tr+tr{border-top:1px solid #ddd}img,video{display:block;max-width:100%;margin-bottom:.25rem}"
)
_STRIP = 5
"""Frames of a strip."""


@runtime_checkable
class ShownFrames(Protocol):
    """A clip: its frames, and how many of them are shown in a second."""

    @property
    def frames(self) -> UInt8[Tensor, "frame 3 height width"]:
        """From 0 to 255."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second."""
        ...


def write_clips(folder: Path, clips: Sequence[ShownFrames]) -> list[Path]:
    """Write `00.mp4` and its strip `00.png`, `01.mp4`, ... into a folder. Returns the clips' files.

    Without PyAV clips are animated pictures, `00.webp`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, clip in enumerate(clips):
        found.append(write_clip(folder / f"{number:02d}.mp4", clip.frames, clip.fps))
        buffer = io.BytesIO()
        clip_strip(clip.frames, count=_STRIP).save(buffer, format="PNG")
        atomic_write(folder / f"{number:02d}.png", buffer.getvalue())
    return found


def clip_page(title: str, prompts: Sequence[str], columns: Mapping[str, Sequence[Path]], at: Path) -> str:
    """An HTML page: a row per prompt, a playing clip with its strip per column.

    Args:
        title: of the page.
        prompts: one per row.
        columns: heading to the file of every row's clip; its strip lies beside it.
        at: the folder of the page, from which files are linked.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("prompt", *columns))
    rows = []
    for number, prompt in enumerate(prompts):
        cells = "".join(_cell(column[number], at) for column in columns.values())
        rows.append(f"<tr><td>{html.escape(prompt)}</td>{cells}</tr>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1><table><tr>{head}</tr>{''.join(rows)}</table>\n"
    )


def _cell(path: Path, at: Path) -> str:
    def link(file: Path) -> str:
        return html.escape(Path(os.path.relpath(file, at)).as_posix(), quote=True)

    if path.suffix == ".mp4":
        clip = f'<video controls loop muted autoplay playsinline src="{link(path)}"></video>'
    else:
        clip = f'<img alt="clip" src="{link(path)}">'
    return f'<td>{clip}<img alt="frames of it" loading="lazy" src="{link(path.with_suffix(".png"))}"></td>'


def read_pictures(paths: Sequence[str]) -> list[Image.Image]:
    """The pictures that clips go on from.

    Raises:
        RowError: one is missing or damaged.
    """
    limits = ImageLimits()
    return [
        decode_image(
            read_media(path, where=f"samples.images {path}", max_bytes=limits.max_bytes),
            where=f"samples.images {path}",
            limits=limits,
        ).image
        for path in paths
    ]


class SampleClips:
    """Writes `samples/step-NNNNNNNN/` with a clip and a strip per prompt, and `step-NNNNNNNN.html` beside it.

    Args:
        model: makes the clips.
        trainables: switches the adapters off for the base model's.
        config: prompts, pictures, seed, sampler steps, guidance.
        folder: where the files go.

    Raises:
        ConfigError: pictures for a model that takes none, or none for one that needs them. A run says so
            before its first step, not at its first samples.
        RowError: a picture is missing or damaged.
    """

    def __init__(
        self, model: PreferenceModel, trainables: Trainables, config: VideoSamplesConfig, folder: Path
    ) -> None:
        self.model, self.trainables, self.config, self.folder = model, trainables, config, folder
        self.base: list[Path] | None = None
        wanted = bool(getattr(model, "conditioned", False))
        if config.prompts and wanted != bool(config.images):
            message = explain(
                "samples.images",
                got=f"{len(config.images)} for {len(config.prompts)} prompts",
                expected="one per prompt: this model's clips go on from a picture"
                if wanted
                else "none: this run's model goes by text alone",
            )
            raise ConfigError(message)
        self.pictures = read_pictures(config.images)

    def _made(self, name: str) -> list[Path]:
        config = self.config
        more: dict[str, Any] = {"images": self.pictures} if self.pictures else {}
        clips = self.model.sample(
            config.prompts,
            seed=config.seed,
            num_steps=config.num_steps,
            guidance_scale=config.guidance_scale,
            **more,
        )
        return write_clips(self.folder / name, clips)

    def write(self, step: int) -> Path:
        """Make the policy's clips (and, once, the base model's if adapters can be switched off)."""
        if self.base is None and self.trainables.layers:
            with self.trainables.disabled():
                self.base = self._made("base")
        name = f"step-{step:08d}"
        columns = {} if self.base is None else {"base": self.base}
        page = clip_page(
            f"step {step}", self.config.prompts, {**columns, "policy": self._made(name)}, self.folder
        )
        return atomic_write(self.folder / f"{name}.html", page)
