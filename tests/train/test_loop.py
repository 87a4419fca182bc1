"""Whole short runs: what accumulation, bad rows, averages, references and precision may change."""

import contextlib
import importlib.metadata
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.errors import ConfigError, MissingExtraError, TrainingError
from mmalign.testing.accelerator import forget_accelerator
from mmalign.testing.variants import variants
from mmalign.train.run import prepare, train

# Adam divides by the size of the gradient, so float32 noise in elements near zero would be blown up to whole
# steps; with this epsilon an update is a smooth function of the gradient and can be compared.
SMOOTH = {"adam_epsilon": 1e-2}


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(got[name], expected[name])]
    assert not different


def assert_close(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, atol: float = 1e-6
) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


# --- accumulation -------------------------------------------------------------------------------------------


def test_the_split_of_a_batch_into_micro_steps_does_not_change_the_result(
    run_to_end, trained_weights
) -> None:
    """1 x 4 = 2 x 2 = 4 x 1 within 1e-6 after three updates that move weights by up to 1e-3 each.

    Not bit for bit: a convolution over 8 rows adds in another order than four over 2.
    """
    found = [
        run_to_end(f"{size}", train={"batch_size": size, "accumulation": 4 // size, **SMOOTH})
        for size in (1, 2, 4)
    ]
    first, *others = (trained_weights(result) for result in found)
    start = max(float(value.abs().max()) for name, value in first.items() if "lora_B" in name)
    assert start > 1e-5, "the weights moved"
    for other in others:
        assert_close(other, first)
    losses = [[record["loss"] for record in result.records] for result in found]
    # A logit is beta times a difference of errors, so their last bits show; on one processor 1.1e-5.
    assert losses[1] == pytest.approx(losses[0], abs=3e-5)
    assert losses[2] == pytest.approx(losses[0], abs=3e-5)


def test_stratified_timesteps_do_not_depend_on_the_split_either(run_to_end, trained_weights) -> None:
    stratified = {"stratified": True}
    whole = run_to_end("whole", likelihood=stratified, train={"batch_size": 4, "steps": 2, **SMOOTH})
    split = run_to_end(
        "split", likelihood=stratified, train={"batch_size": 2, "accumulation": 2, "steps": 2, **SMOOTH}
    )
    assert_close(trained_weights(split), trained_weights(whole))


def test_another_seed_gives_another_result(run_to_end, trained_weights) -> None:
    one = trained_weights(run_to_end("one"))
    two = trained_weights(run_to_end("two", train={"seed": 1}))
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_worker_processes_do_not_change_the_result(run_to_end, trained_weights) -> None:
    alone = run_to_end("alone", train={"steps": 2})
    helped = run_to_end("helped", train={"steps": 2, "num_workers": 2})
    assert_equal(trained_weights(helped), trained_weights(alone))


# --- rows that cannot be used -------------------------------------------------------------------------------


def test_an_unreadable_row_counts_nowhere_and_is_quarantined_with_its_reason(
    run_to_end, trained_weights, write_pairs: Callable[..., Path], tmp_path: Path, without_timings
) -> None:
    """Rows (good, broken) in micro-batches of one are the run over (good) alone, bit for bit.

    The halves are exact: the mean over one valid row of two undoes the division by two.
    """
    both = write_pairs(tmp_path / "both.parquet", 2, broken={1})
    good = write_pairs(tmp_path / "good.parquet", 2)
    data = {"shuffle": False, "max_bad_share": 1.0}
    with_broken = run_to_end(
        "both", data={**data, "source": str(both)}, train={"batch_size": 1, "accumulation": 2}
    )
    alone = run_to_end(
        "good", data={**data, "source": {"path": str(good), "limit": 1}}, train={"batch_size": 1}
    )
    assert_equal(trained_weights(with_broken), trained_weights(alone))
    for got, expected in zip(with_broken.records, alone.records, strict=True):
        assert got["loss"] == expected["loss"]
        assert got["grad_norm"] == expected["grad_norm"]
    assert [record["bad_rows"] for record in with_broken.records] == [1.0, 2.0, 3.0]

    lines = (with_broken.folder / "quarantine.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert len(listed) == 3
    assert {item["index"] for item in listed} == {1}
    assert listed[0]["reason"] == "damaged_image"
    assert "both.parquet" in listed[0]["source"]
    assert "both.parquet:1 candidate 1 (rejected): the image is damaged" in listed[0]["message"]
    summary = json.loads((with_broken.folder / "training_summary.json").read_text())
    assert summary["unreadable_rows"] == 3


def test_a_stand_in_inside_a_micro_batch_counts_nowhere(
    run_to_end, trained_weights, write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    """As above within float32 tolerance: here the stand-in goes through the network beside the good row."""
    both = write_pairs(tmp_path / "both.parquet", 2, broken={1})
    good = write_pairs(tmp_path / "good.parquet", 2)
    data = {"shuffle": False, "max_bad_share": 1.0}
    with_broken = run_to_end("both", data={**data, "source": str(both)}, train={"batch_size": 2, **SMOOTH})
    alone = run_to_end(
        "good", data={**data, "source": {"path": str(good), "limit": 1}}, train={"batch_size": 1, **SMOOTH}
    )
    assert_close(trained_weights(with_broken), trained_weights(alone))


def test_too_many_unreadable_rows_end_the_run_with_the_reason(
    make_run, write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    source = write_pairs(tmp_path / "broken.parquet", 29, broken=range(1, 29))
    run = make_run(data={"source": str(source), "shuffle": False}, train={"batch_size": 7, "accumulation": 5})
    with pytest.raises(
        TrainingError,
        match=r"20 of 21 rows could not be used \(95.2%, allowed data.max_bad_share 1.0%\)"
        r"|\d\d of \d\d rows could not be used",
    ) as caught:
        train(run)
    message = str(caught.value)
    assert "quarantine.jsonl. Run `mmalign data check`, or raise data.max_bad_share." in message
    listed = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert len(listed) >= 20


def test_rows_that_were_broken_when_the_table_was_opened_are_quarantined_and_checked(
    make_run, run_to_end, tmp_path: Path, pairs_file: Path
) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(pairs_file).to_pydict()
    table["label_0"][2] = 7.0
    import pyarrow as pa

    source = tmp_path / "labels.parquet"
    pq.write_table(pa.table(table), source)
    with pytest.raises(TrainingError, match=r"1 of 7 rows \(14.3 %\) cannot be used"):
        train(make_run("strict", data={"source": str(source)}, train={"steps": 1}))
    result = run_to_end("lenient", data={"source": str(source), "max_bad_share": 0.5}, train={"steps": 1})
    listed = [json.loads(line) for line in (result.folder / "quarantine.jsonl").read_text().splitlines()]
    assert len(listed) == 1
    assert "label" in listed[0]["reason"]


def test_the_configured_image_limits_hold_while_training(make_run) -> None:
    run = make_run(data={"images": {"max_pixels": 32 * 32 - 1}, "max_bad_share": 1.0}, train={"steps": 1})
    with pytest.raises(TrainingError, match=r"1000 rows in a row could not be read; the last: .*1024 pixels"):
        train(run)


# --- updates that are not finite ----------------------------------------------------------------------------


def spoiled(loop: Any, *, first: int, last: int) -> None:
    """Make the policy answer NaN from update `first` to `last`."""
    denoise, calls = loop.parts.denoise, []

    def answer(noised: torch.Tensor, timestep: torch.Tensor, conditioning: Any) -> torch.Tensor:
        calls.append(1)
        prediction = denoise(noised, timestep, conditioning)
        return prediction * math.nan if first <= len(calls) <= last else prediction

    loop.parts = replace(loop.parts, denoise=answer)


def test_a_single_bad_update_is_dropped_counted_and_the_run_goes_on(make_run, trained_weights) -> None:
    loop, loader = prepare(make_run(train={"steps": 4, "max_nonfinite": 3}))
    spoiled(loop, first=2, last=3)
    loop.train(iter(loader))
    dropped = [record["dropped_updates"] for record in loop.tracking.records]
    assert dropped == [0.0, 1.0, 2.0, 2.0]
    assert "grad_norm" not in loop.tracking.records[1], "no number is better than a wrong one"
    assert all(bool(value.isfinite().all()) for value in loop.trainables.parameters.values())
    assert loop.progress.step == 4


def test_a_streak_of_bad_updates_ends_the_run_with_a_diagnosis_and_a_checkpoint(make_run) -> None:
    loop, loader = prepare(make_run(train={"steps": 9, "max_nonfinite": 3}))
    spoiled(loop, first=2, last=9)
    with pytest.raises(
        TrainingError, match=r"3 updates in a row were not finite .*the state is saved in .*fp16 overflow"
    ):
        loop.train(iter(loader))
    assert loop.progress.step == 4
    assert (loop.folder / "checkpoints" / "step-00000004" / "state.json").is_file()
    assert all(bool(value.isfinite().all()) for value in loop.trainables.parameters.values())


# --- average, references, methods ---------------------------------------------------------------------------


def saved_adapter(folder: Path) -> list[torch.Tensor]:
    return sorted(
        load_file(folder / "pytorch_lora_weights.safetensors").values(),
        key=lambda value: value.flatten().tolist(),
    )


def test_the_average_is_what_is_saved_in_the_end(run_to_end) -> None:
    result = run_to_end(train={"steps": 3, "ema_decay": 0.9})
    last = result.folder / "checkpoints" / "step-00000003"
    average, weights = load_file(last / "ema.safetensors"), load_file(last / "weights.safetensors")
    order = sorted(average.values(), key=lambda value: value.flatten().tolist())
    saved = saved_adapter(result.folder)
    assert all(torch.equal(one, two) for one, two in zip(saved, order, strict=True))
    plain = sorted(weights.values(), key=lambda value: value.flatten().tolist())
    assert any(not torch.equal(one, two) for one, two in zip(saved, plain, strict=True))
    # The network itself keeps the last weights.
    held = {name: value.detach() for name, value in result.trainables.parameters.items()}
    assert any(not torch.equal(held[name], average[name]) for name in average)


def losses(result: Any) -> list[float]:
    return [record["loss"] for record in result.records]


def test_adapters_off_a_frozen_copy_and_stored_errors_are_the_same_reference_bit_for_bit(
    run_to_end, trained_weights
) -> None:
    kinds = ("adapters_off", "frozen", "stored")
    found = {kind: run_to_end(kind, reference={"kind": kind}, train={"steps": 5}) for kind in kinds}
    assert losses(found["frozen"]) == losses(found["adapters_off"])
    assert losses(found["stored"]) == losses(found["frozen"])
    assert len(set(losses(found["frozen"]))) == 5
    for kind in kinds[1:]:
        assert_equal(trained_weights(found[kind]), trained_weights(found["adapters_off"]))


def test_stored_errors_are_computed_once_and_reused(run_to_end, monkeypatch) -> None:
    from mmalign.train import stored

    first = run_to_end(reference={"kind": "stored", "draws_per_row": 2}, train={"steps": 2})
    table = stored.ReferenceTable.load(first.folder / stored.REFERENCE_FILE)
    assert len(table) == 7 * 2

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the bank was computed again")

    monkeypatch.setattr(stored, "precompute_errors", never)
    run_to_end(reference={"kind": "stored", "draws_per_row": 2}, train={"steps": 3})


@pytest.mark.parametrize("precision", variants(["no", "bf16"], fast=("no",)))
def test_a_moving_reference_follows_the_policy(run_to_end, precision: str) -> None:
    """In bf16 autocast keeps casts of weights: those of the average must not reach the policy."""
    train = {"steps": 4, "mixed_precision": precision}
    moving = run_to_end("moving", reference={"kind": "ema", "decay": 0.0}, train=train)
    still = run_to_end("still", reference={"kind": "ema", "decay": 1.0}, train=train)
    fixed = run_to_end("fixed", reference={"kind": "adapters_off"}, train=train)
    assert losses(still) == pytest.approx(losses(fixed), abs=1e-6)
    # With decay 0 the reference is the policy itself.
    assert losses(moving) == pytest.approx([math.log(2)] * 4, abs=1e-6)
    assert losses(still)[1:] != pytest.approx(losses(moving)[1:], abs=1e-4)


def test_a_synced_reference_is_the_policy_of_some_steps_ago(run_to_end) -> None:
    train = {"steps": 5}
    sync = {"kind": "synced", "sync_every": 2, "mixing": 1.0}
    synced = losses(run_to_end("synced", reference=sync, train=train))
    fixed = losses(run_to_end("fixed", reference={"kind": "adapters_off"}, train=train))
    # Moved after steps 2 and 4: steps 3 and 5 compare the policy with itself.
    assert [synced[step] for step in (0, 2, 4)] == pytest.approx([math.log(2)] * 3, abs=1e-6)
    assert synced[1] == pytest.approx(fixed[1], abs=1e-6)
    assert synced[3] != pytest.approx(math.log(2), abs=1e-4)
    still = {"kind": "synced", "sync_every": 2, "mixing": 0.0}
    assert losses(run_to_end("still", reference=still, train=train)) == pytest.approx(fixed, abs=1e-6)
    # The method that is named for it brings the reference along.
    settings = {"sync_every": 2, "mixing": 1.0}
    named = run_to_end("named", method="tr_dpo", objective={"beta": 500.0}, reference=settings, train=train)
    assert losses(named) == pytest.approx(synced, abs=1e-6)


def test_full_fine_tuning_trains_every_weight_against_a_frozen_copy(run_to_end, sd15_folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    result = run_to_end(adapter={"kind": "none"}, train={"steps": 2, "learning_rate": 1e-4})
    base = UNet2DConditionModel.from_pretrained(str(sd15_folder), subfolder="unet")
    saved = UNet2DConditionModel.from_pretrained(str(result.folder / "model"), subfolder="unet")
    assert result.trainables.count == sum(value.numel() for value in base.parameters())
    before, after = dict(base.named_parameters()), dict(saved.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in result.trainables.parameters.items())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)
    assert losses(result)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(result)[1] != losses(result)[0]


@pytest.mark.parametrize("method", ["diffusion_kto", "mapo", "diffusion_sft", "diffusion_ipo"])
def test_other_methods_run_and_move_the_weights(run_to_end, method: str) -> None:
    result = run_to_end(method=method, train={"steps": 2})
    assert result.finished
    assert len(result.records) == 2
    assert all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in result.records)
    moved = [name for name, value in result.trainables.parameters.items() if "lora_B" in name and value.any()]
    assert moved


def test_sdxl_trains_with_its_text_time_conditioning(run_to_end, sdxl_folder: Path) -> None:
    result = run_to_end(model={"family": "sdxl", "source": str(sdxl_folder)}, train={"steps": 2})
    assert losses(result)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(result)[1] != losses(result)[0]


# --- precision and memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [{}, {"kind": "none"}], ids=["lora", "full"])
def test_bfloat16_trains_float32_weights_and_starts_at_the_reference(
    run_to_end, adapter: dict[str, str]
) -> None:
    result = run_to_end(adapter=adapter, train={"mixed_precision": "bf16", "steps": 2, "learning_rate": 1e-4})
    assert {value.dtype for value in result.trainables.parameters.values()} == {torch.float32}
    assert losses(result)[0] == pytest.approx(math.log(2), abs=1e-6), "policy and reference round alike"
    assert math.isfinite(losses(result)[1])
    assert losses(result)[1] != losses(result)[0]


def test_gradient_checkpointing_recomputes_and_gives_the_same_weights(make_run, trained_weights) -> None:
    found = {}
    for checkpointing in (False, True):
        forget_accelerator()
        run = make_run(
            f"{checkpointing}", model={"gradient_checkpointing": checkpointing}, train={"steps": 2, **SMOOTH}
        )
        loop, loader = prepare(run)
        calls: list[int] = []
        # A late block: nothing is recomputed before the first adapter. A hook before it: recomputing stops
        # as soon as it has what it needs.
        block = loop.trainables.network.up_blocks[0].resnets[0]
        block.register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
        loop.train(iter(loader))
        found[checkpointing] = (
            {name: value.detach().clone() for name, value in loop.trainables.parameters.items()},
            len(calls),
        )
    assert_close(found[True][0], found[False][0], atol=1e-7)
    assert found[False][1] == 2 * 2, "reference and policy, twice"
    assert found[True][1] == 2 * 3, "and once more in the backward pass"


def test_dropout_of_the_adapter_is_on_while_training_and_never_in_the_reference(
    run_to_end, trained_weights
) -> None:
    dropped = run_to_end("dropped", adapter={"dropout": 0.5}, train={"steps": 2})
    again = run_to_end("again", adapter={"dropout": 0.5}, train={"steps": 2})
    plain = run_to_end("plain", train={"steps": 2})
    assert any(
        not torch.equal(value, trained_weights(plain)[name])
        for name, value in trained_weights(dropped).items()
    )
    assert_equal(trained_weights(again), trained_weights(dropped))
    # B is zero at first: the adapter adds nothing, dropped or not.
    assert losses(dropped)[0] == pytest.approx(math.log(2), abs=1e-6)
    # The reference has no adapter, so no dropout either: its errors are those of the run without dropout.
    for name in ("error/reference_chosen", "error/reference_rejected"):
        assert [record[name] for record in dropped.records] == [record[name] for record in plain.records]


# --- what a run leaves behind -------------------------------------------------------------------------------


def test_there_is_one_record_per_interval_and_one_at_the_end(run_to_end) -> None:
    result = run_to_end(train={"steps": 5}, log={"every": 2})
    written = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in written] == [2, 4, 5]
    assert written == result.records
    expected = {"loss", "logit", "accuracy", "saturated", "drift", "gradient_factor", "grad_norm"}
    expected |= {"error/relative_chosen", "error/relative_rejected", "learning_rate", "dropped_updates"}
    expected |= {"bad_rows", "prompts_per_second", "peak_memory_gib", "implicit_accuracy"}
    assert expected <= written[0].keys()


def test_the_rate_on_record_is_the_one_that_was_used(run_to_end) -> None:
    result = run_to_end(train={"steps": 4, "schedule": "linear"})
    assert [record["learning_rate"] for record in result.records] == pytest.approx(
        [1e-3, 7.5e-4, 5e-4, 2.5e-4]
    )


def test_the_summary_and_the_resolved_configuration_are_written(run_to_end) -> None:
    import yaml

    result = run_to_end(train={"steps": 2, "ema_decay": 0.9})
    summary = json.loads((result.folder / "training_summary.json").read_text())
    assert (summary["method"], summary["steps"], summary["weights"]) == ("diffusion_dpo", 2, "average")
    assert summary["trained_weights"] == result.trainables.count
    assert summary["verdict"] == result.verdict
    assert summary["versions"]["torch"] == importlib.metadata.version("torch")
    resolved = yaml.safe_load((result.folder / "mmalign_config.yaml").read_text())
    assert resolved["objective"] == {"beta": 500.0}
    assert resolved["train"]["optimizer"] == "adamw"


def test_grids_on_fixed_prompts_show_the_base_above_the_policy(run_to_end) -> None:
    from PIL import Image

    result = run_to_end(
        train={"steps": 3, "learning_rate": 0.05},
        samples={"prompts": ["a cat", "a dog"], "every": 2, "num_steps": 2, "guidance_scale": 1.0},
    )
    grids = sorted((result.folder / "samples").iterdir())
    assert [path.name for path in grids] == ["step-00000002.png", "step-00000003.png"]
    early, late = (Image.open(path) for path in grids)
    assert early.size == (2 * 32 + 4, 2 * 32 + 4)
    top, bottom = (0, 0, 68, 32), (0, 36, 68, 68)
    assert early.crop(top).tobytes() == late.crop(top).tobytes(), "the base does not change"
    assert early.crop(bottom).tobytes() != late.crop(bottom).tobytes(), "the policy does"


def test_drawing_grids_does_not_change_the_training(run_to_end, trained_weights) -> None:
    plain = run_to_end("plain")
    drawn = run_to_end(
        "drawn", samples={"prompts": ["a cat"], "every": 1, "num_steps": 1, "guidance_scale": 1.0}
    )
    assert_equal(trained_weights(drawn), trained_weights(plain))


def test_tensorboard_gets_the_records_and_the_grids(run_to_end) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run_to_end(
        train={"steps": 2},
        log={"trackers": ["tensorboard"]},
        samples={"prompts": ["a cat"], "num_steps": 1, "guidance_scale": 1.0},
    )
    files = list((result.folder / "tracking").rglob("events.out.tfevents.*"))
    assert files
    scalars: dict[str, list[float]] = {}
    pictures: list[str] = []
    for file in files:
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
        pictures += events.Tags()["images"]
    assert scalars["loss"] == pytest.approx(losses(result))
    assert any("samples" in name for name in pictures)


def test_a_tracker_that_is_not_installed_is_named(make_run) -> None:
    with pytest.raises(
        MissingExtraError, match=r"log.trackers: trackio is not installed: pip install trackio"
    ):
        train(make_run(log={"trackers": ["trackio"]}))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_saved_adapter_has_the_same_strength_in_plain_diffusers(
    run_to_end, sd15_folder: Path, sdxl_folder: Path, family: str
) -> None:
    """Rank 3, alpha 5: a loader that ignores alpha would scale by 1 instead of 5/3."""
    from diffusers import DiffusionPipeline

    source = {"sd15": sd15_folder, "sdxl": sdxl_folder}[family]
    result = run_to_end(
        model={"family": family, "source": str(source)}, train={"steps": 2, "learning_rate": 0.02}
    )
    pipeline = DiffusionPipeline.from_pretrained(str(source), safety_checker=None)
    base = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(str(result.folder))
    noised = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([101, 701])
    conditioning: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(2, 77, 32 if family == "sd15" else 64)
    }
    if family == "sdxl":
        conditioning["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, 32),
            "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2),
        }
    with torch.no_grad():
        expected = result.trainables.network(noised, timestep, **conditioning).sample
        got = pipeline.unet(noised, timestep, **conditioning).sample
        with result.trainables.disabled():
            plain = result.trainables.network(noised, timestep, **conditioning).sample
    assert base
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert float((got - plain).abs().max()) > 1e-2


def test_targets_that_match_nothing_list_what_there_is(make_run) -> None:
    with pytest.raises(ConfigError, match=r"adapter.targets: got .*nowhere.* It has: .*to_q"):
        train(make_run(adapter={"targets": ["nowhere"]}))


def test_weights_of_another_network_are_refused(run_to_end) -> None:
    from mmalign.errors import CheckpointError

    result = run_to_end(train={"steps": 1})
    state = result.trainables.state()
    state.pop(next(iter(state)))
    with pytest.raises(CheckpointError, match=r"checkpoint weights: 1 missing \(first: .*adapter.rank"):
        result.trainables.load(state)


def test_swapped_weights_come_back_after_an_error(run_to_end, trained_weights) -> None:
    result = run_to_end(train={"steps": 1})
    before = trained_weights(result)
    zeros = [torch.zeros_like(value) for value in before.values()]
    with contextlib.suppress(KeyError), result.trainables.swapped(zeros):
        assert not any(value.any() for value in result.trainables.parameters.values())
        raise KeyError
    assert_equal(trained_weights(result), before)
