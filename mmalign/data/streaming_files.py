"""Files behind addresses, opened by fsspec: reads that fail are tried again, and end the run at last.

Rows behind a network that is down are no bad rows: leaving them out would lose them without a word.
"""

import contextlib
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
_NETWORK_ERRORS = (
    ("aiohttp", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
)
"""Packages behind addresses, where they are loaded, and what they raise besides `OSError`."""

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
    for package, name in _NETWORK_ERRORS:
        kind = getattr(sys.modules.get(package), name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            found.append(kind)
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
        """Size of the file, opened on a new connection."""
        self._let_go()
        system, path = file_system(self.url)
        self._inner = system.open(path, "rb")
        size = getattr(self._inner, "size", None)
        return int(system.size(path) if size is None or callable(size) else size)

    def _let_go(self) -> None:
        """Close the connection; one that is broken may fail at that, too, and nothing is lost."""
        inner, self._inner = self._inner, None
        if inner is not None:
            with contextlib.suppress(ValueError, *_failures()):
                inner.close()

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
            # The pause lies between a failure and the new connection, which may fail as well.
            if self._inner is None:
                self._open_again()
            try:
                self._inner.seek(self._position)
                data: bytes = self._inner.read(wanted)
                if len(data) < wanted:
                    message = f"got {len(data)} bytes, expected {wanted}"
                    raise OSError(message)
            except _failures():
                self._let_go()
                raise
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
        self._let_go()
        super().close()
