"""What every reward must do, as a test class: derive from it and say how to write a tiny checkpoint.

    class TestMine(RewardConformance):
        name = "mine"
        write = staticmethod(write_mine)   # (folder, seed) -> folder that `rewards.load` reads

The rewards of this package are tested by `tests/rewards/test_conformance.py`, one class per catalogue name.
"""

import inspect
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmalign import registry, rewards
from mmalign.rewards.base import ModelReward, Reward, Scored
from mmalign.rewards.sample import Sample, to_pixels
from mmalign.testing.reward_checkpoints.clip import picture_samples

__all__ = ["RewardConformance"]

_LONG = "many different words about one thing, " * 200


def _package(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def _modules(root: object) -> list[nn.Module]:
    """Networks that a reward holds: in attributes, in lists and dictionaries, in objects of its package."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    waiting: list[Any] = [root]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found.append(value)
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif _package(value) in {"mmalign", _package(root)} and hasattr(value, "__dict__"):
            waiting += vars(value).values()
    return found


def _same_inputs(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(_same_inputs(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same_inputs, first, second))
    return bool(np.array_equal(first, second)) if isinstance(first, np.ndarray) else bool(first == second)


def _movable(value: object) -> bool:
    """Whether it is made of tensors on the CPU, arrays, pictures, text and numbers."""
    if isinstance(value, Tensor):
        return value.device.type == "cpu" and not value.requires_grad
    if isinstance(value, Mapping):
        return all(map(_movable, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_movable, value))
    return value is None or isinstance(value, (str, bytes, bool, int, float, np.ndarray, Image.Image))


def _random_state() -> tuple[bytes, str]:
    """Of torch and numpy; Python's own generator is drawn from by the run-time checks of types."""
    drawn = np.random.get_state(legacy=True)  # noqa: NPY002 - the global generator is what must stay as it is
    return torch.get_rng_state().numpy().tobytes(), repr(drawn)


class RewardConformance:
    """Tests of one reward on a tiny checkpoint of its official layout."""

    name: ClassVar[str]
    """As users type it."""

    write: ClassVar[Callable[..., Path]]
    """`write(folder, seed)` writes a tiny checkpoint and returns the folder to load."""

    options: ClassVar[Mapping[str, Any]] = {}
    """Without which the tiny checkpoint cannot be loaded."""

    other_options: ClassVar[Mapping[str, Any]] = {}
    """Options with a value that is not the default one; each must change the fingerprint."""

    bad_sample: ClassVar[Sample] = Sample("a broken picture", image=b"these bytes are no picture")
    """One that it cannot."""

    half_tolerance: ClassVar[float] = 0.1
    """Largest distance of bfloat16 values from float32 ones, relative to the largest value (or to 1)."""

    tensor_tolerance: ClassVar[float] = 0.05
    """Largest distance of `score_tensor` from `score`, relative to the largest value (or to 1)."""

    def samples(self) -> list[Sample]:
        """At least three samples that it can score."""
        return picture_samples()

    def tensor_arguments(self, sample: Sample) -> Mapping[str, Any]:
        """What `score_tensor` needs of a sample besides pixels and prompts."""
        del sample
        return {}

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A tiny checkpoint."""
        return self.written(tmp_path_factory, seed=0)

    @pytest.fixture(scope="class")
    def reward(self, folder: Path) -> Reward:
        """The reward on it, in float32."""
        return self.loaded(folder)

    @pytest.fixture(scope="class")
    def scored(self, reward: Reward) -> Scored:
        """All samples, one at a time: what every other way of scoring them must equal."""
        return reward.score(self.samples(), batch_size=1)

    def written(self, factory: pytest.TempPathFactory, *, seed: int) -> Path:
        """A checkpoint with the weights of a seed."""
        return type(self).write(factory.mktemp(re.sub(r"\W", "_", self.name)) / "weights", seed)

    def loaded(self, folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Reward:
        """The reward on a checkpoint."""
        return rewards.load(self.name, weights=folder, dtype=dtype, **{**self.options, **options})

    @staticmethod
    def near(found: Scored, expected: Scored, order: Sequence[int] | None = None) -> None:
        """Equal up to the rounding of sums in another order."""
        order = range(len(expected.errors)) if order is None else order
        wanted = expected.values[list(order)]
        scale = 1.0 + float(expected.values.nan_to_num().abs().max())
        torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-5 * scale, equal_nan=True)
        assert found.errors == tuple(expected.errors[place] for place in order)
        assert found.truncated == tuple(expected.truncated[place] for place in order)
        assert found.raw == tuple(expected.raw[place] for place in order)

    def test_card_says_what_a_number_means_and_where_it_comes_from(self) -> None:
        """Scale, licence, source, pinned weights."""
        card = rewards.card(self.name)
        assert card.name == self.name
        assert card.title
        assert card.scale, "unit and usual range of the values"
        assert card.licence, '"unknown" is an answer, "" is none'
        assert card.paper or card.official_code or card.departures, "where the method comes from"
        assert card.outputs, "at least one output"
        assert len(set(card.outputs)) == len(card.outputs)
        for weights in card.weights:
            assert weights.files, f"{weights.repository}: which files are needed"
            said = any("pinned" in text for text in card.departures)
            assert weights.revision or said, (
                f"{weights.repository}: a revision, or a departure saying unpinned"
            )
        assert all(card.options.values()), "what each option does"

    def test_card_names_every_option_that_can_be_given(self) -> None:
        """And none that cannot."""
        built = inspect.signature(registry.find("rewards", self.name).build).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in built.values()):
            return
        assert set(built) - {"weights", "device", "dtype"} == set(rewards.card(self.name).options)

    def test_one_row_per_sample_and_one_column_per_output(self, reward: Reward, scored: Scored) -> None:
        """Finite, in float64 on the CPU, and not the same for all."""
        count = len(self.samples())
        assert count >= 3
        assert scored.errors == (None,) * count
        assert scored.outputs == reward.card.outputs
        assert scored.values.shape == (count, len(reward.card.outputs))
        assert scored.values.dtype == torch.float64
        assert bool(torch.isfinite(scored.values).all())
        assert float(scored.first().std()) > 0, "the tiny checkpoint gives every sample the same value"

    @pytest.mark.parametrize("batch_size", [2, 3, 16])
    def test_no_value_depends_on_the_batch(self, reward: Reward, scored: Scored, batch_size: int) -> None:
        """Whatever its size."""
        self.near(reward.score(self.samples(), batch_size=batch_size), scored)

    def test_no_value_depends_on_order_or_company(self, reward: Reward, scored: Scored) -> None:
        """Reversed, and the same sample several times."""
        samples = self.samples()
        order = [*reversed(range(len(samples))), 1, 1, 0]
        self.near(reward.score([samples[place] for place in order], batch_size=3), scored, order)

    def test_a_bad_sample_is_nan_with_an_error_and_leaves_the_others_alone(
        self, reward: Reward, scored: Scored
    ) -> None:
        """Between two others, and alone in its batch."""
        first, second, *_ = self.samples()
        for batch_size in (1, 3):
            found = reward.score([first, self.bad_sample, second], batch_size=batch_size)
            assert bool(torch.isnan(found.values[1]).all())
            assert found.errors[1]
            kept = Scored(
                found.values[[0, 2]],
                found.outputs,
                (found.errors[0], found.errors[2]),
                (found.truncated[0], found.truncated[2]),
                (found.raw[0], found.raw[2]),
            )
            self.near(kept, scored, [0, 1])

    def test_nothing_to_score_gives_no_rows(self, reward: Reward) -> None:
        """Not an error."""
        assert reward.score([]).values.shape == (0, len(reward.card.outputs))

    def test_fingerprint_is_of_content_and_not_of_place(
        self, reward: Reward, folder: Path, tmp_path: Path
    ) -> None:
        """Another folder with the same files, loaded again, is the same scorer."""
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        assert self.loaded(copy).fingerprint() == reward.fingerprint()
        said = json.dumps(reward.provenance())
        assert str(folder) not in said
        assert not {"device", "batch_size"} & set(re.findall(r'"(\w+)":', said))
        assert re.fullmatch(r"[0-9a-f]{64}", reward.fingerprint())

    def test_fingerprint_changes_with_weights_and_precision(
        self, reward: Reward, folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """All that moves every value."""
        others = [
            self.loaded(self.written(tmp_path_factory, seed=1)),
            self.loaded(folder, dtype=torch.bfloat16),
        ]
        assert len({reward.fingerprint(), *(other.fingerprint() for other in others)}) == 3

    def test_fingerprint_changes_with_every_option(self, reward: Reward, folder: Path) -> None:
        """One at a time; options that are only allowed together are given together."""
        for option, value in self.other_options.items():
            given = value if isinstance(value, Mapping) and option == "together" else {option: value}
            assert self.loaded(folder, **given).fingerprint() != reward.fingerprint(), option

    def test_cut_prompts_are_flagged(self, reward: Reward, scored: Scored) -> None:
        """Where the card names a limit."""
        if reward.card.text_limit is None:
            assert not any(scored.truncated)
            return
        sample = self.samples()[0]
        found = reward.score([replace(sample, prompt="short"), replace(sample, prompt=_LONG)])
        assert found.truncated == (False, True)

    def test_bfloat16_is_near(self, folder: Path, scored: Scored) -> None:
        """Every value finite, none further away than rounding explains."""
        found = self.loaded(folder, dtype=torch.bfloat16).score(self.samples())
        scale = max(1.0, float(scored.values.abs().max()))
        torch.testing.assert_close(found.values, scored.values, rtol=0, atol=self.half_tolerance * scale)

    def test_score_tensor_equals_score_and_has_a_gradient(self, reward: Reward, scored: Scored) -> None:
        """Where the card says differentiable; elsewhere there is no `score_tensor`."""
        if not reward.card.differentiable:
            assert not hasattr(reward, "score_tensor"), "the card says that it is not differentiable"
            return
        values, slopes = [], []
        for sample in self.samples():
            assert sample.image is not None
            pixels = to_pixels(sample.image)[None].requires_grad_()
            value = reward.score_tensor(pixels, [sample.prompt], **self.tensor_arguments(sample))  # type: ignore[attr-defined]
            assert value.shape == (1,)
            (slope,) = torch.autograd.grad(value.sum(), pixels)
            values.append(value.detach()[0].double())
            slopes.append(slope)
        scale = max(1.0, float(scored.first().abs().max()))
        torch.testing.assert_close(
            torch.stack(values), scored.first(), rtol=0, atol=self.tensor_tolerance * scale
        )
        assert all(bool(torch.isfinite(slope).all()) for slope in slopes)
        assert any(bool(slope.any()) for slope in slopes)

    def test_no_global_random_numbers_are_drawn(self, folder: Path) -> None:
        """Neither by loading nor by scoring."""
        before = _random_state()
        reward = self.loaded(folder)
        assert _random_state() == before, "loading draws global random numbers"
        reward.score(self.samples()[:2])
        assert _random_state() == before, "scoring draws global random numbers"

    def test_networks_are_in_evaluation_mode_and_frozen(self, reward: Reward) -> None:
        """No dropout, no gradient of a weight."""
        networks = _modules(reward)
        if isinstance(reward, ModelReward):
            assert networks, "no network was found in the attributes of the reward"
        for network in networks:
            assert not any(part.training for part in network.modules())
            assert not any(parameter.requires_grad for parameter in network.parameters())

    def test_preparation_is_deterministic_and_can_go_to_a_worker(self, reward: Reward) -> None:
        """The same inputs twice, on the CPU, of kinds that cross a process boundary."""
        if not isinstance(reward, ModelReward):
            return
        for sample in self.samples():
            first, second = reward.prepare(sample), reward.prepare(sample)
            assert first.truncated == second.truncated
            assert _same_inputs(first.inputs, second.inputs)
            for name, value in first.inputs.items():
                assert _movable(value), f"{name}: {type(value).__name__} cannot be sent to another process"
