"""Pairs that lie in folders: two matched folders, and kohya's `N_name/w`, `N_name/l`.

Files are matched by their name without ending. Captions stand in `NAME.txt` beside the file or in a
`captions` folder, or in `metadata.jsonl` / `metadata.csv` with a `file_name` column.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmalign.data.kinds import AUDIO_ENDINGS, VIDEO_ENDINGS
from mmalign.data.records import JsonLinesRecords, ListRecords, read_csv
from mmalign.data.video_stills import FRAME_ENDINGS
from mmalign.errors import ConfigError

__all__ = ["is_kohya", "is_matched", "read_kohya", "read_matched"]

_MEDIA_ENDINGS = (
    AUDIO_ENDINGS
    | VIDEO_ENDINGS
    | {
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".avif",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".jp2",
    }
)
_CHOSEN = ("chosen", "win", "winner", "w", "preferred", "good", "positive")
_REJECTED = ("rejected", "lose", "loser", "l", "dispreferred", "bad", "negative")
_KOHYA = re.compile(r"(\d+)_.+")


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def is_matched(folder: Path) -> bool:
    """Whether a folder holds a folder of chosen and one of rejected files."""
    return _child(folder, _CHOSEN) is not None and _child(folder, _REJECTED) is not None


def _kohya_folders(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for child in sorted(folder.iterdir()):
        match = _KOHYA.fullmatch(child.name)
        if match and child.is_dir() and is_matched(child):
            found.append((int(match[1]), child))
    return found


def is_kohya(folder: Path) -> bool:
    """Whether a folder holds `N_name` folders with w/ and l/ inside."""
    return bool(_kohya_folders(folder))


def _files(folder: Path, *, frames: bool) -> dict[str, Path]:
    """Name without ending to file, over the whole tree below a folder.

    Args:
        folder: where to look.
        frames: whether images are frames, and the folders they lie in the clips.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        ending = path.suffix.lower()
        if frames and ending in FRAME_ENDINGS and path.parent != folder:
            found[str(path.parent.relative_to(folder))] = path.parent
        elif ending in _MEDIA_ENDINGS:
            key = str(path.relative_to(folder).with_suffix(""))
            if key in found:
                message = (
                    f"{folder}: {found[key].name} and {path.name} differ only in their endings, so neither "
                    "can be "
                    "matched by name. Remove one of them."
                )
                raise ConfigError(message)
            found[key] = path
    return found


def _metadata(folder: Path) -> dict[str, str]:
    """Captions by file name without ending, from metadata.jsonl or metadata.csv if there is one."""
    for name in ("metadata.jsonl", "metadata.csv"):
        path = folder / name
        if not path.is_file():
            continue
        records = JsonLinesRecords(path) if name.endswith("jsonl") else read_csv(path, delimiter=",")
        caption = next((c for c in ("caption", "prompt", "text") if c in records.columns), None)
        if "file_name" not in records.columns or caption is None:
            message = (
                f"{path}: got columns {list(records.columns)}, expected file_name and caption (or prompt, "
                "text)."
            )
            raise ConfigError(message)
        names, captions = records.column("file_name"), records.column(caption)
        return {
            os.path.splitext(str(file))[0]: text
            for file, text in zip(names, captions, strict=True)
            if file is not None and text is not None
        }
    return {}


def _caption(key: str, places: tuple[Path, ...]) -> str | None:
    for place in places:
        path = place / f"{key}.txt"
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace").strip()
    return None


def _pairs(folder: Path, root: Path, *, frames: bool) -> Iterator[dict[str, Any]]:
    """One record per file name found on either side; a side without partner has None."""
    chosen, rejected = _child(folder, _CHOSEN), _child(folder, _REJECTED)
    if chosen is None or rejected is None:
        message = (
            f"{folder}: expected two folders with equal file names, named chosen and rejected "
            f"(or {'/'.join(_CHOSEN[1:])} and {'/'.join(_REJECTED[1:])}); found "
            f"{sorted(p.name for p in folder.iterdir())[:12]}."
        )
        raise ConfigError(message)
    better, worse = _files(chosen, frames=frames), _files(rejected, frames=frames)
    if not better.keys() & worse.keys():
        message = (
            f"{folder}: no file name is in both {chosen.name}/ ({len(better)} files) and {rejected.name}/ "
            f"({len(worse)} files). The two files of a pair need the same name, for example "
            "chosen/cat.png and "
            "rejected/cat.jpg."
        )
        raise ConfigError(message)
    captions = _metadata(folder)
    places = (folder / "captions", chosen, rejected, folder)
    for key in sorted(better.keys() | worse.keys()):
        # Paths stay relative: they are resolved, and kept inside the folder, like those of any other row.
        yield {
            "id": key,
            "prompt": captions.get(key, captions.get(f"{chosen.name}/{key}")) or _caption(key, places),
            "chosen": str(better[key].relative_to(root)) if key in better else None,
            "rejected": str(worse[key].relative_to(root)) if key in worse else None,
        }


def read_matched(folder: Path, *, frames: bool = False) -> ListRecords:
    """Records of two matched folders.

    Args:
        folder: the one that holds them.
        frames: whether folders of images inside are clips.

    Raises:
        ConfigError: a side is missing, or no names match.
    """
    records = list(_pairs(folder, folder, frames=frames))
    places = [str(record["id"]) for record in records]
    return ListRecords(records, path=folder, description="two matched folders", places=places)


def read_kohya(folder: Path, *, frames: bool = False) -> ListRecords:
    """Records of kohya's preference layout; a folder `N_name` counts N times per epoch, as there.

    Args:
        folder: the one that holds them.
        frames: whether folders of images inside are clips.

    Raises:
        ConfigError: there is no such folder inside.
    """
    records: list[dict[str, Any]] = []
    places: list[str] = []
    for repeats, child in _kohya_folders(folder):
        pairs = list(_pairs(child, folder, frames=frames))
        for _ in range(repeats):
            records.extend(pairs)
            places.extend(f"{child.name}/{record['id']}" for record in pairs)
    if not records:
        message = f"{folder}: expected folders named N_name with w/ and l/ inside, found none."
        raise ConfigError(message)
    return ListRecords(records, path=folder, description="kohya folders", places=places)
