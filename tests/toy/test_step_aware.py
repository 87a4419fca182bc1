"""The toy world's step-aware preference model: what is shipped judges unfinished pictures."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign import registry, rewards
from mmalign.batch import Candidate, PreferenceRow
from mmalign.diffusion.step_aware_pairs import Estimator
from mmalign.evals.statistics import wilson_interval
from mmalign.rewards.on_pixels import OnPixels
from mmalign.toy.image_pairs import Pair, jpeg_bytes, preference_pairs
from mmalign.toy.image_pipeline import ASSETS as BASE
from mmalign.toy.images import to_tensor
from mmalign.toy.step_aware import ASSETS, caption_loss, new_clip, train
from mmalign.train.config import ImageConfig, ModelConfig


@pytest.fixture(scope="module")
def judge() -> OnPixels:
    return OnPixels(rewards.load("step_aware", weights=ASSETS))


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Pairs that the shipped model was not trained on."""
    return preference_pairs(96, seed=77)


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    model = registry.find("families", "sdxl").load(
        ModelConfig(family="sdxl", source=str(BASE)),
        ImageConfig(resolution=64, flip=False),
        device="cpu",
        dtype=torch.float32,
    )
    return Estimator(model, guidance_scale=5.0, batch_size=256)


def estimates(estimator: Estimator, pairs: list[Pair], timestep: int) -> Tensor:
    """What the base makes of the pictures of the pairs at a timestep: `[pair, 2, 3, 64, 64]`."""
    rows = [
        PreferenceRow(
            prompt=pair.prompt,
            candidates=(Candidate(image=jpeg_bytes(pair.chosen)), Candidate(image=jpeg_bytes(pair.rejected))),
        )
        for pair in pairs
    ]
    examples = [estimator.model.example(row, key=0) for row in rows]
    key = torch.arange(len(pairs)) + 1000 * timestep
    return estimator(examples, key, torch.full((len(pairs),), timestep))


@pytest.mark.parametrize(
    ("timestep", "least"),
    [(0, 0.75), (251, 0.75), (501, 0.7), (701, 0.7)],
)
@pytest.mark.slow
def test_the_shipped_model_tells_the_better_of_two_unfinished_pictures(
    judge: OnPixels, estimator: Estimator, pairs: list[Pair], timestep: int, least: float
) -> None:
    pixels = estimates(estimator, pairs, timestep)
    prompts = [pair.prompt for pair in pairs]
    time = torch.full((len(pairs),), timestep)
    with torch.no_grad():
        chosen, rejected = (judge(pixels[:, side], prompts, time) for side in (0, 1))
    right = (chosen > rejected).tolist()
    assert wilson_interval(sum(right), len(pairs)).low > least


@pytest.mark.slow
def test_facts_of_the_caption_count_a_little_where_little_is_noised(
    judge: OnPixels, estimator: Estimator
) -> None:
    """Pairs of one style: what is left is what the caption says. It is 0.61 at t = 0, chance from 251 on."""
    pairs = preference_pairs(160, seed=77, weights=(0.0, 1.0, 0.0))
    pixels = estimates(estimator, pairs, 0)
    with torch.no_grad():
        chosen, rejected = (judge(pixels[:, side], [pair.prompt for pair in pairs]) for side in (0, 1))
    assert wilson_interval(int((chosen > rejected).sum()), len(pairs)).low > 0.5


def test_it_serves_online_runs_with_gradients(judge: OnPixels, pairs: list[Pair]) -> None:
    assert judge.takes_timestep
    assert judge.is_differentiable
    pixels = to_tensor([pairs[0].chosen, pairs[1].chosen]).requires_grad_()
    scores = judge(pixels, [pairs[0].prompt, pairs[1].prompt], torch.tensor([501, 0]))
    scores.sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().sum()) > 0


def test_the_timestep_matters(judge: OnPixels, pairs: list[Pair]) -> None:
    pixels, prompts = to_tensor([pair.chosen for pair in pairs]), [pair.prompt for pair in pairs]
    now, later = (judge(pixels, prompts, torch.full((len(pairs),), time)) for time in (0, 901))
    assert not torch.allclose(now, later, atol=1e-2)


def test_the_shipped_files_are_small_and_hold_the_clip_that_the_command_makes(tmp_path: Any) -> None:
    new_clip(tmp_path)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (ASSETS / name).read_text(), name
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 2 * 2**20


def test_captions_are_taught_by_scenes_captions_and_broken_scenes() -> None:
    """Written out for two scenes: rows are captions, columns scenes and then broken scenes."""
    text, scenes, broken = (
        torch.nn.functional.normalize(
            torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)), dim=-1
        )
        for seed in (1, 2, 3)
    )
    scale = torch.tensor(4.0)
    similar = (4.0 * text @ torch.cat([scenes, broken]).T).double()
    over_scenes = sum(similar[n].logsumexp(0) - similar[n, n] for n in (0, 1)) / 2
    over_captions = sum(similar[:, n].logsumexp(0) - similar[n, n] for n in (0, 1)) / 2
    pairs = sum(torch.log1p(torch.exp(similar[n, n + 2] - similar[n, n])) for n in (0, 1)) / 2
    found = caption_loss(text, scenes, broken, same=torch.zeros(2, 2, dtype=torch.bool), scale=scale)
    expected = (over_scenes + over_captions) / 2 + pairs
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    alone = caption_loss(text, scenes, broken, same=~torch.eye(2, dtype=torch.bool), scale=scale)
    own = sum(torch.log1p(torch.exp(similar[n, n + 2] - similar[n, n])) for n in (0, 1)) / 2
    torch.testing.assert_close(alone.double(), own / 2 + own, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_command_s_training_learns(tmp_path: Any) -> None:
    found = train(tmp_path, num_pairs=500, seed=3, caption_steps=100, steps=60, warmup_steps=10)
    measures = found.measures["251"]
    assert wilson_interval(measures.right, measures.pairs).low > 0.6
