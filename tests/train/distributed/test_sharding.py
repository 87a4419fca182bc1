"""Sharded networks compute what whole ones do; their checkpoints hold what they hold."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mmalign.errors import ConfigError
from mmalign.testing.processes import on_processes
from mmalign.testing.sharded_tasks import gradients_in_double, state_comes_back
from mmalign.train.distributed.sharding import skeleton_of, units_of


@pytest.mark.parametrize(
    ("adapter", "gives_back", "processes"),
    [
        ("lora", True, 2),
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


def test_a_sharded_checkpoint_gives_back_every_number(sd15_folder: Path, tmp_path: Path) -> None:
    on_processes(2, state_comes_back, str(sd15_folder), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    names = {path.suffix for path in (tmp_path / "step-00000001").rglob("*") if path.is_file()}
    assert names == {".json", ".safetensors"}, "no pickle"


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
