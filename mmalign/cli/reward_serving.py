"""`mmalign serve-reward`: load a reward, listen, and stop on a signal once the last request is answered."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import yaml

from mmalign import rewards
from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.rewards.access import is_loopback, require_token
from mmalign.rewards.remote import TOKEN_VARIABLE
from mmalign.rewards.server import RewardServer

__all__ = ["chosen_token", "parsed_options", "serve"]


def parsed_options(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as options; values are read as YAML, so that `true` and `0.3` have their type.

    Raises:
        ConfigError: a word without `=`, a value that is no YAML, or a key given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or key in found:
            expected = "key=value, each key once"
            raise ConfigError(explain("--option", got=word, expected=expected))
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(explain("--option", got=word, expected="a YAML value")) from error
    return found


def chosen_token(token: str | None, token_file: Path | None) -> str | None:
    """The token of the option, the file or the environment; None where there is none.

    Raises:
        ConfigError: both options, or a file that cannot be read or is empty.
    """
    if token is not None and token_file is not None:
        message = explain("serve-reward", got="[--token and --token-file]", expected="one of them")
        raise ConfigError(message)
    if token_file is None:
        return token if token is not None else os.environ.get(TOKEN_VARIABLE)
    try:
        found = token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        message = f"--token-file {token_file}: cannot be read ({error})."
        raise ConfigError(message) from error
    if not found:
        raise ConfigError(explain(f"--token-file {token_file}", got="[an empty file]", expected="a token"))
    return found


@contextmanager
def _stop_signals(stop: Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`, instead of ending the process in the middle of a request."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(
    name: str,
    weights: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    token_file: Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
    options: Sequence[str] = (),
    batch_size: int = 16,
    max_samples: int = 256,
    max_body_mb: int = 256,
) -> None:
    """Serve a reward until Ctrl-C or SIGTERM.

    Raises:
        ConfigError: a host that needs a token, a port that is taken, an option that is none.
        UnknownNameError: no such reward.
        CheckpointError: its weights are missing or do not fit.
    """
    shown = chosen_token(token, token_file)
    require_token(host, shown)  # before a model is loaded for nothing
    for option, value in (
        ("batch-size", batch_size),
        ("max-samples", max_samples),
        ("max-body-mb", max_body_mb),
    ):
        if value < 1:
            raise ConfigError(explain(f"serve-reward --{option}", got=value, expected="at least 1"))
    place = best_device(device)
    reward = rewards.load(name, weights=weights, device=place, dtype=dtype, **parsed_options(options))
    server = RewardServer(
        reward,
        host=host,
        port=port,
        token=shown,
        batch_size=batch_size,
        max_samples=max_samples,
        max_body_bytes=max_body_mb << 20,
    )
    stop = Event()
    with _stop_signals(stop), server:
        if not is_loopback(host):
            print("mmalign: traffic is not encrypted; cross networks through a tunnel.", file=sys.stderr)
        asks = "asks for its token" if shown else "without a token, for this machine only"
        print(f"{name} on {server.address}, {asks}. Fingerprint {server.fingerprint}.", flush=True)
        print(
            "Use it: mmalign.rewards.load(ADDRESS), or the address as a suite's reward. Ctrl-C ends it.",
            flush=True,
        )
        while not stop.wait(1.0):
            pass
    print("stopped: all requests were answered", flush=True)
