"""Launches are recognised; what could not be trained is refused before anything is loaded."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from mmalign.errors import ConfigError, MissingExtraError
from mmalign.train import parts
from mmalign.train.distributed import modes
from mmalign.train.distributed.modes import mode_of, require_fitting, require_library


def launch(kind: DistributedType, version: int | None = None) -> Any:
    plugin = None if version is None else SimpleNamespace(fsdp_version=version)
    launched = object.__new__(Accelerator)
    launched.state = SimpleNamespace(distributed_type=kind, fsdp_plugin=plugin)
    return launched


def test_kinds_of_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mode_of(launch(DistributedType.NO)) == "single"
    assert mode_of(launch(DistributedType.MULTI_GPU)) == "ddp"
    assert mode_of(launch(DistributedType.FSDP, 2)) == "fsdp2"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert mode_of(launch(DistributedType.MULTI_CPU)) == "fsdp2"
    with pytest.raises(ConfigError, match=r"fsdp_version: got 1.*expected 2"):
        mode_of(launch(DistributedType.FSDP, 1))
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ConfigError, match=r"fsdp_config\.fsdp_offload_params: got True.*expected false"):
        mode_of(launch(DistributedType.MULTI_CPU))
    with pytest.raises(ConfigError, match=r"got .*MEGATRON.*mmalign\.train\.launch"):
        mode_of(launch(DistributedType.MEGATRON_LM))


def test_deepspeed_is_a_mode_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO3_INIT", "true")
    with pytest.raises(ConfigError, match=r"zero3_init_flag: got True.*expected false"):
        mode_of(launch(DistributedType.DEEPSPEED))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false")
    for stage in (1, 2, 3):
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
        assert mode_of(launch(DistributedType.MULTI_CPU)) == f"zero{stage}"
        assert mode_of(launch(DistributedType.DEEPSPEED)) == f"zero{stage}"
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    with pytest.raises(ConfigError, match=r"offload_optimizer_device: got 'cpu'.*expected none"):
        mode_of(launch(DistributedType.DEEPSPEED))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0")
    with pytest.raises(ConfigError, match=r"zero_stage: got 0.*expected 1, 2 or 3"):
        mode_of(launch(DistributedType.DEEPSPEED))


def test_a_launch_without_the_library_is_told_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "is_deepspeed_available", lambda: False)
    require_library()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(MissingExtraError, match=r"mmalign\[deepspeed\].*launch fsdp2"):
        require_library()


def test_stage_3_needs_a_reference_that_stands_still(make_run) -> None:
    run = make_run()
    for kind in ("ema", "synced"):
        require_fitting(run, "zero2", kind)
        with pytest.raises(ConfigError, match=rf"reference\.kind: got '{kind}'.*launch zero2.*fsdp2"):
            require_fitting(run, "zero3", kind)


def test_stage_3_needs_weights_that_are_read_inside_of_their_layers(make_run, make_dialogue_run) -> None:
    for run, message in (
        (make_dialogue_run(), r"model\.family: got 'llava'.*towers are read by themselves"),
        (make_run(model={"quantization": "int8"}), r"model\.quantization: got 'int8'.*expected none"),
    ):
        require_fitting(run, "zero2", "adapters_off")
        with pytest.raises(ConfigError, match=rf"{message}.*launch zero2` or `fsdp2`"):
            require_fitting(run, "zero3", "adapters_off")


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"train": {"optimizer": "adafactor"}}, "adapters_off", r"train\.optimizer: got 'adafactor'"),
        ({"train": {"mixed_precision": "fp16"}}, "adapters_off", r"train\.mixed_precision: got 'fp16'"),
        ({"adapter": {"kind": "none"}, "reference": {"offload": True}}, "frozen", r"reference\.offload"),
    ],
)
def test_what_sharding_would_change_is_refused(make_run, settings: Any, kind: str, message: str) -> None:
    run = make_run(**settings)
    require_fitting(run, "ddp", kind)
    for mode in ("fsdp2", "zero3"):
        with pytest.raises(ConfigError, match=message):
            require_fitting(run, mode, kind)


def test_processes_wait_longer_for_each_other_than_nccl_would(make_run, monkeypatch) -> None:
    given: list[Any] = []

    def stand_in(**settings: Any) -> Any:
        given.extend(settings["kwargs_handlers"])
        return launch(DistributedType.NO)

    monkeypatch.setattr(parts, "Accelerator", stand_in)
    parts.make_accelerator(make_run())
    (patience,) = [one.timeout for one in given if isinstance(one, InitProcessGroupKwargs)]
    assert patience == timedelta(hours=2)


def test_methods_that_sample_are_refused_under_sharding(make_run) -> None:
    run = make_run(method="online_diffusion_dpo", rollout={"samples": 3, "prompts": 3, "reward": "x:y"})
    with pytest.raises(ConfigError, match=r"online_diffusion_dpo under FSDP2.*launch ddp"):
        require_fitting(run, "fsdp2", "adapters_off")
