"""What tests let every process of a group do; each compares what it finds with one process's answer."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

__all__ = [
    "blocks_stay_whole_under_ddp",
    "gradients_in_double",
    "saving_fails_everywhere",
    "state_comes_back",
]


def _network(folder: str, adapter: str) -> tuple[Any, Any]:
    """A tiny UNet in float64, and its trained weights."""
    from diffusers import UNet2DConditionModel

    from mmalign.train.adapters import attach
    from mmalign.train.sections import AdapterConfig

    network = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    config = AdapterConfig(kind="lora", rank=3, alpha=5) if adapter == "lora" else AdapterConfig(kind="none")
    trainables = attach(network, config, default_targets=("to_q", "to_k", "to_v", "to_out.0"), seed=0)
    network = network.double().eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for value in trainables.parameters.values():  # LoRA starts at 0, where one half has no gradient
            value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype), alpha=0.02)
    return network, trainables


def _group() -> tuple[int, int, Any]:
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo")
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return rank, count, init_device_mesh("cpu", (count,))


def _loss(network: nn.Module, rows: Tensor, noise: Tensor, text: Tensor) -> Tensor:
    """Diffusion-DPO's loss, summed over pairs: chosen rows are even, rejected ones odd."""
    timestep = torch.full((len(rows),), 500)
    error = (network(rows, timestep, text).sample - noise).square().mean((1, 2, 3))
    margin: Tensor = error[1::2] - error[0::2]
    return nn.functional.softplus(-50.0 * margin).sum()


def gradients_in_double(folder: str, adapter: str, gives_back: bool) -> None:
    """Gradients of 8 pairs in two micro-steps, sharded, against those of one process; float64, 1e-10.

    Raises:
        AssertionError: they differ.
    """
    from mmalign.sharded import total_norm, whole
    from mmalign.train.distributed.sharding import shard, unsynced

    rank, count, mesh = _group()
    network, trainables = _network(folder, adapter)
    generator = torch.Generator().manual_seed(1)
    width = network.config.cross_attention_dim
    rows, noise = (
        torch.randn(16, network.config.in_channels, 8, 8, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    text = torch.randn(16, 3, width, generator=generator, dtype=torch.float64)

    alone = copy.deepcopy(network)
    _loss(alone, rows, noise, text).div(8).backward()
    expected = {name: value.grad for name, value in alone.named_parameters() if value.grad is not None}
    wanted = torch.nn.utils.get_total_norm(list(expected.values()))

    settings = SimpleNamespace(
        transformer_cls_names_to_wrap=None, cpu_offload=None, reshard_after_forward=gives_back
    )
    shard(network, settings, mesh=mesh)
    trainables = trainables.relisted()
    share = 16 // count // 2
    for micro_step in range(2):
        own = slice(rank * 2 * share + micro_step * share, rank * 2 * share + (micro_step + 1) * share)
        context = unsynced(network) if micro_step == 0 else torch.enable_grad()
        with context:
            _loss(network, rows[own], noise[own], text[own]).mul(count / 8).backward()
    found = {name: value.grad for name, value in trainables.parameters.items() if value.grad is not None}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(whole(found[name]), value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(total_norm(list(found.values())), wanted, rtol=1e-10, atol=0)


def state_comes_back(folder: str, target: str) -> None:
    """A sharded checkpoint holds what the network and its optimiser hold, and gives it back.

    Raises:
        AssertionError: a number changed.
    """
    from mmalign.sharded import whole
    from mmalign.train.checkpoint import (
        Checkpoint,
        flatten_optimizer,
        load_checkpoint,
        restore_optimizer,
        save_sharded_checkpoint,
    )
    from mmalign.train.distributed.sharding import shard

    rank, _, mesh = _group()
    network, trainables = _network(folder, "lora")
    settings = SimpleNamespace(
        transformer_cls_names_to_wrap=None, cpu_offload=None, reshard_after_forward=True
    )
    shard(network, settings, mesh=mesh)
    trainables = trainables.relisted()
    parameters = list(trainables.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, fused=True)

    def step() -> None:
        generator = torch.Generator().manual_seed(3)
        rows = torch.randn(2, network.config.in_channels, 8, 8, generator=generator, dtype=torch.float64)
        text = torch.randn(2, 3, network.config.cross_attention_dim, generator=generator, dtype=torch.float64)
        _loss(network, rows, -rows, text).backward()
        optimizer.step()
        optimizer.zero_grad()

    def kept() -> dict[str, Tensor]:
        tensors, _ = flatten_optimizer(optimizer)
        return {name: whole(value).clone() for name, value in {**trainables.state(), **tensors}.items()}

    step()
    tensors, described = flatten_optimizer(optimizer)
    empty: dict[str, Tensor] = {}
    checkpoint = Checkpoint(1, trainables.state(), tensors, {}, empty, empty, {"optimizer": described})
    saved = save_sharded_checkpoint(Path(target), checkpoint, is_main=rank == 0, keep=2)
    torch.distributed.barrier()
    before = kept()
    step()
    assert not all(torch.equal(value, before[name]) for name, value in kept().items())
    loaded = load_checkpoint(saved)
    trainables.load(loaded.weights)
    restore_optimizer(optimizer, loaded.optimizer, loaded.state["optimizer"])
    after = kept()
    assert after.keys() == before.keys()
    changed = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert not changed, changed
    stored = {**loaded.weights, **loaded.optimizer}
    assert all(torch.equal(stored[name], value) for name, value in before.items())


def saving_fails_everywhere(target: str) -> None:
    """A checkpoint that one process cannot write is an error of all, and no folder is left.

    Raises:
        AssertionError: a process did not hear of it.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    from mmalign.errors import CheckpointError
    from mmalign.train.checkpoint import Checkpoint, save_sharded_checkpoint

    rank, _, _ = _group()
    weights = {"a": torch.ones(3), "b": torch.ones(5)}

    def fails(root: Path, message: str) -> None:
        heard = ""
        try:
            made = Checkpoint(1, weights, {}, {}, {}, {}, {})
            save_sharded_checkpoint(root, made, is_main=rank == 0, keep=1)
        except CheckpointError as error:
            heard = str(error)
        assert message in heard, heard
        torch.distributed.barrier()
        assert not root.is_dir() or not list(root.iterdir())

    blocked = Path(target) / "file"
    if rank == 0:
        blocked.write_text("in the way")
    torch.distributed.barrier()
    fails(blocked / "inside", "could not be written")

    def refused(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with mock.patch("mmalign.train.checkpoint.write_json", refused):
        fails(Path(target) / "state", "No space left on device")
    with mock.patch("mmalign.train.distributed.shards.save", _refused_by(rank, save)):
        fails(Path(target) / "shards", "shards could not be written")


def _refused_by(rank: int, save: Any) -> Any:
    """`save` with a disk that is full on the second process."""

    def saved(flat: Any, *, storage_writer: Any) -> Any:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        if rank == 1:
            storage_writer.write_data = full
        return save(flat, storage_writer=storage_writer)

    return saved


def blocks_stay_whole_under_ddp() -> None:
    """A compiled block under DDP is one graph, also one with more gradients than fit into a bucket.

    Raises:
        AssertionError: it was cut.
    """
    from mmalign.train import compiling

    _group()
    network = nn.ModuleList([nn.Sequential(nn.Linear(640, 640), nn.Linear(640, 640))])  # 3 MB; a bucket: 1 MB
    made: list[Any] = []

    def traced(graph: Any, _: object) -> Any:
        made.append(graph)
        return graph.forward

    class Model:
        family = "blocks"

        def repeated_blocks(self, network: nn.Module) -> list[nn.Module]:
            return list(network.children())

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = network

        def forward(self, rows: Tensor) -> Tensor:
            result: Tensor = self.blocks[0](rows)
            return result

    with mock.patch.object(compiling, "BACKEND", traced):
        compiling.compile_blocks(Model(), network, device="cpu")
        spread = nn.parallel.DistributedDataParallel(Network())
        for _ in range(2):
            spread(torch.ones(2, 640)).sum().backward()
    assert len(made) == 1, f"{len(made)} graphs of one block"
