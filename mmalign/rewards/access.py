"""Who may reach a server of rewards: this machine, or whoever shows its token."""

import ipaddress

from mmalign.errors import ConfigError, explain

__all__ = ["MIN_TOKEN", "is_loopback", "require_token"]

MIN_TOKEN = 16
"""Characters of a token, at least."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name: it may resolve to anything
        return False


def require_token(host: str, token: str | None) -> None:
    """Refuse to be reachable from other machines without a token, and tokens that are easily guessed.

    Raises:
        ConfigError: another host than loopback without a token; a token of fewer than 16 characters, or with
            others than printable ASCII.
    """
    if token is None:
        if not is_loopback(host):
            message = explain(
                "serve-reward --host",
                got=host,
                expected="a loopback address when there is no token: others could score on this machine",
                do="Give a --token-file, or leave --host out.",
            )
            raise ConfigError(message)
    elif len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        expected = f"at least {MIN_TOKEN} printable ASCII characters without spaces"
        message = explain("serve-reward token", got=f"[{len(token)} characters]", expected=expected)
        raise ConfigError(message)
