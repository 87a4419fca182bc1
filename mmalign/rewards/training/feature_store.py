"""Features on disk: safetensors shards keyed by content, so that nothing is embedded twice.

A store belongs to one backbone: its folder is named by the hash of everything that can change a feature. A
shard holds `keys` (SHA-256 of the content, 32 bytes a row) and `values` (float32). Shards appear whole or not
at all; a run that is killed keeps what it has written.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.errors import CheckpointError, RowError, explain
from mmalign.files import load_tensors, save_tensors, write_json
from mmalign.rewards.base import Prepared
from mmalign.rewards.sample import Sample, media_hash
from mmalign.rewards.training.backbones import Backbone
from mmalign.rewards.vision_language import sample_media

__all__ = ["FeatureStore", "item_key", "text_key"]

Kind = Literal["items", "texts"]

_SHARD = 4096
_Thing = TypeVar("_Thing")


def text_key(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def item_key(sample: Sample, *, with_prompt: bool) -> bytes:
    """SHA-256 of what is judged: the picture or the frames, with the prompt where features have read it.

    Raises:
        RowError: nothing is there, or a file cannot be read.
    """
    media = sample_media(sample)
    if media is None:
        message = explain("features", got="[a sample without image]", expected="Sample.image")
        raise RowError(message, reason="missing_image")
    alone = isinstance(media, (str, bytes)) or not isinstance(media, Sequence)
    frames: Sequence[Any] = [media] if alone else list(media)  # type: ignore[arg-type]
    parts = [media_hash(frame) for frame in frames]
    if with_prompt:
        parts.append(text_key(sample.prompt).hex())
    return hashlib.sha256("\0".join(parts).encode()).digest()


class FeatureStore:
    """Features of one backbone, in memory and, with a folder, on disk.

    Args:
        backbone: what makes them.
        folder: of all stores; this one's is named by the backbone's hash. None keeps them in memory alone.
        batch_size: samples per call of the backbone.
        say: is told how far it is.

    Raises:
        CheckpointError: a shard that is damaged, or holds features of another width.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        folder: str | Path | None = None,
        batch_size: int = 32,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.backbone, self.batch_size, self._say = backbone, batch_size, say
        settings = json.dumps(dict(backbone.settings()), sort_keys=True, ensure_ascii=False)
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()
        self.folder = None if folder is None else Path(folder) / self.fingerprint[:16]
        self._known: dict[Kind, dict[bytes, Tensor]] = {"items": {}, "texts": {}}
        self._fresh: dict[Kind, dict[bytes, Tensor]] = {"items": {}, "texts": {}}
        self.computed = 0
        if self.folder is not None:
            write_json(self.folder / "backbone.json", dict(backbone.settings()))
            for kind in self._known:
                self._read(kind)

    def _read(self, kind: Kind) -> None:
        width = self._width(kind)
        for path in sorted((self.folder or Path()).glob(f"{kind}-*.safetensors")):
            shard = load_tensors(path)
            keys, values = shard.get("keys"), shard.get("values")
            if keys is None or values is None or len(keys) != len(values) or values.shape[1] != width:
                expected = f"keys and values of width {width}"
                do = "Delete it: it is made again."
                got = f"[{', '.join(sorted(shard)) or 'nothing'}]"
                raise CheckpointError(explain(str(path), got=got, expected=expected, do=do))
            rows = keys.numpy()
            self._known[kind] |= {rows[place].tobytes(): values[place] for place in range(len(rows))}

    # ------------------------------------------------------------------------------------------- asking

    def items(
        self, samples: Sequence[Sample], *, errors: dict[int, RowError] | None = None
    ) -> list[bytes | None]:
        """Embed what the samples show, unless it is known. Returns the key of each, for `table`.

        Args:
            samples: any number; equal content is embedded once.
            errors: receives the failures by place, whose key is then None; None raises the first.

        Raises:
            RowError: a sample cannot be used and `errors` is None.
        """
        joint = self.backbone.prompt_width == 0
        return self._add(
            "items",
            samples,
            lambda sample: item_key(sample, with_prompt=joint),
            self.backbone.prepare,
            self.backbone.items,
            errors,
        )

    def texts(self, texts: Sequence[str]) -> list[bytes | None]:
        """Embed prompts or contexts, unless they are known. Returns the key of each."""
        return self._add("texts", texts, text_key, self.backbone.prepare_text, self.backbone.texts, None)

    def table(
        self, kind: Kind, keys: Sequence[bytes | None]
    ) -> tuple[Float[Tensor, "thing width"], Int[Tensor, " key"]]:
        """Features of keys: a row per different one, and the row of every key (-1 for None)."""
        rows: dict[bytes, int] = {}
        places = [-1 if key is None else rows.setdefault(key, len(rows)) for key in keys]
        known = self._known[kind]
        empty = torch.empty(0, self._width(kind))
        found = torch.stack([known[key] for key in rows]) if rows else empty
        return found, torch.tensor(places, dtype=torch.int64)

    @torch.no_grad()
    def _add(
        self,
        kind: Kind,
        things: Sequence[_Thing],
        key_of: Callable[[_Thing], bytes],
        prepare: Callable[[_Thing], Prepared],
        embed: Callable[[Sequence[Prepared]], Tensor],
        errors: dict[int, RowError] | None,
    ) -> list[bytes | None]:
        known, waiting = self._known[kind], dict[bytes, Prepared]()
        keys: list[bytes | None] = []
        for place, thing in enumerate(things):
            try:
                key = key_of(thing)
                if key not in known and key not in waiting:
                    waiting[key] = prepare(thing)
            except RowError as error:
                if errors is None:
                    raise
                errors[place] = error
                keys.append(None)
                continue
            keys.append(key)
            if len(waiting) >= self.batch_size:
                self._embed(kind, waiting, embed)
        self._embed(kind, waiting, embed)
        return keys

    def flush(self) -> None:
        """Write what is not on disk yet."""
        for kind in self._known:
            self._write(kind)

    def _width(self, kind: Kind) -> int:
        return self.backbone.item_width if kind == "items" else self.backbone.context_width

    def _embed(
        self, kind: Kind, waiting: dict[bytes, Prepared], embed: Callable[[Sequence[Prepared]], Tensor]
    ) -> None:
        if not waiting:
            return
        found = embed(list(waiting.values())).float().cpu()
        fresh = dict(zip(waiting, found.unbind(), strict=True))
        self._known[kind] |= fresh
        self._fresh[kind] |= fresh
        self.computed += len(fresh)
        waiting.clear()
        if len(self._fresh[kind]) >= _SHARD:
            self._write(kind)
            if self._say is not None:
                self._say(f"features: {self.computed:,} embedded")

    def _write(self, kind: Kind) -> None:
        """Put what is new into a shard of its own, named by its content: writers do not collide."""
        fresh = self._fresh[kind]
        if self.folder is None or not fresh:
            return
        keys = torch.frombuffer(bytearray(b"".join(fresh)), dtype=torch.uint8).reshape(len(fresh), 32)
        name = hashlib.sha256(b"".join(sorted(fresh))).hexdigest()[:16]
        values = torch.stack(list(fresh.values()))
        save_tensors(self.folder / f"{kind}-{name}.safetensors", {"keys": keys, "values": values})
        fresh.clear()
