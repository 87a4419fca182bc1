"""Weights from a file into a network, strictly: every key is accounted for, by name."""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from mmalign.errors import CheckpointError

__all__ = ["blank", "fill", "read_state"]

_REFUSED: type[Exception] = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]
"""What torch raises for a file that would have to run code, or is none of its files."""

_SHOWN = 6
"""Keys an error lists; more are counted."""


def read_state(
    path: str | Path, *, inside: tuple[str, ...] = ("state_dict",), mapped: bool = False
) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, on the CPU.

    `.safetensors` is read as such, all else by `torch.load(weights_only=True)`: nothing in a file is run.

    Args:
        path: the file.
        inside: keys under which training frameworks nest the weights; the first that is there is taken.
        mapped: read the file as far as its tensors are used, where its format allows that.

    Raises:
        CheckpointError: the file is no such checkpoint, or holds something other than tensors by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(str(path)))
        mmap = mapped and zipfile.is_zipfile(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (_REFUSED, OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
        message = (
            f"{path}: no checkpoint that can be read without running code ({type(error).__name__}). "
            f"Download it again, or save its plain state dict with safetensors."
        )
        raise CheckpointError(message) from error
    for name in inside:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        message = f"{path}: got {type(found).__name__}, expected tensors by name (a state dict)."
        raise CheckpointError(message)
    return {str(name): value for name, value in found.items()}


Network = TypeVar("Network", bound=nn.Module)


def blank(build: Callable[[], Network]) -> Network:
    """A network whose parameters hold nothing yet, on the CPU: all of them have to be filled.

    Nothing is drawn and no time goes into random weights that a checkpoint replaces. Position counters, which
    checkpoints do not hold, are set.

    Args:
        build: makes the network; it runs without memory for its tensors.

    Raises:
        CheckpointError: the network has a buffer that neither a checkpoint nor this function knows.
    """
    with torch.device("meta"):
        network = build()
    unsaved = {name for name, _ in network.named_buffers()} - set(network.state_dict())
    network.to_empty(device="cpu")
    for name in sorted(unsaved):
        if name.rpartition(".")[2] != "position_ids":
            message = f"{type(network).__name__}: the buffer {name} is in no checkpoint and not known here."
            raise CheckpointError(message)
        counter = network.get_buffer(name)
        counter.copy_(torch.arange(counter.numel()).reshape(counter.shape))
    return network


def fill(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: str,
    ignored: Iterable[str] = (),
    rename: Callable[[str], str | None] | None = None,
    assign: bool = False,
) -> None:
    """Copy `state` into `network`: every key of both must find its partner.

    Args:
        network: what is filled; keeps its dtype and device, unless `assign`.
        state: tensors by the checkpoint's names.
        where: file or repository, for the message.
        ignored: patterns of checkpoint keys that belong to nothing here.
        rename: from a checkpoint's name to the network's; None leaves a key to `ignored`.
        assign: take the tensors themselves, for a network built without memory of its own.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape; names them.
    """
    ignored = list(ignored)
    own = network.state_dict()
    renamed: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for name, value in state.items():
        if any(fnmatch(name, pattern) for pattern in ignored):
            continue
        target = rename(name) if rename is not None else name
        if target is None or target not in own:
            unexpected.append(name)
        else:
            renamed[target] = value
    missing = sorted(set(own) - set(renamed))
    shapes = [
        f"{name} is {list(value.shape)} in the file and {list(own[name].shape)} here"
        for name, value in renamed.items()
        if value.shape != own[name].shape
    ]
    problems = [
        f"{kind}: {_shown(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
        if names
    ]
    if problems:
        message = (
            f"{where}: the weights do not fit the network ({'; '.join(problems)}). "
            f"Use the file the card names; nothing was filled."
        )
        raise CheckpointError(message)
    network.load_state_dict(renamed, assign=assign)


def _shown(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
