"""Functions of the user's own that stand in for models: `module:function`, and the text of their file."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from mmalign.errors import ConfigError, explain

__all__ = ["own_function"]


def own_function(name: str, *, what: str) -> tuple[Callable[..., Any], str]:
    """(The function, the text of its module's file).

    Args:
        name: `module:function`; modules of the current folder are found, too.
        what: what it stands for, for messages.

    Raises:
        ConfigError: no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # the `mmalign` command, other than `python -m`, does not look there
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        do = "Run from its folder, or put it on PYTHONPATH."
        message = explain(f"{what} {name}", got=module_name, expected="a module Python can import", do=do)
        raise ConfigError(message) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        message = explain(f"{what} {name}", got=function_name, expected=f"a function of {module_name}")
        raise ConfigError(message)
    return function, inspect.getsource(module)
