"""What every family of sound or of video must do: both read clips, fill texts up and sample in our own loop.

`AudioFamilyConformance` and `VideoFamilyConformance` add what is their medium's.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mmalign import registry
from mmalign.batch import Batch, Labels, PreferenceRow
from mmalign.errors import RowError
from mmalign.likelihood import Elbo, UniformTimesteps
from mmalign.testing.network_conformance import (
    PROMPTS,
    NetworkConformance,
    encoded,
    example_inputs,
    keys_of,
    trained_by,
)
from mmalign.train.config import AdapterConfig, ModelConfig

__all__ = ["ClipConformance"]


class ClipConformance(NetworkConformance):
    """Tests of one family of media in time on a tiny model.

    Attributes:
        section: the class of the medium's section of a run.
        media: settings of that section that suit the tiny model.
        told_apart: absolute; predictions of two prompts differ by more somewhere.
        narrow_tolerance: relative, of errors in float32.
        wide_tolerance: relative, of errors in float64; networks that work in float32 inside give less.
    """

    section: ClassVar[type[Any]]
    media: ClassVar[Mapping[str, Any]]
    told_apart: ClassVar[float] = 1e-5
    narrow_tolerance: ClassVar[float] = 1e-6
    wide_tolerance: ClassVar[float] = 1e-12

    def loaded(
        self,
        folder: Path,
        *,
        model: Mapping[str, Any] | None = None,
        media: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Any:
        """The folder's model on the CPU."""
        settings = ModelConfig(family=self.family, source=str(folder), **(model or {}))
        section = self.section(**{**self.media, **(media or {})})
        return registry.find("families", self.family).load(settings, section, device="cpu", dtype=dtype)

    @abstractmethod
    def broken_row(self) -> PreferenceRow:
        """A row "rows:7" whose first clip ends too early."""

    @abstractmethod
    def plain_prediction(
        self, folder: Path, dtype: torch.dtype
    ) -> Callable[[Tensor, Tensor, str, Any], Tensor]:
        """`predict(noised, t, prompt, told)` of one clip, by the library's parts alone.

        `t` is what the schedule calls a timestep, `told` what `told` gives of the clip.
        """

    @abstractmethod
    def told(self, model: Any, row: PreferenceRow) -> Sequence[Any]:
        """What the network is told of each candidate of a row besides the prompt."""

    # --- encoding -------------------------------------------------------------------------------------------

    def test_a_row_is_encoded_the_same_alone_and_in_company(self, model: Any) -> None:
        """Latents by key; what the network is told of a prompt does not depend on its neighbours."""
        together, conditioning = self.encoded(model, PROMPTS, (11, 12, 13))
        alone, own = self.encoded(model, PROMPTS[:1], (11,))
        torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)
        noised = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        level = model.schedule.network_time(model.schedule.timestep_at(torch.tensor([0.4, 0.4])))
        rows = {name: value[:2] for name, value in conditioning.rows(2).items()}
        with torch.no_grad():
            torch.testing.assert_close(
                model.denoise(noised, level, rows),
                model.denoise(noised, level, own.rows(2)),
                rtol=1e-4,
                atol=1e-4,
            )

    def test_dropped_prompts_become_the_empty_prompt(self, folder: Path) -> None:
        """With dropout 1 the network is told what it is told of the empty prompt; with 0 it is not."""
        always, never = (self.loaded(folder, media={"prompt_dropout": share}) for share in (1.0, 0.0))
        noised, level, _ = example_inputs(always, num_rows=2)
        told = [
            self.encoded(model, (prompt,), (1,))[1].rows(2)
            for model, prompt in ((always, "a red circle"), (never, ""), (never, "a red circle"))
        ]
        with torch.no_grad():
            dropped, empty, prompted = (never.denoise(noised, level, rows) for rows in told)
        torch.testing.assert_close(dropped, empty, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(dropped, prompted, atol=self.told_apart)

    def test_unreadable_clips_are_row_errors(self, model: Any) -> None:
        """A truncated file says so and is counted, it does not end the run."""
        with pytest.raises(RowError, match="rows:7"):
            model.example(self.broken_row(), key=1)

    def test_memory_inputs_have_the_shapes_of_real_ones(self, model: Any) -> None:
        """What the dry run counts memory with is what training feeds, but for the length of texts."""
        clean, conditioning = self.encoded(model, ("",), (1,))
        noised, timestep, rows = model.meta_inputs(2)
        assert noised.shape == (2, *clean.shape[2:])
        assert timestep.shape == (2,)
        real = conditioning.rows(2)
        assert {name: (value.shape, value.dtype) for name, value in rows.items()} == {
            name: (value.shape, value.dtype) for name, value in real.items()
        }

    # --- the loss -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_errors_equal_those_of_the_librarys_parts(self, folder: Path, dtype: torch.dtype) -> None:
        """From a row to its errors: the same noise, level and target given to the parts without our code."""
        close = self.narrow_tolerance if dtype == torch.float32 else self.wide_tolerance
        model = self.loaded(folder, dtype=dtype)
        prompts = ("a red circle", "zwei Würfel")
        rows = [self.row(prompt, seed=number) for number, prompt in enumerate(prompts)]
        clean, conditioning = encoded(model, rows, (3, 4))
        batch = Batch(
            clean=clean,
            conditioning=conditioning,
            labels=Labels.pairs(2),
            weight=torch.ones(2),
            valid=torch.ones(2, dtype=torch.bool),
            keys=keys_of(3, 4),
        )
        elbo = Elbo(model.schedule, model.prediction, UniformTimesteps())
        draw = elbo.draw(batch)
        assert torch.equal(draw.noise[:, 0], draw.noise[:, 1])
        with torch.no_grad():
            found = elbo.evaluate(model.denoise, batch, draw).error
            predict = self.plain_prediction(folder, dtype)
            for number, prompt in enumerate(prompts):
                for candidate, told in enumerate(self.told(model, rows[number])):
                    at = (number, candidate)
                    wanted = predict(draw.noised[at], draw.timestep[at], prompt, told)
                    error = (wanted.to(draw.target) - draw.target[at]).square().mean()
                    torch.testing.assert_close(found[at], error, rtol=close, atol=0)

    # --- saving ---------------------------------------------------------------------------------------------

    def test_saved_models_are_whole(self, model: Any, tmp_path: Path) -> None:
        """Adapters merged in, frozen parts bit for bit those of the source."""
        trained_by(model, AdapterConfig(rank=2, alpha=6.0))
        saved = model.save_model(tmp_path / "whole")
        again = self.loaded(saved)
        inputs = example_inputs(model)
        with torch.no_grad():
            wanted = model.denoise(*inputs)
            torch.testing.assert_close(again.denoise(*inputs), wanted, rtol=1e-4, atol=1e-5)
        assert again.latent_shape == model.latent_shape
        assert again.schedule.describe() == model.schedule.describe()
        prompts = list(PROMPTS)
        for name, value in model.text_states(prompts).items():
            assert torch.equal(again.text_states(prompts)[name], value), name
        for ours, theirs in zip(model.vae.parameters(), again.vae.parameters(), strict=True):
            assert torch.equal(ours, theirs)
