"""The first stage: every model paints every prompt from the same noise, once.

A picture is stored under a hash of everything that made it. What is there is not painted again, whichever
process, suite or run asks; batches are fixed by the list of prompts, so that a run that was killed ends with
the same pictures as one that was not.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.evals.base import Item
from mmalign.evals.store import PartTable
from mmalign.evals.suite import GenerationConfig, ModelSpec
from mmalign.files import atomic_write
from mmalign.rewards.sample import media_hash
from mmalign.rewards.weights import file_sha256

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Job",
    "generate_missing",
    "jobs_of",
    "model_fingerprint",
    "parse_shard",
    "picture_key",
    "pictures_table",
    "recipe_of",
    "remembered_recipe",
    "require_models",
    "require_on_hub",
    "shard_of",
]

Paint = Callable[[Sequence["Job"]], "Sequence[Image]"]

_MODEL_FILES = (".safetensors", ".bin", ".pt", ".pth", ".json", ".yaml", ".model")
_VOCABULARIES = ("merges.txt", "vocab.txt")
_INDEX = "model_index.json"
_RUN_CONFIG = "mmalign_config.yaml"
_CHECKPOINTS = "checkpoints"
_NOT_PAINTING = ("optimizer.safetensors", "state.json")
_IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Job:
    """One picture to paint.

    Args:
        item: its prompt.
        copy: number among the pictures of the prompt.
    """

    item: Item
    copy: int

    @property
    def sample_id(self) -> str:
        """Id of the picture: the item's and the copy's number."""
        return f"{self.item.id}/{self.copy}"


def jobs_of(items: Sequence[Item], copies: int) -> list[Job]:
    """All pictures of a suite, prompt after prompt."""
    return [Job(item, copy) for item in items for copy in range(copies)]


def shard_of(name: str, count: int) -> int:
    """Which of `count` processes does a piece of work: by its name alone."""
    return int(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) % count


def parse_shard(shard: str) -> tuple[int, int]:
    """(number, count) of `NUMBER/COUNT`, counted from 0.

    Raises:
        ConfigError: it is not written so, or the number is not below the count.
    """
    number, _, count = shard.partition("/")
    if not (number.isdigit() and count.isdigit()) or int(number) >= int(count):
        message = explain("--shard", got=shard, expected="NUMBER/COUNT, counted from 0, for example 0/4")
        raise ConfigError(message)
    return int(number), int(count)


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


def picture_key(fingerprint: str, job: Job, recipe: Mapping[str, Any]) -> str:
    """Hexadecimal hash under which a picture is stored."""
    parts = [fingerprint, job.sample_id, job.item.prompt, dict(recipe)]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def model_fingerprint(spec: ModelSpec) -> str:
    """Hexadecimal hash of what paints: weights and configs of a folder, the commit of a hub id.

    Of a run folder: its configuration, the base model it trained, and the weights of its newest checkpoint
    (which its base side does not depend on).
    """
    run = _run_of(spec.source)
    if run is None:
        content = _content(spec.source)
    else:
        folder, checkpoint = run
        configured = yaml.safe_load((folder / _RUN_CONFIG).read_text(encoding="utf-8"))
        base = str((configured.get("model") or {}).get("source") or "")
        content = [[_RUN_CONFIG, file_sha256(folder / _RUN_CONFIG)], *_content(base)]
        if spec.weights == "trained" and checkpoint is not None:
            content += [entry for entry in _content(str(checkpoint)) if entry[0] not in _NOT_PAINTING]
    text = json.dumps([spec.weights, content])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _content(source: str) -> list[list[str]]:
    """Names and hashes of a model's files, or id and commit on the hub; a renamed folder is the same."""
    path = Path(source)
    if path.is_file():
        return [[path.suffix, file_sha256(path)]]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        kept = [file for file in files if file.suffix in _MODEL_FILES or file.name in _VOCABULARIES]
        return [[file.relative_to(path).as_posix(), file_sha256(file)] for file in kept]
    return [[source, _hub_commit(source)]]


def _run_of(source: str) -> tuple[Path, Path | None] | None:
    """(run folder, checkpoint) where `source` is a run or one of its checkpoints; else None."""
    from mmalign.train.checkpoint import find_latest

    path = Path(source)
    if (path / _RUN_CONFIG).is_file():
        return path, find_latest(path / _CHECKPOINTS)
    parent = path.parent.parent
    if path.parent.name == _CHECKPOINTS and (parent / _RUN_CONFIG).is_file():
        return parent, path
    return None


def _hub_commit(source: str) -> str:
    """The commit of a hub id that a load would take now; "unknown" where hub and cache do not tell.

    The small index is fetched first: before a download the cache knows no commit, after it another one, and
    what was painted in between would lie under a name that nobody looks for.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(source, _INDEX)).parent.name
    except (OSError, ValueError, HFValidationError):  # no network, no such id, no id at all
        return "unknown"


def require_models(models: Sequence[ModelSpec]) -> None:
    """Refuse models that are not there, all of them before the first one paints.

    Raises:
        ConfigError: no such folder; a path that does not exist; a base side of what is no run.
        CheckpointError: a run without a complete checkpoint.
    """
    for spec in models:
        where = f"--model {spec.name}"
        path = Path(spec.source.removeprefix("images:"))
        if spec.source.startswith("images:"):
            if not path.is_dir():
                raise ConfigError(explain(where, got=str(path), expected="a folder of pictures"))
            continue
        run = _run_of(spec.source)
        if run is not None and run[1] is None:
            message = f"{where}: {path} is a run without a complete checkpoint yet. Let it train, run again."
            raise CheckpointError(message)
        # Ids of the hub are NAME or OWNER/NAME; all else can only be a path.
        looks_local = path.is_absolute() or spec.source.startswith((".", "~")) or spec.source.count("/") != 1
        if looks_local and not path.exists() and "/" in spec.source:
            expected = "a hub id, diffusers folder, run folder or .safetensors file that is there"
            raise ConfigError(explain(where, got=spec.source, expected=expected))


def require_on_hub(models: Sequence[ModelSpec]) -> None:
    """Refuse hub ids that neither the cache nor the hub knows, before the first model paints.

    Raises:
        ConfigError: names the model.
    """
    for spec in models:
        local = spec.source.startswith("images:") or Path(spec.source).exists()
        if not local and _hub_commit(spec.source) == "unknown":
            message = explain(
                f"--model {spec.name}",
                got=spec.source,
                expected="a folder or file that is there, or a hub id that is cached or can be fetched",
            )
            raise ConfigError(message)


@dataclass(frozen=True)
class _Painter:
    """A loaded model that paints jobs."""

    paint: Paint
    recipe: Mapping[str, Any]


@contextmanager
def _painter(spec: ModelSpec, settings: GenerationConfig, device: str | None) -> Iterator[_Painter]:
    """Load a model, or the base side of a run."""
    from mmalign.diffusion.sampling import generate
    from mmalign.diffusion.trained import load_base, load_trained

    is_run = _run_of(spec.source) is not None
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
    if is_run and spec.weights == "base":
        with loaded.base_weights():
            yield _Painter(paint, recipe)
    else:
        yield _Painter(paint, recipe)


def generate_missing(
    spec: ModelSpec,
    jobs: Sequence[Job],
    settings: GenerationConfig,
    folder: Path,
    *,
    device: str | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] = lambda _: None,
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
    """
    if spec.source.startswith("images:"):
        return _adopt(spec, jobs, folder, progress)
    table = pictures_table(folder)
    stored = {key for (key,) in table.stored_keys()}
    fingerprint = model_fingerprint(spec)
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
    with _painter(spec, settings, device) as painter, table.writer(rows=64, seconds=30.0) as writer:
        _remember(folder, settings, fingerprint, painter.recipe)
        for batch in mine:
            named = {job.sample_id: picture_key(fingerprint, job, painter.recipe) for job in batch}
            keys |= named
            if not set(named.values()) <= stored:
                started = time.perf_counter()
                pictures = painter.paint(batch)
                seconds = (time.perf_counter() - started) / len(batch)
                # A batch may hold pictures that are there already (another limit): those stay as they are.
                writer.add(
                    _store(folder, spec, job, named[job.sample_id], picture, painter.recipe, seconds)
                    for job, picture in zip(batch, pictures, strict=True)
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


def _store(
    folder: Path,
    spec: ModelSpec,
    job: Job,
    key: str,
    picture: "Image",
    recipe: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Write a picture, return its row."""
    buffer = BytesIO()
    if recipe["format"] == "jpeg":
        picture.save(buffer, format="JPEG", quality=95, subsampling=0)
    else:
        picture.save(buffer, format="PNG", compress_level=1)
    data = buffer.getvalue()
    # Named by its content: two processes that round differently never change the file under a stored hash.
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"media/{sha256[:2]}/{sha256}.{'jpg' if recipe['format'] == 'jpeg' else 'png'}"
    atomic_write(folder / name, data)
    return _row(spec, job, key, name, sha256, dict(recipe), seconds)


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
    """Take pictures somebody else painted: `images:FOLDER`, one file per picture, named as in `_file_names`.

    Raises:
        ConfigError: no folder, no picture of the suite in it, or a name that could mean several pictures.
    """
    root = Path(spec.source.removeprefix("images:"))
    if not root.is_dir():
        raise ConfigError(explain(f"--model {spec.name}", got=str(root), expected="a folder of pictures"))
    chosen = _chosen_files(spec, jobs, root)
    table = pictures_table(folder)
    stored = {key for (key,) in table.stored_keys()}
    keys: dict[str, str] = {}
    with table.writer() as writer:
        for job in jobs:
            found = chosen.get(job.sample_id)
            if found is None:
                continue
            sha256 = media_hash(found)
            recipe = {"source": "pictures of another program"}
            # The place is in the key: of a folder that was moved the old rows would name files that are gone.
            key = picture_key(f"{sha256} {found.resolve()}", job, recipe)
            keys[job.sample_id] = key
            if key not in stored:
                writer.add([_row(spec, job, key, str(found.resolve()), sha256, recipe, 0.0)])
            progress(1)
    return keys


def _chosen_files(spec: ModelSpec, jobs: Sequence[Job], root: Path) -> dict[str, Path]:
    """The file of every sample that has one.

    A number in a folder of a group's name counts within the set or within the group (the layout of HPDv2);
    the reading that finds more pictures holds for the whole folder.
    """
    files: dict[str, list[Path]] = {}
    for path in _images_under(root):
        files.setdefault(path.relative_to(root).with_suffix("").as_posix(), []).append(path)
    several = len({job.item.id.partition("/")[0] for job in jobs}) > 1
    in_group = _numbers_in_groups(jobs)
    readings = []
    for numbers in ({}, in_group):
        names = {job.sample_id: _file_names(job, several, numbers.get(job.item.id)) for job in jobs}
        readings.append(
            {sample: next((n for n in found if n in files), None) for sample, found in names.items()}
        )
    counts = [sum(name is not None for name in reading.values()) for reading in readings]
    if not any(counts):
        message = explain(
            f"--model {spec.name}",
            got=f"{sum(map(len, files.values()))} pictures in {root}, none of them of the suite",
            expected=f"names like {', '.join(_file_names(jobs[0], several, None))}",
        )
        raise ConfigError(message)
    if counts[0] == counts[1] and readings[0] != readings[1]:
        expected = "names by the prompts' ids: numbers could count within the set or within the group"
        raise ConfigError(explain(f"--model {spec.name}", got=str(root), expected=expected))
    best = readings[counts.index(max(counts))]
    taken: dict[str, str] = {}
    for sample, name in best.items():
        if name is None:
            continue
        claimed = [str(path.relative_to(root)) for path in files[name]]
        if name in taken or len(claimed) > 1:
            samples = dict.fromkeys([taken.get(name, sample), sample])
            got = f"{' and '.join(claimed)} for {' and '.join(samples)}"
            raise ConfigError(explain(f"--model {spec.name}", got=got, expected="one file per picture"))
        taken[name] = sample
    return {sample: files[name][0] for name, sample in taken.items()}


def _numbers_in_groups(jobs: Sequence[Job]) -> dict[str, str]:
    """Item id to its number within its group, by their order."""
    counts: dict[tuple[str, str], int] = {}
    numbers: dict[str, str] = {}
    for job in jobs:
        if job.item.group and job.item.id not in numbers:
            place = (job.item.id.partition("/")[0], job.item.group)
            numbers[job.item.id] = f"{counts.get(place, 0):05d}"
            counts[place] = counts.get(place, 0) + 1
    return numbers


def _images_under(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.suffix.lower() in _IMAGE_FILES)


def _file_names(job: Job, several: bool, in_group: str | None) -> list[str]:
    """Names a picture may go by, without ending, the surest first.

    The item's id (`/` may be `_`), its number, or the number in a folder of the group's name; of a further
    copy each with `_copy`. Where a suite has several sets a bare number says nothing: it stands under a
    folder of the set's name.
    """
    group, identity = job.item.group, job.item.id
    first, _, number = identity.partition("/")
    forms = dict.fromkeys([number, number.lstrip("0") or "0"])
    bases = [identity, identity.replace("/", "_"), *(f"{first}/{form}" for form in forms)]
    if not several:
        bases += forms
    if group:
        numbers = forms if in_group is None else dict.fromkeys([in_group, in_group.lstrip("0") or "0"])
        bases += [f"{first}/{group}/{form}" for form in numbers]
        if not several:
            bases += [f"{group}/{form}" for form in numbers]
    bases = list(dict.fromkeys(bases))
    copies = [f"{base}_{job.copy}" for base in bases] + [f"{base}/{job.copy}" for base in bases]
    return copies + (bases if job.copy == 0 else [])
