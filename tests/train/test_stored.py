"""The table of stored reference errors is complete before a run reads it."""

from pathlib import Path

import pytest
import torch

from mmalign.errors import CheckpointError
from mmalign.likelihood.stored import ReferenceTable
from mmalign.train.stored import _require_all


def test_a_share_that_is_missing_is_told_and_an_unreadable_row_is_not() -> None:
    keys = torch.tensor([3, 5, 7], dtype=torch.int64)
    errors = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan], [3.0, 5.0]])
    _require_all(keys, ReferenceTable(keys, errors, {}), Path("errors"))
    with pytest.raises(CheckpointError, match=r"errors: got .*of 2 draws.*expected 3.*all machines see"):
        _require_all(keys, ReferenceTable(keys[:2], errors[:2], {}), Path("errors"))
