"""Encoded inputs on disk: VAE moments per image, text states per unique prompt.

Mean and standard deviation are stored, not a sample, so that training with the cache draws the same latents
as training without it; a flip is another image to a VAE and has its own entry. Entries are found by content:
the hash of an image's bytes and of everything done to it. A folder belongs to one VAE and one set of text
encoders and says so.

Shards are safetensors files, written whole or not at all and read memory-mapped: killing the builder loses at
most the shard it was filling, and running it again goes on.
"""

import contextlib
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.data.cache_index import KeyIndex, KeySet, shard_keys
from mmalign.errors import ConfigError, RowError, TrainingError
from mmalign.files import read_json, save_tensors, write_json

__all__ = ["CacheIdentity", "CacheWriter", "CandidateLoader", "LatentCache"]

HEADER = "cache.json"
_MORE = "more."
_FORMAT = 1
_LEFTOVER_SECONDS = 3600.0
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class CacheIdentity:
    """What must agree between a cache and the run that uses it.

    Args:
        vae: fingerprint of the VAE, its dtype included.
        text: fingerprint of the text encoders.
        resolution: pixels of the square crop; 0 where there are no pictures.
        resize: rule between file and crop.
        dtype: of the stored moments.
        audio: rule between a sound file and what the VAE encodes, with its settings; empty for others.
        video: the same of clips.
    """

    vae: str
    text: str
    resolution: int = 0
    resize: str = ""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    audio: str = ""
    video: str = ""

    @property
    def medium(self) -> Literal["images", "clips"]:
        """What is encoded."""
        return "clips" if self.audio or self.video else "images"

    def described(self) -> dict[str, Any]:
        """The fields that say something: caches of pictures keep the description they always had."""
        newer = ("audio", "video")
        return {name: value for name, value in asdict(self).items() if name not in newer or value}


@runtime_checkable
class CandidateLoader(Protocol):
    """How the media of a row are read, named and decoded (`diffusion.images.ImageLoader`)."""

    def encoded(self, row: PreferenceRow) -> list[Any]:
        """Encoded bytes of each candidate, or where they are. Raises RowError."""
        ...

    def keys(self, encoded: list[Any], *, flipped: bool) -> list[str]:
        """Name of each candidate's entry."""
        ...

    def centered(self, row: PreferenceRow, encoded: list[Any], *, flipped: bool) -> Any:
        """Something with the VAE's `inputs` [candidate ...] and their `geometry` [candidate 6]."""
        ...


def _prompt_key(prompt: str) -> str:
    return hashlib.blake2b(prompt.encode(), digest_size=16, person=b"mmalign-text").hexdigest()


def _check_identity(folder: Path, expected: CacheIdentity, *, ignore: tuple[str, ...] = ()) -> None:
    """Raise unless the folder's header says `expected`, but for the fields to ignore."""
    header = read_json(folder / HEADER)
    if header.get("format") != _FORMAT:
        message = (
            f"{folder}: got cache format {header.get('format')}, expected {_FORMAT}. Build it again in a "
            "new folder."
        )
        raise ConfigError(message)
    # A field that a header of an older version does not have says nothing.
    found, wanted = asdict(CacheIdentity(**header["identity"])), asdict(expected)
    different = [name for name in wanted if name not in ignore and found.get(name) != wanted[name]]
    if different:
        listed = "; ".join(
            f"{name}: cache {found.get(name)!r}, this run {wanted[name]!r}" for name in different
        )
        message = (
            f"{folder}: this cache was made for something else ({listed}). Encode again into another folder: "
            "mmalign data cache CONFIG --output OTHER_FOLDER."
        )
        raise ConfigError(message)


def _remove_leftovers(folder: Path) -> None:
    """Remove shards that a killed builder did not finish; another one may be writing the younger ones."""
    for leftover in folder.glob(".*.partial"):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed in the meantime
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink()


class CacheWriter:
    """Fills a cache folder; opening an existing one of the same identity goes on.

    Args:
        folder: of the cache.
        identity: what it is made for.
        shard_bytes: size at which a shard is written.
        flush_seconds: age at which a smaller one is written, so that an interruption loses little.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: CacheIdentity,
        *,
        shard_bytes: int = 256 * 2**20,
        flush_seconds: float = 120.0,
    ) -> None:
        self.folder, self.identity = Path(folder), identity
        self._shard_bytes, self._flush_seconds = shard_bytes, flush_seconds
        if (self.folder / HEADER).exists():
            _check_identity(self.folder, identity)
        else:
            write_json(self.folder / HEADER, {"format": _FORMAT, "identity": identity.described()})
        _remove_leftovers(self.folder)
        self.known = {
            kind: KeySet(shard_keys(path) for path in sorted(self.folder.glob(f"{kind}-*.safetensors")))
            for kind in ("moments", "text")
        }
        self._open: dict[tuple[str, str], dict[str, dict[str, Tensor]]] = {}
        self._bytes = 0
        self._since = time.monotonic()

    def has_moments(self, key: str) -> bool:
        """Whether an image's entry is there, or about to be written."""
        return key in self.known["moments"]

    def has_text(self, prompt: str) -> bool:
        """Whether a prompt's entry is there, or about to be written."""
        return _prompt_key(prompt) in self.known["text"]

    def add_moments(
        self,
        key: str,
        mean: Float[Tensor, "*shape"],
        std: Float[Tensor, "..."],
        geometry: Int[Tensor, " 6"],
        more: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Store the moments of one image or clip, and whatever else the model makes of it (`more`).

        Raises:
            TrainingError: they are not finite, or overflow the cache's dtype.
        """
        dtype = _DTYPES[self.identity.dtype]
        stored = {"mean": mean.to("cpu", dtype), "std": std.to("cpu", dtype), "geometry": geometry.to("cpu")}
        for name, value in (more or {}).items():
            stored[f"{_MORE}{name}"] = value.to("cpu", dtype if value.is_floating_point() else value.dtype)
        if not all(bool(value.isfinite().all()) for value in stored.values()):
            remedy = (
                "Keep moments in float32: --dtype float32."
                if self.identity.medium == "clips"
                else "SDXL's own VAE overflows in float16: use model.vae: madebyollin/sdxl-vae-fp16-fix, or "
                "keep the VAE in float32."
            )
            message = f"data cache: the VAE gave values that are not finite (or do not fit float16). {remedy}"
            raise TrainingError(message)
        self._add("moments", key, stored)

    def add_text(self, prompt: str, states: dict[str, Tensor]) -> None:
        """Store the text states `[...]` of one prompt."""
        self._add("text", _prompt_key(prompt), {name: value.to("cpu") for name, value in states.items()})

    def _add(self, kind: str, key: str, tensors: dict[str, Tensor]) -> None:
        # One shard holds one set of shapes, so that it is a stack.
        signature = str(
            sorted((name, tuple(value.shape), str(value.dtype)) for name, value in tensors.items())
        )
        # A batch shares its storage; keep only this entry's part of it.
        self._open.setdefault((kind, signature), {})[key] = {
            name: value.detach().clone() for name, value in tensors.items()
        }
        self.known[kind].add(key)
        self._bytes += sum(value.numel() * value.element_size() for value in tensors.values())
        if self._bytes >= self._shard_bytes or time.monotonic() - self._since > self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory, each shard whole or not at all."""
        for (kind, _), entries in self._open.items():
            keys = list(entries)
            names = entries[keys[0]]
            stacked = {name: torch.stack([entries[key][name] for key in keys]) for name in names}
            # Named by its content: two builders never write the same name with different things in it.
            name = hashlib.blake2b("".join(keys).encode(), digest_size=8).hexdigest()
            save_tensors(self.folder / f"{kind}-{name}.safetensors", stacked, {"keys": json.dumps(keys)})
        self._open, self._bytes, self._since = {}, 0, time.monotonic()


class LatentCache:
    """Reads a cache folder; cheap to send to loader workers, which open the shards again.

    Args:
        folder: of the cache.
        expect: what the run needs; None takes the folder as it is.

    Raises:
        ConfigError: the folder holds no cache, or one made for something else.
    """

    _entries: KeyIndex | None
    _MAX_HANDLES = 1024  # maps of files, which the system may drop at any time; opening one reads its keys

    def __init__(self, folder: str | Path, *, expect: CacheIdentity | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / HEADER).is_file():
            message = (
                f"{self.folder}: no cache here. Make one: mmalign data cache CONFIG --output {self.folder}"
            )
            raise ConfigError(message)
        if expect is not None:
            # Either dtype will do for reading: values are widened before they are used.
            _check_identity(self.folder, expect, ignore=("dtype",))
        self.identity = CacheIdentity(**read_json(self.folder / HEADER)["identity"])
        self._forget()
        # Now, so that loader workers share these pages instead of reading the keys once each.
        self._entries = KeyIndex(self.folder)

    def _forget(self) -> None:
        self._entries = None
        self._handles: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Folder and identity; the index is read again."""
        return {"folder": self.folder, "identity": self.identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _index(self) -> KeyIndex:
        if self._entries is None:
            self._entries = KeyIndex(self.folder)
        return self._entries

    def __len__(self) -> int:
        return self._index().count("m")

    @property
    def index_bytes(self) -> int:
        """Memory that the keys take."""
        return self._index().nbytes

    def _entry(self, kind: str, key: str) -> tuple[Any, int] | None:
        index = self._index()
        place = index.find(kind, key)
        if place is None:
            return None
        number, row = place
        if number not in self._handles:
            from safetensors import safe_open

            self._handles[number] = safe_open(str(index.shards[number]), framework="pt")
            while len(self._handles) > self._MAX_HANDLES:
                self._handles.popitem(last=False)
        self._handles.move_to_end(number)
        return self._handles[number], row

    def moments(self, key: str) -> tuple[Tensor, Tensor] | None:
        """(mean, standard deviation) `[channel, ...]` of unscaled latents; None if absent."""
        found = self._entry("m", key)
        if found is None:
            return None
        shard, row = found
        return shard.get_slice("mean")[row : row + 1][0], shard.get_slice("std")[row : row + 1][0]

    def more(self, row: PreferenceRow, loader: CandidateLoader) -> dict[str, Tensor]:
        """What else is stored of the candidates of a row, stacked; `row` has found that they are there."""
        found: dict[str, list[Tensor]] = {}
        for key in loader.keys(loader.encoded(row), flipped=False):
            entry = self._entry("m", key)
            if entry is None:
                continue
            shard, number = entry
            names = [str(name) for name in list(shard.keys()) if name.startswith(_MORE)]
            for name in names:
                value = shard.get_slice(name)[number : number + 1][0]
                found.setdefault(name.removeprefix(_MORE), []).append(value)
        return {name: torch.stack(values) for name, values in found.items()}

    def geometry(self, key: str) -> Int[Tensor, " 6"] | None:
        """Original size, crop offset and target size of an image; None if absent."""
        found = self._entry("m", key)
        if found is None:
            return None
        shard, row = found
        geometry: Tensor = shard.get_slice("geometry")[row : row + 1][0]
        return geometry

    def text(self, prompt: str) -> dict[str, Tensor] | None:
        """Text states `[1, ...]` of a prompt; None if absent."""
        found = self._entry("t", _prompt_key(prompt))
        if found is None:
            return None
        shard, row = found
        return {name: shard.get_slice(name)[row : row + 1] for name in shard.keys()}  # noqa: SIM118 - no iterator

    def row(
        self, row: PreferenceRow, loader: CandidateLoader, *, flipped: bool
    ) -> tuple[Tensor, Tensor, Int[Tensor, "candidate 6"]]:
        """(mean, std, geometry) of all candidates of a row, stacked.

        Raises:
            RowError: reason `not_cached`, or the image cannot be read.
        """
        means, stds, geometries = [], [], []
        for number, key in enumerate(loader.keys(loader.encoded(row), flipped=flipped)):
            found, geometry = self.moments(key), self.geometry(key)
            if found is None or geometry is None:
                kind = "mirrored image" if flipped else self.identity.medium.removesuffix("s")
                message = (
                    f"{row.source or row.id} candidate {number}: its {kind} is not in the cache "
                    f"{self.folder}. "
                    "Run `mmalign data cache` on this config (it adds what is missing)."
                )
                raise RowError(message, reason="not_cached")
            means.append(found[0])
            stds.append(found[1])
            geometries.append(geometry)
        return torch.stack(means), torch.stack(stds), torch.stack(geometries)
