"""Media of another program (`images:`, `videos:` or `sounds:` and a folder): which file is which sample."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmalign.errors import ConfigError, explain
from mmalign.evals.jobs import Job
from mmalign.evals.model_media import makes_clips
from mmalign.evals.suite import ModelSpec

__all__ = ["adopted_folder", "adopted_media", "chosen_files", "is_clip", "is_sound", "media_of"]

_IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp")
_VIDEO_FILES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
_SOUND_FILES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".au")
_MEDIA = {"images": "pictures", "videos": "clips", "sounds": "sounds"}
_ENDINGS = {"pictures": _IMAGE_FILES, "clips": _VIDEO_FILES, "sounds": _SOUND_FILES}


def adopted_media(source: str) -> str | None:
    """`pictures`, `clips` or `sounds` where a model is a folder of them, else None."""
    kind, colon, _ = source.partition(":")
    return _MEDIA.get(kind) if colon else None


def adopted_folder(source: str) -> Path | None:
    """The folder of `images:FOLDER`, `videos:FOLDER` or `sounds:FOLDER`, None of any other model."""
    return None if adopted_media(source) is None else Path(source.partition(":")[2])


def is_clip(path: str | Path) -> bool:
    """Whether a file is a clip, by its ending."""
    return Path(path).suffix.lower() in _VIDEO_FILES


def is_sound(path: str | Path) -> bool:
    """Whether a file is a sound, by its ending."""
    return Path(path).suffix.lower() in _SOUND_FILES


def media_of(models: Sequence[ModelSpec], *, default: str = "pictures") -> str:
    """What all models of a run make: `pictures`, `clips` or `sounds`.

    Args:
        models: folders of files say by themselves what they hold, models of video by their configurations.
        default: what the others make.

    Raises:
        ConfigError: they make different things.
    """
    found = {spec.name: adopted_media(spec.source) or _made_by(spec, default) for spec in models}
    if len(set(found.values())) > 1:
        got = ", ".join(f"{name} of {media}" for name, media in found.items())
        expected = "pictures of all models, or clips of all, or sounds of all"
        raise ConfigError(explain("--model", got=got, expected=expected))
    return next(iter(found.values()), default)


def _made_by(spec: ModelSpec, default: str) -> str:
    """Clips of a model of video, whatever the suite's rewards score; else the default."""
    return "clips" if default == "pictures" and makes_clips(spec.source) else default


def chosen_files(spec: ModelSpec, jobs: Sequence[Job], root: Path) -> dict[str, Path]:
    """The file of every sample that has one.

    A number in a folder of a group's name counts within the set or within the group (the layout of HPDv2);
    the reading that finds more pictures holds for the whole folder.
    """
    files: dict[str, list[Path]] = {}
    media = adopted_media(spec.source) or "pictures"
    for path in _files_under(root, _ENDINGS[media]):
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
            got=f"{sum(map(len, files.values()))} {media} in {root}, none of them of the suite",
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


def _files_under(root: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.suffix.lower() in endings)


def _file_names(job: Job, several: bool, in_group: str | None) -> list[str]:
    """Names a picture may go by, without ending, the surest first.

    The item's id (`/` may be `_`), its number (also as `output_NUMBER`, which Tango writes), or the number in
    a folder of the group's name; of a further copy each with `_copy`. Where a suite has several sets a bare
    number says nothing: it stands under a folder of the set's name.
    """
    group, identity = job.item.group, job.item.id
    first, _, number = identity.partition("/")
    forms = dict.fromkeys([number, number.lstrip("0") or "0"])
    bases = [identity, identity.replace("/", "_"), *(f"{first}/{form}" for form in forms)]
    if not several:
        bases += [*forms, f"output_{number.lstrip('0') or '0'}"]
    if group:
        numbers = forms if in_group is None else dict.fromkeys([in_group, in_group.lstrip("0") or "0"])
        bases += [f"{first}/{group}/{form}" for form in numbers]
        if not several:
            bases += [f"{group}/{form}" for form in numbers]
    bases = list(dict.fromkeys(bases))
    copies = [f"{base}_{job.copy}" for base in bases] + [f"{base}/{job.copy}" for base in bases]
    return copies + (bases if job.copy == 0 else [])
