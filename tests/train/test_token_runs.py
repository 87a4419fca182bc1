"""Whole runs of tiny language models: the same numbers however they are cut, and files that others read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.testing.accelerator import forget_accelerator
from mmalign.train import stored_tokens
from mmalign.train.run import prepare, train

# See tests/train/test_loop.py: an update that is a smooth function of the gradient can be compared.
SMOOTH = {"adam_epsilon": 1e-2}


class Killed(BaseException):
    """What a test raises in place of SIGKILL."""


def killed_after(run: Any, step: int) -> None:
    """Run until after `step`, and no further: no ending of the loop is reached."""
    forget_accelerator()
    loop, loader = prepare(run)

    def kill(done: int) -> None:
        if done == step:
            raise Killed

    loop.on_update = kill
    with pytest.raises(Killed):
        loop.train(iter(loader))


def weights_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("method", "adapter"),
    [
        # Every visit of a row draws another corruption.
        ("mdpo", {"kind": "lora", "dropout": 0.3}),
        ("dpo", {"kind": "none", "rank": 8, "alpha": None}),
    ],
)
def test_a_run_killed_between_checkpoints_goes_on_bit_for_bit(
    make_dialogue_run, train_dialogues, without_timings, tmp_path: Path, method: str, adapter: dict[str, Any]
) -> None:
    shared: dict[str, Any] = {
        "method": method,
        "adapter": adapter,
        "train": {
            "steps": 5,
            "batch_size": 1,
            "accumulation": 2,
            "checkpoint_every": 2,
            "schedule": "cosine",
        },
        "log": {"every": 2},
    }
    run = make_dialogue_run("killed", **shared)
    killed_after(run, 3)
    result = train_dialogues("killed", **shared)
    whole = train_dialogues("whole", **shared)
    assert result.steps == 5
    got, expected = (
        load_file(tmp_path / name / "checkpoints" / "step-00000005" / "weights.safetensors")
        for name in ("killed", "whole")
    )
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []
    assert without_timings(result.records) == without_timings(whole.records)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_two_micro_steps_of_two_are_one_of_four(train_dialogues, tmp_path: Path, family: str) -> None:
    for name, sizes in {"two": (2, 2), "one": (4, 1)}.items():
        train_dialogues(
            name, family=family, train={"batch_size": sizes[0], "accumulation": sizes[1], **SMOOTH}
        )
    got, expected = weights_of(tmp_path / "two", 2), weights_of(tmp_path / "one", 2)
    assert max(float(value.abs().max()) for name, value in expected.items() if "lora_B" in name) > 1e-6
    assert_close(got, expected, 1e-6)


@pytest.mark.slow
def test_two_processes_equal_one(write_dialogue_config, train_dialogues, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    config = write_dialogue_config("two", train={"batch_size": 2, **SMOOTH})
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [sys.executable, *launch, "-m", "mmalign", "train", str(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    train_dialogues("one", train={"batch_size": 4, **SMOOTH})
    assert_close(weights_of(tmp_path / "two", 2), weights_of(tmp_path / "one", 2), 1e-6)


# --- stored references --------------------------------------------------------------------------------------


def test_a_stored_reference_trains_as_the_live_one(train_dialogues, tmp_path: Path) -> None:
    live = train_dialogues("live", train=SMOOTH)
    stored = train_dialogues("stored", train=SMOOTH, reference={"kind": "stored"})
    assert_close(weights_of(tmp_path / "stored", 2), weights_of(tmp_path / "live", 2), 1e-6)
    for one, two in zip(stored.records, live.records, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["chosen_fell"] == two["chosen_fell"]


def test_an_interrupted_pass_goes_on_and_a_finished_one_shows_the_network_nothing(
    make_dialogue_run, train_dialogues, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, Any] = {"reference": {"kind": "stored"}, "train": {"steps": 1, "batch_size": 1}}
    monkeypatch.setattr(stored_tokens, "_BATCHES_PER_SAVE", 2)
    whole, shown = stored_tokens.precompute_log_probs, list[str]()

    def counted(base: Any, likelihood: Any, batches: Any, **more: Any) -> Any:
        shown.extend(batch.ids[0] for batch in batches)
        return whole(base, likelihood, batches, **more)

    def killed(*_: Any, **__: Any) -> None:
        if len(shown) >= 4:
            raise Killed
        return counted(*_, **__)

    monkeypatch.setattr(stored_tokens, "precompute_log_probs", killed)
    with pytest.raises(Killed):
        train(make_dialogue_run("run", **shared))
    assert len(shown) == 4
    monkeypatch.setattr(stored_tokens, "precompute_log_probs", counted)
    train_dialogues("run", **shared)
    assert len(shown) == len(set(shown)) == 7
    train_dialogues("run", **shared)
    assert len(shown) == 7


# --- kinds of data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind", "more"),
    [
        ("kto", "unpaired", {"objective": {"beta": 0.1}}),
        ("lipo_softmax", "lists", {"objective": {"beta": 0.1}}),
        ("odpo", "pairs", {"objective": {"beta": 0.1, "alpha": 1.0}}),
        ("vdpo_guided", "pairs", {}),
        ("vdpo_video", "unpaired", {"tokens": {"corruption": {"kind": "crop"}}}),
    ],
)
def test_every_kind_of_data_trains(
    train_dialogues, trained_weights, write_dialogues, tmp_path: Path, method: str, kind: str, more: dict
) -> None:
    source = write_dialogues(tmp_path / "rows", kind, **({"label": True} if method == "vdpo_video" else {}))
    result = train_dialogues(
        method=method, data={"source": str(source)}, train={"steps": 1, "batch_size": 4}, **more
    )
    (record,) = result.records
    assert record["bad_rows"] == 0
    assert record["grad_norm"] > 0
    assert any(value.abs().max() > 0 for name, value in trained_weights(result).items() if "lora_B" in name)


def test_an_unreadable_picture_costs_its_row_and_nothing_else(
    train_dialogues, write_dialogues, tmp_path: Path
) -> None:
    source = write_dialogues(tmp_path / "rows", num_rows=5, broken={3})
    shared: dict[str, Any] = {"steps": 1, "batch_size": 5, **SMOOTH}
    data = {"source": str(source), "max_bad_share": 1.0, "shuffle": False}
    result = train_dialogues(data=data, train=shared)
    assert result.records[-1]["bad_rows"] == 1
    listed = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [item["source"].rsplit("/", 1)[-1] for item in listed] == ["pairs.jsonl:4"]
    lines = source.read_text().splitlines()
    source.write_text("\n".join(lines[:3] + lines[4:]))
    train_dialogues("others", data=data, train={**shared, "batch_size": 4})
    assert_close(weights_of(tmp_path / "run", 1), weights_of(tmp_path / "others", 1), 1e-6)


# --- what trains, and what is left --------------------------------------------------------------------------


def test_parts_train_as_asked_at_rates_of_their_own(make_dialogue_run) -> None:
    tokens = {"train_projector": True, "projector_learning_rate": 1e-4}
    full = {"kind": "none", "rank": 8, "alpha": None}
    run = make_dialogue_run(tokens=tokens, adapter=full, train={"schedule": "constant"})
    loop, loader = prepare(run)
    projector = {name for name in loop.trainables.parameters if "multi_modal_projector" in name}
    assert projector
    assert not any("vision_tower" in name for name in loop.trainables.parameters)
    before = {name: value.detach().clone() for name, value in loop.trainables.parameters.items()}
    groups = {group["lr"]: len(group["params"]) for group in loop.optimizer.param_groups}
    assert groups == {1e-3: len(before) - len(projector), 1e-4: len(projector)}
    loop.train(iter(loader))
    moved = {name: float((loop.trainables.parameters[name] - before[name]).abs().max()) for name in before}
    # Two steps of Adam are about two rates.
    assert max(moved[name] for name in projector) == pytest.approx(2e-4, rel=0.2)
    assert max(moved[name] for name in moved.keys() - projector) == pytest.approx(2e-3, rel=0.2)


def test_adapters_reach_the_tower_when_it_trains(make_dialogue_run) -> None:
    loop, _ = prepare(make_dialogue_run(tokens={"train_vision": True}))
    assert any("vision_tower" in name for name in loop.trainables.parameters)
    assert not any("multi_modal_projector" in name for name in loop.trainables.parameters)


def test_half_precision_trains_and_writes_answers(train_dialogues, dialogues_file: Path) -> None:
    answers = {"prompts": ["What is it?"], "max_new_tokens": 3}
    result = train_dialogues(answers=answers, train={"mixed_precision": "bf16"})
    assert {value.dtype for value in result.trainables.parameters.values()} == {torch.float32}
    assert result.records[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert result.records[-1]["dropped_updates"] == 0
    (written,) = json.loads((result.folder / "samples" / "step-00000002.json").read_text())
    assert written["prompt"] == "What is it?"


def test_answers_are_those_that_plain_transformers_and_peft_write(
    train_dialogues, tiny_vlm_folder, dialogues_file: Path
) -> None:
    from peft import PeftModel
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    picture, prompt = dialogues_file.parent / "0.png", "What is shown in number 0?"
    sample = {"prompt": prompt, "images": [str(picture)]}
    result = train_dialogues(
        answers={"prompts": [sample], "every": 1, "max_new_tokens": 7}, train={"learning_rate": 1e-2}
    )
    samples = result.folder / "samples"
    assert sorted(path.name for path in samples.iterdir()) == ["step-00000001.json", "step-00000002.json"]
    (written,) = json.loads((samples / "step-00000002.json").read_text())
    assert written["images"] == [str(picture)]
    assert written["base"] != written["policy"]

    source = str(tiny_vlm_folder("llava"))
    processor = AutoProcessor.from_pretrained(source)
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    bos = processor.tokenizer.bos_token
    inputs = processor(
        text=[text],
        images=[Image.open(picture).convert("RGB")],
        return_tensors="pt",
        add_special_tokens=not (bos and text.startswith(bos)),
    )
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    for adapter, expected in ((None, written["base"]), (result.folder, written["policy"])):
        network = model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
        found = network.eval().generate(**inputs, do_sample=False, max_new_tokens=7)
        answer = processor.tokenizer.decode(
            found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert answer.strip() == expected.strip()


def test_a_run_says_its_findings_in_words_of_language_models(train_dialogues) -> None:
    result = train_dialogues(train={"steps": 3})
    panel = result.records[-1].keys()
    assert {
        *("nll/relative_chosen", "nll/relative_rejected", "logps_per_token/chosen", "chosen_fell"),
        *("length/rejected", "log_ratio_chosen", "implicit_accuracy"),
    } <= panel
    assert not any(name.startswith(("error/", "by_timestep/", "drift")) for name in panel)
    found = " ".join(result.verdict)
    assert "hosen answers" in found
    assert "image" not in found
    summary = json.loads((result.folder / "training_summary.json").read_text())
    assert summary["verdict"] == result.verdict
    assert set(summary["data"].values()) <= {0}


def test_answers_that_were_cut_are_counted(train_dialogues, capsys) -> None:
    result = train_dialogues(train={"steps": 1}, tokens={"max_completion_length": 2})
    summary = json.loads((result.folder / "training_summary.json").read_text())
    assert summary["data"]["cut_answers"] > 0
    assert f"rows of this process: {summary['data']['cut_answers']} cut answers" in capsys.readouterr().out
