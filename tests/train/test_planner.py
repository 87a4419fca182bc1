"""Plans counted on shapes, held against what real passes and real runs take."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmalign.errors import ConfigError, UnknownNameError
from mmalign.testing.variants import variants
from mmalign.train.adapters import attach
from mmalign.train.config import AdapterConfig, TrainConfig, load_run
from mmalign.train.optim import make_optimizer
from mmalign.train.parts import load_model
from mmalign.train.plan import count_activations, optimizer_state_bytes
from mmalign.train.planning import counting, fitting, language, outline
from mmalign.train.planning.counting import count
from mmalign.train.planning.curves import Curve
from mmalign.train.planning.devices import DEVICES, Device, device_of, parse_bytes, seconds_of
from mmalign.train.planning.fitting import fit_run
from mmalign.train.planning.language import RELEASED, ReleasedLanguage, empty_language
from mmalign.train.planning.measuring import allocated_peak
from mmalign.train.planning.memory import Peak, peak_of
from mmalign.train.planning.meta_source import MetaSource
from mmalign.train.planning.published import PIPELINES
from mmalign.train.planning.run_plan import disk_of, plan_run
from mmalign.train.planning.shapes_only import meta_copy
from mmalign.train.planning.timing import StepTime
from mmalign.train.planning.trace import Kernel, trace_pass

MIB = 2**20
A_CARD = DEVICES["h100"]


# ------------------------------------------------------------------------------- passes, against real ones


@pytest.fixture
def loaded(make_run: Callable[..., Any], sd15_folder: Path, sdxl_folder: Path) -> Callable[..., Any]:
    """`loaded(family, **sections)`: (run, model, trained weights) of a tiny model with its weights."""

    def load(family: str = "sd15", **sections: Any) -> Any:
        source = {"sd15": sd15_folder, "sdxl": sdxl_folder}[family]
        model = {"family": family, "source": str(source), **sections.pop("model", {})}
        run = make_run(model=model, **sections)
        opened = load_model(run, torch.device("cpu"))
        trained = attach(opened.network, run.config.adapter, default_targets=opened.adapter_targets, seed=0)
        return run, opened, trained

    return load


def real_inputs(model: Any, rows: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    noised, timestep, conditioning = model.meta_inputs(rows)
    filled = {name: torch.randn(value.shape) for name, value in conditioning.items()}
    return torch.randn(noised.shape), torch.randint(0, 1000, timestep.shape), filled


CASES = {
    "sd15 lora": ("sd15", {"adapter": {"kind": "lora"}}),
    "sdxl full": ("sdxl", {"adapter": {"kind": "none"}}),
    "sd15 full, recomputed": (
        "sd15",
        {"adapter": {"kind": "none"}, "model": {"gradient_checkpointing": True}},
    ),
}


@pytest.mark.parametrize("case", variants(CASES, fast=("sd15 lora", "sdxl full")))
def test_arithmetic_and_memory_of_a_pass_are_those_of_a_real_one(loaded: Any, case: str) -> None:
    family, sections = CASES[case]
    _, model, trained = loaded(family, **sections)
    shapes, inputs = model.meta_inputs(3), real_inputs(model, 3)
    counted = trace_pass(meta_copy(trained.network), lambda network: model.denoise(*shapes, network=network))

    def work() -> None:
        model.denoise(*inputs).square().sum().backward()

    with FlopCounterMode(display=False) as counter:
        work()
    assert counted.flops == pytest.approx(counter.get_total_flops(), rel=0.001)
    for parameter in trained.parameters.values():
        parameter.grad = None
    assert counted.peak == pytest.approx(allocated_peak(work), rel=0.1)


def test_what_a_pass_keeps_is_what_the_dry_run_counts(loaded: Any) -> None:
    _, model, trained = loaded("sd15")
    shapes = model.meta_inputs(3)

    def forward(network: nn.Module) -> torch.Tensor:
        return model.denoise(*shapes, network=network)

    kept = count_activations(trained.network, forward).kept
    counted = trace_pass(meta_copy(trained.network), forward)
    assert counted.kept == pytest.approx(kept, rel=0.02)


def test_gradients_of_all_trained_weights_are_in_the_peak_of_a_recomputed_pass(loaded: Any) -> None:
    _, model, trained = loaded("sd15", **CASES["sd15 full, recomputed"][1])
    shapes = model.meta_inputs(2)
    counted = trace_pass(meta_copy(trained.network), lambda network: model.denoise(*shapes, network=network))
    size = sum(4 * value.numel() for value in trained.parameters.values())
    assert 0.5 * size < counted.parts["gradients"] <= size
    assert counted.beside < counted.peak
    assert counted.beside_parts["gradients"] == 0


def test_casts_that_are_kept_until_the_pass_ends_are_counted(loaded: Any) -> None:
    _, model, trained = loaded("sd15", **CASES["sd15 full, recomputed"][1])
    shapes, half = model.meta_inputs(2), torch.bfloat16
    found = {
        keeps: trace_pass(
            meta_copy(trained.network),
            lambda network: model.denoise(*shapes, network=network),
            autocast=half,
            keeps_casts=keeps,
        )
        for keeps in (True, False)
    }
    matrices = sum(2 * value.numel() for value in trained.parameters.values() if value.ndim > 1)
    assert found[True].beside_parts["casts"] == pytest.approx(matrices, rel=0.1)
    assert found[False].beside_parts["casts"] < 0.3 * matrices


def test_cuda_rules_of_autocast_hold_more_than_those_of_the_cpu(loaded: Any) -> None:
    _, model, trained = loaded("sd15")
    shapes = model.meta_inputs(2)
    kept = {
        kind: trace_pass(
            meta_copy(trained.network),
            lambda network: model.denoise(*shapes, network=network),
            autocast=torch.bfloat16,
            device_type=kind,
        ).kept
        for kind in ("cpu", "cuda")
    }
    assert kept["cuda"] > kept["cpu"]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_bytes_of_an_optimisers_state_are_exact(optimizer: str) -> None:
    with torch.random.fork_rng():
        network = nn.Sequential(nn.Conv2d(5, 7, 3), nn.Linear(11, 13))
    trained = attach(network, AdapterConfig(kind="none"), default_targets=(), seed=0)
    config = TrainConfig(output="unused", learning_rate=1e-3, optimizer=optimizer)
    made = make_optimizer(list(trained.parameters.values()), config)
    for parameter in trained.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    held = [value for state in made.state.values() for value in state.values()]
    found = sum(4 * value.numel() for value in held if isinstance(value, torch.Tensor) and value.ndim > 0)
    assert optimizer_state_bytes(trained, optimizer) == found


def test_eight_bits_are_for_large_weights_alone() -> None:
    with torch.random.fork_rng():
        network = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(3, 5, bias=False))
    trained = attach(network, AdapterConfig(kind="none"), default_targets=(), seed=0)
    blocks = 64 * 64 // 256
    assert optimizer_state_bytes(trained, "adamw_8bit") == 2 * 64 * 64 + 2 * 4 * blocks + 8 * 15


# ---------------------------------------------------------------------------------- plans, against real runs


@pytest.mark.parametrize("adapter", variants(["lora", "none"], fast=("lora",)))
def test_the_planned_memory_of_a_run_is_within_a_quarter_of_the_measured(
    make_run: Callable[..., Any], adapter: str
) -> None:
    from mmalign.train.run import prepare

    run = make_run(adapter={"kind": adapter}, train={"accumulation": 2, "learning_rate": 1e-5})
    counted = count(run, device_type="cpu")
    planned = peak_of(run, counted, Device("cpu", None, 1.0, 1.0, 1.0))
    loop, loader = prepare(run)
    batches = loop._batches(iter(loader))
    loop._update(batches, is_record=False)  # the optimiser's state is there from now on
    state = sum(
        value.numel() * value.element_size()
        for held in loop.updater.optimizer.state.values()
        for value in held.values()
        if isinstance(value, torch.Tensor)
    )
    model = loop.model
    reference = 0 if adapter == "lora" else sum(4 * value.numel() for value in model.network.parameters())
    modules = [model.network, model.vae, *model.encoders]
    still = sum(4 * value.numel() for module in modules for value in module.parameters()) + state + reference
    moving = allocated_peak(lambda: loop._update(batches, is_record=False))
    assert planned.tensors == pytest.approx(still + moving, rel=0.25)


def test_a_plan_reads_settings_and_no_weights(
    make_run: Callable[..., Any], sd15_folder: Path, tmp_path
) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(sd15_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    plans = [
        plan_run(make_run(model={"source": str(folder)}), A_CARD).as_dict() for folder in (sd15_folder, bare)
    ]
    assert plans[0]["memory"] == plans[1]["memory"]
    assert plans[0]["step"] == plans[1]["step"]
    assert plans[0]["trained"] > 0


def test_the_weights_of_released_models_are_as_many_as_published() -> None:
    expected = {
        "stabilityai/stable-diffusion-xl-base-1.0": ("unet", 2_567_463_684),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": ("unet", 859_520_964),
        "stabilityai/stable-diffusion-3.5-medium": ("transformer", 2_243_171_520),
        "black-forest-labs/FLUX.1-dev": ("transformer", 11_901_408_320),
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("transformer", 1_418_996_800),
        "declare-lab/tango2": ("unet", 865_933_768),
        "zai-org/CogVideoX-5b": ("transformer", 5_570_283_072),
    }
    for source, (part, number) in expected.items():
        made = MetaSource.of_published(source, PIPELINES[source]).part(part)
        assert sum(value.numel() for value in made.parameters()) == number, source


def test_the_weights_of_released_language_models_are_as_many_as_published() -> None:
    expected = {
        "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
        "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
        "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    }
    for source, number in expected.items():
        released = RELEASED[source]
        language = empty_language(released, torch.bfloat16)
        assert sum(value.numel() for value in language.parameters()) + released.tower == number, source


def test_released_tango_is_planned_as_its_own_reader_has_it() -> None:
    from mmalign.audio.official_configs import unet_config

    settings = PIPELINES["declare-lab/tango"].parts["unet"][2]
    official = unet_config(1024)
    assert {name: official[name] for name in settings} == dict(settings)


def test_a_source_that_is_not_here_is_counted_as_its_family(make_run: Callable[..., Any]) -> None:
    run = make_run(model={"source": "somebody/a-fine-tuned-model"}, image={"resolution": 64})
    plan = plan_run(run, A_CARD)
    assert any("counted as stable-diffusion-v1-5/stable-diffusion-v1-5" in note for note in plan.notes)
    assert sum(value.numel() for value in plan.counted.trainables.network.parameters()) > 859_520_964


def test_a_folder_of_another_family_is_refused(make_run: Callable[..., Any], sdxl_folder: Path) -> None:
    run = make_run(model={"family": "sd15", "source": str(sdxl_folder)})
    with pytest.raises(
        ConfigError, match=r"StableDiffusionXLPipeline.*, expected one of StableDiffusionPipeline"
    ):
        plan_run(run, A_CARD)


def test_a_source_that_would_be_downloaded_with_its_weights_is_refused(make_run: Callable[..., Any]) -> None:
    run = make_run(model={"family": "pixart", "source": "somebody/another-model"})
    with pytest.raises(ConfigError, match=r"somebody/another-model.*A plan downloads nothing"):
        plan_run(run, A_CARD)


def test_a_local_source_that_is_read_with_its_weights_is_named(
    make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(make_run(), torch.device("cpu"))
    monkeypatch.setattr(outline, "load_model", lambda *_: model)
    folder = tmp_path / "of-its-own-kind"
    folder.mkdir()
    plan = plan_run(make_run(model={"source": str(folder)}), A_CARD)
    assert any(f"{folder} was read with its weights" in note for note in plan.notes)


# -------------------------------------------------------------------------- what comes and leaves in a step


NOTHING = Device("cpu", None, 1.0, 1.0, 1.0)


def test_encoders_that_wait_on_the_cpu_come_vae_first_and_texts_together(
    make_run: Callable[..., Any],
) -> None:
    run = make_run(model={"offload_encoders": True}, train={"accumulation": 2})
    counted = count(run, device_type="cpu")
    encoding = counted.encoding
    below = peak_of(run, replace(counted, encoding=None), NOTHING).stages["encoding"]
    vae = sum(value.nbytes for value in encoding.modules["VAE"].parameters())

    def encoded(**modules: nn.Module) -> int:
        made = replace(encoding, modules={"VAE": encoding.modules["VAE"], **modules})
        return peak_of(run, replace(counted, encoding=made), NOTHING).stages["encoding"] - below

    small = nn.Linear(2, 3, bias=False, device="meta")
    large = nn.Linear(2**13, 2**14, bias=False, device="meta")
    assert encoded(one=small, two=small) == vae + encoding.media.peak
    assert encoded(one=large, two=large) == 2 * 4 * 2**27
    unread = replace(encoding, media=None, modules={"one": large})
    stages = peak_of(run, replace(counted, encoding=unread), NOTHING).stages
    assert stages["encoding"] - below == 4 * 2**27


def test_an_offloaded_reference_copy_is_on_the_card_while_it_scores(make_run: Callable[..., Any]) -> None:
    runs = [
        make_run(adapter={"kind": "none"}, reference={"offload": offload}, train={"accumulation": 2})
        for offload in (False, True)
    ]
    counted = count(runs[0], device_type="cpu")
    there, away = (peak_of(run, counted, NOTHING).stages for run in runs)
    copy = sum(value.nbytes for value in counted.trainables.network.parameters())
    assert there["policy"] - away["policy"] == copy
    assert there["reference"] == away["reference"]
    # Below it lie weights, state of adamw and copy; beside it are gradients of the micro-step before.
    assert away["reference"] >= (1 + 2 + 1 + 1) * copy + counted.reference.peak


# --------------------------------------------------------------------------- language models by their sizes


@pytest.fixture
def language_run() -> Callable[..., Any]:
    """`language_run("adapter.kind=none", ...)`: LLaVA's recipe."""
    recipe = Path(__file__).parents[2] / "vlm" / "configs" / "llava" / "dpo.yaml"
    return lambda *changes: load_run(recipe, changes)


TWO_LAYERS = ReleasedLanguage(
    "Llama",
    {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 2, "vocab_size": 101},
    visual=7,
    tower=1000,
    source="made up",
    patches=28,
    merger=100,
)


@pytest.mark.parametrize(("adapter", "dtype", "backs"), [("none", "float32", 3), ("lora", "bfloat16", 2)])
def test_a_language_model_that_trains_whole_starts_from_float32_and_trains_its_head(
    language_run: Any, monkeypatch: pytest.MonkeyPatch, adapter: str, dtype: str, backs: int
) -> None:
    seen: set[str] = set()
    made = empty_language(TWO_LAYERS, getattr(torch, dtype))
    made.model.register_forward_pre_hook(
        lambda _, args, given: seen.add(str(given["inputs_embeds"].dtype).removeprefix("torch.")),
        with_kwargs=True,
    )
    monkeypatch.setattr(language, "empty_language", lambda *_: made)
    run = language_run(f"adapter.kind={adapter}", "train.mixed_precision=bf16", "model.quantization=null")
    counted = language.count_released(run, TWO_LAYERS, device_type="cuda")
    assert seen == {dtype}
    assert [kernel.moment for kernel in counted.policy.kernels[-backs - 2 :]].count("backward") >= backs
    tail = [kernel for kernel in counted.policy.kernels if kernel == counted.policy.kernels[-1]]
    assert len(tail) == backs


def test_a_tower_sees_patches_and_its_merger_tokens() -> None:
    assert TWO_LAYERS.tower_flops == 2 * (900 * 28 + 100 * 7)
    qwen, llava = RELEASED["Qwen/Qwen2.5-VL-7B-Instruct"], RELEASED["llava-hf/llava-1.5-7b-hf"]
    assert 3.5 < qwen.tower_flops / (2 * qwen.tower * qwen.visual) < 4
    assert llava.tower_flops == 2 * llava.tower * llava.visual


@pytest.mark.parametrize(
    ("settings", "patches"),
    [
        ({"vision_config": SimpleNamespace(spatial_merge_size=2)}, 4),
        ({"scale_factor": 3}, 9),
        ({"downsample_ratio": 0.5}, 4),
        ({"vision_config": SimpleNamespace(image_size=896, patch_size=14), "mm_tokens_per_image": 256}, 16),
        ({"vision_config": SimpleNamespace(image_size=336, patch_size=14)}, 1),
        ({}, 1),
    ],
)
def test_patches_of_a_visual_token_are_read_from_the_config(settings: dict[str, Any], patches: int) -> None:
    assert counting._patches_per_token(SimpleNamespace(**settings)) == patches


def test_a_stored_reference_of_answers_keeps_one_entry_per_row(language_run: Any) -> None:
    run = language_run("reference.kind=stored", "reference.draws_per_row=5", "model.quantization=null")
    counted = language.count_released(run, TWO_LAYERS, device_type="cuda")
    sizes = {item.component: item.num_bytes for item in disk_of(run, counted, 11)}
    assert sizes["stored reference"] == 11 * (8 + 2 * 4)


# ------------------------------------------------------------------------------------------ time and devices


def test_float32_without_tf32_is_as_slow_as_it_is(make_run: Callable[..., Any]) -> None:
    plans = [plan_run(make_run(train={"allow_tf32": allowed}), A_CARD) for allowed in (True, False)]
    assert [plan.as_dict()["device"]["full_flops"] for plan in plans] == [494e12, 67e12]
    assert [any("without TF32" in note for note in plan.notes) for plan in plans] == [False, True]
    assert device_of("mine=plain:5").without_tf32().full == 5e12


@pytest.mark.slow
def test_numbers_of_a_processor_are_taken_as_they_are_given() -> None:
    found = device_of("cpu=memory:8GB,half:2")
    assert (found.memory, found.half, found.margin(100 * MIB)) == (8 * 2**30, 2e12, 0)
    assert "memory:8GB,half:2 as given" in found.source
    with pytest.raises(ConfigError, match=r"cores.*, expected memory, half, full"):
        device_of("cpu=cores:5")


def test_an_operation_waits_for_its_products_or_for_memory_or_for_the_host() -> None:
    device = Device(
        "d",
        None,
        100.0,
        10.0,
        5.0,
        host_forward=0.0,
        host_backward=0.0,
        kernel=0.0,
        products=1.0,
        traffic=1.0,
    )
    assert seconds_of([Kernel(200, 5, half=True, moment="forward")], device) == pytest.approx(2.0)
    assert seconds_of([Kernel(200, 5, half=False, moment="forward")], device) == pytest.approx(20.0)
    assert seconds_of([Kernel(0, 15, half=True, moment="forward")], device) == pytest.approx(3.0)


def test_the_host_works_ahead_of_a_card_and_not_of_itself() -> None:
    kernels = [Kernel(0, 10, half=False, moment="forward"), Kernel(0, 10, half=False, moment="backward")]
    common: dict[str, Any] = {"kernel": 0.0, "traffic": 1.0, "host_forward": 7.0, "host_backward": 3.0}
    ahead = Device("d", None, 1.0, 1.0, 10.0, **common)
    alone = Device("d", None, 1.0, 1.0, 10.0, overlaps=False, **common)
    assert seconds_of(kernels, ahead) == pytest.approx(10.0)
    assert seconds_of(kernels, alone) == pytest.approx(12.0)


def test_a_measured_processor_is_read_between_its_sizes_and_beyond_them_at_the_rate_of_the_end() -> None:
    curve = Curve((10.0, 1000.0), (2.0, 8.0))
    assert [curve.at(size) for size in (5.0, 10.0, 100.0, 1000.0, 3000.0)] == pytest.approx(
        [1.0, 2.0, 4.0, 8.0, 24.0]
    )


def test_work_that_was_measured_by_size_takes_what_its_kind_and_moment_took() -> None:
    curves = {
        ("volume", "forward"): Curve((10.0,), (1.0,)),
        ("thin volume", "forward"): Curve((10.0,), (7.0,)),
        ("elementwise", "forward"): Curve((10.0,), (5.0,)),
    }
    common: dict[str, Any] = {"kernel": 0.0, "host_forward": 0.5, "host_backward": 0.0, "overlaps": False}
    device = Device("cpu", None, 2.0, 1.0, 1.0, products=1.0, traffic=1.0, curves=curves, **common)

    def seconds(flops: int, moved: int, moment: Any = "forward", *, half: bool = False) -> float:
        return seconds_of([Kernel(flops, moved, half, moment, "volume")], device)

    assert seconds(100, 1) == pytest.approx(0.5 + 10.0)
    assert seconds(100, 1, half=True) == pytest.approx(0.5 + 5.0)
    assert seconds(100, 20) == pytest.approx(0.5 + 14.0)  # so few channels that bytes count
    assert seconds(0, 20) == pytest.approx(0.5 + 10.0)
    assert seconds(100, 1, "backward") == pytest.approx(100.0)  # never measured: by the rate


def test_attention_takes_the_longer_of_its_products_and_its_scores_and_never_less_than_one_of_no_size() -> (
    None
):
    curves = {
        ("attention", "forward"): Curve((10.0,), (1.0,), least=0.25),
        ("thin attention", "forward"): Curve((10.0,), (3.0,), least=0.25),
    }
    common: dict[str, Any] = {"kernel": 0.0, "host_forward": 0.5, "host_backward": 0.0, "overlaps": False}
    device = Device("cpu", None, 1.0, 1.0, 1.0, curves=curves, **common)

    def seconds(flops: int, scores: int) -> float:
        return seconds_of(
            [Kernel(flops, 7, half=False, moment="forward", kind="attention", scores=scores)], device
        )

    assert seconds(100, 20) == pytest.approx(0.5 + 0.25 + 10.0)  # wide heads
    assert seconds(100, 50) == pytest.approx(0.5 + 0.25 + 15.0)  # thin ones
    assert seconds(1, 1) == pytest.approx(0.5 + 0.25 + 0.3)


def test_the_scores_of_an_attention_are_counted_forward_and_backward() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = torch.nn.Parameter(torch.empty(2, 3, 7, 5, device="meta"))

        def forward(self, query: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(
                query, self.value, self.value
            )
            return result

    query = torch.empty(2, 3, 11, 5, device="meta")
    kernels = trace_pass(Attention(), lambda network: network(query)).kernels
    scores = [(kernel.moment, kernel.scores) for kernel in kernels if kernel.kind == "attention"]
    assert scores == [("forward", 2 * 3 * 11 * 7), ("backward", 2 * 3 * 11 * 7)]


def test_an_update_on_a_cpu_takes_operations_for_every_trained_tensor(make_run: Callable[..., Any]) -> None:
    ahead = replace(A_CARD, overlaps=False, kernel=0.0, host_backward=1.0)
    plan = plan_run(make_run(), ahead)
    tensors = len(plan.counted.trainables.parameters)
    assert plan.time.parts["update"] == pytest.approx(2.0 * tensors, rel=0.01)


def test_devices_are_named_or_given_in_numbers() -> None:
    own = device_of("mine=memory:20GB,half:100,bandwidth:500")
    assert (own.memory, own.half, own.bandwidth) == (20 * 2**30, 1e14, 5e11)
    assert device_of("4090", memory=5).memory == 5
    assert device_of("A100-80GB").half == 312e12
    with pytest.raises(UnknownNameError, match="h100"):
        device_of("h1000")
    with pytest.raises(ConfigError, match=r"half:fast.*, expected a number"):
        device_of("mine=half:fast")
    with pytest.raises(ConfigError, match=r"cores.*, expected memory, half, full"):
        device_of("mine=cores:5")


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * 2**30), ("24", 24 * 2**30), ("512 MiB", 512 * MIB)])
def test_sizes_are_as_cards_are_sold(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "-3GB", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a size such as 24GB"):
        parse_bytes(text)


@pytest.mark.slow
def test_a_processor_is_measured_and_has_no_host_to_work_ahead() -> None:
    found = device_of("cpu", memory=7)
    assert found.memory == 7
    assert not found.overlaps
    assert 0 < found.products <= 1
    assert min(found.half, found.full, found.bandwidth, found.host_forward, found.host_backward) > 0
    assert "measured now" in found.source


def test_a_stored_reference_and_a_cache_take_their_time_off_the_step(make_run: Callable[..., Any]) -> None:
    live = plan_run(make_run(), A_CARD).time.parts
    stored = plan_run(make_run(reference={"kind": "stored"}), A_CARD).time.parts
    cached = plan_run(make_run(image={"cache": "cache"}), A_CARD).time.parts
    assert set(live) - set(stored) == {"reference"}
    assert set(live) - set(cached) == {"encoding"}


# ---------------------------------------------------------------------------------------- choices and fitting


def test_a_stored_reference_pays_from_more_visits_than_draws(make_run: Callable[..., Any]) -> None:
    def choice(steps: int) -> Any:
        run = make_run(train={"steps": steps, "batch_size": 1})
        return plan_run(run, A_CARD).choices[0]

    few, many = choice(7), choice(7 * 4 + 1)  # seven rows, four draws of each
    assert (few.pays, many.pays) == ("adapters_off", "stored")
    assert many.override == "reference.kind=stored"
    assert many.disk == 7 * 4 * (8 + 2 * 4)


def test_a_choice_says_why_a_stored_reference_is_refused(write_config: Callable[..., Path]) -> None:
    path = write_config(likelihood={"stratified": True})
    plan = plan_run(load_run(path), A_CARD, variant=lambda changes: load_run(path, changes))
    assert "needs likelihood.stratified false" in plan.choices[0].why


@pytest.fixture
def fit(write_config: Callable[..., Path]) -> Callable[..., Any]:
    """`fit(size, allow_lora=..., **sections)`: what is proposed for so many bytes above the margin."""

    def find(size: int, *, allow_lora: bool = False, **sections: Any) -> Any:
        path = write_config(**sections)
        device = Device("d", 2**40, 1e12, 1e12, 1e11)
        return fit_run(
            load_run(path),
            device,
            variant=lambda changes: load_run(path, changes),
            limit=size + device.margin(0),
            allow_lora=allow_lora,
        )

    return find


def test_a_run_that_fits_is_left_as_it_is(fit: Any) -> None:
    found = fit(2**30)
    assert found.fits
    assert found.steps == ()
    assert found.overrides == []


def test_what_is_proposed_fits_is_ordered_and_keeps_the_batch(fit: Any) -> None:
    whole = fit(2**30, adapter={"kind": "none"}, train={"batch_size": 4}).before.tensors
    found = fit(whole // 2, adapter={"kind": "none"}, train={"batch_size": 4})
    assert found.fits
    assert found.after.total <= found.limit < found.before.total
    assert [step.overrides[0] for step in found.steps[:2]] == ["image.cache=cache", "reference.kind=stored"]
    assert all(step.saved > 0 for step in found.steps)
    train = found.run.config.train
    assert train.batch_size * train.accumulation == 4
    saved = sum(step.saved for step in found.steps)
    assert found.before.total - saved == found.after.total


def test_a_change_that_saves_nothing_is_tried_once_though_it_may_be_repeated(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tried = write_config(train={"batch_size": 4}), []
    peak, time = Peak((), "policy", {}, 2**30), StepTime({"all": 1.0}, 1.0, 1)
    monkeypatch.setattr(fitting, "count", lambda *_, **__: None)
    monkeypatch.setattr(fitting, "peak_of", lambda *_: peak)
    monkeypatch.setattr(fitting, "step_time", lambda *_: time)

    def note(name: str) -> None:
        tried.append(name)
        assert len(tried) < 50, "the same change is tried without end"

    found = fit_run(
        load_run(path), A_CARD, variant=lambda changes: load_run(path, changes), limit=MIB, on_step=note
    )
    assert not found.fits
    assert found.steps == ()
    assert tried.count("half the micro-batch, twice the micro-steps") == 1
    assert len(tried) == len(set(tried)) > 1


@pytest.mark.slow
def test_no_more_is_fitted_than_the_device_has(write_config: Callable[..., Path]) -> None:
    path = write_config()
    device = replace(A_CARD, memory=2**20)
    found = fit_run(load_run(path), device, variant=lambda changes: load_run(path, changes), limit=80 * 2**30)
    assert not found.fits
    assert (found.limit, found.asked) == (2**20, 80 * 2**30)


@pytest.mark.slow
def test_lora_is_the_last_resort_where_it_is_allowed_and_nothing_else_fits(fit: Any) -> None:
    found = fit(MIB // 8, adapter={"kind": "none"}, allow_lora=True)
    assert not found.fits
    assert found.after.total < found.before.total
    assert found.steps[-1].overrides[0] == "adapter.kind=lora"
    assert found.run.config.adapter.kind == "lora"


def test_autocast_keeps_no_casts_for_blocks_that_are_recomputed_and_gradients_are_the_same(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmalign.testing.accelerator import forget_accelerator
    from mmalign.train import parts
    from mmalign.train.run import prepare

    def trained(name: str) -> tuple[set[bool], list[torch.Tensor]]:
        forget_accelerator()
        run = make_run(
            name,
            model={"gradient_checkpointing": True},
            adapter={"kind": "none"},
            train={"mixed_precision": "bf16", "max_grad_norm": None},
        )
        loop, loader = prepare(run)
        seen: set[bool] = set()
        loop.trainables.network.register_forward_pre_hook(
            lambda *_: seen.add(torch.is_autocast_cache_enabled())
        )
        loop._update(loop._batches(iter(loader)), is_record=False)
        return seen, [value.detach().clone() for value in loop.trainables.parameters.values()]

    without = trained("without")
    monkeypatch.setattr(parts, "_keeps_casts", lambda recomputes: True)
    with_casts = trained("with")
    assert (without[0], with_casts[0]) == ({False}, {True})
    assert all(torch.equal(*pair) for pair in zip(without[1], with_casts[1], strict=True))


@pytest.mark.slow
def test_the_whole_of_sdxl_fits_24_gb(tmp_path: Path) -> None:
    """A design target: batch 2048, one pair at a time, cached, stored, recomputed, Adafactor."""
    recipe = Path(__file__).parents[2] / "diffusion" / "configs" / "sdxl" / "dpo_full.yaml"

    def variant(changes: Any) -> Any:
        return load_run(recipe, changes)

    found = fit_run(variant([]), DEVICES["4090"], variant=variant, limit=parse_bytes("24GB"))
    assert found.fits
    assert {"image.cache=cache", "reference.kind=stored", "train.batch_size=1"} <= set(found.overrides)
    assert found.run.config.adapter.kind == "none"
    assert found.run.config.train.accumulation * found.run.config.train.batch_size == 256
    said = f"{found.before.total / 2**30:.1f} GiB on one device"
    assert said in recipe.read_text(), "the recipe's head says what is counted"
