"""Libraries loaded without the garbage collector looking through them again and again."""

import atexit
import contextlib
import gc
from collections.abc import Iterator

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Import large libraries inside: no garbage is collected meanwhile, and what is there then is kept.

    The libraries of a run are about half a million objects that stay to the end. Python looks through all of
    them whenever their number has grown by a quarter: a fifth of the time that importing takes. Afterwards
    they are frozen, so that later collections, those between steps among them, leave them out. Garbage that
    the imports made is never freed (about 10 MB).

    Nothing changes where the caller has switched collection off.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
        # The interpreter's end collects everything, and libraries complain about what it does not reach.
        atexit.register(gc.unfreeze)
