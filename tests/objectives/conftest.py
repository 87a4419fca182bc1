"""What the tests of objectives share."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from jaxtyping import config


@pytest.fixture
def untyped():
    """A context without the shape hook: what a user's script meets, whose annotations nobody checks."""

    @contextmanager
    def without() -> Iterator[None]:
        before = config.jaxtyping_disable
        config.update("jaxtyping_disable", True)
        try:
            yield
        finally:
            config.update("jaxtyping_disable", before)

    return without()
