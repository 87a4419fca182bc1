"""`mmalign sample` of language models: base beside tuned, pictures beside answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmalign.cli.main import main
from mmalign.errors import CheckpointError, ConfigError
from mmalign.testing.vlm_dialogues import photo
from mmalign.train.config import resolve
from mmalign.train.run import train
from mmalign.vlm.sampling import Question, markdown, page, read_questions
from mmalign.vlm.trained import load_base, load_trained, recognise


def trained(folder: Path, model: Path, **sections: object) -> Path:
    """A run of two large steps on two pairs."""
    (folder / "0.png").write_bytes(photo(0))
    pair = {"chosen": "A red circle.", "rejected": "No.", "images": ["0.png"]}
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"What? {n}", **pair}) + "\n" for n in range(2)))
    content = {
        "method": "dpo",
        "model": {"family": "llava", "source": str(model)},
        "data": {"source": {"path": str(rows)}},
        "train": {
            "output": str(folder / "run"),
            "steps": 2,
            "batch_size": 2,
            "learning_rate": 0.1,
            "device": "cpu",
            "num_workers": 0,
            "warmup_steps": 0,
        },
        "adapter": {"rank": 2},
        "log": {"trackers": []},
        "answers": {"prompts": [{"prompt": "What?", "images": [str(folder / "0.png")]}]},
        **sections,
    }
    train(resolve(content))
    return folder / "run"


def test_a_run_answers_beside_its_base_and_reproduces_what_training_wrote(
    tiny_vlm_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, tiny_vlm_folder("llava"))
    (written,) = (run / "samples").glob("*.json")
    expected = json.loads(written.read_text())[0]
    (tmp_path / "0.png").rename(tmp_path / "moved.png")  # the run's own prompts need not be there
    options = ["--prompt", "What?", "--image", str(tmp_path / "moved.png"), "--max-new-tokens", "128"]
    output = tmp_path / "answers"
    assert main(["sample", "--run", str(run), *options, "--output", str(output), "--device", "cpu"]) == 0
    record = json.loads((output / "answers.jsonl").read_text())
    assert (record["base"], record["tuned"]) == (expected["base"], expected["policy"])
    assert record["base"] != record["tuned"]
    assert "What?" in capsys.readouterr().out
    assert "data:image/jpeg;base64," in (output / "answers.html").read_text()
    assert "moved.png" in (output / "answers.md").read_text()
    assert main(["export", str(run), "--to", "merged", "--output", str(tmp_path / "merged")]) == 0
    words = ["--model", str(tmp_path / "merged"), *options, "--output", str(output), "--device", "cpu"]
    assert main(["sample", *words]) == 0
    assert json.loads((output / "answers.jsonl").read_text())["base"] == record["tuned"]
    assert main(["export", str(run), "--to", "comfyui"]) == 2
    assert "of language models: peft, merged" in capsys.readouterr().err


def test_a_base_model_alone_is_recognised_by_its_config(
    tiny_vlm_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for family in ("llava", "qwen2_5_vl", "causal_lm"):
        assert recognise(str(tiny_vlm_folder(family))) == family
    options = ["--prompt", "Say.", "--max-new-tokens", "3", "--output", str(tmp_path), "--device", "cpu"]
    assert main(["sample", "--model", str(tiny_vlm_folder("causal_lm")), *options]) == 0
    assert set(json.loads((tmp_path / "answers.jsonl").read_text())) == {"prompt", "images", "videos", "base"}
    assert load_base(str(tiny_vlm_folder("llava")), device="cpu").trainables is None


def test_options_of_image_models_are_refused_for_answers(
    tiny_vlm_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", "--model", str(tiny_vlm_folder("llava")), "--prompt", "x", "--num-images", "2"]
    assert main(words) == 2
    assert "got '--num-images', expected options of language models" in capsys.readouterr().err


def test_questions_of_a_file_bring_their_own_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(1))
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"prompt": "Which?", "images": ["a.png"]}) + "\n")
    assert read_questions([], file, (), ()) == [Question("Which?", (str(tmp_path / "a.png"),))]
    plain = tmp_path / "asked.txt"
    plain.write_text("One?\n\nTwo?\n")
    asked = read_questions(["Zero?"], plain, (str(tmp_path / "a.png"),), ())
    assert [question.prompt for question in asked] == ["Zero?", "One?", "Two?"]
    assert all(question.images for question in asked)


@pytest.mark.parametrize(
    ("line", "message"),
    [("no json", "no JSON"), ('{"question": "x"}', "expected"), ("", "no prompts")],
)
def test_files_that_ask_nothing_are_refused(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text(line)
    with pytest.raises(ConfigError, match=message):
        read_questions([], file, (), ())


def test_a_picture_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file or folder that exists"):
        read_questions(["What?"], None, (str(tmp_path / "none.png"),), ())


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no mmalign_config\.yaml"):
        load_trained(tmp_path)


def test_answers_cannot_break_table_or_page() -> None:
    questions, columns = [Question("a | b")], {"base": ["<script>\n| x"]}
    assert markdown(questions, columns).splitlines()[2] == "| a \\| b |  | &lt;script&gt; \\| x |"
    assert "<script>" not in page(questions, columns)
