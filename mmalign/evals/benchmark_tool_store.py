"""What tools say of pictures, kept: a benchmark that was stopped asks no tool twice.

The key of an entry is what was asked (picture by its content, question, objects) and what the tool says of
itself (weights, preprocessing). Tools that do not say what they are, such as functions, are asked every time.
Processes share the work by filling the store, each with its part; the report then reads all of it.
"""

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from torch import float64, tensor

from mmalign.errors import CheckpointError, RowError
from mmalign.evals.detectors import Detection, Detector
from mmalign.evals.scoring import Picture, score_key, score_missing, scores_table, unscored
from mmalign.evals.store import PartTable
from mmalign.rewards.base import Reward, Scored
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample, media_hash

__all__ = ["StoredDetector", "StoredReward", "StoredTool", "ToolStore", "tool_key"]

_ASKED = ("vqa", "yes", "similarity", "colours")
"""Tools that are functions of a picture and of what is asked about it."""


class ToolStore:
    """Entries of all tools under one folder; leaving the block writes what is new.

    Args:
        folder: the store of pictures, answers and scores.
        ask: False for a report of what is stored: what lacks is an error, not asked.
    """

    def __init__(self, folder: Path, *, ask: bool = True) -> None:
        self.folder, self.ask = folder, ask
        columns = {"key": "string", "tool": "string", "value": "string"}
        table = PartTable(folder / "tools", columns, key=("key",))
        self._known: dict[str, str] = {row["key"]: row["value"] for row in table.read(("key", "value"))}
        self._writer = table.writer(rows=256, seconds=30.0)

    def __enter__(self) -> "ToolStore":
        """The store itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the rest, also after an error: what a tool said is kept."""
        self._writer.flush()

    def wrap(self, name: str, tool: Any) -> Any:
        """The tool with the store in front of it; itself where nothing says what it is.

        Args:
            name: as benchmarks list it.
            tool: loaded.
        """
        if not callable(getattr(tool, "provenance", None)):
            return tool
        if name == "detector":
            return StoredDetector(tool, self)
        if callable(getattr(tool, "stored", None)):  # what looks at clips knows best how to be kept
            return tool.stored(name, self)
        if isinstance(tool, Reward):
            return StoredReward(tool, self.folder, ask=self.ask)
        if callable(getattr(tool, "hear", None)):
            from mmalign.evals.audio.stored import StoredListener

            return StoredListener(name, tool, self)
        return StoredTool(name, tool, self) if name in _ASKED else tool

    def holds(self, key: str) -> bool:
        """Whether the value of a key is stored."""
        return key in self._known

    def values(self, tool: str, keys: Sequence[str], ask: Callable[[list[int]], Iterable[Any]]) -> list[Any]:
        """JSON values of some keys.

        Args:
            tool: its name, for messages and for people who look into the table.
            keys: of what is wanted.
            ask: places of what is not stored to their values.

        Raises:
            CheckpointError: something is not stored, and this is a report of what is.
        """
        lacking = [place for place, key in enumerate(keys) if key not in self._known]
        if lacking and not self.ask:
            message = f"{tool}: {len(lacking)} of {len(keys)} are not there yet. Run --stage score first."
            raise CheckpointError(message)
        if lacking:
            fresh = {
                keys[place]: json.dumps(value) for place, value in zip(lacking, ask(lacking), strict=True)
            }
            self._known |= fresh
            self._writer.add({"key": key, "tool": tool, "value": text} for key, text in fresh.items())
        return [json.loads(self._known[key]) for key in keys]


def tool_key(name: str, provenance: Mapping[str, Any], *parts: Any) -> str:
    """Hexadecimal hash of what was asked of which tool, with all that moves its answers.

    Args:
        name: of the tool.
        provenance: what the tool says of itself.
        parts: what was asked.
    """
    text = json.dumps([name, provenance, parts], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    """What was asked as JSON values: texts, and objects that were found."""
    if isinstance(value, Detection):
        return _written(value)
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _written(found: Detection) -> list[Any]:
    """An object as JSON: label, score, box, and its mask packed, with the size it has."""
    mask = None
    if found.mask is not None:
        packed = zlib.compress(np.packbits(found.mask).tobytes())
        mask = [*found.mask.shape, base64.b64encode(packed).decode("ascii")]
    return [found.label, float(found.score), [float(edge) for edge in found.box], mask]


def _read(entry: Sequence[Any]) -> Detection:
    label, score, (left, top, right, bottom), stored = entry
    mask = None
    if stored is not None:
        height, width, text = stored
        bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
        mask = np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)
    return Detection(label, score, (left, top, right, bottom), mask)


class StoredTool:
    """A function of a picture that is asked the same thing once.

    Args:
        kind: name of the tool, as benchmarks list it.
        tool: called with a picture and what is asked; answers in JSON values.
        store: of its answers.
    """

    def __init__(self, kind: str, tool: Any, store: ToolStore) -> None:
        self.name = str(getattr(tool, "name", kind))
        self._kind, self._tool, self._store = kind, tool, store
        self._provenance = dict(tool.provenance())

    def provenance(self) -> Mapping[str, Any]:
        """The tool's own."""
        return self._provenance

    def __call__(self, picture: Image.Image, *asked: Any) -> Any:
        """What the tool says."""
        key = tool_key(self._kind, self._provenance, media_hash(picture), _plain(asked))
        (value,) = self._store.values(self._kind, [key], lambda _: [self._tool(picture, *asked)])
        return value


class StoredDetector:
    """A detector that looks at every picture once.

    Args:
        detector: what looks.
        store: of what it found.
    """

    def __init__(self, detector: Detector, store: ToolStore) -> None:
        self.name, self.labels = detector.name, detector.labels
        self.calibrated_for = detector.calibrated_for
        self._detector, self._store = detector, store
        self._provenance = dict(detector.provenance())

    def provenance(self) -> Mapping[str, Any]:
        """The detector's own."""
        return self._provenance

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Objects of each picture."""
        keys = [tool_key("detector", self._provenance, media_hash(image)) for image in images]

        def look(places: list[int]) -> Iterable[Any]:
            found = self._detector.detect([images[place] for place in places])
            return [[_written(one) for one in of_picture] for of_picture in found]

        entries = self._store.values("detector", keys, look)
        return [[_read(entry) for entry in of_picture] for of_picture in entries]


class StoredReward:
    """A reward whose scores lie with those of `mmalign eval`: what was scored there is not scored again.

    Args:
        reward: what scores pictures.
        folder: store of scores.
        ask: False where what is not stored is an error.
    """

    def __init__(self, reward: Reward, folder: Path, *, ask: bool = True) -> None:
        self._reward, self._folder, self._ask = reward, folder, ask

    @property
    def card(self) -> Card:
        """The reward's own."""
        return self._reward.card

    def fingerprint(self) -> str:
        """The reward's own."""
        return self._reward.fingerprint()

    def provenance(self) -> Mapping[str, Any]:
        """The reward's own."""
        return self._reward.provenance()

    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        """Values of the samples; those of pictures, clips and sounds that are files are stored.

        Raises:
            CheckpointError: a score is not there, and this is a report of what is.
        """
        media = [_media_of(sample) for sample in samples]
        files = [one for one in media if isinstance(one, str | Path)]
        if len(files) < len(samples) or any(sample.extras for sample in samples):
            return self._reward.score(samples, batch_size=batch_size)
        found = [
            _picture(place, one.prompt, file)
            for place, (one, file) in enumerate(zip(samples, files, strict=True))
        ]
        readable = [picture for picture in found if isinstance(picture, Picture)]
        fingerprint, needs = self.fingerprint(), self.card.needs
        if not self._ask and (lacking := unscored(readable, needs, fingerprint, self._folder)):
            message = (
                f"reward {self.card.name}: {lacking} samples are not scored yet. Run --stage score first."
            )
            raise CheckpointError(message)
        score_missing(self._reward, readable, self._folder, batch_size=batch_size)
        keys = [score_key(one, needs, fingerprint) if isinstance(one, Picture) else None for one in found]
        stored = self._stored(set(keys))
        outputs = self.card.outputs
        values = [
            [math.nan if key is None else stored[key, name]["value"] for name in outputs] for key in keys
        ]
        # What is not the value of an output is the same in every row of a key.
        first = [None if key is None else stored[key, outputs[0]] for key in keys]
        return Scored(
            values=tensor(values, dtype=float64).reshape(len(keys), len(outputs)),
            outputs=outputs,
            errors=tuple(
                row["error"] if row is not None else str(one) for row, one in zip(first, found, strict=True)
            ),
            truncated=tuple(row is not None and row["truncated"] for row in first),
            raw=tuple(None if row is None else row["raw"] for row in first),
        )

    def _stored(self, keys: Container[str | None]) -> dict[tuple[str, str], dict[str, Any]]:
        """Rows by key and output."""
        rows = scores_table(self._folder).read(("value", "error", "truncated", "raw"))
        return {(row["key"], row["output"]): row for row in rows if row["key"] in keys}


def _media_of(sample: Sample) -> Any:
    """The picture, clip or sound of a sample."""
    given = (sample.image, sample.audio, sample.video)
    return next((media for media in given if media is not None), None)


def _picture(place: int, prompt: str, file: str | Path) -> Picture | str:
    """What the store of scores reads; why not, where the file cannot be read."""
    try:
        return Picture(str(place), prompt, Path(file), media_hash(file))
    except RowError as error:
        return str(error)
