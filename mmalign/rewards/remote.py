"""A reward that runs elsewhere: the client of `mmalign serve-reward`. Standard library only.

Values, errors, outputs and the fingerprint are the server's: scoring through the network or on this machine
gives the same numbers under the same fingerprint. A value that cannot be had is an error, never a substitute.
"""

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import torch

from mmalign.errors import ConfigError, MmalignError, RowError, explain
from mmalign.rewards.base import Scored
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample
from mmalign.rewards.wire import (
    PROTOCOL,
    ProtocolError,
    card_from_json,
    sample_to_json,
    scored_from_json,
)

__all__ = ["TOKEN_VARIABLE", "RemoteError", "RemoteReward"]

TOKEN_VARIABLE = "MMALIGN_REWARD_TOKEN"
"""Environment variable with the token, for clients and for `mmalign serve-reward`."""

_BUSY = (429, 502, 503, 504)
"""Answers that say: come again."""
_LARGEST_ANSWER = 1 << 28
_REQUEST_BYTES = 1 << 25
"""Samples are packed into requests of about this size, so that a lost connection costs little."""
_LONGEST_PAUSE = 30.0


class RemoteError(MmalignError, ConnectionError):
    """A server of rewards cannot be reached, or refuses."""


class RemoteReward:
    """The reward behind an address.

    Args:
        address: `http://host:port` or `https://...`, as `mmalign serve-reward` prints it.
        token: what the server asks for; None takes it from MMALIGN_REWARD_TOKEN, if that is set.
        timeout: seconds without a byte from the server; a batch of a large judge takes its time.
        retries: further attempts when the server cannot be reached, hangs up or is busy.
        pause: seconds before the first of them; each next one waits twice as long, up to 30.
        connections: requests under way at the same time, so that reading files overlaps with scoring.

    Raises:
        ConfigError: the address is none, or a number is out of range.
        RemoteError: nobody answers, or the token is wrong.
        ProtocolError: what answers is no reward server of this version.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        timeout: float = 600.0,
        retries: int = 5,
        pause: float = 0.5,
        connections: int = 2,
    ) -> None:
        self._host, self._port, self._secure = _parsed(address)
        self.address = address.rstrip("/")
        for name, value, least in (("timeout", timeout, 1e-3), ("retries", retries, 0), ("pause", pause, 0)):
            if not value >= least:
                raise ConfigError(explain(f"{address} {name}", got=value, expected=f"at least {least:g}"))
        if connections < 1:
            raise ConfigError(explain(f"{address} connections", got=connections, expected="at least 1"))
        self._token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        self.timeout, self.retries, self.pause, self.connections = timeout, retries, pause, connections
        about = self._call("GET", "/card")
        self._card = card_from_json(about.get("card"), where=self.address)
        self._fingerprint, self._provenance = about.get("fingerprint"), about.get("provenance")
        limits = about.get("limits")
        if about.get("protocol") != PROTOCOL or not isinstance(self._fingerprint, str):
            message = explain(
                self.address,
                got=f"[protocol {about.get('protocol')}]",
                expected=f"protocol {PROTOCOL}",
                do="Run the same version of mmalign on both sides.",
            )
            raise ProtocolError(message)
        limits = limits if isinstance(limits, dict) else {}
        self.max_samples = max(1, int(limits.get("max_samples", 64)))
        self.max_body_bytes = max(1, int(limits.get("max_body_bytes", _REQUEST_BYTES)))

    @property
    def card(self) -> Card:
        """The server's card."""
        return self._card

    def provenance(self) -> Mapping[str, Any]:
        """The server's."""
        return dict(self._provenance) if isinstance(self._provenance, dict) else {}

    def fingerprint(self) -> str:
        """The server's: the same reward on this machine has the same."""
        return str(self._fingerprint)

    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        """Values of the samples as the server sees them.

        A sample whose file cannot be read here, or that is larger than the server takes, gets NaN and its
        error; the others are scored.

        Args:
            samples: what is scored.
            batch_size: samples of one request, at most; the server has its own batch size.

        Raises:
            RemoteError: the server cannot be reached after all retries, refuses, or failed.
            ProtocolError: the answer does not fit, or comes from a reward with another fingerprint.
        """
        size = max(1, min(batch_size, self.max_samples))
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        with ThreadPoolExecutor(max_workers=self.connections) as pool:
            turns = [pool.submit(self._score_part, part) for part in parts]
            try:
                found = [turn.result() for turn in turns]
            except BaseException:
                for turn in turns:  # what has not begun would only fail again
                    turn.cancel()
                raise
        return _joined(found, self.card.outputs)

    def _score_part(self, samples: Sequence[Sample]) -> Scored:
        """One request, or several where the files are large."""
        found: list[Scored] = []
        bodies: list[bytes] = []
        most = min(self.max_body_bytes, _REQUEST_BYTES)

        def send() -> None:
            if bodies:
                found.append(self._request(bodies))
                bodies.clear()

        for sample in samples:
            try:
                body = self._encoded(sample)
            except RowError as error:
                send()
                found.append(self._failed(str(error)))
                continue
            if bodies and sum(map(len, bodies)) + len(body) + len(bodies) + _FRAME > most:
                send()
            bodies.append(body)
        send()
        return _joined(found, self.card.outputs)

    def _encoded(self, sample: Sample) -> bytes:
        described = sample_to_json(sample, max_bytes=self.max_body_bytes)
        body = json.dumps(described).encode("ascii")
        if len(body) + _FRAME > self.max_body_bytes:
            message = explain(
                f"{self.address} {sample.id}".rstrip(),
                got=f"[a sample of {len(body)} bytes once encoded]",
                expected=f"at most {self.max_body_bytes}",
                do="Raise the server's --max-body-mb, or send smaller media.",
            )
            raise RowError(message, reason="too_many_bytes")
        return body

    def _failed(self, message: str) -> Scored:
        outputs = self.card.outputs
        values = torch.full((1, len(outputs)), torch.nan, dtype=torch.float64)
        return Scored(values, outputs, (message,), (False,), (None,))

    def _request(self, bodies: Sequence[bytes]) -> Scored:
        answer = self._call("POST", "/score", b'{"samples":[' + b",".join(bodies) + b"]}")
        if answer.get("fingerprint") != self._fingerprint:
            message = explain(
                self.address,
                got=f"[values of fingerprint {str(answer.get('fingerprint'))[:16]}]",
                expected=f"{self.fingerprint()[:16]}, as when this client started",
                do="The server was restarted with other weights or settings: connect again, and do not mix "
                "the values.",
            )
            raise ProtocolError(message)
        return scored_from_json(answer, count=len(bodies), outputs=self.card.outputs, where=self.address)

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The parsed answer, after as many attempts as allowed. Scoring twice does no harm."""
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(self.pause * 2 ** (attempt - 1), _LONGEST_PAUSE))
            try:
                status, content = self._exchange(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                continue
            if status in _BUSY:
                problem = f"HTTP {status}: {_error_text(content)}"
                continue
            return self._parsed_answer(status, content)
        message = (
            f"{self.address}: no answer after {self.retries + 1} attempts ({problem}). Is `mmalign "
            "serve-reward` running there, and is the port open to this machine?"
        )
        raise RemoteError(message)

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Status and body of one request. Redirects are not followed: they would carry the token along."""
        kind: Callable[..., http.client.HTTPConnection] = (
            http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        )
        connection = kind(self._host, self._port, timeout=self.timeout)
        headers = {"Accept": "application/json", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            content = response.read(_LARGEST_ANSWER + 1)
        finally:
            connection.close()
        if len(content) > _LARGEST_ANSWER:
            message = f"{self.address}: the answer is larger than {_LARGEST_ANSWER} bytes."
            raise ProtocolError(message)
        return response.status, content

    def _parsed_answer(self, status: int, content: bytes) -> dict[str, Any]:
        if status in (401, 403):
            message = (
                f"{self.address}: refused (HTTP {status}: {_error_text(content)}). Give the server's token: "
                f"RemoteReward(address, token=...), or set {TOKEN_VARIABLE}."
            )
            raise RemoteError(message)
        if status != 200:
            message = f"{self.address}: HTTP {status}: {_error_text(content)}"
            raise RemoteError(message)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            message = f"{self.address}: the answer is no JSON; is this a server of `mmalign serve-reward`?"
            raise ProtocolError(message) from error
        if not isinstance(answer, dict):
            message = explain(self.address, got=type(answer).__name__, expected="a JSON object")
            raise ProtocolError(message)
        return answer


_FRAME = 64
"""Bytes around the samples of a request."""


def _parsed(address: str) -> tuple[str, int, bool]:
    """(Host, port, https) of an address."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = parts.path in ("", "/") and not parts.query and not parts.fragment and parts.username is None
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        expected = "http://host:port without path, user or query"
        raise ConfigError(explain("remote reward", got=address, expected=expected))
    secure = parts.scheme == "https"
    return parts.hostname, port or (443 if secure else 80), secure


def _error_text(content: bytes) -> str:
    """The server's own message, or the start of what it sent."""
    text = content[:2000].decode("utf-8", "replace").strip()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return text[:200]
    return str(found["error"])[:1000] if isinstance(found, dict) and "error" in found else text[:200]


def _joined(parts: Sequence[Scored], outputs: tuple[str, ...]) -> Scored:
    values = [part.values for part in parts]
    empty = torch.zeros(0, len(outputs), dtype=torch.float64)
    return Scored(
        torch.cat(values) if values else empty,
        outputs,
        tuple(error for part in parts for error in part.errors),
        tuple(cut for part in parts for cut in part.truncated),
        tuple(text for part in parts for text in part.raw),
    )
