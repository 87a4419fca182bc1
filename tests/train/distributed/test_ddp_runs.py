"""Runs that every process holds whole: several draws of a row, compiled blocks, answers of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.testing.processes import on_processes
from mmalign.testing.run_states import SMOOTH, same_state
from mmalign.testing.run_tasks import train_compiled, train_on_letters
from mmalign.testing.sharded_tasks import blocks_stay_whole_under_ddp


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "likelihood"), [("fsdp2", {"draws": 2}), ("ddp", {"draws": 2, "antithetic": True})]
)
def test_the_draws_of_a_row_do_not_depend_on_who_has_it(
    write_config, write_pairs, run_to_end, launch, tmp_path: Path, likelihood: dict[str, Any], name: str
) -> None:
    """One row is unreadable, so that processes count different numbers of valid draws."""
    shared = {
        "data": {"source": str(write_pairs(tmp_path / "some.parquet", 11, broken={3})), "max_bad_share": 1.0},
        "likelihood": {"stratified": True, **likelihood},
    }
    launch(name, write_config("two", train={"batch_size": 2, **SMOOTH}, **shared))
    run_to_end("one", train={"batch_size": 4, **SMOOTH}, **shared)
    same_state(tmp_path / "two", tmp_path / "one", step=3)


@pytest.mark.slow
def test_answers_of_two_processes_are_to_different_rows_and_weights_are_one(
    write_dialogue_config, write_dialogues, tmp_path: Path
) -> None:
    """Processes may begin rounds at different times; nothing waits for a round, all wait for an update."""
    source = write_dialogues(tmp_path / "rows", num_rows=8)
    rollout = {"samples": 3, "prompts": 2, "reward": "letters", "max_new_tokens": 7}

    def run(name: str, steps: int) -> None:
        sizes = {"steps": steps, "batch_size": 2, "accumulation": 2, "checkpoint_every": 2}
        train = {**sizes, "schedule": "constant", **SMOOTH}
        settings = {"data": {"source": str(source)}, "rollout": rollout, "train": train}
        config = write_dialogue_config(name, method="online_dpo", **settings)
        on_processes(2, train_on_letters, str(config), str(tmp_path / f"{name}-{steps}"))

    run("whole", 4)
    rounds = [json.loads((tmp_path / "whole-4" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert min(len(own) for own in rounds) >= 2
    epoch = [row for own in rounds for asked in own[:2] for row in asked]
    assert len(epoch) > 4
    assert len(set(epoch)) == len(epoch), "four prompts in a round of both, eight rows in two"
    run("cut", 2)
    run("cut", 4)
    same_state(tmp_path / "cut", tmp_path / "whole", step=4, atol=0.0)


def losses(folder: Path) -> list[float]:
    """By step."""
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.compiled
@pytest.mark.slow
def test_ddp_does_not_cut_the_graph_of_a_block() -> None:
    on_processes(1, blocks_stay_whole_under_ddp)


COMPILED = {
    "float32": ("sd15", "aot_eager", False, {}, 1e-4),
    "bf16": ("sd15", "aot_eager", "selective", {"mixed_precision": "bf16"}, 1e-4),
    "kernels-bf16": ("llava", "inductor", True, {"mixed_precision": "bf16"}, 2e-2),
}
"""Family, backend, recomputation, precision, largest difference of a loss.

Traced blocks run the operations of others, of which some are taken apart: the last bits differ, and a logit
is 500 times a difference of errors near 1. Kernels round to bfloat16 (8 bits) where they end, not after every
operation: one part in 256 of log-probabilities that are summed over an answer, times a beta of 0.1. Measured
were 0.006, while the loss fell by 0.22.
"""


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_blocks_have_the_losses_of_others_on_two_processes(
    write_config, write_dialogue_config, launch, tmp_path: Path, case: str
) -> None:
    family, backend, recomputes, train, tolerance = COMPILED[case]
    write = write_config if family == "sd15" else write_dialogue_config
    shared = {"batch_size": 1, "steps": 3, **SMOOTH, **train}
    for name, compiled in (("plain", "none"), ("compiled", "blocks")):
        model = {"compile": compiled, "gradient_checkpointing": recomputes}
        config = write(name, model=model, train=shared)
        if compiled == "none":
            launch("ddp", config)
        else:
            on_processes(2, train_compiled, str(config), backend, timeout=600.0)
    plain = losses(tmp_path / "plain")
    assert losses(tmp_path / "compiled") == pytest.approx(plain, abs=tolerance)
    assert max(abs(loss - plain[0]) for loss in plain) > 5 * tolerance, "the run moves"
