"""The script of task tokens: boxes are learned, old words stay, files are there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.errors import RowError
from mmalign.testing.vlm_dialogues import load_vlm, photo
from mmalign.vlm.train_tasks import TaskTrainer, main, read_tasks

BOXES = ([0.1, 0.1, 0.4, 0.5], [0.5, 0.4, 0.9, 0.8])


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    lines = []
    for number, box in enumerate(BOXES):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
        lines.append(
            {"prompt": "Where is it?", "images": [f"{number}.png"], "answer": "Here: <box>", "boxes": [box]}
        )
    lines.append({"prompt": "When is it?", "images": ["0.png"], "answer": "At <time>", "spans": [[0.2, 0.6]]})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_all_terms_fall_and_words_of_old_stay_as_they_are(
    rows_file: Path, tiny_vlm_folder: Callable[[str], Path]
) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    trainer = TaskTrainer(model, rank=4, learning_rate=1e-2)
    before = [weight.detach().clone() for weight in trainer.rows]
    rows = read_tasks(rows_file)
    losses = [trainer.step(rows) for _ in range(25)]
    first, last = losses[0], losses[-1]
    assert float(last.mllm) < float(first.mllm)
    assert float(last.assign) < 0.5 * float(first.assign)
    assert {task: float(loss) < 0.7 * float(first.tasks[task]) for task, loss in last.tasks.items()} == {
        "region": True,
        "temporal": True,
    }
    new = min(trainer.ids.values())
    for weight, old in zip(trainer.rows, before, strict=True):
        assert torch.equal(weight[:new], old[:new])
        assert not torch.equal(weight[new:], old[new:])


def test_the_script_leaves_an_adapter_heads_and_tokens(
    rows_file: Path, tiny_vlm_folder: Callable[[str], Path], tmp_path: Path, capsys
) -> None:
    output = tmp_path / "run"
    source = str(tiny_vlm_folder("llava"))
    given = ["--model", source, "--output", str(output), "--steps", "2", "--batch-size", "3", "--rank", "2"]
    assert main([str(rows_file), *given]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["step"] for line in lines] == [1, 2]
    assert (output / "adapter_config.json").exists()
    tensors = load_file(output / "task_heads.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"region", "temporal", "token_rows"}
    assert set(json.loads((output / "task_tokens.json").read_text())) == {"<box>", "<time>", "<track>"}


def test_a_box_without_its_token_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Where?", "answer": "There.", "boxes": [BOXES[0]]}))
    with pytest.raises(RowError, match=r"rows.jsonl:1 boxes: got '1 for 0 <box> in the answer'"):
        read_tasks(path)
    path.write_text(json.dumps({"prompt": "Where?"}))
    with pytest.raises(RowError, match=r"rows.jsonl:1: got .*expected prompt and answer"):
        read_tasks(path)
