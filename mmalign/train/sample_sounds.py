"""Sounds of fixed prompts from fixed noise, the base model's beside the policy's: only the model changes."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.data.audio_media import DecodedAudio, encode_audio
from mmalign.data.audio_preview import outline
from mmalign.files import atomic_write
from mmalign.train.adapters import Trainables
from mmalign.train.config import SamplesConfig
from mmalign.train.model import PreferenceModel

__all__ = ["SampleSounds", "sound_page", "write_sounds"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.5rem}"
    "tr+tr{border-top:1px solid #ddd}svg{display:block;width:100%;height:48px;color:#36c}audio{width:100%}"
)


def write_sounds(folder: Path, sounds: Sequence[DecodedAudio]) -> list[Path]:
    """Write `00.wav`, `01.wav`, ... into a folder. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        atomic_write(
            folder / f"{number:02d}.wav", encode_audio(sound.samples, sound.sampling_rate, container="wav")
        )
        for number, sound in enumerate(sounds)
    ]


def sound_page(
    title: str, prompts: Sequence[str], columns: Mapping[str, Sequence[tuple[Path, DecodedAudio]]], at: Path
) -> str:
    """An HTML page: a row per prompt, a player with the sound's outline per column.

    Args:
        title: of the page.
        prompts: one per row.
        columns: heading to the file and the sound of every row.
        at: the folder of the page, from which files are linked.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("prompt", *columns))
    rows = []
    for number, prompt in enumerate(prompts):
        cells = "".join(_cell(*column[number], at) for column in columns.values())
        rows.append(f"<tr><td>{html.escape(prompt)}</td>{cells}</tr>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1><table><tr>{head}</tr>{''.join(rows)}</table>\n"
    )


def _cell(path: Path, sound: DecodedAudio, at: Path) -> str:
    link = html.escape(Path(os.path.relpath(path, at)).as_posix(), quote=True)
    return f'<td>{outline(sound.samples)}<audio controls preload="none" src="{link}"></audio></td>'


class SampleSounds:
    """Writes `samples/step-NNNNNNNN/` with a sound per prompt, and `samples/step-NNNNNNNN.html` to hear them.

    Args:
        model: makes the sounds.
        trainables: switches the adapters off for the base model's.
        config: prompts, seed, sampler steps, guidance.
        folder: where the files go.
    """

    def __init__(
        self, model: PreferenceModel, trainables: Trainables, config: SamplesConfig, folder: Path
    ) -> None:
        self.model, self.trainables, self.config, self.folder = model, trainables, config, folder
        self.base: list[tuple[Path, DecodedAudio]] | None = None

    def _made(self, name: str) -> list[tuple[Path, DecodedAudio]]:
        sounds: list[DecodedAudio] = self.model.sample(
            self.config.prompts,
            seed=self.config.seed,
            num_steps=self.config.num_steps,
            guidance_scale=self.config.guidance_scale,
        )
        return list(zip(write_sounds(self.folder / name, sounds), sounds, strict=True))

    def write(self, step: int) -> Path:
        """Make the policy's sounds (and, once, the base model's if adapters can be switched off)."""
        if self.base is None and self.trainables.layers:
            with self.trainables.disabled():
                self.base = self._made("base")
        name = f"step-{step:08d}"
        columns = {} if self.base is None else {"base": self.base}
        page = sound_page(
            f"step {step}", self.config.prompts, {**columns, "policy": self._made(name)}, self.folder
        )
        return atomic_write(self.folder / f"{name}.html", page)
