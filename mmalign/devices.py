"""Which device to run on."""

import torch

from mmalign.errors import ConfigError, explain

__all__ = ["best_device"]


def best_device(device: str | None = None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        ConfigError: torch knows no such device, or it is not there.
    """
    if device is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        message = explain(
            "--device", got=device, expected="cuda, cuda:1, cpu or mps, and present", do=str(error)
        )
        raise ConfigError(message) from error
    return chosen
