"""Clips that are there: those of a data set, looked at to their end and kept by their content."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.batch import Candidate, Media, PreferenceRow
from mmalign.data.config import VideoLimits
from mmalign.data.pair_making.output import MadeFiles
from mmalign.data.pair_making.stages import Stages
from mmalign.data.video_media import decode_clip
from mmalign.errors import RowError
from mmalign.video.clips import Clip
from mmalign.video.pair_making.making import (
    CLIPS,
    Group,
    Made,
    Variant,
    failed,
    kept,
    limits_of,
    made_groups,
    with_picture,
    writing,
)
from mmalign.video.pair_making.naming import named_pictures, names_of, rate_of
from mmalign.video.pair_making.plan import DATA_SCORE, VideoPairPlan

__all__ = ["as_one_file", "existing"]


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
            with_picture(group.row, [partial(_copied, one, group.row, files, plan) for one, _ in held], files)
            for group, held in block
        ]

    records = stages.run(
        CLIPS,
        asked,
        work,
        key=lambda item: item[0].row.id,
        settings={"limits": limits_of(plan), **writing(plan)},
        depends=lambda item: [
            names_of([one for one, _ in item[1]]),
            named_pictures(item[0].row),
            *rate_of(item[0].row, [one for one, _ in item[1]]),
        ],
        alone=True,
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


def _copied(
    candidate: Candidate, row: PreferenceRow, files: MadeFiles, plan: VideoPairPlan
) -> dict[str, Any]:
    where = f"{row.source or row.id} candidate"
    media = candidate.video
    if media is None:
        return failed("missing_video: got no clip", "missing_video")
    try:
        return kept(as_one_file(media, row, where, plan.data.video), files, plan, where=where)
    except RowError as error:
        return failed(f"{error.reason}: {error}", error.reason)


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
