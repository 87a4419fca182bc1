"""Sharded networks compute what whole ones do; their checkpoints hold what they hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from mmalign.errors import CheckpointError, ConfigError
from mmalign.testing.processes import on_processes
from mmalign.testing.sharded_tasks import gradients_in_double, saving_fails_everywhere, state_comes_back
from mmalign.train.checkpoint import load_checkpoint
from mmalign.train.distributed import sharding
from mmalign.train.distributed.sharding import skeleton_of, units_of
from mmalign.train.distributed.shards import read_shards


@pytest.mark.parametrize(
    ("adapter", "gives_back", "processes"),
    [
        pytest.param("lora", True, 2, marks=pytest.mark.slow),
        pytest.param("lora", False, 4, marks=pytest.mark.slow),
        pytest.param("none", True, 2, marks=pytest.mark.slow),
        pytest.param("none", False, 2, marks=pytest.mark.slow),
        pytest.param("none", True, 4, marks=pytest.mark.slow),
    ],
)
def test_sharded_gradients_are_those_of_one_process(
    sd15_folder: Path, adapter: str, gives_back: bool, processes: int
) -> None:
    on_processes(processes, gradients_in_double, str(sd15_folder), adapter, gives_back)


@pytest.mark.slow
def test_a_sharded_checkpoint_gives_back_every_number(sd15_folder: Path, tmp_path: Path) -> None:
    on_processes(2, state_comes_back, str(sd15_folder), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    names = {path.suffix for path in (tmp_path / "step-00000001").rglob("*") if path.is_file()}
    assert names == {".json", ".safetensors"}, "no pickle"


@pytest.mark.slow
def test_damaged_and_missing_shards_are_told(sd15_folder: Path, tmp_path: Path) -> None:
    on_processes(2, state_comes_back, str(sd15_folder), str(tmp_path))
    folder = tmp_path / "step-00000001"
    files = sorted((folder / "shards").glob("*.safetensors"))
    assert len(files) == 2
    loaded = load_checkpoint(folder)
    for file in files:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(
            CheckpointError, match=r"files of some processes are missing.*goes on from the one"
        ):
            load_checkpoint(folder)
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match=rf"missing or cut short \(first noticed at {file.name}"):
            load_checkpoint(folder)
        with pytest.raises(CheckpointError, match="shards of this checkpoint cannot be read"):
            read_shards(folder / "shards", ("weights",))
        file.write_bytes(content)
    # Without the list of files, as older checkpoints are: what the other file lacks is not read as zeros.
    files[0].unlink()
    with pytest.raises(CheckpointError, match="files of some processes are missing"):
        read_shards(folder / "shards", ("weights",))
    files[1].write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"shards of this checkpoint cannot be read \(.*too large"):
        loaded.weights[next(iter(loaded.weights))]


def test_processes_hear_of_a_disk_that_refused_one(tmp_path: Path) -> None:
    on_processes(2, saving_fails_everywhere, str(tmp_path))


class Counting(FSDPModule):
    """What a sharded network is asked."""

    def __new__(cls) -> Any:
        made = object.__new__(cls)
        made.asked = []
        return made

    def set_requires_gradient_sync(self, wanted: bool, *, recurse: bool = True) -> None:
        self.asked.append(wanted)


def test_contexts_without_reduction_nest() -> None:
    network: Any = Counting()
    with sharding._without_reduction(network):
        with sharding._without_reduction(network):
            assert network.asked[-1] is False
        assert network.asked[-1] is False, "the outer one still holds"
    assert network.asked[-1] is True


class Packed(nn.Parameter):
    """A quantised weight, as libraries make them: a parameter of a type of their own."""


def test_a_skeleton_does_not_copy_quantised_weights() -> None:
    network = nn.Linear(3, 5)
    network.weight = Packed(torch.zeros(5, 3))
    skeleton = skeleton_of(network)
    assert skeleton.weight is network.weight
    assert skeleton.bias.is_meta


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)


class Told(nn.Module):
    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.ModuleList([nn.Linear(3, 3)])
        self.blocks = nn.ModuleList([Block(), Block()])


def test_units_are_what_a_model_keeps_together_or_what_its_lists_hold() -> None:
    network = Told()
    assert units_of(network) == [network.blocks[1], network.blocks[0]]
    assert units_of(network, ["Linear"])[-1] is network.rest[0]
    Told._no_split_modules = ()
    try:
        assert set(units_of(network)) == {network.rest[0], *network.blocks}
    finally:
        Told._no_split_modules = ("Block",)
    with pytest.raises(ConfigError, match=r"fsdp_transformer_layer_cls_to_wrap.*got 'Blok'.*Block"):
        units_of(network, ["Blok"])


def test_a_skeleton_has_buffers_and_ties_but_no_weights() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(3, 5))
    network[2].weight = network[0].weight
    skeleton = skeleton_of(network)
    assert all(value.is_meta for value in skeleton.parameters())
    assert skeleton[2].weight is skeleton[0].weight
    assert torch.equal(skeleton[1].running_var, network[1].running_var)
    assert not network[0].weight.is_meta
