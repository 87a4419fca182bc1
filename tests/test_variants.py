"""Which variants of a test `make test` runs."""

import pytest

from mmalign.testing.variants import variants


def test_variants_that_are_not_fast_are_slow() -> None:
    found = {each.id: (each.values, [mark.name for mark in each.marks]) for each in variants("ab", fast="b")}
    assert found == {"a": (("a",), ["slow"]), "b": (("b",), [])}


def test_a_fast_variant_that_does_not_exist_is_told() -> None:
    with pytest.raises(ValueError, match=r"got \['c'\], expected some of \['a', 'b'\]"):
        variants("ab", fast=("b", "c"))
