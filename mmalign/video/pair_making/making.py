"""Clips of every prompt, made by a model and kept as files; and clips that a data set has already."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mmalign.batch import PreferenceRow
from mmalign.data.media import read_media
from mmalign.data.pair_making.output import MadeFiles
from mmalign.data.pair_making.stages import AGAIN, Stages
from mmalign.data.video_facts import look_at_clip
from mmalign.data.video_media import video_ending
from mmalign.data.video_writers import encode_clip
from mmalign.errors import ConfigError, RowError, ShapeError, explain
from mmalign.video.clips import Clip
from mmalign.video.pair_making.naming import named_pictures
from mmalign.video.pair_making.plan import VideoPairPlan

__all__ = [
    "CLIPS",
    "ClipMaker",
    "Group",
    "Made",
    "Variant",
    "failed",
    "files_there",
    "held",
    "kept",
    "limits_of",
    "made_groups",
    "picture_of",
    "retried",
    "sampled",
    "with_picture",
    "writing",
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
        return failed("making it failed")
    try:
        if isinstance(clip, Clip):
            data = encode_clip(clip.frames, clip.fps, container=plan.container, quality=plan.quality)
        else:
            media = str(clip) if isinstance(clip, Path) else clip
            data = read_media(media, where=where, max_bytes=plan.data.video.max_bytes, kind="video")
        motion = look_at_clip(data, where=where, limits=plan.data.video).motion
    except RowError as error:
        return failed(f"{error.reason}: {error}", error.reason)
    except ShapeError as error:
        return failed(f"no_clip: {error}", "no_clip")
    return {"file": files.put(CLIPS, data, video_ending(data)), "error": "", "motion": motion}


def failed(error: str, reason: str = "not_made") -> dict[str, Any]:
    """The record of a clip that is not there, and why."""
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
            with_picture(group.row, [partial(kept, next(clips), files, plan) for _ in group.variants], files)
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
                **writing(plan),
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


def writing(plan: VideoPairPlan) -> dict[str, Any]:
    """How clips are written, as settings of a stage."""
    return {"container": plan.container, "quality": plan.quality}


def limits_of(plan: VideoPairPlan) -> dict[str, Any]:
    """Which clips are refused, as settings of a stage: what was refused is looked at again under others."""
    return plan.data.video.model_dump(mode="json")


def with_picture(
    row: PreferenceRow, clips: Sequence[Callable[[], dict[str, Any]]], files: MadeFiles
) -> dict[str, Any]:
    """The record of a row's clips and its picture; where that cannot be read, the clips have failed."""
    try:
        image = picture_of(row, files)
    except RowError as error:
        lost = failed(f"{error.reason}: {error}", error.reason)
        return retried({"clips": [lost for _ in clips], "image": None})
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
