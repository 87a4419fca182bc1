"""Files that are never half written: atomic writes, JSON lines, safetensors, fingerprints.

Everything a run leaves behind goes through here. A reader sees the old content or the new, never a mixture,
also after a power cut or on a full disk.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmalign.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "append_json_line",
    "atomic_directory",
    "atomic_write",
    "fingerprint",
    "load_tensors",
    "read_json",
    "read_json_lines",
    "save_tensors",
    "under",
    "write_json",
]

Value = TypeVar("Value")


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk (a rename is only durable after its folder is synced)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """Write `content` aside, sync, rename over `path`. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a result is as readable as any other file of its folder.
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(path.parent)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A folder that appears under `path` only when the block ends without an error.

    Yields a sibling folder to write into. On success every file is synced and the folder renamed; an existing
    `path` is replaced after the new one is safe. On an error the partial folder is removed.

    Raises:
        CheckpointError: the disk refused (full, read-only); the previous folder is untouched.
    """
    path = Path(path)
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
        yield partial
        os.chmod(partial, 0o777 & ~_umask())
        for file in sorted(partial.rglob("*")):
            _sync(file)
        _sync(partial)
        if path.exists():
            retired = path.parent / f".{path.name}.{os.getpid()}.retired"
            os.replace(path, retired)
            os.replace(partial, path)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        message = (
            f"{path}: could not be written ({error.strerror or error}). The previous content is "
            "untouched. Free some space or choose another folder, then run again."
        )
        raise CheckpointError(message) from error
    except BaseException:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically."""
    return atomic_write(path, json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        CheckpointError: the file is missing or not JSON; the message names it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read as JSON ({error})."
        raise CheckpointError(message) from error


def append_json_line(path: str | Path, value: Mapping[str, Any]) -> None:
    """Append one record to a JSON-lines file in a single write, so that a crash cannot interleave records.

    What a killed process left of its last line is removed first: the new record would otherwise continue it.
    Processes of one machine wait for each other, or one could take another's last line for such a rest.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a buffer: what is written is there when the lock is given back, in one piece.
    with path.open("ab+", buffering=0) as file:
        _lock(file)
        _drop_torn_line(file)
        _write_all(file, json.dumps(value, ensure_ascii=False).encode() + b"\n")


def _write_all(file: FileIO, content: bytes) -> None:
    """Write in one piece; a full disk or a signal can make it several."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _lock(file: FileIO) -> None:
    """Wait until no other process has the file; closing it gives it back. Without locks it does nothing."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):  # Windows, or a network file system that has no locks
        return


def _drop_torn_line(file: FileIO) -> None:
    """Cut the file behind its last line break, unless what follows is a whole record."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size == 0 or file.read(1) == b"\n":
        return
    file.seek(0)
    kept, _, tail = file.read().rpartition(b"\n")
    try:
        json.loads(tail)
        file.write(b"\n")
    except ValueError:
        file.truncate(len(kept) + 1 if kept else 0)


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file; a torn last line (the process was killed while writing) is left out."""
    records: list[dict[str, Any]] = []
    # Not splitlines: prompts may hold the other line separators of Unicode, which JSON leaves unescaped.
    lines = Path(path).read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) - 1:
                break
            message = f"{path}:{number + 1}: not a JSON record ({error})."
            raise CheckpointError(message) from error
    return records


def save_tensors(
    path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors as safetensors, atomically; they are made contiguous and moved to the CPU.

    Tensors that share memory (tied weights, views) are written as they are named, each in full.
    """
    from safetensors.torch import save

    ready: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage().data_ptr()
        ready[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return atomic_write(path, save(ready, dict(metadata) if metadata else None))


def load_tensors(path: str | Path, device: str = "cpu") -> dict[str, "Tensor"]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: missing, truncated or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(str(path), device=device)
    except (OSError, SafetensorError) as error:
        message = f"{path}: cannot be read as safetensors ({error}). Was it copied completely?"
        raise CheckpointError(message) from error
    return tensors


def under(named: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """What lies behind a prefix of names, without it."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def fingerprint(*parts: object) -> str:
    """A 16-character hash of JSON-like values; equal values give equal fingerprints on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
