"""Plans of several processes: what each of them holds, what they send, against real runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmalign.errors import ConfigError, UnknownNameError
from mmalign.testing.process_peaks import process_peaks
from mmalign.train.config import load_run
from mmalign.train.launch import LAUNCHES, launch_files
from mmalign.train.planning.communication import LATENCY, Link, Passes, Sizes, seconds, traffic_of
from mmalign.train.planning.counting import count
from mmalign.train.planning.devices import DEVICES, Device, device_of
from mmalign.train.planning.exchange import exchanged
from mmalign.train.planning.fitting import fit_run
from mmalign.train.planning.launches import SINGLE, Launch, ZeroLimits, launch_of
from mmalign.train.planning.memory import peak_of
from mmalign.train.planning.run_plan import plan_run
from mmalign.train.planning.timing import COMMUNICATION, step_time
from mmalign.train.planning.units import cut

A_CARD = DEVICES["h100"]
NOTHING = Device("cpu", None, 1.0, 1.0, 1.0)
FULL = {"adapter": {"kind": "none", "rank": 8, "alpha": None}}


# --- launches by their names


def test_every_way_of_sharing_has_a_launch_file() -> None:
    assert set(LAUNCHES) <= set(launch_files())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "ddp"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": "false"}, "fsdp2_keep"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
    ],
)
def test_a_running_launch_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name, value in {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", **variables}.items():
        monkeypatch.setenv(name, value)
    found = Launch.here()
    assert (found.name, found.processes, found.machines) == (expected, 6, 2)


def test_a_stage_in_deepspeeds_own_file_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text('{"zero_optimization": {"stage": 1}}')
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    assert Launch.here().name == "zero1"


def test_one_process_is_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Launch.here() == SINGLE == launch_of(None, None) == launch_of(None, 1)
    assert launch_of(None, 5).name == "ddp"
    assert launch_of("fsdp2", 16).machines == 2


def test_launches_that_cannot_be_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="fsdp2_keep"):
        launch_of("fsdp", 2)
    with pytest.raises(ConfigError, match=r"1 with --launch zero3.*expected 2 or more"):
        launch_of("zero3", None)
    with pytest.raises(ConfigError, match=r"3 with --launch single"):
        launch_of("single", 3)
    with pytest.raises(ConfigError, match=r"0 with --launch ddp"):
        launch_of(None, 0)


# --- parts and blocks


def test_parts_are_filled_up_as_each_library_cuts() -> None:
    """Of [7, 3] and [5] over 2: FSDP2 holds 4 rows and 3; stage 3 half of 21 and of 5, rounded up."""
    values = [torch.empty(7, 3), torch.empty(5)]
    held = {name: Launch(name, 2).num_bytes(values, "weights") for name in LAUNCHES if name != "single"}
    whole = 4 * 26
    assert held == {
        "ddp": whole,
        "zero1": whole,
        "zero2": whole,
        "fsdp2": 4 * (12 + 3),
        "fsdp2_keep": 4 * (12 + 3),
        "zero3": 4 * (11 + 3),
    }
    assert Launch("zero2", 4).num_bytes(values, "gradients") == 26
    assert Launch("zero1", 2).num_bytes(values, "gradients") == whole
    assert Launch("zero1", 2).num_bytes(values, "optimiser") == whole / 2
    assert Launch("fsdp2", 2).num_bytes(values, "weights", whole=values[1:]) == 4 * (12 + 5)


class Inner(nn.Module):
    """A block of 6 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.empty(2, 3, device="meta"))


class Outer(nn.Module):
    """A block of 5 numbers around two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Inner(), Inner()
        self.own = nn.Parameter(torch.empty(5, device="meta"), requires_grad=False)


class Network(nn.Module):
    """11 numbers, and a block with blocks in it."""

    _no_split_modules = ("Inner", "Outer")

    def __init__(self) -> None:
        super().__init__()
        self.outer = Outer()
        self.own = nn.Parameter(torch.empty(11, device="meta"))


def test_weights_belong_to_the_innermost_block_and_what_lies_around_stays_gathered() -> None:
    found = cut(Network())
    assert sorted((unit.whole, unit.around, unit.trained) for unit in found.units) == [
        (20, 0, 0),
        (24, 20, 6),
        (24, 20, 6),
    ]
    assert (found.root, found.all_units) == (44, 68)
    assert found.at_work == 24 + 20 + 24
    assert found.reducing == 24 + 24
    narrow = cut(Network(), gathered=torch.bfloat16)
    assert (narrow.root, narrow.at_work, narrow.reducing) == (22, 34, 12 + 24)
    network = Network()
    assert cut(network, whole=[network.own]).root == 0


# --- plans of a run


def counted_run(make_run: Callable[..., Any], **sections: Any) -> tuple[Any, Any]:
    run = make_run(**sections)
    return run, count(run, device_type="cpu")


def test_a_process_holds_less_the_more_is_spread(make_run: Callable[..., Any]) -> None:
    run, counted = counted_run(make_run, **FULL)
    whole = counted.trained_bytes
    limits = ZeroLimits(bucket=1000, small=0, reuse=0, prefetch=0)
    named = {
        name: {
            item.component: item.num_bytes
            for item in peak_of(run, counted, NOTHING, Launch(name, 2, zero=limits)).items
        }
        for name in LAUNCHES
        if name != "single"
    }
    weights = {name: items["network, trained weights (float32)"] for name, items in named.items()}
    assert weights["ddp"] == weights["zero1"] == weights["zero2"] == whole
    assert whole / 2 <= weights["fsdp2"] == weights["fsdp2_keep"] < 0.55 * whole
    assert whole / 2 <= weights["zero3"] < 0.51 * whole
    state = {name: items["optimiser state (adamw)"] for name, items in named.items()}
    assert state["ddp"] == 2 * whole
    assert all(whole <= state[name] < 1.1 * whole for name in state if name != "ddp")
    assert named["zero1"]["copy of this process's part"] == whole / 2
    copies = {name: items["reference (frozen)"] for name, items in named.items()}
    assert copies["zero2"] == whole > 1.8 * copies["fsdp2"]


@pytest.mark.parametrize("name", [name for name in LAUNCHES if name != "single"])
@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_what_a_plan_of_several_processes_lists_adds_up(
    make_run: Callable[..., Any], name: str, accumulation: int
) -> None:
    run = make_run(train={"accumulation": accumulation, "batch_size": 1}, **FULL)
    plan = plan_run(run, A_CARD, launch=Launch(name, 4))
    found = plan.as_dict()
    assert sum(found["memory"]["components"].values()) == found["memory"]["tensors"]
    assert found["memory"]["tensors"] == max(found["memory"]["stages"].values())
    assert found["launch"] == {"name": name, "processes": 4}
    assert found["step"]["pairs"] == 4 * accumulation
    assert found["step"]["parts"][COMMUNICATION] > 0
    assert found["step"]["seconds_if_sending_is_hidden"] < found["step"]["seconds"]
    assert any("as if nothing else" in note for note in plan.notes)


def test_more_processes_need_less_of_each_where_weights_are_spread(make_run: Callable[..., Any]) -> None:
    run, counted = counted_run(make_run, **FULL)
    sizes = [peak_of(run, counted, NOTHING, Launch("fsdp2", number)).tensors for number in (2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    keeping = peak_of(run, counted, NOTHING, Launch("fsdp2_keep", 8)).tensors
    assert keeping > sizes[-1]


def test_a_plan_refuses_what_a_launch_would(make_run: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer: got 'adafactor'.*under FSDP2"):
        plan_run(make_run(train={"optimizer": "adafactor"}), A_CARD, launch=Launch("fsdp2", 2))
    with pytest.raises(ConfigError, match=r"model\.compile: got 'blocks'.*under ZeRO"):
        plan_run(make_run(model={"compile": "blocks"}), A_CARD, launch=Launch("zero2", 2))


def test_a_compiled_run_is_counted_as_one_that_is_not_and_says_so(make_run: Callable[..., Any]) -> None:
    plans = [plan_run(make_run(model={"compile": kind}), A_CARD) for kind in ("none", "blocks")]
    assert plans[0].peak == plans[1].peak
    assert plans[0].time == plans[1].time
    assert [any("counted as without" in note for note in plan.notes) for plan in plans] == [False, True]


def test_a_dry_run_under_a_launch_counts_one_process(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmalign.train.dry_run import describe

    run = make_run(**FULL)
    alone = describe(run)["memory"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    capsys.readouterr()
    shared = describe(run)["memory"]
    assert "of each of 2 processes, fsdp2" in " ".join(capsys.readouterr().out.split())
    for name in ("gradients", "optimiser state (adamw)", "reference (frozen)"):
        assert 0.5 * alone[name] <= shared[name] < 0.6 * alone[name]


# --- what is sent


def test_times_are_those_of_the_slower_link() -> None:
    link = Link("", inside=100.0, between=10.0)
    assert seconds(800.0, 0, link, 8) == pytest.approx(7.0)
    assert seconds(800.0, 0, link, 64) == pytest.approx(70.0)
    assert seconds(800.0, 0, link, 64, ways=2) == pytest.approx(140.0)
    assert seconds(800.0, 0, link, 4, per_machine=2) == pytest.approx(40.0)
    assert seconds(0.0, 20, link, 64) == pytest.approx(20 * LATENCY)


def test_every_launch_sends_what_its_kind_has_to() -> None:
    sizes = Sizes(units=50, root=7, trained=11, num_units=5, layers=57, num_layers=13)
    sent = {name: traffic_of(sizes, name, Passes(3.0, 2, 2)) for name in LAUNCHES}
    assert sent["single"].size == 0
    assert (sent["ddp"].size, sent["ddp"].ways) == (22.0, 2)
    assert sent["ddp"].per_gpu(2) == 22.0
    assert sent["fsdp2"].size == 2 * 3 * 50 + 2 * 7 + 2 * 11
    assert sent["zero3"].size == 2 * 3 * 57 + 2 * 11
    assert sent["zero2"].ways * sent["zero2"].size == 2 * 22 + 11
    assert sent["fsdp2"].calls == 6 * 5 + 2 * 5 + 2


COUNTED = {
    ("lora", "fsdp2", 1): 9.291 + 0.040,
    ("lora", "fsdp2_keep", 1): 3.212 + 0.040,
    ("none", "fsdp2", 1): 9.171 + 3.172,
    ("none", "fsdp2_keep", 1): 6.172 + 3.172,
    ("lora", "fsdp2", 2): 18.583 + 0.040,
    ("none", "fsdp2", 2): 18.343 + 6.344,
    ("lora", "ddp", 1): 0.040,
    ("none", "ddp", 1): 3.172,
}
"""MB that are gathered and reduced in a step of the tiny UNet, from the process group: docs/scale.md."""


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: "-".join(map(str, case)))
def test_a_plan_sends_what_was_counted(make_run: Callable[..., Any], case: tuple[str, str, int]) -> None:
    adapter, launch, micro_steps = case
    given = {"kind": "lora", "rank": 4} if adapter == "lora" else FULL["adapter"]
    run = make_run(adapter=given, train={"batch_size": 1, "accumulation": micro_steps})
    sent = exchanged(run, count(run, device_type="cpu"), Launch(launch, 2), references=1.0)
    assert sent.size / 1e6 == pytest.approx(COUNTED[case], abs=0.002)


def test_where_no_link_is_known_nothing_is_said_to_be_sent(make_run: Callable[..., Any]) -> None:
    run, counted = counted_run(make_run)
    assert COMMUNICATION not in step_time(run, counted, NOTHING, Launch("ddp", 2)).parts
    assert COMMUNICATION not in step_time(run, counted, A_CARD).parts
    plan = plan_run(run, NOTHING, launch=Launch("ddp", 2))
    assert any("no link is known of cpu" in note for note in plan.notes)


def test_links_are_those_of_the_card_or_as_given() -> None:
    own = device_of("mine=link:100,network:10").link
    assert (own.inside, own.between) == (pytest.approx(80e9), pytest.approx(8e9))
    changed = device_of("4090=link:64").link
    assert (changed.inside, changed.between) == (pytest.approx(51.2e9), DEVICES["4090"].link.between)
    with pytest.raises(ConfigError, match=r"link:-3.*, expected a number"):
        device_of("mine=link:-3")


def test_a_slow_link_is_the_longest_part_of_a_step(make_run: Callable[..., Any]) -> None:
    run, counted = counted_run(make_run, **FULL)
    slow = replace(A_CARD, link=Link("slow", 1e6, 1e6))
    found = step_time(run, counted, slow, Launch("fsdp2", 2))
    assert found.parts[COMMUNICATION] > 0.9 * found.seconds
    assert found.hidden_seconds == found.parts[COMMUNICATION]


# --- fitting


def test_deepspeeds_bucket_is_no_larger_than_the_gradient() -> None:
    from mmalign.train.distributed.zero import _with_fitting_bucket

    given = {"gradient_clipping": 0.0, "zero_optimization": {"stage": 2}}
    fitted = _with_fitting_bucket(given, 700)
    assert fitted == {"gradient_clipping": 0.0, "zero_optimization": {"stage": 2, "reduce_bucket_size": 700}}
    assert (
        _with_fitting_bucket(given, 2**31)["zero_optimization"]["reduce_bucket_size"] == ZeroLimits().bucket
    )
    own = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e2}}
    assert _with_fitting_bucket(own, 700)["zero_optimization"]["reduce_bucket_size"] == 500


def test_sharding_is_proposed_where_processes_are_and_nothing_that_costs_less_fits(
    write_config: Callable[..., Path],
) -> None:
    path = write_config(
        train={"batch_size": 1, "max_grad_norm": 1.0},
        image={"cache": "cache"},
        reference={"kind": "stored"},
        model={"gradient_checkpointing": True},
        **FULL,
    )

    def variant(changes: Any) -> Any:
        return load_run(path, changes)

    device = Device("d", 2**40, 1e12, 1e12, 1e11)
    run = variant([])
    counted = count(run, device_type="cuda")
    limit = peak_of(run, counted, device, Launch("ddp", 8)).total - 2**20
    alone = fit_run(run, device, variant=variant, limit=limit)
    assert all(not step.launch for step in alone.steps)
    found = fit_run(run, device, variant=variant, limit=limit, launch=Launch("ddp", 8))
    assert found.fits
    assert [step.launch for step in found.steps] == ["fsdp2"]
    assert found.launch == Launch("fsdp2", 8)
    assert found.overrides == []


# --- against real runs


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3"])
def test_the_planned_memory_of_a_process_is_within_a_quarter_of_the_measured(
    write_config: Callable[..., Path], tmp_path: Path, name: str, adapter: str
) -> None:
    if name != "fsdp2":
        pytest.importorskip("deepspeed", reason="ZeRO needs the extra deepspeed")
    limits = ZeroLimits(bucket=200_000, small=1_000, reuse=300_000, prefetch=20_000)
    launch = Launch(name, 2, zero=limits)
    settings = FULL if adapter == "none" else {}
    path = write_config(train={"batch_size": 1, "steps": 100, "learning_rate": 1e-6}, **settings)
    plan = plan_run(load_run(path), NOTHING, launch=launch)
    measured = max(found["highest"] for found in process_peaks(path, launch, tmp_path / "peaks"))
    assert plan.peak.tensors == pytest.approx(measured, rel=0.25)
