"""The first stage: every model paints, or sounds, every prompt from the same noise, once.

A picture or sound is stored under a hash of everything that made it. What is there is not made again,
whichever process, suite or run asks; batches are fixed by the list of prompts, so that a run that was killed
ends with the same pictures as one that was not.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.evals.adopted_pictures import adopted_folder, adopted_media, chosen_files
from mmalign.evals.jobs import Job, shard_of
from mmalign.evals.model_identity import model_fingerprint, require_unchanged, run_of
from mmalign.evals.store import PartTable
from mmalign.evals.suite import GenerationConfig, ModelSpec
from mmalign.files import atomic_write
from mmalign.rewards.sample import media_hash

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Painter",
    "generate_missing",
    "picture_key",
    "pictures_table",
    "recipe_of",
    "remembered_recipe",
    "require_sampler",
]

Paint = Callable[[Sequence[Job]], "Sequence[Image | bytes]"]
"""Jobs to pictures, or to the encoded files of clips and sounds."""


def pictures_table(folder: Path) -> PartTable:
    """The table of pictures under `folder`."""
    columns = {
        "picture": "string",
        "model": "string",
        "sample_id": "string",
        "item_id": "string",
        "prompt": "string",
        "path": "string",
        "sha256": "string",
        "recipe": "string",
        "seconds": "double",
        "created": "string",
    }
    return PartTable(folder / "pictures", columns, key=("picture",))


def recipe_of(settings: GenerationConfig, *, num_steps: int, guidance_scale: float) -> dict[str, Any]:
    """Everything besides model and prompt that decides the pixels."""
    return {
        "seed": settings.seed,
        "num_steps": num_steps,
        "guidance_scale": guidance_scale,
        "scheduler": settings.scheduler or "the model's own",
        "format": settings.format,
    }


def require_sampler(settings: GenerationConfig) -> None:
    """Refuse a sampler nobody knows before any model is loaded.

    Raises:
        UnknownNameError: generation.scheduler is none of `SCHEDULERS`.
    """
    from mmalign.diffusion.sampling import SCHEDULERS

    if settings.scheduler is not None and settings.scheduler not in SCHEDULERS:
        raise unknown_name("generation.scheduler", settings.scheduler, SCHEDULERS)


def picture_key(fingerprint: str, job: Job, recipe: Mapping[str, Any]) -> str:
    """Hexadecimal hash under which a picture is stored."""
    parts = [fingerprint, job.sample_id, job.item.prompt, _recipe_for(job, recipe)]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _recipe_for(job: Job, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The model's recipe, with what the prompt asks for: a duration, a picture that its clip goes on from."""
    asked = job.duration() if "duration" in recipe else None
    shown = job.item.expected.get("image") if "image" in recipe else None
    return {
        **recipe,
        **({} if asked is None else {"duration": asked}),
        **({"image": media_hash(shown)} if isinstance(shown, str) else {}),
    }


@dataclass(frozen=True)
class Painter:
    """A loaded model that paints jobs.

    Args:
        paint: jobs to pictures, or to encoded files.
        recipe: everything besides model and prompt that decides what is in them.
        ending: of encoded files; pictures have that of the recipe's format.
    """

    paint: Paint
    recipe: Mapping[str, Any]
    ending: str = ""


@contextmanager
def _painter(spec: ModelSpec, settings: GenerationConfig, device: str | None) -> Iterator[Painter]:
    """Load a model of pictures, or the base side of a run."""
    from mmalign.diffusion.sampling import generate
    from mmalign.diffusion.trained import load_base, load_trained

    if settings.duration is not None:
        expected = "no value: models of pictures make no sounds"
        raise ConfigError(explain("generation.duration", got=settings.duration, expected=expected))
    if settings.num_frames is not None:
        expected = "no value: models of pictures make no clips"
        raise ConfigError(explain("generation.num_frames", got=settings.num_frames, expected=expected))
    is_run = run_of(spec.source) is not None
    loaded = load_trained(spec.source, device=device) if is_run else load_base(spec.source, device=device)
    num_steps = settings.num_steps or loaded.num_steps
    scale = loaded.guidance_scale if settings.guidance_scale is None else settings.guidance_scale

    def paint(jobs: Sequence[Job]) -> "Sequence[Image]":
        return generate(
            loaded.model,
            [job.item.prompt for job in jobs],
            seed=settings.seed,
            num_steps=num_steps,
            guidance_scale=scale,
            scheduler=settings.scheduler,
            batch_size=len(jobs),
            keys=[job.sample_id for job in jobs],
        )

    recipe = recipe_of(settings, num_steps=num_steps, guidance_scale=scale)
    recipe["resolution"] = loaded.model.image.resolution
    recipe["dtype"] = str(loaded.model.dtype).removeprefix("torch.")
    painter = Painter(paint, recipe)
    if is_run and spec.weights == "base":
        with loaded.base_weights():
            yield painter
    else:
        yield painter


def _encoded(picture: "Image", kind: str) -> bytes:
    buffer = BytesIO()
    if kind == "jpeg":
        picture.save(buffer, format="JPEG", quality=95, subsampling=0)
    else:
        picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def generate_missing(
    spec: ModelSpec,
    jobs: Sequence[Job],
    settings: GenerationConfig,
    folder: Path,
    *,
    device: str | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] = lambda _: None,
    fingerprint: str | None = None,
    media: str = "pictures",
) -> dict[str, str]:
    """Paint what is not stored yet. Returns sample id to picture key, of this process's part.

    Args:
        spec: the model.
        jobs: all pictures of the suite.
        settings: how to paint.
        folder: store of pictures.
        device: where the model runs.
        shard: (number, count) of this process.
        progress: called with the number of pictures that are done.
        fingerprint: of the model, where the caller knows it.
        media: what the model makes: `pictures`, `clips` or `sounds`.

    Raises:
        CheckpointError: the model's files changed while it was loaded.
    """
    if adopted_folder(spec.source) is not None:
        return _adopt(spec, jobs, folder, progress)
    table = pictures_table(folder)
    stored = {key for (key,) in table.stored_keys()}
    fingerprint = fingerprint or model_fingerprint(spec)
    size = settings.batch_size
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    mine = [batch for batch in batches if shard_of(batch[0].sample_id, shard[1]) == shard[0]]
    remembered = remembered_recipe(folder, settings, fingerprint)
    if remembered is not None:
        keys = {job.sample_id: picture_key(fingerprint, job, remembered) for batch in mine for job in batch}
        if set(keys.values()) <= stored:
            progress(len(keys))
            return keys
    keys = {}
    with _maker(media)(spec, settings, device) as painter, table.writer(rows=64, seconds=30.0) as writer:
        require_unchanged(spec, fingerprint)
        _remember(folder, settings, fingerprint, painter.recipe)
        for batch in mine:
            named = {job.sample_id: picture_key(fingerprint, job, painter.recipe) for job in batch}
            keys |= named
            if not set(named.values()) <= stored:
                started = time.perf_counter()
                made = painter.paint(batch)
                seconds = (time.perf_counter() - started) / len(batch)
                # A batch may hold pictures that are there already (another limit): those stay as they are.
                writer.add(
                    _store(folder, spec, job, named[job.sample_id], one, painter, seconds)
                    for job, one in zip(batch, made, strict=True)
                    if named[job.sample_id] not in stored
                )
            progress(len(batch))
    return keys


def _remember_path(folder: Path, settings: GenerationConfig, fingerprint: str) -> Path:
    text = json.dumps([fingerprint, settings.model_dump()], sort_keys=True)
    return folder / "recipes" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _remember(folder: Path, settings: GenerationConfig, fingerprint: str, recipe: Mapping[str, Any]) -> None:
    """Note what a model's own settings came out as: the next run need not load it to know its pictures."""
    path = _remember_path(folder, settings, fingerprint)
    atomic_write(path, json.dumps(dict(recipe)))


def remembered_recipe(folder: Path, settings: GenerationConfig, fingerprint: str) -> dict[str, Any] | None:
    """How a model painted under these settings before; None if it never did."""
    path = _remember_path(folder, settings, fingerprint)
    if not path.is_file():
        return None
    recipe: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return recipe


def _maker(
    media: str,
) -> Callable[[ModelSpec, GenerationConfig, str | None], AbstractContextManager[Painter]]:
    """What loads a model that makes `pictures`, `clips` or `sounds`."""
    if media == "clips":
        from mmalign.evals.video.generation import clip_painter

        return clip_painter
    if media == "sounds":
        from mmalign.evals.audio.generation import sound_painter

        return sound_painter
    return _painter


def _store(
    folder: Path,
    spec: ModelSpec,
    job: Job,
    key: str,
    made: "Image | bytes",
    painter: Painter,
    seconds: float,
) -> dict[str, Any]:
    """Write a picture, clip or sound, return its row."""
    kind = painter.recipe["format"]
    data = made if isinstance(made, bytes) else _encoded(made, kind)
    ending = painter.ending or ("jpg" if kind == "jpeg" else "png")
    # Named by its content: two processes that round differently never change the file under a stored hash.
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"media/{sha256[:2]}/{sha256}.{ending}"
    atomic_write(folder / name, data)
    return _row(spec, job, key, name, sha256, _recipe_for(job, painter.recipe), seconds)


def _row(
    spec: ModelSpec, job: Job, key: str, path: str, sha256: str, recipe: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    return {
        "picture": key,
        "model": spec.source,
        "sample_id": job.sample_id,
        "item_id": job.item.id,
        "prompt": job.item.prompt,
        "path": path,
        "sha256": sha256,
        "recipe": json.dumps(dict(recipe), sort_keys=True),
        "seconds": seconds,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _adopt(
    spec: ModelSpec, jobs: Sequence[Job], folder: Path, progress: Callable[[int], None]
) -> dict[str, str]:
    """Take media of another program, one file each, named as `adopted_pictures` reads names.

    Raises:
        ConfigError: no folder, no picture of the suite in it, or a name that could mean several pictures.
    """
    root, media = adopted_folder(spec.source), adopted_media(spec.source)
    if root is None or not root.is_dir():
        raise ConfigError(explain(f"--model {spec.name}", got=spec.source, expected="images: and a folder"))
    chosen = chosen_files(spec, jobs, root)
    table = pictures_table(folder)
    stored = {key for (key,) in table.stored_keys()}
    keys: dict[str, str] = {}
    with table.writer() as writer:
        for job in jobs:
            found = chosen.get(job.sample_id)
            if found is None:
                continue
            sha256 = media_hash(found)
            recipe = {"source": f"{media} of another program"}
            # The place is in the key: of a folder that was moved the old rows would name files that are gone.
            key = picture_key(f"{sha256} {found.resolve()}", job, recipe)
            keys[job.sample_id] = key
            if key not in stored:
                writer.add([_row(spec, job, key, str(found.resolve()), sha256, recipe, 0.0)])
            progress(1)
    return keys
