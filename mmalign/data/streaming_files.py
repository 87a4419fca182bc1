"""Files behind addresses, opened by fsspec: reads that fail are tried again, and end the run at last.

Rows behind a network that is down are no bad rows: leaving them out would lose them without a word.
"""

import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mmalign.errors import ConfigError, MissingExtraError, TrainingError

__all__ = ["Damage", "SteadyFile", "attempted", "file_system"]

_PAUSES = (0.5, 2.0, 8.0, 30.0)
"""Seconds before each further try of a read that failed."""

_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("http", "https"), "http"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "azure"),
}
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Damage:
    """Records that cannot be read because the file is broken there.

    Args:
        where: `file:row` of the first one.
        message: what is wrong.
    """

    where: str
    message: str


def file_system(url: str) -> tuple[Any, str]:
    """File system of fsspec for an address, and the path in it.

    Raises:
        MissingExtraError: the package for this kind of address is not installed.
        ConfigError: no such kind of address.
    """
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        command = f"pip install 'mmalign[{extra}]'" if extra else "install what the message names"
        message = f"{url}: addresses {protocol}:// need a package that is not installed ({error}): {command}."
        raise MissingExtraError(message) from error
    except ValueError as error:
        message = f"{url}: got an address {protocol}:// that fsspec does not know ({error})."
        raise ConfigError(message) from error
    return system, str(path)


def _failures() -> tuple[type[BaseException], ...]:
    """What a network may raise; the packages of other protocols have errors of their own."""
    found: list[type[BaseException]] = [OSError, TimeoutError]
    for package, name in (
        ("aiohttp", "ClientError"),
        ("httpx", "HTTPError"),
        ("botocore.exceptions", "BotoCoreError"),
    ):
        if package in sys.modules:
            found.append(getattr(sys.modules[package], name))
    return tuple(found)


def attempted(read: Callable[[], _Result], url: str) -> _Result:
    """What `read` gives; a read that fails is tried again, and at last ends the run.

    Rows behind a network that is down are not bad rows: leaving them out would lose them without a word.

    Raises:
        ConfigError: it is not there, or may not be read.
        TrainingError: it failed every time.
    """
    for pause in (*_PAUSES, None):
        try:
            return read()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            message = (
                f"{url}: cannot be opened ({type(error).__name__}: {error}). Check the address and the keys."
            )
            raise ConfigError(message) from error
        except _failures() as error:
            if pause is None:
                message = (
                    f"{url}: reading failed {len(_PAUSES) + 1} times ({type(error).__name__}: {error}). "
                    "The same command continues from the last checkpoint."
                )
                raise TrainingError(message) from error
            time.sleep(pause)
    raise AssertionError


class SteadyFile(io.RawIOBase):
    """A file behind an address, read-only; a read that fails is tried again on a new connection.

    Args:
        url: its address.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self._position = url, 0
        self._inner: Any = None
        self._size = int(attempted(self._open_again, url))

    def _open_again(self) -> int:
        system, path = file_system(self.url)
        if self._inner is not None:
            self._inner.close()
        self._inner = system.open(path, "rb")
        size = getattr(self._inner, "size", None)
        return int(system.size(path) if size is None or callable(size) else size)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes from here, fewer at the end."""
        wanted = self._size - self._position if size is None or size < 0 else size
        wanted = max(min(wanted, self._size - self._position), 0)
        if not wanted:
            return b""

        def once() -> bytes:
            try:
                self._inner.seek(self._position)
                data: bytes = self._inner.read(wanted)
            except _failures():
                self._open_again()
                raise
            if len(data) < wanted:
                message = f"got {len(data)} bytes, expected {wanted}"
                raise OSError(message)
            return data

        data = attempted(once, self.url)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; how many bytes there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        if not self.closed and self._inner is not None:
            self._inner.close()
        super().close()
