"""What every family of diffusion models must do, whatever it makes; families of a medium derive from it.

`FamilyConformance` (pictures) and `ClipConformance` (sound, video) add what is their medium's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mmalign.batch import Conditioning, PreferenceRow, RowKeys
from mmalign.likelihood.adapters import adapters_off
from mmalign.testing.variants import variants
from mmalign.train.adapters import Trainables, attach
from mmalign.train.config import AdapterConfig

__all__ = ["PROMPTS", "NetworkConformance", "encoded", "example_inputs", "keys_of", "trained_by"]

PROMPTS = ("a red circle", "", "zwei blaue Würfel 🐈")


def trained_by(model: Any, adapter: AdapterConfig, *, seed: int = 0) -> Trainables:
    """Attach an adapter (or train everything) and move the trained weights away from their start."""
    trainables = attach(model.bare_network, adapter, default_targets=model.adapter_targets, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainables.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trainables


def keys_of(*numbers: int) -> RowKeys:
    """Keys of rows of one optimiser step."""
    return RowKeys(
        key=torch.tensor(numbers), stratum=torch.zeros(len(numbers)), num_strata=max(len(numbers), 1)
    )


def encoded(model: Any, rows: list[PreferenceRow], keys: tuple[int, ...]) -> tuple[Tensor, Conditioning]:
    """Latents and conditioning of rows with these keys."""
    examples = [model.example(row, key=key) for row, key in zip(rows, keys, strict=True)]
    found: tuple[Tensor, Conditioning] = model.encode(model.collate(examples), keys_of(*keys))
    return found


def example_inputs(model: Any, *, num_rows: int = 3) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Random inputs of `denoise` with the shapes of real ones, at three noise levels."""
    noised, _, conditioning = model.meta_inputs(num_rows)
    generator = torch.Generator().manual_seed(1)

    def real(name: str, value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator)
        if name == "length":  # of a clip, in samples
            return torch.randint(1, 1000, value.shape, generator=generator)
        return _some_true(value.shape, generator)

    levels = model.schedule.timestep_at(torch.tensor([0.99, 0.6, 0.02]))[:num_rows]
    rows = {name: real(name, value) for name, value in conditioning.items()}
    return real("", noised), model.schedule.network_time(levels), rows


def _some_true(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A mask that leaves something to look at in every row."""
    mask = torch.rand(shape, generator=generator) < 0.5
    if mask.ndim > 1:
        mask[:, 0] = True
    return mask


class NetworkConformance(ABC):
    """Tests of one family on a tiny model.

    Attributes:
        family: name in the registry.
        write: writes a tiny folder.
        idle: endings of adapter weights that the network's structure keeps from acting on its output.
    """

    family: ClassVar[str]
    write: ClassVar[Callable[[str | Path], Path]]
    idle: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def loaded(
        self,
        folder: Path,
        *,
        model: Mapping[str, Any] | None = None,
        media: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Any:
        """The folder's model on the CPU, with settings of the run's `model` section and its medium's."""

    @abstractmethod
    def row(self, prompt: str, *, seed: int = 0, num_candidates: int = 2) -> PreferenceRow:
        """A row with random media."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A tiny model of the family."""
        return type(self).write(tmp_path_factory.mktemp("family") / self.family)

    @pytest.fixture
    def model(self, folder: Path) -> Any:
        """The loaded model, fresh for every test."""
        return self.loaded(folder)

    def encoded(
        self, model: Any, prompts: tuple[str, ...], keys: tuple[int, ...]
    ) -> tuple[Tensor, Conditioning]:
        """Latents and conditioning of random rows with these prompts and keys."""
        rows = [self.row(prompt, seed=number) for number, prompt in enumerate(prompts)]
        return encoded(model, rows, keys)

    # --- encoding -------------------------------------------------------------------------------------------

    def test_encoding_gives_one_latent_per_candidate_and_one_text_per_prompt(self, model: Any) -> None:
        """Shapes of a micro-batch of three pairs."""
        clean, conditioning = self.encoded(model, PROMPTS, (11, 12, 13))
        assert clean.shape == (3, 2, *model.latent_shape)
        assert clean.dtype == torch.float32
        assert all(value.shape[0] == 3 for value in conditioning.shared.values())
        assert not clean.requires_grad

    def test_latents_are_sampled_and_not_the_mean(self, model: Any) -> None:
        """Two candidates of equal content get different posterior samples."""
        row = self.row("a", num_candidates=1)
        twin = PreferenceRow(prompt="a", candidates=row.candidates * 2, source="test:0")
        clean, _ = encoded(model, [twin], (5,))
        assert not torch.equal(clean[0, 0], clean[0, 1])

    # --- the network ----------------------------------------------------------------------------------------

    def test_gradients_reach_the_adapter_and_nothing_else(self, model: Any) -> None:
        """Frozen weights get no gradient; every adapter weight does."""
        trainables = trained_by(model, AdapterConfig(rank=2))
        model.denoise(*example_inputs(model)).square().mean().backward()
        for name, parameter in model.bare_network.named_parameters():
            if name in trainables.parameters:
                assert parameter.grad is not None, name
                acts = not any(part in name for part in self.idle)
                assert (parameter.grad.abs().sum() > 0) == acts, name
            else:
                assert parameter.grad is None, name

    def test_adapters_off_is_the_base_model_bit_for_bit(self, model: Any) -> None:
        """The reference needs no second model."""
        inputs = example_inputs(model)
        with torch.no_grad():
            base = model.denoise(*inputs)
            trained_by(model, AdapterConfig(rank=2))
            tuned = model.denoise(*inputs)
            with adapters_off(model.bare_network):
                off = model.denoise(*inputs)
        assert torch.equal(off, base)
        assert not torch.allclose(tuned, base)

    def test_checkpointing_changes_no_gradient(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Recomputed activations are the same activations; tiny networks keep small products, too."""
        monkeypatch.setattr("mmalign.train.recomputing.KEPT_FROM", 16)
        gradients = []
        for checkpointing in (False, True, "selective"):
            model = self.loaded(folder, model={"gradient_checkpointing": checkpointing})
            trainables = trained_by(model, AdapterConfig(rank=2))
            model.network.train()
            model.denoise(*example_inputs(model)).square().mean().backward()
            gradients.append([parameter.grad for parameter in trainables.parameters.values()])
        for plain, recomputed, in_part in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)
            assert torch.equal(plain, in_part)

    @pytest.mark.parametrize("kind", variants(["nf4", "fp8"], fast=("nf4",)))
    def test_adapters_train_over_quantised_weights_that_the_reference_shares(
        self, folder: Path, kind: str
    ) -> None:
        """Before training both answer alike, bit for bit; what is learnt acts on wide weights as on these."""
        model = self.loaded(folder, model={"quantization": kind})
        assert f"linear layers in {kind}" in " ".join(model.notes)
        adapter = AdapterConfig(rank=2)
        trainables = attach(model.bare_network, adapter, default_targets=model.adapter_targets, seed=0)
        inputs = example_inputs(model)
        with torch.no_grad(), adapters_off(model.bare_network):
            base = model.denoise(*inputs)
        policy = model.denoise(*inputs)
        assert torch.equal(policy, base)
        policy.square().mean().backward()
        for name, parameter in model.bare_network.named_parameters():
            acts = "lora_B" in name and not any(part in name for part in self.idle)
            assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == acts, name
        wide = self.loaded(folder)
        with torch.no_grad():
            before = wide.denoise(*inputs)
            learnt = trained_by(wide, adapter).state()
            trainables.load(learnt)
            moved, same = model.denoise(*inputs) - base, wide.denoise(*inputs) - before
        assert torch.cosine_similarity(moved.flatten(), same.flatten(), dim=0) > 0.8

    def test_half_precision_networks_take_float32_latents(self, folder: Path) -> None:
        """Inputs are cast to the network's dtype; adapters stay float32."""
        model = self.loaded(folder, dtype=torch.bfloat16)
        trainables = trained_by(model, AdapterConfig(rank=2))
        assert {parameter.dtype for parameter in trainables.parameters.values()} == {torch.float32}
        assert model.input_dtype(model.bare_network) == torch.bfloat16
        prediction = model.denoise(*example_inputs(model))
        assert prediction.dtype == torch.bfloat16
        assert torch.isfinite(prediction).all()
