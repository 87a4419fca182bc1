"""Pairs that begin with a real clip: noised and denoised by a model (StructuralDPO), or damaged (DF-DPO)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.data.pair_making.output import MadeFiles
from mmalign.data.pair_making.stages import AGAIN, Stages
from mmalign.data.video_damage import damaged
from mmalign.data.video_media import DecodedClip, common_start, decode_clip, describe_clip
from mmalign.errors import ConfigError, RowError, explain
from mmalign.seeding import generator_for
from mmalign.video.clips import Clip, covering
from mmalign.video.pair_making.making import (
    CLIPS,
    Group,
    Variant,
    held,
    kept,
    limits_of,
    made_groups,
    picture_of,
    retried,
)
from mmalign.video.pair_making.naming import named_pictures, names_of, rate_of
from mmalign.video.pair_making.plan import VideoPairPlan

__all__ = ["Corrupter", "corrupted", "damaged_groups", "noise_level"]


@runtime_checkable
class Corrupter(Protocol):
    """Noises real clips and denoises them again."""

    def identity(self) -> Mapping[str, Any]:
        """What decides its clips besides row, level, keys and seed: JSON values."""
        ...

    def corrupt(
        self, row: PreferenceRow, level: float, keys: Sequence[str], seed: int
    ) -> tuple[Clip, Sequence[Clip]]:
        """The row's clip as the model sees it, and one made of it per key.

        Raises:
            RowError: the clip cannot be read.
        """
        ...


def noise_level(plan: VideoPairPlan, row_id: str) -> float:
    """The share of noise of one real clip, the same for all its members: uniform between least and most.

    With levels of their own a model would learn which member was noisier.

    Source: arXiv 2506.03517.
    """
    drawn = torch.rand((), generator=generator_for(plan.seed, "corrupt_level", row_id), dtype=torch.float64)
    return plan.corrupt.least + (plan.corrupt.most - plan.corrupt.least) * float(drawn)


def _members(row: PreferenceRow, plan: VideoPairPlan) -> tuple[Variant, ...]:
    level = noise_level(plan, row.id)
    made = tuple(
        Variant(f"{row.id}/{number}", {"noise_level": level}) for number in range(plan.corrupt.members)
    )
    real = Variant(f"{row.id}/real", real=True)
    return made if plan.corrupt.real == "no" else (real, *made)


def corrupted(
    rows: Sequence[PreferenceRow],
    corrupter: Corrupter,
    stages: Stages,
    plan: VideoPairPlan,
    counts: Counter[str],
) -> list[Group]:
    """A group per real clip: its members, each from noise of its own at one level.

    The real clip comes first, if it is wanted. Rows whose clip cannot be read are counted by reason.

    Raises:
        ConfigError: files that were made are gone.
    """
    files = MadeFiles(stages.folder)

    def one(row: PreferenceRow) -> dict[str, Any]:
        keys = [f"{row.id}/{number}" for number in range(plan.corrupt.members)]
        try:
            _one_clip(row)
            real, members = corrupter.corrupt(row, noise_level(plan, row.id), keys, plan.seed)
            image = picture_of(row, files)
        except RowError as error:
            return _refused(error)
        shown = list(members) if plan.corrupt.real == "no" else [real, *members]
        return retried({"clips": [kept(clip, files, plan) for clip in shown], "image": image})

    settings = {
        "maker": dict(corrupter.identity()),
        "corrupt": plan.corrupt.model_dump(mode="json", exclude={"real"}),
        "real": plan.corrupt.real != "no",
        "num_steps": plan.sampling.num_steps,
        "noise_seed": plan.seed,
        "limits": limits_of(plan),
        "container": [plan.container, plan.quality],
    }
    with held(corrupter):
        return _run(rows, one, partial(_members, plan=plan), stages, settings, counts)


def damaged_groups(
    rows: Sequence[PreferenceRow], stages: Stages, plan: VideoPairPlan, counts: Counter[str]
) -> list[Group]:
    """A group per real clip: itself, and a copy per kind of damage.

    Rows whose clip cannot be read are counted by reason, those that stand still as `still`.
    """
    files = MadeFiles(stages.folder)

    def one(row: PreferenceRow) -> dict[str, Any]:
        where = f"{row.source or row.id} clip"
        try:
            _one_clip(row)
            clip = real_clip(row, plan, where)
            real = kept(Clip(clip.frames, clip.fps), files, plan, where=where)
            if real["motion"] is not None and real["motion"] < plan.damage.still:
                return {"clips": [], "error": f"{where}: stands still", "reason": "still"}
            copies = []
            for kind in plan.damage.kinds:
                drawn = generator_for(plan.seed, "damage", row.id, kind)
                copies.append(kept(Clip(damaged(clip.frames, kind, drawn), clip.fps), files, plan))
            return {"clips": [real, *copies], "image": picture_of(row, files)}
        except RowError as error:
            return _refused(error)
        except ConfigError as error:  # too few frames to shuffle
            return {"clips": [], "error": str(error), "reason": "too_short"}

    def variants(row: PreferenceRow) -> tuple[Variant, ...]:
        real = Variant(f"{row.id}/real", real=True)
        return (real, *(Variant(f"{row.id}/{kind}", {"damage": kind}) for kind in plan.damage.kinds))

    settings = {
        "damage": plan.damage.model_dump(mode="json"),
        "video": plan.video.model_dump(mode="json"),
        "seed": plan.seed,
        "limits": limits_of(plan),
        "container": [plan.container, plan.quality],
    }
    return _run(rows, one, variants, stages, settings, counts)


def _run(
    rows: Sequence[PreferenceRow],
    one: Any,
    variants: Any,
    stages: Stages,
    settings: Mapping[str, Any],
    counts: Counter[str],
) -> list[Group]:
    """Carry out a stage row by row; rows that could not be used are counted."""

    def work(block: Sequence[PreferenceRow], seed: int) -> list[dict[str, Any]]:
        del seed  # row, key and the plan's seed decide what is drawn
        return [one(row) for row in block]

    records = stages.run(
        CLIPS,
        rows,
        work,
        key=lambda row: row.id,
        settings=settings,
        depends=lambda row: [
            row.prompt,
            names_of(row.candidates),
            named_pictures(row),
            *rate_of(row, row.candidates),
        ],
        alone=True,
    )
    there = []
    for row, record in zip(rows, records, strict=True):
        if record.get("reason"):
            counts[record["reason"]] += 1
        else:
            there.append((Group(row, variants(row)), record))
    return made_groups([group for group, _ in there], [record for _, record in there], stages)


def _refused(error: RowError) -> dict[str, Any]:
    """The record of a row that cannot be used; to be made again where a file could not be read this time."""
    record = {"clips": [], "error": str(error), "reason": error.reason}
    return {**record, AGAIN: str(error)} if error.reason == "unreadable_file" else record


def _one_clip(row: PreferenceRow) -> None:
    if len(row.candidates) != 1 or row.candidates[0].video is None:
        got = f"[{len(row.candidates)} candidates]"
        message = explain(f"{row.source or row.id}", got=got, expected="one real clip and its caption")
        raise RowError(message, reason="not_one_clip")


def real_clip(row: PreferenceRow, plan: VideoPairPlan, where: str) -> DecodedClip:
    """The part of a real clip that the plan wants: its own rate, length and size where the plan names none.

    Raises:
        RowError: it cannot be read, or is too short.
    """
    media, video, limits = row.candidates[0].video, plan.video, plan.data.video
    if media is None:
        raise RowError(explain(where, got="[no clip]", expected="a clip"), reason="missing_video")
    stored = row.extras.get("fps")
    told = float(stored) if isinstance(stored, int | float) and stored > 0 else None
    size = None if video.height is None or video.width is None else (video.height, video.width)

    def cut(frame: UInt8[Tensor, "3 source_height source_width"]) -> UInt8[Tensor, "3 height width"]:
        return frame if size is None else covering(frame.unsqueeze(0), size).squeeze(0)

    start = 0.0
    if video.start != "first" and video.num_frames is not None:
        shown = describe_clip(media, where=where, limits=limits, stored_fps=told)
        drawn = generator_for(plan.seed, "start", row.id)
        place = 0.5 if video.start == "middle" else float(torch.rand((), generator=drawn))
        start = common_start([shown.seconds], needed=video.num_frames / (video.fps or shown.fps), place=place)
    return decode_clip(
        media,
        where=where,
        limits=limits,
        fps=video.fps,
        num_frames=video.num_frames,
        start=start,
        stored_fps=told,
        each=cut,
    )
