"""peft, loaded without bitsandbytes until a network holds its layers.

peft imports bitsandbytes wherever it is installed, and with it torch's compiler: seconds before the first
step of a run that never uses either. A network can hold bitsandbytes' layers only once that package is
loaded, so as long as it is not, peft is told that there is none; later calls ask again.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGE = "bitsandbytes"


@contextmanager
def _not_loading() -> Iterator[None]:
    """Imports of bitsandbytes fail inside, as if it were not installed; no change where it is loaded."""
    if _PACKAGE in sys.modules or importlib.util.find_spec(_PACKAGE) is None:
        yield
        return
    sys.modules[_PACKAGE] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]


with _not_loading():
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from peft.tuners.lora.layer import Linear as LoraLinear
    from peft.tuners.tuners_utils import BaseTunerLayer

__all__ = [
    "BaseTunerLayer",
    "LoraConfig",
    "LoraLinear",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "set_peft_model_state_dict",
    "without_unused_kernels",
]


@contextmanager
def without_unused_kernels() -> Iterator[None]:
    """Inside, peft does not look for bitsandbytes' layers, unless that package is loaded already."""
    with _not_loading():
        is_bnb_available.cache_clear()
        is_bnb_4bit_available.cache_clear()
        try:
            yield
        finally:
            is_bnb_available.cache_clear()
            is_bnb_4bit_available.cache_clear()
