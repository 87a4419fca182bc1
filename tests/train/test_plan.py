"""What `--dry-run` says before anything is trained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from mmalign.errors import ConfigError
from mmalign.train.adapters import attach
from mmalign.train.config import AdapterConfig, load_run
from mmalign.train.parts import load_model, make_objective
from mmalign.train.plan import count_activations, saved_activation_bytes
from mmalign.train.run import describe, main


@pytest.fixture
def told(make_run: Callable[..., Any]) -> Callable[..., tuple[str, dict[str, Any]]]:
    """`told(**sections)`: what a dry run prints, and its numbers."""

    def tell(**sections: Any) -> tuple[str, dict[str, Any]]:
        console = Console(record=True, width=200)
        numbers = describe(make_run(**sections), console)
        return console.export_text(), numbers

    return tell


def test_a_dry_run_prints_a_configuration_that_can_be_run_again(told, tmp_path) -> None:
    text, _ = told()
    printed = yaml.safe_load(text.split("\n\n")[0])
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(printed))
    again = load_run(path)
    assert again.config.train.optimizer == "adamw"
    assert again.objective_arguments == {"beta": 500.0}
    assert again.config.image.resolution == 32


def test_a_dry_run_names_what_differs_from_the_row_and_what_the_row_gave(told) -> None:
    text, _ = told()
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "objective.beta 500.0 2000 paper" in lines
    assert "train.steps 3 2000 code" in lines
    assert "image.resolution 32 512 code" in lines
    assert any(line.startswith("from the method's row: train.optimizer=adamw (code)") for line in lines)


def test_a_dry_run_counts_what_trains_and_says_the_effective_numbers(told) -> None:
    text, numbers = told(train={"batch_size": 2, "accumulation": 5})
    assert "effective batch: 10 prompts (2 per device x 5 micro-steps x 1 devices)" in text
    assert "effective learning rate: 0.001 (used as it stands, not scaled by the batch)" in text
    assert "elements per sample: 1024" in text
    # rank 3 on the tiny network's 8 attention layers
    assert f"trained: {numbers['trained']:,} of " in text
    _, double = told(adapter={"rank": 6})
    assert double["trained"] == 2 * numbers["trained"]


def test_a_dry_run_says_beta_in_both_units(told) -> None:
    text, _ = told()
    assert "beta 500 on half the mean error = 0.2441 on the summed error (1024 elements)" in text
    text, _ = told(likelihood={"reduction": "sum"})
    assert "beta 512000 on half the mean error = 250 on the summed error (1024 elements)" in text


def test_memory_is_listed_per_component_and_adds_up(told, sd15_folder) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    text, numbers = told(train={"ema_decay": 0.9})
    memory = numbers["memory"]
    unet = UNet2DConditionModel.from_pretrained(str(sd15_folder), subfolder="unet")
    vae = AutoencoderKL.from_pretrained(str(sd15_folder), subfolder="vae")
    assert memory["network, frozen weights"] == 4 * sum(value.numel() for value in unet.parameters())
    assert memory["VAE"] == 4 * sum(value.numel() for value in vae.parameters())
    for name in ("network, trained weights (float32)", "gradients", "average of the weights"):
        assert memory[name] == 4 * numbers["trained"], name
    assert memory["optimiser state (adamw)"] == 8 * numbers["trained"]
    assert not [name for name in memory if name.startswith("reference")], "adapters off: no second network"
    assert "device memory, lower bound" in text


def test_full_fine_tuning_needs_a_second_network_and_much_more_state(told) -> None:
    _, numbers = told(adapter={"kind": "none"})
    memory = numbers["memory"]
    assert memory["network, frozen weights"] == 0
    assert memory["reference (frozen)"] == memory["network, trained weights (float32)"]
    assert memory["optimiser state (adamw)"] == 8 * numbers["trained"]


def really_saved(network: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> int:
    """Bytes of distinct storages that autograd holds after a real forward on the CPU, weights aside."""
    own = {value.untyped_storage().data_ptr() for value in network.state_dict(keep_vars=True).values()}
    held: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    result.sum().backward()
    return sum(held.values())


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("adapter", [{"kind": "lora"}, {"kind": "none"}], ids=["lora", "full"])
def test_activations_counted_without_computing_are_those_a_real_step_keeps(
    make_run, sd15_folder, sdxl_folder, family: str, adapter: dict[str, str]
) -> None:
    source = {"sd15": sd15_folder, "sdxl": sdxl_folder}[family]
    run = make_run(model={"family": family, "source": str(source)}, adapter=adapter)
    model = load_model(run, torch.device("cpu"))
    trainables = attach(model.network, run.config.adapter, default_targets=model.adapter_targets, seed=0)
    counted = saved_activation_bytes(
        trainables.network, lambda network: model.denoise(*model.meta_inputs(4), network=network)
    )
    noised, timestep, conditioning = model.meta_inputs(4)
    real = torch.randn(noised.shape), torch.randint(0, 1000, timestep.shape)
    rows = {name: torch.randn(value.shape) for name, value in conditioning.items()}
    found = really_saved(trainables.network, lambda: model.denoise(*real, rows))
    assert counted == pytest.approx(found, rel=0.02)


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(told) -> None:
    def activations(**sections: Any) -> int:
        _, numbers = told(**sections)
        return next(size for name, size in numbers["memory"].items() if name.startswith("activations"))

    one, two = activations(train={"batch_size": 1}), activations(train={"batch_size": 2})
    assert two == pytest.approx(2 * one, rel=0.02)
    light = activations(train={"batch_size": 2}, model={"gradient_checkpointing": True})
    assert 0 < light < 0.5 * two


def test_with_checkpointing_the_inputs_of_recomputed_blocks_are_counted(make_run) -> None:
    """What autograd does not see stays alive all the same: at least the input of every block."""
    run = make_run(model={"gradient_checkpointing": True})
    model = load_model(run, torch.device("cpu"))
    trainables = attach(model.network, run.config.adapter, default_targets=model.adapter_targets, seed=0)
    network = trainables.network
    counted = saved_activation_bytes(
        network, lambda stand_in: model.denoise(*model.meta_inputs(4), network=stand_in)
    )
    noised, timestep, conditioning = model.meta_inputs(4)
    inputs: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def seen(_: torch.nn.Module, given: tuple[object, ...]) -> None:
        value = given[0]
        assert isinstance(value, torch.Tensor)
        alive.append(value)
        inputs[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()

    resnets = [
        module for name, module in network.named_modules() if name.rpartition(".")[0].endswith("resnets")
    ]
    for module in resnets:
        module.register_forward_pre_hook(seen)
    with torch.no_grad():
        rows = {name: torch.randn(value.shape) for name, value in conditioning.items()}
        model.denoise(torch.randn(noised.shape), torch.randint(0, 1000, timestep.shape), rows)
    assert len(resnets) > 5
    assert counted >= sum(inputs.values())


def test_a_dry_run_touches_no_files(write_config, tmp_path, capsys) -> None:
    path = write_config()
    before = sorted(tmp_path.rglob("*"))
    assert main(path, dry_run=True) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "trained:" in capsys.readouterr().out


# -------------------------------------------------------------------------- runs that sample while they train


ONLINE: dict[str, tuple[dict[str, Any], float]] = {
    # settings, rows with gradient against those of a pair's micro-batch
    "online_diffusion_dpo": ({"reward": "own:function"}, 1.0),
    "spo": ({"reward": "own:function", "inner_steps": 0}, 1.0),
    "diffusion_dro": ({"capacity": 2}, 1.0),
    "seppo": ({}, 1.0),
    "draft": ({"reward": "own:function", "samples": 3, "gradient_steps": 2}, 6.0),
    "flow_grpo": ({"reward": "own:function"}, 1.0),
}


@pytest.mark.parametrize("method", ONLINE)
def test_a_dry_run_of_a_method_that_samples_counts_its_own_rows(told, method: str) -> None:
    settings, factor = ONLINE[method]
    _, pairs = told(train={"batch_size": 1})
    text, numbers = told(method=method, rollout=settings, train={"batch_size": 1})
    ours, theirs = (found["memory"]["activations of 1 prompts"] for found in (numbers, pairs))
    assert ours == pytest.approx(factor * theirs, rel=0.02)
    assert theirs > 0
    assert any(name.startswith(("queue", "reward")) for name in numbers["memory"])
    if "reward" in settings:
        assert "not counted: its size is not known" in text


def test_without_guidance_half_the_rows_carry_gradients(told) -> None:
    with_guidance, without = (
        told(method="spo", rollout={"reward": "own:function", "inner_steps": inner, "guidance_scale": scale})[
            1
        ]
        for inner, scale in ((0, 5.0), (0, 1.0))
    )
    name = "activations of 2 prompts"
    assert without["memory"][name] == pytest.approx(with_guidance["memory"][name] / 2, rel=0.02)
    segments = told(method="spo", rollout={"reward": "own:function", "inner_steps": 3})[1]
    assert segments["memory"][name] == pytest.approx(2 * with_guidance["memory"][name], rel=0.02)


def test_earlier_weights_and_the_buffer_are_counted(told) -> None:
    _, numbers = told(method="seppo", rollout={"capacity": 5})
    trained = numbers["memory"]["network, trained weights (float32)"]
    assert numbers["memory"]["earlier weights, up to 5"] == 5 * trained
    text, numbers = told(method="diffusion_dro", rollout={"capacity": 2, "refresh_every": 3})
    assert numbers["memory"]["earlier weights, up to 1"] == trained
    assert "on the CPU" in text


def test_a_queue_holds_the_text_of_a_prompt_once(told) -> None:
    def queue(**rollout: Any) -> int:
        _, numbers = told(method="flow_grpo", rollout={"reward": "own:function", "num_steps": 4, **rollout})
        (found,) = (size for name, size in numbers["memory"].items() if name.startswith("queue"))
        return found

    few, many = queue(prompts=2, samples=3), queue(prompts=2, samples=6)
    latents = 2 * 3 * 3 * 2 * 1024 * 4  # prompts x samples x steps but the last x state and next x bytes
    assert many - few == latents


def tiny_wan(*, recompute: bool, narrow: bool = False) -> torch.nn.Module:
    """Two blocks with an adapter; frozen weights in bfloat16 if `narrow`."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng():
        network = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=24,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
        )
    if narrow:
        network.to(torch.bfloat16)
    if recompute:
        network.enable_gradient_checkpointing()
    settings = AdapterConfig(rank=2)
    attach(network, settings, default_targets=("to_q", "to_v", "ffn.net.2"), seed=0)
    return network


def wan_inputs(device: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(3, 4, 3, 4, 10, dtype=dtype).to(device),
        "timestep": torch.full((3,), 500.0).to(device),
        "encoder_hidden_states": torch.randn(3, 7, 24, dtype=dtype).to(device),
    }


def test_the_largest_recomputed_block_is_counted_beside_what_is_kept() -> None:
    network = tiny_wan(recompute=True)
    counted = count_activations(network, lambda net: net(**wan_inputs("meta"), return_dict=False)[0])
    given: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad():
        handle = network.blocks[1].register_forward_pre_hook(lambda _, inputs: given.append(inputs))
        network(**wan_inputs("cpu"))
        handle.remove()
    inputs = [value.requires_grad_(number == 0) for number, value in enumerate(given[0][:3])]
    own = sum(value.untyped_storage().nbytes() for value in inputs[:1])
    found = really_saved(network, lambda: network.blocks[1](*inputs, given[0][3]))
    assert counted.recomputed == pytest.approx(found - own, rel=0.1)
    whole = saved_activation_bytes(
        tiny_wan(recompute=False), lambda net: net(**wan_inputs("meta"), return_dict=False)[0]
    )
    assert counted.kept + counted.recomputed < 0.75 * whole


def test_half_precision_is_counted_as_autocast_has_it() -> None:
    network = tiny_wan(recompute=False, narrow=True)
    half = torch.bfloat16

    def forward(net: torch.nn.Module, device: str) -> torch.Tensor:
        return net(**wan_inputs(device, half), return_dict=False)[0]

    with torch.autocast("cpu", dtype=half):
        found = really_saved(network, lambda: forward(network, "cpu"))
    counted = count_activations(network, lambda net: forward(net, "meta"), autocast=half).kept
    plain = count_activations(network, lambda net: forward(net, "meta")).kept
    assert counted == pytest.approx(found, rel=0.1)
    assert plain > 1.1 * counted


def test_blocks_that_recompute_by_themselves_are_counted_too() -> None:
    from mmalign.video.block_checkpointing import recompute_blocks

    network = tiny_wan(recompute=False)
    recompute_blocks(list(network.blocks))
    counted = count_activations(network, lambda net: net(**wan_inputs("meta"), return_dict=False)[0])
    expected = count_activations(
        tiny_wan(recompute=True), lambda net: net(**wan_inputs("meta"), return_dict=False)[0]
    )
    assert (counted.kept, counted.recomputed) == (expected.kept, expected.recomputed)
    assert counted.recomputed > 0


def test_encoders_that_wait_on_the_cpu_take_nothing_of_the_device(told) -> None:
    _, at_hand = told()
    text, waiting = told(model={"offload_encoders": True})
    assert at_hand["memory"]["VAE"] > 0
    assert waiting["memory"]["VAE"] == 0
    assert "on the CPU between uses" in text


def test_a_pair_that_is_weighed_by_its_noise_level_needs_one(make_run) -> None:
    settings = {"method": "flow_dpo", "likelihood": {"share_timestep": False}}
    refused = r"likelihood.share_timestep: got False, expected true: .* flow_dpo"
    with pytest.raises(ConfigError, match=refused):
        make_objective(make_run(**settings, objective={"beta": 5.0, "schedule": "one_minus_t_squared"}))
    make_objective(make_run(**settings, objective={"beta": 5.0, "schedule": "constant"}))
