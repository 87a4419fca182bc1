"""Frozen weights in few bits over several processes: the numbers of one process, or a refusal."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mmalign.errors import ConfigError
from mmalign.testing.run_states import SMOOTH, same_state
from mmalign.train.distributed.modes import require_fitting

KINDS = ("int8", "fp8", "nf4")
LAUNCHES = ("ddp", "fsdp2", "zero1", "zero2")


def _require(name: str, kind: str) -> None:
    """Skip where an extra is missing."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs the extra deepspeed")
    if kind == "nf4":
        pytest.importorskip("bitsandbytes", reason="nf4 needs the extra 8bit")


_FAST = ("fsdp2", "int8")

RUNS = [
    pytest.param(*run, marks=() if run == _FAST else pytest.mark.slow) for run in product(LAUNCHES, KINDS)
]
"""Every kind under every launch that takes it."""


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_a_quantised_run_is_the_run_of_one_process(
    write_config, run_to_end, launch, tmp_path: Path, name: str, kind: str
) -> None:
    """Within 1e-6 after two updates that move weights by up to 1e-3 each, as runs over wide weights.

    A weight is widened to the same number on every process, so rounding to few bits adds no difference.
    """
    _require(name, kind)
    shared: dict[str, Any] = {"model": {"quantization": kind}, "likelihood": {"stratified": True}}
    train = {"steps": 2, "ema_decay": 0.9, **SMOOTH}
    launch(name, write_config("two", train={**train, "batch_size": 2}, **shared))
    run_to_end("one", train={**train, "batch_size": 4}, **shared)
    same_state(tmp_path / "two", tmp_path / "one", step=2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("fsdp2", "nf4"), ("zero2", "int8"), ("fsdp2", "int8")])
def test_a_quantised_language_model_is_that_of_one_process(
    write_dialogue_config, train_dialogues, launch, tmp_path: Path, name: str, kind: str
) -> None:
    _require(name, kind)
    model = {"quantization": kind}
    launch(name, write_dialogue_config("two", model=model, train={"batch_size": 2, **SMOOTH}))
    train_dialogues("one", model=model, train={"batch_size": 4, **SMOOTH})
    same_state(tmp_path / "two", tmp_path / "one", step=2)


@pytest.mark.parametrize("kind", KINDS)
def test_stage_3_cuts_no_quantised_weights(make_run, kind: str) -> None:
    run = make_run(model={"quantization": kind})
    for name in LAUNCHES:
        require_fitting(run, name, "adapters_off")
    with pytest.raises(
        ConfigError, match=rf"model\.quantization: got '{kind}'.*stage 3.*launch zero2.*fsdp2"
    ):
        require_fitting(run, "zero3", "adapters_off")
