"""Weights from files into networks: every key finds its partner or is named."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmalign.errors import CheckpointError
from mmalign.rewards.checkpoints import blank, fill, read_state


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))


@pytest.fixture
def state(network, draw):
    return {name: draw(*value.shape, dtype=torch.float32) for name, value in network.state_dict().items()}


class TestReading:
    @pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.bin"])
    def test_both_formats_give_the_same_tensors(self, tmp_path, state, name):
        path = tmp_path / name
        save_file(state, str(path)) if name.endswith("safetensors") else torch.save(state, path)
        found = read_state(path)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())

    def test_nested_weights_are_found(self, tmp_path, state):
        torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.ckpt")
        assert read_state(tmp_path / "a.ckpt").keys() == state.keys()

    def test_a_pickled_module_is_refused_without_running_it(self, tmp_path, network):
        torch.save(network, tmp_path / "a.pth")
        with pytest.raises(
            CheckpointError, match=r"a\.pth: no checkpoint that can be read without running code"
        ):
            read_state(tmp_path / "a.pth")

    @pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
    def test_a_broken_file_is_named(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"half a file")
        with pytest.raises(CheckpointError, match=f"{name}: no checkpoint"):
            read_state(tmp_path / name)

    def test_other_content_is_named(self, tmp_path):
        torch.save([torch.ones(2)], tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"got list, expected tensors by name \(a state dict\)"):
            read_state(tmp_path / "a.pt")


class TestFilling:
    def test_every_value_arrives_in_the_networks_dtype(self, network, state):
        fill(network.double(), state, where="here")
        for name, value in network.state_dict().items():
            assert torch.equal(value, state[name].double())

    def test_renamed_and_ignored_keys(self, network, state):
        given = {f"old.{name}": value for name, value in state.items()} | {"a.position_ids": torch.ones(1)}
        fill(
            network,
            given,
            where="here",
            ignored=("*.position_ids",),
            rename=lambda name: name.removeprefix("old."),
        )
        assert torch.equal(network.state_dict()["1.bias"], state["1.bias"])

    def test_a_missing_key_is_named_and_nothing_is_filled(self, network, state):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        del state["1.bias"]
        with pytest.raises(CheckpointError, match=r"here: the weights do not fit .*missing: 1\.bias\)"):
            fill(network, state, where="here")
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())

    def test_an_unexpected_key_is_named(self, network, state):
        with pytest.raises(CheckpointError, match=re.escape("(unexpected: 2.bias)")):
            fill(network, state | {"2.bias": torch.ones(7)}, where="here")

    def test_a_key_the_renaming_does_not_know_is_unexpected(self, network, state):
        with pytest.raises(CheckpointError, match=r"missing: 0\.bias, 0\.weight, .*unexpected: 0\.weight"):
            fill(network, state, where="here", rename=lambda _: None)

    def test_another_shape_is_named_with_both_shapes(self, network, state):
        state["0.bias"] = torch.ones(7)
        with pytest.raises(CheckpointError, match=re.escape("0.bias is [7] in the file and [3] here")):
            fill(network, state, where="here")

    def test_many_problems_are_counted(self, network, state):
        extra = {f"x{number}": torch.ones(1) for number in range(11)}
        with pytest.raises(CheckpointError, match=r"x0, x1, x2, x3, x4, x5 and 5 more"):
            fill(network, state | extra, where="here")


class TestBlank:
    def test_nothing_is_drawn(self):
        before = torch.get_rng_state()
        found = blank(lambda: nn.Linear(2, 3))
        assert torch.equal(before, torch.get_rng_state())
        assert found.weight.device.type == "cpu"

    def test_position_counters_are_set(self):
        class Counting(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("position_ids", torch.arange(7)[None], persistent=False)

        assert blank(Counting).position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6]]

    def test_another_unsaved_buffer_is_refused(self):
        class Tabled(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("table", torch.ones(5), persistent=False)

        with pytest.raises(CheckpointError, match="Tabled: the buffer table is in no checkpoint"):
            blank(Tabled)
