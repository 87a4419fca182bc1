"""Language runs whose chosen answers become unlikely: taken back, gone on with, killed amid it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.testing.accelerator import forget_accelerator
from mmalign.testing.variants import variants
from mmalign.train import rollback
from mmalign.train.rollback import lower_learning_rate
from mmalign.train.run import RunResult, prepare

WATCHED = "nll/relative_chosen"
FACTOR = 0.001
TOO_HIGH = 0.06


@pytest.fixture
def displacing(tmp_path: Path, dialogues_file: Path) -> dict[str, Any]:
    """A run of the whole network whose rejected answers repeat the chosen word: both become unlikely."""
    lines = []
    for line in dialogues_file.read_text().splitlines():
        picture = str(dialogues_file.parent / json.loads(line)["images"][0])
        texts = {"chosen": "Things", "rejected": "Things" + " things" * 7}
        lines.append(json.dumps({"prompt": "What is it?", "images": [picture], **texts}))
    source = tmp_path / "repeated.jsonl"
    source.write_text("\n".join(lines))
    return {
        "adapter": {"kind": "none", "rank": 8, "alpha": None},
        "objective": {"beta": 0.1},
        "data": {"source": {"path": str(source), "allow_outside": True}},
        "train": {
            "steps": 8,
            "learning_rate": TOO_HIGH,
            "warmup_steps": 60,
            "checkpoint_every": 2,
            "keep_checkpoints": 1,
            "ema_decay": 0.5,
        },
        "guard": {"action": "rollback", "patience": 3, "threshold": 0.1, "learning_rate_factor": FACTOR},
    }


def guard_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "training_summary.json").read_text())["guard"]
    return found


def test_displacement_is_taken_back_and_the_run_goes_on(train_dialogues, displacing, capsys) -> None:
    result: RunResult = train_dialogues(**displacing)
    assert result.finished
    assert "the chosen answers' negative log-likelihood" in capsys.readouterr().out
    event = guard_of(result.folder)["events"][0]
    assert (event["event"], event["step"], event["to"]) == ("rolled back", 5, 2)
    assert [record["step"] for record in result.records] == list(range(1, 9))
    aside = [json.loads(line) for line in (result.folder / "metrics.rolled_back-1.jsonl").open()]
    assert [record["step"] for record in aside] == [3, 4, 5]
    assert aside[-1][WATCHED] > 0.15
    assert aside[-1]["chosen_fell"] == 1.0
    assert result.records[-1][WATCHED] < 0.1
    warm = [TOO_HIGH * step / 60 for step in range(8)]
    rates = [record["learning_rate"] for record in result.records]
    assert rates == pytest.approx([*warm[:2], *(FACTOR * rate for rate in warm[2:])])


class Killed(BaseException):
    """What a test raises in place of SIGKILL."""


def kill(*_: object, **__: object) -> None:
    raise Killed


def interrupted(run: Any, monkeypatch: pytest.MonkeyPatch, moment: str | int) -> None:
    """A run that is killed in its rollback, at the call named, or at a step after it."""
    loop, batches = prepare(run)

    def stop(done: int) -> None:
        if done == moment and loop.guard.state.rollbacks:
            raise Killed

    loop.on_update = stop
    with monkeypatch.context() as patch:
        if isinstance(moment, str):
            patch.setattr(loop.tracking if moment == "rewind" else rollback, moment, kill)
        with pytest.raises(Killed):
            loop.train(iter(batches))


@pytest.mark.parametrize("reference", variants(["auto", "stored"], fast=("stored",)))
def test_a_run_killed_during_or_after_a_rollback_continues_bit_for_bit(
    make_dialogue_run, train_dialogues, displacing, without_timings, monkeypatch, reference: str
) -> None:
    displacing["reference"] = {"kind": reference}
    whole = train_dialogues("whole", **displacing)
    assert guard_of(whole.folder)["rollbacks"] == 1
    for moment in ("write_json", "rewind", 3):
        name = f"killed at {moment}"
        forget_accelerator()
        interrupted(make_dialogue_run(name, **displacing), monkeypatch, moment)
        killed = train_dialogues(name, **displacing)
        for path in sorted(whole.folder.rglob("*.safetensors")):
            one, two = load_file(killed.folder / path.relative_to(whole.folder)), load_file(path)
            assert [key for key in two if not torch.equal(one[key], two[key])] == [], (name, path)
        for file in ("metrics.jsonl", "metrics.rolled_back-1.jsonl"):
            first, second = (
                without_timings([json.loads(line) for line in (result.folder / file).open()])
                for result in (killed, whole)
            )
            assert first == second, name
        assert guard_of(killed.folder) == guard_of(whole.folder), name


def test_parts_with_rates_of_their_own_keep_their_shares_of_a_lowered_rate() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    groups = [{"params": [weight], "lr": rate} for weight, rate in zip(weights, (0.8, 0.08), strict=True)]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    lower_learning_rate(optimizer, schedule, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.01])
