"""A reward behind HTTP: `mmalign serve-reward NAME`. Standard library only; loopback unless there is a token.

    GET  /health   {"status": "ok"}                       open to all
    GET  /card     card, fingerprint, provenance, limits
    POST /score    {"samples": [...]} -> {"values": [[...]], "errors": [...], ..., "fingerprint": "..."}

Clients send media as bytes (`mmalign.rewards.wire`); nothing they write is opened as a path. One thread runs
the reward; requests that wait while it is busy are scored together, which cannot change a value.
"""

import contextlib
import hmac
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore, Thread
from types import TracebackType
from typing import Any

import torch

from mmalign.errors import ConfigError, RowError, explain
from mmalign.rewards.access import is_loopback, require_token
from mmalign.rewards.base import Reward, Scored
from mmalign.rewards.ensemble import is_relative
from mmalign.rewards.merging import Merger
from mmalign.rewards.sample import Sample
from mmalign.rewards.wire import PROTOCOL, card_to_json, sample_from_json, scored_to_json

__all__ = ["DEFAULT_PORT", "RewardServer"]

DEFAULT_PORT = 8765
_READ_SECONDS = 120.0
"""Time a client has to send its body."""
_WAIT_SECONDS = 30.0
"""Time a request waits for others to finish before it is told to come again."""
_CHUNK = 1 << 20
_DRAINED = 1 << 24
"""Bytes of a refused body that are still read, so that the client sees the refusal and not a reset."""


class RewardServer:
    """A reward on a port. A context manager: listens on entering, finishes what it began on leaving.

    Args:
        reward: what scores.
        host: address to listen on. Any but loopback needs a token.
        port: 0 takes a free one.
        token: what clients must show as `Authorization: Bearer TOKEN`.
        batch_size: samples in one forward.
        max_samples: of one request.
        max_body_bytes: of one request.
        max_requests: read at the same time; more get 503 and come again.

    Raises:
        ConfigError: another host than loopback without a token, a token of fewer than 16 characters or with
            characters outside ASCII, a port that cannot be had, or a reward whose values depend on the other
            candidates.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        token: str | None = None,
        batch_size: int = 16,
        max_samples: int = 256,
        max_body_bytes: int = 1 << 28,
        max_requests: int = 16,
    ) -> None:
        require_token(host, token)
        if is_relative(reward):
            message = explain(
                f"serve-reward {reward.card.name}",
                got="[an ensemble that compares the candidates of a prompt]",
                expected="a reward whose values depend on single samples",
                do="Serve its members and combine them where the candidates are.",
            )
            raise ConfigError(message)
        self.reward, self.token, self.host = reward, token, host
        self.limits = {"max_samples": max_samples, "max_body_bytes": max_body_bytes}
        self.slots = BoundedSemaphore(max_requests)
        self.fingerprint = reward.fingerprint()
        self.merger = Merger(
            lambda samples: reward.score(samples, batch_size=batch_size), max_samples=max_samples
        )
        try:
            self._http = _HttpServer((host, port), self)
        except (OSError, OverflowError) as error:
            self.merger.close()
            message = f"serve-reward: cannot listen on {host}:{port} ({error}). Choose another --port."
            raise ConfigError(message) from error
        self._thread: Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._http.server_address[1])

    @property
    def address(self) -> str:
        """What `RemoteReward` takes."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def start(self) -> "RewardServer":
        """Listen in a thread of its own."""
        self._thread = Thread(target=self._http.serve_forever, args=(0.1,), name="serve-reward")
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop listening, answer the requests that are in, stop the scoring thread."""
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        self._http.server_close()  # waits for the requests' threads
        self.merger.close()

    def __enter__(self) -> "RewardServer":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def about(self) -> dict[str, Any]:
        """What /card answers."""
        return {
            "protocol": PROTOCOL,
            "card": card_to_json(self.reward.card),
            "fingerprint": self.fingerprint,
            "provenance": json.loads(json.dumps(dict(self.reward.provenance()), default=str)),
            "limits": self.limits,
        }

    def score(self, described: Sequence[Any]) -> dict[str, Any]:
        """What /score answers: a sample that is malformed fails alone."""
        outputs = self.reward.card.outputs
        values = torch.full((len(described), len(outputs)), torch.nan, dtype=torch.float64)
        errors: list[str | None] = [None] * len(described)
        truncated = [False] * len(described)
        raw: list[str | None] = [None] * len(described)
        samples: list[Sample] = []
        places: list[int] = []
        with ExitStack() as stack:
            for place, one in enumerate(described):
                # Rewards of clips and sounds read files: each sample gets a folder that goes away.
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mmalign-reward-"))
                try:
                    samples.append(sample_from_json(one, folder=Path(folder)))
                except RowError as error:
                    errors[place] = str(error)
                    continue
                places.append(place)
            if samples:
                scored = self.merger.score(samples)
                values[places] = scored.values
                for number, place in enumerate(places):
                    errors[place] = scored.errors[number]
                    truncated[place] = scored.truncated[number]
                    raw[place] = scored.raw[number]
        found = scored_to_json(Scored(values, outputs, tuple(errors), tuple(truncated), tuple(raw)))
        return {"protocol": PROTOCOL, "fingerprint": self.fingerprint, **found}


class _HttpServer(ThreadingHTTPServer):
    """Threads that are waited for: closing lets started requests finish."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: RewardServer) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.owner = owner
        super().__init__((address[0].strip("[]"), address[1]), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no event; anything else is shown with its traceback."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Refused(Exception):  # noqa: N818  # control flow inside this module
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One request per connection."""

    server: _HttpServer
    server_version = "mmalign"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30.0  # seconds without a byte

    def do_GET(self) -> None:  # the name http.server looks for
        """Health, or the card."""
        if self.path == "/health":
            self._answer(HTTPStatus.OK, {"status": "ok", "protocol": PROTOCOL})
        else:
            self._serve({"/card": self.server.owner.about})

    def do_POST(self) -> None:
        """Scores."""
        self._serve({"/score": self._score})

    def _serve(self, routes: dict[str, Callable[[], dict[str, Any]]]) -> None:
        try:
            self._admit()
            if self.path not in routes:
                expected = "GET /health, GET /card or POST /score"
                raise _Refused(HTTPStatus.NOT_FOUND, f"got {self.command} {self.path}, expected {expected}.")
            answer = routes[self.path]()
        except _Refused as refusal:
            self._answer(refusal.status, {"error": str(refusal)})
            self._drain()
        except (ConnectionError, TimeoutError):  # the client left while its body was read
            raise
        except Exception as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"})
            raise
        else:
            self._answer(HTTPStatus.OK, answer)

    def _admit(self) -> None:
        """The token where there is one; else a browser's pages must not reach us through its user."""
        token = self.server.owner.token
        if token is not None:
            shown = self.headers.get("Authorization", "")
            if not hmac.compare_digest(shown.encode("utf-8", "replace"), f"Bearer {token}".encode()):
                raise _Refused(
                    HTTPStatus.UNAUTHORIZED,
                    "expected this server's token as `Authorization: Bearer TOKEN`.",
                )
            return
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if not is_loopback(name):
            raise _Refused(HTTPStatus.FORBIDDEN, f"got the Host {host!r}, expected a loopback address.")

    def _score(self) -> dict[str, Any]:
        owner = self.server.owner
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json.")
        if not owner.slots.acquire(timeout=_WAIT_SECONDS):
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "busy with other requests; come again.")
        try:
            samples = self._samples()
            return owner.score(samples)
        finally:
            owner.slots.release()

    def _samples(self) -> list[Any]:
        owner = self.server.owner
        try:
            body = json.loads(self._body(owner.limits["max_body_bytes"]))
        except (ValueError, RecursionError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON ({error}).") from error
        samples = body.get("samples") if isinstance(body, dict) else None
        if not isinstance(samples, list):
            raise _Refused(HTTPStatus.BAD_REQUEST, 'expected {"samples": [...]}.')
        most = owner.limits["max_samples"]
        if len(samples) > most:
            message = f"got {len(samples)} samples, expected at most {most} in one request."
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return samples

    def _body(self, most: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length.")
        if int(length) > most:
            message = f"got {length} bytes, expected at most {most} in one request."
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        parts: list[bytes] = []
        left, deadline = int(length), time.monotonic() + _READ_SECONDS
        while left:
            part = self.rfile.read1(min(left, _CHUNK))
            if not part or time.monotonic() > deadline:
                raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"the body ended {left} bytes early, or too late.")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _drain(self) -> None:
        """Read what a refused client still sends, within limits."""
        self.connection.settimeout(1.0)
        left, deadline = _DRAINED, time.monotonic() + 2.0
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and time.monotonic() < deadline and (part := self.rfile.read1(_CHUNK)):
                left -= len(part)

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: thousands of lines per evaluation would bury the errors."""
