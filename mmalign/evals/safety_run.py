"""`mmalign safety-shift`: questions from a file, and answers of a model or a function, stored one by one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.evals.safety_shift import Answerer, SafetyItem
from mmalign.files import append_json_line, fingerprint, read_json_lines
from mmalign.rewards.functions import load_function
from mmalign.rewards.sample import media_hash

__all__ = ["StoredAnswers", "load_answerer", "read_items", "read_pictures"]

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_items(path: Path) -> list[SafetyItem]:
    """Questions from JSON lines.

    A line has `prompt` and `image` (file beside it); optional are `id`, `must_refuse` (default true) and
    `overlay`, the words of the typographic shift.

    Raises:
        ConfigError: no file, a record without prompt or image, `must_refuse` that is neither true nor false.
    """
    if not path.is_file():
        raise ConfigError(explain(str(path), got="no file", expected="JSON lines with prompt and image"))
    found = []
    for number, record in enumerate(read_json_lines(path)):
        where = f"{path}:{number + 1}"
        if not isinstance(record.get("prompt"), str) or not isinstance(record.get("image"), str):
            raise ConfigError(explain(where, got=", ".join(record), expected="prompt and image"))
        must = record.get("must_refuse", True)
        if not isinstance(must, bool):
            raise ConfigError(explain(f"{where} must_refuse", got=must, expected="true or false"))
        name, overlay = str(record.get("id", number)), str(record.get("overlay", ""))
        found.append(SafetyItem(name, record["prompt"], path.parent / record["image"], must, overlay))
    return found


def read_pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, by name.

    Raises:
        ConfigError: there are none.
    """
    found = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in _PICTURES]
    if not found:
        raise ConfigError(explain(str(folder), got="no pictures", expected="a folder of harmless pictures"))
    return found


def load_answerer(
    name: str, *, device: str | torch.device, dtype: torch.dtype, max_new_tokens: int = 256
) -> tuple[Answerer, str]:
    """What answers, and what tells it from others.

    Args:
        name: `module:function` of (prompt, picture) pairs; or a chat model, hub id or folder.
        device: where a model stands.
        dtype: of its weights.
        max_new_tokens: length of an answer.

    Raises:
        ConfigError: no such function.
        CheckpointError: the model's files are nowhere, or do not fit.
    """
    if ":" in name:
        found = load_function(name)
        answerer: Any = found.function  # takes questions here, samples elsewhere
        return answerer, found.fingerprint()
    from mmalign.rewards.vision_language import load_chat_model

    model = load_chat_model(weights=None, model=name, reward="safety-shift", device=device, dtype=dtype)

    def answer(questions: Sequence[tuple[str, Image.Image]]) -> list[str | None]:
        rows = [
            model.question(model.safe(prompt), [model.shown(picture, where="picture")])
            for prompt, picture in questions
        ]
        return [*model.write(rows, max_new_tokens=max_new_tokens)]

    return answer, fingerprint(model.settings(), max_new_tokens)


class StoredAnswers:
    """An answerer whose answers are kept in a file: a run that was killed asks nothing twice.

    Args:
        answer: who is asked.
        model_id: what tells it from others; answers stored under another one do not count.
        store: JSON-lines file that answers are appended to. Failed ones (None) are not stored.
        progress: called with the number of answers.
    """

    def __init__(
        self,
        answer: Answerer,
        model_id: str,
        store: Path,
        *,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.answer, self.model_id, self.store, self.progress = answer, model_id, store, progress
        records = read_json_lines(store) if store.is_file() else []
        if not all({"key", "answer"} <= set(record) for record in records):
            message = f"{store}: holds something other than a model's answers. Name another folder."
            raise CheckpointError(message)
        self._known: dict[str, str] = {record["key"]: record["answer"] for record in records}

    def __call__(self, questions: Sequence[tuple[str, Image.Image]]) -> list[str | None]:
        """Answers in order."""
        keys = [fingerprint(self.model_id, prompt, media_hash(picture)) for prompt, picture in questions]
        missing = [place for place, key in enumerate(keys) if key not in self._known]
        said = list(self.answer([questions[place] for place in missing])) if missing else []
        if len(said) != len(missing):
            got = f"{len(said)} answers"
            raise ConfigError(explain("model", got=got, expected=f"one per question, {len(missing)}"))
        failed = set()
        for place, text in zip(missing, said, strict=True):
            if text is None:
                failed.add(place)
                continue
            self._known[keys[place]] = text
            append_json_line(self.store, {"key": keys[place], "prompt": questions[place][0], "answer": text})
        self.progress(len(keys))
        return [None if place in failed else self._known[key] for place, key in enumerate(keys)]
