"""Public sets of rated clips that say in columns of their own what is preferred, seen through common columns.

- VideoFeedback: five scores of a clip, each 1 to 4; their mean is its score.
- VisionRewardDB-Video: answers to 64 yes-or-no questions; the share of yes among those that were asked, on
  the scale -1 to 1, is its score.
- VideoGen-RewardBench and its training format: A, B or same for each dimension; where no column says it for
  the whole, the majority of the dimensions does.
- VideoDPO: clips in `metadata.json`, pairs of their numbers in `pair.json`.

Source: TIGER-Lab/VideoFeedback and THUDM/VisionRewardDB-Video (cards), KwaiVGI/VideoAlign
`datasets/train/README.md`, CIntellifusion/VideoDPO `data/video_data.py`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data.records import ListRecords, Records
from mmalign.errors import ConfigError

__all__ = ["ComputedRecords", "is_videodpo", "read_videodpo", "with_common_columns"]

Compute = Callable[[Mapping[str, Any]], Any]


class ComputedRecords:
    """Records with columns that are made of others; those stay, too.

    Args:
        records: the records.
        computed: new column to (the columns it needs, how it is made of a record's values).
        note: what they are, for messages.
    """

    def __init__(
        self, records: Records, computed: Mapping[str, tuple[tuple[str, ...], Compute]], note: str
    ) -> None:
        self._records, self._computed = records, computed
        self.description, self.root = f"{records.description}, {note}", records.root
        self.columns = (*(name for name in records.columns if name not in computed), *computed)

    def __len__(self) -> int:
        return len(self._records)

    def column(self, name: str) -> NDArray[Any]:
        """All values of one column."""
        if name not in self._computed:
            return self._records.column(name)
        needed, compute = self._computed[name]
        columns = [self._records.column(one) for one in needed]
        found = np.empty(len(self), dtype=object)
        found[:] = [compute(dict(zip(needed, cells, strict=True))) for cells in zip(*columns, strict=True)]
        return found

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one record."""
        plain = [name for name in columns if name not in self._computed]
        needed = {one for name in columns if name in self._computed for one in self._computed[name][0]}
        values = self._records.read(number, list(dict.fromkeys([*plain, *sorted(needed)])))
        return {
            name: self._computed[name][1](values) if name in self._computed else values[name]
            for name in columns
        }

    def where(self, number: int) -> str:
        """`file:row` of a record."""
        return self._records.where(number)

    def heavy(self) -> frozenset[str]:
        """Columns whose values are large."""
        return self._records.heavy() - frozenset(self._computed)

    def holds_lists(self, name: str) -> bool:
        """Whether a column holds a list per record."""
        return name not in self._computed and self._records.holds_lists(name)


_FEEDBACK = (
    "visual quality",
    "temporal consistency",
    "dynamic degree",
    "text-to-video alignment",
    "factual consistency",
)
_DIMENSIONS = ("VQ", "MQ", "TA")


def with_common_columns(records: Records) -> Records:
    """The records with the columns prompt, video and score, or overall, where their own names are known."""
    columns = set(records.columns)
    if columns >= {"text prompt", "video link", *_FEEDBACK}:
        return ComputedRecords(
            records,
            {
                "prompt": (("text prompt",), lambda cells: cells["text prompt"]),
                "video": (("video link",), lambda cells: _file_name(cells["video link"])),
                "score": (_FEEDBACK, lambda cells: _mean([cells[name] for name in _FEEDBACK])),
            },
            "VideoFeedback",
        )
    if columns >= {"video_path", "prompt", "meta_result", "meta_mask"}:
        return ComputedRecords(
            records,
            {
                "video": (("video_path",), lambda cells: cells["video_path"]),
                "score": (("meta_result", "meta_mask"), _checklist_score),
            },
            "VisionRewardDB",
        )
    if columns >= {"path_A", "path_B", "prompt", *_DIMENSIONS} and not {"Overall", "overall"} & columns:
        return ComputedRecords(
            records, {"overall": (_DIMENSIONS, _overall)}, "A or B by the majority of VQ, MQ and TA"
        )
    return records


def _file_name(link: Any) -> Any:
    """The file that an address ends in: rows are never fetched, clips are downloaded with the set."""
    return PurePosixPath(link.partition("?")[0]).name if isinstance(link, str) and "://" in link else link


def _numbers(values: Sequence[Any]) -> list[float] | None:
    found = []
    for value in values:
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            return None
    return found


def _mean(values: Sequence[Any]) -> float | None:
    found = _numbers(values)
    return sum(found) / len(found) if found else None


def _checklist_score(cells: Mapping[str, Any]) -> float | None:
    """Mean of 1 (yes) and -1 (no) over the questions that were asked."""
    answers, asked = cells["meta_result"], cells["meta_mask"]
    if not isinstance(answers, list) or not isinstance(asked, list) or len(answers) != len(asked):
        return None
    return _mean(
        [1.0 if answer in (1, True) else -1.0 for answer, mask in zip(answers, asked, strict=True) if mask]
    )


def _overall(cells: Mapping[str, Any]) -> str | None:
    signs = {"a": 1, "b": -1, "same": 0}
    votes = [signs.get(str(cells[name]).strip().lower()) for name in _DIMENSIONS]
    if any(vote is None for vote in votes):
        return None
    total = sum(vote or 0 for vote in votes)
    return "A" if total > 0 else "B" if total < 0 else "same"


# ------------------------------------------------------------------------------------------------ VideoDPO

_SHORTEST = 1.0
"""Seconds: its loader drops shorter clips before it counts them, and the pairs name clips by that count."""


def is_videodpo(path: Path) -> bool:
    """Whether a folder, or the folder of a file, holds VideoDPO's two files."""
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.name == "pair.json"
    return named and (folder / "pair.json").is_file() and (folder / "metadata.json").is_file()


def read_videodpo(path: Path) -> ListRecords:
    """The pairs of a folder of VideoDPO: prompt, chosen, rejected, and the pair's score.

    Raises:
        ConfigError: one of the two files is no JSON list.
    """
    folder = path if path.is_dir() else path.parent
    clips = [_clip_path(item) for item in _json_list(folder / "metadata.json") if _long_enough(item)]
    records: list[dict[str, Any] | None] = []
    for pair in _json_list(folder / "pair.json"):
        if not isinstance(pair, dict):
            records.append(None)
            continue
        caption = pair.get("frame_caption")
        others = {
            key: value for key, value in pair.items() if key not in ("video1", "video2", "frame_caption")
        }
        records.append(
            {
                "prompt": caption[0] if isinstance(caption, list) and caption else caption,
                "chosen": _named(pair.get("video1"), clips),
                "rejected": _named(pair.get("video2"), clips),
                **others,
            }
        )
    return ListRecords(records, path=folder / "pair.json", description="VideoDPO pairs")


def _json_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: not valid JSON ({error})."
        raise ConfigError(message) from error
    if not isinstance(content, list):
        message = f"{path}: got a JSON {type(content).__name__}, expected a list."
        raise ConfigError(message)
    return content


def _basic(item: Any) -> Mapping[str, Any]:
    found = item.get("basic", item) if isinstance(item, dict) else {}
    return found if isinstance(found, dict) else {}


def _long_enough(item: Any) -> bool:
    length = _numbers([_basic(item).get("clip_duration")])
    return length is None or length[0] >= _SHORTEST


def _clip_path(item: Any) -> Any:
    return _basic(item).get("clip_path")


def _named(clip: Any, clips: Sequence[Any]) -> Any:
    """The path of a clip, given by its number or its path; None where there is no such number."""
    if isinstance(clip, int) and not isinstance(clip, bool):
        return clips[clip] if 0 <= clip < len(clips) else None
    return clip
