"""Writing dialogues for other frameworks: TRL, ms-swift, LLaMA-Factory; media lie in files beside the rows.

trl-jsonl       metadata.jsonl and images/: `load_dataset("imagefolder", data_dir=OUT)` gives decoded images
ms-swift        rows.jsonl with paths from OUT: ROOT_IMAGE_DIR=OUT swift rlhf --dataset OUT/rows.jsonl
llama-factory   rows.json and dataset_info.json: dataset_dir: OUT, dataset: preferences
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from mmalign.batch import Candidate, Media, Message, PreferenceRow
from mmalign.data.dialogues.media import video_frames
from mmalign.data.media import image_ending, read_media
from mmalign.errors import ConfigError, explain

__all__ = ["DialogueTarget", "is_dialogue_target", "write_dialogues"]

DialogueTarget = Literal["trl-jsonl", "ms-swift", "llama-factory"]

_MAX_BYTES = 2**40
"""Media were checked when they were read; copying has no limit of its own."""

_KINDS = ("pairs", "unpaired", "chosen")


def is_dialogue_target(name: str) -> bool:
    """Whether a layout is one for dialogues."""
    return name in get_args(DialogueTarget)


def write_dialogues(folder: Path, rows: Iterator[PreferenceRow], to: DialogueTarget) -> None:
    """Write rows and their media into a folder.

    Args:
        folder: where; it exists.
        rows: dialogues of kind pairs, unpaired or chosen.
        to: the framework.

    Raises:
        ConfigError: the framework cannot say what a row holds (videos or images of one side for TRL, soft
            labels, a system turn in the middle).
    """
    records = (_RECORDS[to](_Files(folder, number), row) for number, row in enumerate(_checked(rows)))
    if to == "llama-factory":
        listed = list(records)
        (folder / "rows.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1), encoding="utf-8")
        info = {"preferences": _llama_factory_info(listed)}
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        return
    name = "metadata.jsonl" if to == "trl-jsonl" else "rows.jsonl"
    with (folder / name).open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _checked(rows: Iterator[PreferenceRow]) -> Iterator[PreferenceRow]:
    for row in rows:
        if row.kind not in _KINDS or not row.messages:
            raise _refused(row, f"a row of kind {row.kind}" if row.messages else "a row without a dialogue")
        if row.kind == "pairs" and row.preference != 1.0:
            raise _refused(row, f"preference {row.preference:g}", do="Use --ties drop or random.")
        yield row


def _refused(row: PreferenceRow, got: str, *, do: str = "") -> ConfigError:
    expected = "dialogues with a preferred answer, a thumb or one answer to follow"
    return ConfigError(explain(f"data convert {row.source}", got=f"[{got}]", expected=expected, do=do))


class _Files:
    """Copies the media of one row; names say row and place."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number

    def images(self, media: tuple[bytes | str, ...], side: str = "") -> list[str]:
        """Paths from the folder."""
        return [
            self._image(value, f"images/{self.number:07d}{side}_{place}") for place, value in enumerate(media)
        ]

    def _image(self, value: bytes | str, stem: str) -> str:
        data = read_media(value, where=stem, max_bytes=_MAX_BYTES)
        name = stem + image_ending(data)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)
        return name

    def videos(self, media: tuple[Media, ...], side: str = "") -> list[Any]:
        """Paths of files, or lists of paths of frames."""
        found: list[Any] = []
        for place, value in enumerate(media):
            stem = f"videos/{self.number:07d}{side}_{place}"
            frames = video_frames(value, where=stem)
            if frames:
                found.append([self._image(frame, f"{stem}/{i:05d}") for i, frame in enumerate(frames)])
                continue
            ending = ".mp4" if isinstance(value, bytes) else Path(str(value)).suffix
            (self.folder / "videos").mkdir(exist_ok=True)
            target = self.folder / f"{stem}{ending}"
            if isinstance(value, bytes):
                target.write_bytes(value)
            else:
                shutil.copyfile(str(value), target)
            found.append(f"{stem}{ending}")
        return found


def _numbers(row: PreferenceRow) -> dict[str, Any]:
    """What else a row says, under names that reading recognises."""
    found: dict[str, Any] = {"id": row.id} | ({} if row.weight == 1.0 else {"weight": row.weight})
    if row.kind == "pairs":
        for side, candidate in zip(("chosen", "rejected"), row.candidates, strict=True):
            found |= {} if candidate.reward is None else {f"score_{side}": candidate.reward}
    return found


def _answer(candidate: Candidate) -> str:
    return candidate.text or ""


def _trl(files: _Files, row: PreferenceRow) -> dict[str, Any]:
    """Conversational columns; `images_file_names` becomes `images` when the folder is loaded."""
    if row.videos or any(candidate.images or candidate.videos for candidate in row.candidates):
        raise _refused(
            row, "videos, or media of one side, which TRL's rows cannot hold", do="Use --to ms-swift."
        )

    def message(role: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"role": role, "content": items}]

    def words(candidate: Candidate) -> list[dict[str, Any]]:
        return message("assistant", [{"type": "text", "text": _answer(candidate)}])

    prompt = [
        {
            "role": turn.role,
            "content": [
                {"type": item.type, "text": item.text if item.type == "text" else None}
                for item in turn.content
            ],
        }
        for turn in row.messages
    ]
    record: dict[str, Any] = {"images_file_names": files.images(row.images), "prompt": prompt}
    if row.kind == "pairs":
        record |= {"chosen": words(row.candidates[0]), "rejected": words(row.candidates[1])}
    else:
        record["completion"] = words(row.candidates[0])
        record |= {"label": row.desirable} if row.kind == "unpaired" else {}
    return record | _numbers(row)


def _tagged(turn: Message) -> str:
    """A turn as text with tags."""
    return "".join(item.text if item.type == "text" else f"<{item.type}>" for item in turn.content)


def _ms_swift(files: _Files, row: PreferenceRow) -> dict[str, Any]:
    """Messages that end with the preferred answer, the rejected one beside them."""
    messages = [{"role": turn.role, "content": _tagged(turn)} for turn in row.messages]
    messages.append({"role": "assistant", "content": _answer(row.candidates[0])})
    record: dict[str, Any] = {"messages": messages} | _media(files, row)
    if row.kind == "pairs":
        rejected = row.candidates[1]
        record["rejected_response"] = _answer(rejected)
        if rejected.images is not None:
            record["rejected_images"] = files.images(rejected.images, "_rejected")
        if rejected.videos is not None or row.candidates[0].images is not None:
            raise _refused(row, "videos of the rejected answer or images of the chosen one")
    elif row.kind == "unpaired":
        record["label"] = row.desirable
    return record | _numbers(row)


def _media(files: _Files, row: PreferenceRow) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if row.images:
        found["images"] = files.images(row.images)
    if row.videos:
        found["videos"] = files.videos(row.videos)
    return found


_FROM = {"user": "human", "assistant": "gpt"}


def _llama_factory(files: _Files, row: PreferenceRow) -> dict[str, Any]:
    """The sharegpt form: turns of human and gpt in alternation, the system's words in a column."""
    if any(candidate.images or candidate.videos for candidate in row.candidates):
        raise _refused(
            row, "media of one side, which LLaMA-Factory's rows cannot hold", do="Use --to ms-swift."
        )
    system = [turn for turn in row.messages if turn.role == "system"]
    turns = [turn for turn in row.messages if turn.role != "system"]
    if system and row.messages[0].role != "system":
        raise _refused(row, "a system turn in the middle")
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(turns)):
        raise _refused(row, "turns that do not alternate, which LLaMA-Factory leaves out")
    said = [{"from": _FROM[turn.role], "value": _tagged(turn)} for turn in turns]
    answers = [{"from": "gpt", "value": _answer(candidate)} for candidate in row.candidates]
    record: dict[str, Any] = {"conversations": said, "system": "".join(_tagged(turn) for turn in system)}
    if row.kind == "pairs":
        record |= {"chosen": answers[0], "rejected": answers[1]}
    else:
        said.append(answers[0])
        record |= {"kto_tag": row.desirable} if row.kind == "unpaired" else {}
    # Every record has every column that any of them may have: the framework looks columns up by name.
    return record | {"images": files.images(row.images), "videos": files.videos(row.videos)} | _numbers(row)


def _llama_factory_info(records: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {"messages": "conversations", "system": "system"}
    columns |= {name: name for name in ("images", "videos") if any(record[name] for record in records)}
    first: Mapping[str, Any] = records[0] if records else {}
    columns |= {name: name for name in ("chosen", "rejected", "kto_tag") if name in first}
    entry: dict[str, Any] = {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns}
    return entry | {"ranking": True} if "rejected" in columns else entry


_RECORDS = {"trl-jsonl": _trl, "ms-swift": _ms_swift, "llama-factory": _llama_factory}
