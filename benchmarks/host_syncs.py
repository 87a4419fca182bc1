"""Where the host would wait for an accelerator, counted on the CPU.

A step that waits runs no faster than the host can launch kernels. Counted are values read from tensors
(`item`, `float`, `bool`, `tolist`, `cpu`, `numpy`), operations whose size depends on values (`nonzero`,
boolean indexing, `masked_select`, `unique`, `equal`), tensors made of Python numbers on the device
(`torch.tensor(..., device=...)` copies and waits; `torch.full` does not) and loader tensors moved without
`non_blocking`.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["counted_syncs", "host_tensors"]

_READS = {
    "_local_scalar_dense",
    "nonzero",
    "nonzero_static",
    "is_nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave.Tensor",
}
_PYTHON_READS = {Tensor.tolist: "tolist", Tensor.cpu: "cpu", Tensor.numpy: "numpy"}
_MADE_ON_THE_HOST = {torch.tensor, torch.as_tensor}


class _Values(TorchDispatchMode):
    """Operators that return values, or sizes that depend on them."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        overload = f"{name}.{func._overloadname}"
        if name in _READS or overload in _READS:
            self.found[name] += 1
        if name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.found["boolean index"] += 1
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Calls that never reach an operator on the CPU."""

    def __init__(self, found: Counter[str], host: set[int]) -> None:
        super().__init__()
        self.found, self.host = found, host

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _PYTHON_READS:
            self.found[_PYTHON_READS[func]] += 1
        if func in _MADE_ON_THE_HOST and given.get("device") is not None:
            self.found["tensor of Python numbers"] += 1
        if func is Tensor.to and id(args[0]) in self.host:
            target = given.get("device", args[1] if len(args) > 1 else None)
            if isinstance(target, torch.device | str):
                self.host.discard(id(args[0]))  # moved: on the CPU the result is the tensor itself
                if not given.get("non_blocking", False):
                    self.found["copy that waits"] += 1
        return func(*args, **given)


def host_tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor inside a loader's batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from host_tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from host_tensors(each)
    elif hasattr(value, "__dict__"):
        yield from host_tensors(vars(value))


@contextlib.contextmanager
def counted_syncs(host: Iterable[Tensor] = ()) -> Iterator[Counter[str]]:
    """What would have waited inside the context, by name.

    Args:
        host: tensors that would lie in the host's memory.
    """
    found: Counter[str] = Counter()
    with _Calls(found, {id(tensor) for tensor in host}), _Values(found):
        yield found
