"""How the golden text cases call the public interface. No formula stands here: what is computed is computed
by mmalign."""

from collections.abc import Callable

from torch import Tensor

from mmalign.testing.parity import Case

TEXT_ADAPTERS: dict[str, Callable[[Case], dict[str, Tensor]]] = {}
LEFT_OUT: dict[str, dict[str, str]] = {}
