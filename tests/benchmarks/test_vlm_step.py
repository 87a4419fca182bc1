"""The comparison with TRL's step compares the same thing, and its page states what its records say."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import vlm_step
    from vlm_pairs import Shape

    folder = tmp_path_factory.mktemp("vlm_step")
    vlm_step.write_inputs(folder, Shape(64, 2, 64, 2, 512, 56))
    return folder


def _fake(name, *values):
    weights = {str(number): nn.Parameter(torch.ones(3)) for number in range(len(values))}

    def gradient():
        for parameter, value in zip(weights.values(), values, strict=True):
            parameter.grad = torch.full((3,), value)

    return SimpleNamespace(name=name, parameters=weights, gradient=gradient)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_four_contestants_give_the_same_gradient(folder, checkpointing):
    from vlm_contestants import MAKERS, largest_difference

    contestants = [make(folder, checkpointing=checkpointing) for make in MAKERS.values()]
    assert len(contestants) == 4
    assert all(len(contestant.parameters) == 2 * 2 * 7 for contestant in contestants)
    assert largest_difference(contestants) < 1e-5
    for contestant in contestants:
        before = {name: value.detach().clone() for name, value in contestant.parameters.items()}
        contestant.step()
        assert any(not torch.equal(before[name], contestant.parameters[name]) for name in before)


def test_a_contestant_with_another_gradient_stops_the_comparison():
    from vlm_contestants import largest_difference

    assert largest_difference([_fake("one", 1.0, 2.0), _fake("two", 1.0, 2.0)]) == 0.0
    with pytest.raises(RuntimeError, match=r"two differs from one by 4\.5e-03"):
        largest_difference([_fake("one", 1.0, 2.0), _fake("two", 1.01, 2.0)])
    with pytest.raises(RuntimeError, match="two trains other weights"):
        largest_difference([_fake("one", 1.0, 2.0), _fake("two", 1.0)])


def test_answers_have_the_stated_lengths_and_tokens_are_those_of_trl(folder):
    from datasets import Dataset
    from transformers import AutoProcessor
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
    from vlm_pairs import CHOSEN_TOKENS, REJECTED_TOKENS

    from mmalign.data.config import DataConfig
    from mmalign.data.readers import open_rows
    from mmalign.testing.vlm_dialogues import load_vlm

    path = folder / "pairs.parquet"
    model = load_vlm("llava", folder / "model")
    table = open_rows(DataConfig(source={"path": str(path), "media": "dialogue"}), kind="pairs")
    rows = Dataset.from_parquet(str(path), cache_dir=str(folder / "rows"))
    collate = DataCollatorForVisionPreference(AutoProcessor.from_pretrained(str(folder / "model")))
    for number in range(2):
        (prompt,), answers = (model.example(table[number], key=0)[name] for name in ("prompts", "answers"))
        assert [len(answer.ids) for answer in answers] == [CHOSEN_TOKENS, REJECTED_TOKENS]
        peers = collate([rows[number]])
        for answer, ids, mask in zip(answers, peers["input_ids"], peers["attention_mask"], strict=True):
            assert torch.equal(torch.cat([prompt.ids, answer.ids]), ids[mask.bool()])


def test_the_page_states_what_the_records_say(repository):
    import vlm_step

    page = (repository / "docs" / "vlm-speed.md").read_text()
    part = vlm_step.page_part(repository / "docs" / "measurements" / "vlm_step.jsonl")
    assert f"<!-- vlm_step:begin -->\n{part}\n<!-- vlm_step:end -->" in page


def test_a_later_record_of_the_same_comparison_replaces_the_earlier(tmp_path):
    import vlm_step

    def record(seconds, shape="llava"):
        return {
            "shape": shape,
            "checkpointing": False,
            "pairs": 2,
            "device": "a CPU",
            "trl": "1",
            "gradient_difference": 1e-6,
            "seconds": {"trl, answers alone": 4.0, "mmalign": seconds, "mmalign, stored": 1.0},
            "speed": {
                "trl, all positions": {"mmalign": 9.0, "mmalign, stored": 9.5},
                "trl, answers alone": {"mmalign": 4.0 / seconds, "mmalign, stored": 3.5},
            },
            "memory_mib": {
                "trl, answers alone": {"step": 200.0, "process": 1000.0},
                "mmalign": {"step": 100.0, "process": 900.0},
                "mmalign, stored": {"step": 100.0, "process": 900.0},
            },
        }

    path = tmp_path / "records.jsonl"
    lines = [json.dumps(each) for each in (record(1.0), record(3.0, "other"), record(2.0))]
    path.write_text("\n".join(lines) + "\n")
    part = vlm_step.page_part(path)
    assert "| mmalign | 2.00 | 9.00x | 2.00x | 100 MiB | 0.50 | 900 MiB |" in part
    assert "mmalign: 2.00x, aim 2.2x, missed; mmalign, stored: 3.50x, aim 3.0x, met" in part
    assert "a step's memory: 0.50, aim 0.75, met; the process: 0.90, aim 0.75, missed" in part
    assert "4.00x" not in part
    assert part.count("gradients differ by 1e-06") == 2
