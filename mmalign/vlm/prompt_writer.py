"""A language model that writes prompts for a diffusion model: its rewrites, and what is painted of them.

Several rewrites of every prompt are painted from equal noise and scored by rewards that read what the user
asked. Pairs of them train with `dpo`, or with `sem_dpo`, which reads how far a rewrite is from the prompt;
the best of them train the first stage with `sft`.

Source: arXiv 2412.15156 (Prompt-A-Video; jiyt17/Prompt-A-Video b1eb5bb) and 2507.20133 (Sem-DPO).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from mmalign.batch import ContentItem, Message, PreferenceRow
from mmalign.data.pair_making.stages import Stages
from mmalign.data.video_structure import file_kind, video_ending
from mmalign.errors import ConfigError, explain
from mmalign.files import atomic_write
from mmalign.vlm.pair_making.on_policy import OwnAnswers
from mmalign.vlm.pair_making.output import messages_of, png
from mmalign.vlm.pair_making.requests import Similarity
from mmalign.vlm.pair_making.scored_sections import PromptWriterConfig

__all__ = [
    "Painted",
    "Painter",
    "Rewrites",
    "compared",
    "distances",
    "instructed",
    "painted",
]

Painted = Image.Image | bytes | Path | Sequence[Image.Image] | None
"""A picture, the bytes of a picture or video, a file of one, the frames of a video; None: it failed."""


@runtime_checkable
class Painter(Protocol):
    """Makes pictures or videos of prompts."""

    def identity(self) -> Mapping[str, Any]:
        """What decides its pictures besides prompt, key and seed: JSON values. Loads nothing."""
        ...

    def __call__(self, prompts: Sequence[str], keys: Sequence[str], seed: int) -> Sequence[Painted]:
        """One per prompt. Equal keys start from equal noise under one seed, whatever the prompts."""
        ...


@dataclass(frozen=True)
class Rewrites:
    """The rewrites of one prompt.

    Args:
        row: what the writer was asked, the instruction with the prompt in it.
        prompt: the user's own.
        texts: the rewrites.
        media: files of each rewrite's pictures or clips, from the output folder on; of a clip of frames, the
            list of them. None where painting failed.
        scores: of each rewrite, one number per reward, higher is better; NaN where one failed.
        errors: of each rewrite, why a number is missing.
        distances: of each rewrite from the prompt, 1 - cosine, in [0, 2]; () where they were not measured.
        original: number of the user's own prompt among the texts, -1 where it was not painted.
    """

    row: PreferenceRow
    prompt: str
    texts: tuple[str, ...]
    media: tuple[tuple[Any, ...], ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()
    errors: tuple[str, ...] = ()
    distances: tuple[float, ...] = ()
    original: int = -1

    @property
    def written(self) -> range:
        """Places of the writer's own texts; the user's prompt, if it is there, comes last."""
        return range(len(self.texts) - (self.original >= 0))


def instructed(row: PreferenceRow, config: PromptWriterConfig) -> PreferenceRow:
    """The row as the writer is asked: its last user turn's words stand in the instruction."""
    words = config.instruction.replace("{medium}", config.painter.medium).replace("{prompt}", row.prompt)
    messages = list(messages_of(row))
    last = messages[-1]
    shown = tuple(item for item in last.content if item.type != "text")
    messages[-1] = Message(last.role, (*shown, ContentItem("text", words)))
    return replace(row, prompt=words, messages=tuple(messages))


def compared(answers: Sequence[OwnAnswers], prompts: Sequence[str], *, original: bool) -> list[Rewrites]:
    """Answers of the writer as rewrites, with the user's own prompt behind them where it is to be beaten."""
    made = []
    for answer, prompt in zip(answers, prompts, strict=True):
        texts = tuple(text.strip() for text in answer.texts)
        place = len(texts) if original else -1
        made.append(Rewrites(answer.row, prompt, (*texts, prompt) if original else texts, original=place))
    return made


# --- painting -----------------------------------------------------------------------------------------------


def _kept(made: object, folder: Path, where: str) -> Any:
    """What stands in the records: the path of a file in `folder`, from its parent's parent on, or a list."""
    if made is None:
        return None
    if isinstance(made, Path):
        if not made.is_file():
            raise ConfigError(
                explain(where, got=f"{made} [no such file]", expected="a file that was painted")
            )
        return _written(made.read_bytes(), made.suffix.lower(), folder)
    if isinstance(made, bytes):
        is_picture = file_kind(made[:512]) in ("", "png", "webp", "gif")
        return _written(made, ".png" if is_picture else video_ending(made), folder)
    if isinstance(made, Image.Image):
        return _written(png(made), ".png", folder)
    if isinstance(made, Sequence) and not isinstance(made, str) and made:
        frames = [frame for frame in made if isinstance(frame, Image.Image)]
        if len(frames) == len(made):
            return [_written(png(frame), ".png", folder) for frame in frames]
    expected = "a PIL picture, bytes, a Path, a list of PIL frames, or None"
    raise ConfigError(explain(where, got=type(made).__name__, expected=expected))


def _written(data: bytes, ending: str, folder: Path) -> str:
    name = f"{hashlib.blake2b(data, digest_size=12).hexdigest()}{ending}"
    if not (folder / name).is_file():
        atomic_write(folder / name, data)
    return name


def painted(
    rewrites: Sequence[Rewrites], paint: Painter, stages: Stages, config: PromptWriterConfig
) -> list[Rewrites]:
    """The rewrites with what was painted of them, all of one prompt from equal noise. Empty ones are not.

    Args:
        rewrites: texts.
        paint: what paints.
        stages: where files and records go.
        config: copies.

    Raises:
        ConfigError: another number of pictures than prompts, or something that is no picture.
    """
    folder = stages.folder / "painted"

    def work(block: Sequence[Rewrites], seed: int) -> list[dict[str, Any]]:
        del seed  # of the run instead: a prompt's noise hangs on its id alone
        jobs = [
            (text, f"{one.row.id}/{copy}")
            for one in block
            for text in one.texts
            if text
            for copy in range(config.copies)
        ]
        texts, keys = [text for text, _ in jobs], [key for _, key in jobs]
        found = list(paint(texts, keys, stages.seed)) if jobs else []
        if len(found) != len(jobs):
            message = explain(
                "painter", got=f"[{len(found)} results]", expected=f"{len(jobs)}, one per prompt"
            )
            raise ConfigError(message)
        left = iter(
            _kept(made, folder, f"painter of {text[:60]!r}") for made, text in zip(found, texts, strict=True)
        )
        return [
            {"media": [[next(left) for _ in range(config.copies)] if text else [] for text in one.texts]}
            for one in block
        ]

    records = stages.run(
        "painted",
        rewrites,
        work,
        key=lambda one: one.row.id,
        settings={"painter": dict(paint.identity()), "copies": config.copies},
        depends=lambda one: list(one.texts),
    )
    return [
        replace(one, media=tuple(tuple(media) for media in record["media"]))
        for one, record in zip(rewrites, records, strict=True)
    ]


# --- distances ----------------------------------------------------------------------------------------------


def distances(
    rewrites: Sequence[Rewrites], similarity: Similarity, stages: Stages, name: str
) -> list[Rewrites]:
    """The rewrites with their distance from the user's prompt: 1 - cosine of sentence embeddings, in [0, 2].

    Args:
        rewrites: texts.
        similarity: cosine of two texts.
        stages: where records go.
        name: of the encoder.

    Source: arXiv 2507.20133 for the distance; which encoder it takes could not be verified.
    """

    def work(block: Sequence[Rewrites], seed: int) -> list[dict[str, Any]]:
        del seed
        pairs = [(one.prompt, text) for one in block for text in one.texts]
        cosines = iter(similarity([first for first, _ in pairs], [second for _, second in pairs]))
        return [{"distances": [min(max(1.0 - next(cosines), 0.0), 2.0) for _ in one.texts]} for one in block]

    records = stages.run(
        "semantic_distances",
        rewrites,
        work,
        key=lambda one: one.row.id,
        settings={"encoder": name},
        depends=lambda one: [one.prompt, list(one.texts)],
    )
    return [
        replace(one, distances=tuple(record["distances"]))
        for one, record in zip(rewrites, records, strict=True)
    ]
