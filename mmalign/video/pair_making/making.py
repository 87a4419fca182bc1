"""Clips of every prompt, made by a model and kept as files; and clips that a data set has already."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mmalign.batch import Candidate, Media, PreferenceRow
from mmalign.data.config import VideoLimits
from mmalign.data.media import read_media
from mmalign.data.pair_making.output import MadeFiles
from mmalign.data.pair_making.stages import AGAIN, Stages
from mmalign.data.video_facts import look_at_clip
from mmalign.data.video_media import decode_clip, video_ending
from mmalign.data.video_stills import frame_files
from mmalign.data.video_writers import encode_clip
from mmalign.errors import ConfigError, RowError, ShapeError, explain
from mmalign.video.clips import Clip
from mmalign.video.pair_making.plan import DATA_SCORE, VideoPairPlan

__all__ = [
    "CLIPS",
    "ClipMaker",
    "Group",
    "Made",
    "Variant",
    "existing",
    "files_there",
    "kept",
    "limits_of",
    "made_groups",
    "named_pictures",
    "names_of",
    "picture_of",
    "sampled",
]

CLIPS = "clips"
"""Folder of all candidates, under `stages`."""

Made = Clip | bytes | Path | None
"""A clip, its encoded bytes or its file; None: making it failed."""


@runtime_checkable
class ClipMaker(Protocol):
    """Makes clips of prompts."""

    def identity(self) -> Mapping[str, Any]:
        """What decides its clips besides prompt, key, seed and steps: JSON values."""
        ...

    def __call__(
        self, prompts: Sequence[str], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Made]:
        """A clip, its encoded bytes or its file per prompt; None where one failed.

        Equal keys start from equal noise under one seed, whatever the prompts.
        """
        ...


@runtime_checkable
class Holding(Protocol):
    """Loads something that is needed while clips are made, and frees it afterwards."""

    def session(self) -> AbstractContextManager[None]:
        """Around all calls."""
        ...


def held(make: object) -> AbstractContextManager[None]:
    """The maker's session, where it has one."""
    return make.session() if isinstance(make, Holding) else nullcontext()


@runtime_checkable
class GoingOn(Protocol):
    """Makes clips that go on from pictures."""

    @property
    def goes_on_from_pictures(self) -> bool:
        """Whether it does so here."""
        ...

    def going_on(
        self, rows: Sequence[PreferenceRow], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Made]:
        """A clip per row, going on from the row's picture; None where one failed."""
        ...


@dataclass(frozen=True)
class Variant:
    """One clip of a row.

    Args:
        key: what its noise hangs on.
        facts: how it was made, by column.
        real: whether it was recorded, not made.
    """

    key: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    real: bool = False


@dataclass(frozen=True)
class Group:
    """The clips of one row.

    Args:
        row: with the prompt.
        variants: one per clip.
        files: of each clip, from the folder of stages on; None where there is none.
        scores: of each clip by scorer; NaN where one failed.
        errors: of each clip, why it or a score is missing.
        motion: of each clip: change of a pixel within an eighth of a second, in [0, 1]; NaN without a clip.
        image: file of the picture that the clips go on from.
    """

    row: PreferenceRow
    variants: tuple[Variant, ...]
    files: tuple[str | None, ...] = ()
    scores: tuple[Mapping[str, float], ...] = ()
    errors: tuple[str, ...] = ()
    motion: tuple[float, ...] = ()
    image: str | None = None


def kept(clip: Made, files: MadeFiles, plan: VideoPairPlan, *, where: str = "maker") -> dict[str, Any]:
    """The record of a clip, after it was written, and read back to its last frame."""
    if clip is None:
        return _failed("making it failed")
    try:
        if isinstance(clip, Clip):
            data = encode_clip(clip.frames, clip.fps, container=plan.container, quality=plan.quality)
        else:
            media = str(clip) if isinstance(clip, Path) else clip
            data = read_media(media, where=where, max_bytes=plan.data.video.max_bytes, kind="video")
        motion = look_at_clip(data, where=where, limits=plan.data.video).motion
    except RowError as error:
        return _failed(f"{error.reason}: {error}", error.reason)
    except ShapeError as error:
        return _failed(f"no_clip: {error}", "no_clip")
    return {"file": files.put(CLIPS, data, video_ending(data)), "error": "", "motion": motion}


def _failed(error: str, reason: str = "not_made") -> dict[str, Any]:
    return {"file": None, "error": error, "reason": reason, "motion": None}


def made_groups(groups: Sequence[Group], records: Sequence[Mapping[str, Any]], stages: Stages) -> list[Group]:
    """The groups with what the records of a stage say of their clips.

    Raises:
        ConfigError: files that were made are gone.
    """
    found = []
    for group, record in zip(groups, records, strict=True):
        clips = record["clips"]
        made = replace(
            group,
            files=tuple(clip["file"] for clip in clips),
            errors=tuple(clip["error"] for clip in clips),
            motion=tuple(math.nan if clip["motion"] is None else clip["motion"] for clip in clips),
            scores=group.scores or tuple({} for _ in clips),
            image=record.get("image"),
        )
        files_there([*made.files, made.image], stages)
        found.append(made)
    return found


def files_there(names: Sequence[str | None], stages: Stages) -> None:
    """Raise ConfigError where a file that was made is gone."""
    for name in names:
        if name is not None and not (stages.folder / name).is_file():
            do = f"Remove {stages.folder / f'{CLIPS}.jsonl'}; the clips are then made again."
            message = explain(str(stages.folder / name), got="[no such file]", expected="a clip", do=do)
            raise ConfigError(message)


# ------------------------------------------------------------------------------------------------ sampling


def sampled(
    rows: Sequence[PreferenceRow], make: ClipMaker, stages: Stages, plan: VideoPairPlan
) -> list[Group]:
    """A group per prompt, a file per clip; those that were made before are not made again.

    A clip that failed, or is none, has no file and an error. The noise of a clip hangs on the seed, the row's
    id and its number alone.

    Raises:
        ConfigError: the maker gives another number of clips, or files that were made are gone.
    """
    files = MadeFiles(stages.folder)
    count = plan.sampling.num_samples
    groups = [Group(row, tuple(Variant(f"{row.id}/{n}") for n in range(count))) for row in rows]

    def work(block: Sequence[Group], seed: int) -> list[dict[str, Any]]:
        del seed  # keys decide the noise: other prompts around a prompt change nothing
        keys = [variant.key for group in block for variant in group.variants]
        owners = [group.row for group in block for _ in group.variants]
        made = _asked(make, owners, keys, plan)
        if len(made) != len(keys):
            got, expected = f"[{len(made)} clips]", f"{len(keys)}, one per prompt"
            raise ConfigError(explain("maker", got=got, expected=expected))
        clips = iter(made)
        return [
            _with_picture(group.row, [partial(kept, next(clips), files, plan) for _ in group.variants], files)
            for group in block
        ]

    with held(make):
        records = stages.run(
            CLIPS,
            groups,
            work,
            key=lambda group: group.row.id,
            settings={
                "maker": dict(make.identity()),
                "noise_seed": plan.seed,
                "limits": limits_of(plan),
                **_writing(plan),
            },
            depends=lambda group: [group.row.prompt, count, named_pictures(group.row)],
        )
    return made_groups(groups, records, stages)


def _asked(
    make: ClipMaker, rows: Sequence[PreferenceRow], keys: Sequence[str], plan: VideoPairPlan
) -> Sequence[Made]:
    """Clips of a block; makers that go on from pictures are told of them."""
    prompts, steps = [row.prompt for row in rows], plan.sampling.num_steps
    if isinstance(make, GoingOn) and make.goes_on_from_pictures:
        return make.going_on(rows, keys, plan.seed, steps)
    return make(prompts, keys, plan.seed, steps)


def _writing(plan: VideoPairPlan) -> dict[str, Any]:
    return {"container": plan.container, "quality": plan.quality}


def limits_of(plan: VideoPairPlan) -> dict[str, Any]:
    """Which clips are refused, as settings of a stage: what was refused is looked at again under others."""
    return plan.data.video.model_dump(mode="json")


def _with_picture(
    row: PreferenceRow, clips: Sequence[Callable[[], dict[str, Any]]], files: MadeFiles
) -> dict[str, Any]:
    """The record of a row's clips and its picture; where that cannot be read, the clips have failed."""
    try:
        image = picture_of(row, files)
    except RowError as error:
        failed = _failed(f"{error.reason}: {error}", error.reason)
        return retried({"clips": [failed for _ in clips], "image": None})
    return retried({"clips": [clip() for clip in clips], "image": image})


def retried(record: dict[str, Any]) -> dict[str, Any]:
    """The record, to be made again by the next run where a file was there and could not be read."""
    for clip in record["clips"]:
        if clip.get("reason") == "unreadable_file":
            return {**record, AGAIN: clip["error"]}
    return record


def picture_of(row: PreferenceRow, files: MadeFiles) -> str | None:
    """The picture that the clips of a row go on from, as a file; None where it has none."""
    if not row.images:
        return None
    where = f"{row.source or row.id} image"
    data = read_media(row.images[0], where=where, max_bytes=2**28)
    ending = {b"\x89PNG": ".png", b"RIFF": ".webp"}.get(data[:4], ".jpg")
    return files.put("images", data, ending)


# ------------------------------------------------------------------------------------------------ existing


def existing(
    rows: Sequence[PreferenceRow], stages: Stages, plan: VideoPairPlan, counts: Counter[str]
) -> list[Group]:
    """The clips of a data set: of rankings and pairs a group per row, of single clips a group per prompt.

    Where rows have a picture that clips go on from, single clips meet those of the same prompt and picture.
    Their own scores stand under `data`. Clips that cannot be read to their end are counted by reason; pairs
    with such a clip, and no others, come back with fewer clips.
    """
    files = MadeFiles(stages.folder)
    gathered: dict[str, tuple[PreferenceRow, list[tuple[Candidate, float]]]] = {}
    for row in rows:
        name = row.id if len(row.candidates) > 1 else f"prompt {row.prompt} {named_pictures(row)}"
        held = gathered.setdefault(name, (row, []))[1]
        relevance = row.relevance or tuple(
            math.nan if one.reward is None else one.reward for one in row.candidates
        )
        held += list(zip(row.candidates, relevance, strict=True))
    asked = [(Group(row, ()), held) for row, held in gathered.values()]

    def work(block: Sequence[tuple[Group, list[tuple[Candidate, float]]]], seed: int) -> list[dict[str, Any]]:
        del seed
        return [
            _with_picture(
                group.row, [partial(_copied, one, group.row, files, plan) for one, _ in held], files
            )
            for group, held in block
        ]

    records = stages.run(
        CLIPS,
        asked,
        work,
        key=lambda item: item[0].row.id,
        settings={"limits": limits_of(plan), **_writing(plan)},
        depends=lambda item: [
            names_of([one for one, _ in item[1]]),
            named_pictures(item[0].row),
            *rate_of(item[0].row, [one for one, _ in item[1]]),
        ],
    )
    groups = []
    for (group, held), record in zip(asked, records, strict=True):
        there = [place for place, clip in enumerate(record["clips"]) if clip["file"] is not None]
        counts.update(clip["reason"] for clip in record["clips"] if clip["file"] is None)
        group = replace(
            group,
            variants=tuple(Variant(f"{group.row.id}/{place}") for place in there),
            scores=tuple({DATA_SCORE: held[place][1]} for place in there),
        )
        clips = [record["clips"][place] for place in there]
        groups.append((group, {"clips": clips, "image": record["image"]}))
    return made_groups([group for group, _ in groups], [record for _, record in groups], stages)


def names_of(candidates: Sequence[Candidate]) -> list[Any]:
    """What tells clips apart, as JSON values: bytes by their hash, a file by its name, size and time.

    A folder of frames is known by its frames, each as a file: what is in one may change, and the folder's
    own time does not.
    """
    return [_name_of(candidate.video) for candidate in candidates]


def named_pictures(row: PreferenceRow) -> list[Any]:
    """What tells the pictures of a row apart, likewise."""
    return [_name_of(image) for image in row.images]


def _name_of(media: Media | None) -> Any:
    if isinstance(media, bytes):
        return hashlib.blake2b(media, digest_size=12).hexdigest()
    if isinstance(media, tuple):
        return [_name_of(frame) for frame in media]
    if isinstance(media, str) and Path(media).is_dir():
        return [media, [_name_of(frame) for frame in frame_files(media)]]
    if isinstance(media, str) and Path(media).exists():
        facts = Path(media).stat()
        return [media, facts.st_size, facts.st_mtime_ns]
    return str(media)


def rate_of(row: PreferenceRow, candidates: Sequence[Candidate]) -> list[float]:
    """The row's own frames per second, where clips lie as images and it decides how they are shown."""
    told = row.extras.get("fps")
    images = any(
        isinstance(one.video, tuple) or (isinstance(one.video, str) and Path(one.video).is_dir())
        for one in candidates
    )
    return [float(told)] if images and isinstance(told, int | float) else []


def _copied(
    candidate: Candidate, row: PreferenceRow, files: MadeFiles, plan: VideoPairPlan
) -> dict[str, Any]:
    where = f"{row.source or row.id} candidate"
    media = candidate.video
    if media is None:
        return _failed("missing_video: got no clip", "missing_video")
    try:
        return kept(as_one_file(media, row, where, plan.data.video), files, plan, where=where)
    except RowError as error:
        return _failed(f"{error.reason}: {error}", error.reason)


def as_one_file(media: Media, row: PreferenceRow, where: str, limits: VideoLimits) -> Made:
    """A clip as it is; frames that lie as images as a clip.

    Raises:
        RowError: they cannot be read.
    """
    if isinstance(media, bytes) or (isinstance(media, str) and not Path(media).is_dir()):
        return media if isinstance(media, bytes) else Path(media)
    stored = row.extras.get("fps")
    told = float(stored) if isinstance(stored, int | float) and stored > 0 else limits.frames_fps or 8.0
    clip = decode_clip(media, where=where, limits=limits, stored_fps=told)
    return Clip(clip.frames, clip.fps)
