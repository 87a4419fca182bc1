"""The true answer beside a video over the same answer beside a spoilt clip of it, chosen close to far.

What `vdpo_video` does at every step, done once and written down: the clip that was taken, what was measured
of all of them, and the row's weight. Such rows train with `dpo`.

Source: PaMi-VDPO, arXiv 2504.05810, as `mmalign.vlm.close_to_far` reads it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmalign.batch import PreferenceRow
from mmalign.data.pair_making.stages import Stages
from mmalign.errors import RowError
from mmalign.methods.row import View
from mmalign.seeding import derive_seed
from mmalign.vlm.close_to_far import compared
from mmalign.vlm.corruptions import corruption
from mmalign.vlm.corruptions.others import OtherRows
from mmalign.vlm.media import Clip, Picture
from mmalign.vlm.pair_making.output import MadePair, png
from mmalign.vlm.pair_making.work import Made, Work
from mmalign.vlm.reader import DialogueReader
from mmalign.vlm.spoilt_media import Opened, SpoiltMedia

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["spoilt", "spoilt_pairs"]

_VIEW = View(0)


def spoilt_pairs(
    rows: Sequence[PreferenceRow],
    model: "VlmModel",
    stages: Stages,
    *,
    kinds: Sequence[str],
    versions: int,
    similar: float,
) -> tuple[list[MadePair], Counter[str]]:
    """Pairs of one answer beside two videos, and what was left out by reason.

    Both videos are written as the frames the model saw. Columns: `weight` (the divergence, 0 to 1), what was
    taken (`corruption`, `cosine`, `divergence`) and what was measured of all versions (`version_cosines`,
    `version_divergences`).

    Args:
        rows: candidate 0 is a true answer; with videos or images.
        model: whose predictions decide.
        stages: where choices are kept.
        kinds: corruptions, which take turns.
        versions: per row, >= 1.
        similar: least cosine of a version's visual features with those of the true media.

    Raises:
        ConfigError: a corruption that does not exist.
        RowError: a row cannot be read.
    """
    media = SpoiltMedia(*_spoilers(kinds, versions), OtherRows(rows, model.reader.media))
    reader = replace(model.reader, views=(_VIEW,), spoilt=media, record=frozenset())

    def work(block: Sequence[PreferenceRow], seed: int) -> list[dict[str, Any]]:
        return [_measured(row, reader, model, derive_seed(seed, row.id), versions, similar) for row in block]

    records = stages.run(
        "clips",
        rows,
        work,
        key=lambda row: row.id,
        settings={"kinds": list(kinds), "versions": versions, "similar": similar},
        depends=lambda row: row.candidates[0].text,
    )
    pairs: list[MadePair] = []
    counts: Counter[str] = Counter()
    for row, record in zip(rows, records, strict=True):
        if record["problem"] or record["place"] is None:
            counts[record["problem"] or "no_close_version"] += 1
        else:
            pairs.append(_pair(row, record, reader, kinds))
    counts["rows"] = len(pairs)
    return pairs, counts


def spoilt(work: Work) -> Made:
    """Recipe clips, carried out."""
    settings = work.plan.clips
    pairs, counts = spoilt_pairs(
        work.rows,
        work.models.policy,
        work.stages,
        kinds=settings.kinds,
        versions=settings.versions,
        similar=settings.similar,
    )
    return Made(pairs, [], counts)


def _spoilers(kinds: Sequence[str], versions: int) -> tuple[Any, tuple[Any, ...]]:
    first, *further = [corruption(kinds[n % len(kinds)], others_follow=True) for n in range(versions)]
    return first, tuple(further)


def _measured(
    row: PreferenceRow,
    reader: DialogueReader,
    model: "VlmModel",
    key: int,
    versions: int,
    similar: float,
) -> dict[str, Any]:
    """What decides, and the key that makes the same versions again."""
    try:
        example = reader(row, key=key)
    except RowError as error:
        return {"problem": error.reason, "place": None}
    (choice,) = compared(model, [example], twin=0, num_versions=versions, similar=similar)
    return {"problem": "", "key": key, **{name: getattr(choice, name) for name in _MEASURED}}


_MEASURED = ("place", "cosines", "divergences")


def _pair(
    row: PreferenceRow, record: dict[str, Any], reader: DialogueReader, kinds: Sequence[str]
) -> MadePair:
    answer, place = (row.candidates[0].text or "").strip(), record["place"]
    opened = reader.opened(row, row.candidates[0])
    shown = reader.spoilt(row, opened, _VIEW, record["key"], version=place)
    true_images, true_videos = _encoded(opened)
    images, videos = _encoded(shown)
    return MadePair(
        replace(row, images=true_images, videos=true_videos),
        answer,
        answer,
        columns={
            "weight": record["divergences"][place],
            "corruption": kinds[place % len(kinds)],
            "cosine": record["cosines"][place],
            "divergence": record["divergences"][place],
            "version_cosines": list(record["cosines"]),
            "version_divergences": list(record["divergences"]),
        },
        rejected_images=images or None,
        rejected_videos=videos or None,
    )


def _encoded(media: Opened) -> tuple[tuple[bytes, ...], tuple[tuple[bytes, ...], ...]]:
    """Pictures, and videos as the frames that are seen."""
    pictures = tuple(png(item.image) for item in media["image"] if isinstance(item, Picture))
    clips = [item.frames for item in media["video"] if isinstance(item, Clip)]
    return pictures, tuple(tuple(png(frame) for frame in frames) for frames in clips)
