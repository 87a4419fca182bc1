"""Guidance by a reward: exact where the optimum is known, learned from pairs, refused where it is nothing."""

import math

import pytest
import torch
from torch import Tensor, nn

from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.diffusion.latent_reward import BackboneReward, block_of
from mmalign.diffusion.reward_fitting import fit_reward, noised_margin, pair_loss
from mmalign.diffusion.reward_guidance import Guide, guided_denoiser, reward_gradient
from mmalign.errors import CheckpointError, ConfigError, HyperparameterError, ShapeError
from mmalign.likelihood import FlowSchedule, UniformTimesteps

FLOW = FlowSchedule()
SLOPE = torch.tensor([0.8, -0.5, 0.0], dtype=torch.float64)


def level_of(timestep: Tensor) -> Tensor:
    return (timestep / FLOW.num_timesteps).to(torch.float64)[:, None]


def velocity(noised: Tensor, timestep: Tensor, conditioning: object) -> Tensor:
    """The exact velocity of standard normal data."""
    t = level_of(timestep)
    return noised * (2 * t - 1) / ((1 - t) ** 2 + t**2)


def linear_reward(noised: Tensor, timestep: Tensor, conditioning: object) -> Tensor:
    """What SLOPE * x is worth at a noised x: its mean over the clean samples it may have come from."""
    t = level_of(timestep)
    return ((1 - t) * noised / ((1 - t) ** 2 + t**2)) @ SLOPE


def sampled(denoise: object, steps: int = 400, rows: int = 4096) -> Tensor:
    """Euler's way from noise to data."""
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    for start, end in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        time = torch.full((rows,), start * FLOW.num_timesteps, dtype=torch.float64)
        x = x + (end - start) * denoise(x, time, {})
    return x


@pytest.mark.parametrize("weight", [1.0, 2.5, -1.0])
def test_a_linear_reward_moves_a_normal_distribution_by_its_slope_and_changes_nothing_else(weight) -> None:
    """p(x) e^(w a x) of a standard normal p is a normal distribution around w a."""
    plain = sampled(velocity)
    found = sampled(guided_denoiser(velocity, FLOW, [Guide(linear_reward, weight, high=0.9999)]))
    assert (found.mean(0) - plain.mean(0)).tolist() == pytest.approx((weight * SLOPE).tolist(), abs=0.02)
    torch.testing.assert_close(found.std(0), plain.std(0), rtol=0.01, atol=0)
    assert float((found[:, 2] - plain[:, 2]).abs().max()) < 1e-9


def test_weights_add_up_over_guides_and_zero_is_no_guidance() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    time = torch.tensor([0.0, 100.0, 400.0, 800.0, 999.0], dtype=torch.float64)
    both = guided_denoiser(velocity, FLOW, [Guide(linear_reward, 0.5), Guide(linear_reward, 0.75)])
    one = guided_denoiser(velocity, FLOW, [Guide(linear_reward, 1.25)])
    torch.testing.assert_close(both(x, time, {}), one(x, time, {}))
    plain = velocity(x, time, {})
    assert torch.equal(guided_denoiser(velocity, FLOW, [Guide(linear_reward, 0.0)])(x, time, {}), plain)
    # v - w t / (1 - t) * gradient; nothing at t = 0, and nothing above `high`.
    t = level_of(time)
    gradient = SLOPE * (1 - t) / ((1 - t) ** 2 + t**2)
    expected = plain - 1.25 * torch.where(t <= 0.98, t / (1 - t), 0.0) * gradient
    torch.testing.assert_close(one(x, time, {}), expected, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        found = reward_gradient(linear_reward, x, time, {})
    torch.testing.assert_close(found, gradient)


class Backbone(nn.Module):
    """Two blocks over four tokens; a network that stops after the first must not run the second."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.blocks = nn.ModuleList([nn.Linear(4, 7), nn.Linear(7, 3)])
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) / 2
        self.requires_grad_(False)
        self.second = 0

    def denoise(self, noised: Tensor, timestep: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        tokens = noised.movedim(1, 2)  # [row, frame, channel]
        level = (timestep / FLOW.num_timesteps)[:, None, None].expand(*tokens.shape[:2], 1)
        hidden = torch.tanh(self.blocks[0](torch.cat([tokens, level.to(tokens.dtype)], -1)))
        self.second += 1
        return self.blocks[1](hidden).movedim(2, 1)


def batches(count: int):
    """Pairs [channel 3, frame 5] whose chosen side is higher in channel 0."""
    generator = torch.Generator().manual_seed(4)
    for number in range(count):
        clean = torch.randn(11, 2, 3, 5, generator=generator)
        clean[:, 0, 0] += 1.0
        clean[:, 1, 0] -= 1.0
        yield Batch(
            clean=clean,
            conditioning=Conditioning({"text": torch.zeros(11, 2)}),
            labels=Labels.pairs(11),
            weight=torch.ones(11),
            valid=torch.ones(11, dtype=torch.bool),
            keys=RowKeys(torch.arange(11) + 11 * number, torch.zeros(11), 11),
        )


@pytest.fixture(scope="module")
def trained() -> tuple[Backbone, BackboneReward, list[float]]:
    network = Backbone()
    reward = BackboneReward(network.denoise, block_of(network, "blocks.0"), 7, hidden=13, seed=3)
    losses = fit_reward(reward, FLOW, batches(150), timesteps=UniformTimesteps(), learning_rate=1e-2)
    return network, reward, losses


def test_a_reward_on_the_first_block_learns_pairs_at_all_noise_levels(trained) -> None:
    network, reward, losses = trained
    assert losses[0] == pytest.approx(math.log(2), abs=0.25)
    assert sum(losses[-20:]) / 20 < 0.6
    assert network.second == 0, "the backbone stops at the block"
    assert all(weight.grad is None for weight in network.parameters())
    (batch,) = batches(1)
    noise = torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(6))
    accuracy = {}
    for level in (0.1, 0.9):
        timestep = torch.full((11,), level)
        margin = noised_margin(
            reward, FLOW, batch.clean, batch.conditioning.shared, timestep=timestep, noise=noise
        )
        loss = pair_loss(reward, FLOW, batch.clean, batch.conditioning.shared, timestep=timestep, noise=noise)
        torch.testing.assert_close(loss, -nn.functional.logsigmoid(margin))
        accuracy[level] = float((margin > 0).float().mean())
    assert accuracy[0.1] > 0.9


def test_its_guidance_raises_what_the_chosen_sides_have(trained) -> None:
    _, reward, _ = trained

    def from_noise(denoise) -> Tensor:
        x = torch.randn(64, 3, 5, generator=torch.Generator().manual_seed(8))
        for step in range(20):
            start, end = 1 - step / 20, 1 - (step + 1) / 20
            time = torch.full((64,), start * FLOW.num_timesteps)
            x = x + (end - start) * denoise(x, time, {"text": torch.zeros(64, 2)})
        return x

    def exact(noised: Tensor, timestep: Tensor, conditioning: object) -> Tensor:
        t = (timestep / FLOW.num_timesteps)[:, None, None]
        return noised * (2 * t - 1) / ((1 - t) ** 2 + t**2)

    with torch.no_grad():
        plain = from_noise(exact)
        better = from_noise(guided_denoiser(exact, FLOW, [Guide(reward, 1.0)]))
        worse = from_noise(guided_denoiser(exact, FLOW, [Guide(reward, -1.0)]))
    level = [float(x[:, 0].mean()) for x in (worse, plain, better)]
    assert level[0] < level[1] - 0.05 < level[1] + 0.05 < level[2]


def test_a_head_is_saved_and_read_and_another_ones_is_refused(trained, tmp_path) -> None:
    network, reward, _ = trained
    path = tmp_path / "reward.safetensors"
    reward.save(path)
    again = BackboneReward(network.denoise, block_of(network, "blocks.0"), 7, hidden=13, seed=99)
    again.load(path)
    given = torch.randn(5, 3, 5), torch.full((5,), 300.0), {}
    assert torch.equal(again(*given), reward(*given))
    with pytest.raises(CheckpointError, match="expected weights of shapes"):
        BackboneReward(network.denoise, block_of(network, "blocks.0"), 7, hidden=5).load(path)


def test_rewards_are_not_rounded_to_half_precision_by_autocast(trained) -> None:
    """A margin of two rewards near 1 would be a multiple of 1/256."""
    network, _, _ = trained
    reward = BackboneReward(network.denoise, block_of(network, "blocks.0"), 7, hidden=13, seed=3)
    noised, timestep = (
        torch.randn(5, 3, 5, generator=torch.Generator().manual_seed(2)),
        torch.full((5,), 300.0),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reward(noised, timestep, {})
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.to(torch.bfloat16).float())


def test_what_cannot_be_guided_is_refused(trained) -> None:
    network, _, _ = trained
    with pytest.raises(ConfigError, match="a module of the network: blocks"):
        block_of(network, "block.0")
    with pytest.raises(ConfigError, match="expected a flow model that predicts a velocity"):
        guided_denoiser(velocity, FLOW, [], prediction="epsilon")
    with pytest.raises(HyperparameterError, match="Guide weight"):
        Guide(linear_reward, math.inf)
    with pytest.raises(HyperparameterError, match="0 <= low < high < 1"):
        Guide(linear_reward, 1.0, high=1.0)
    wrong = BackboneReward(network.denoise, block_of(network, "blocks.0"), 5)
    with pytest.raises(ShapeError, match="BackboneReward states"):
        wrong(torch.zeros(2, 3, 5), torch.zeros(2), {})
    (batch,) = batches(1)
    single = Batch(**{**vars(batch), "clean": batch.clean[:, :1]})
    with pytest.raises(ShapeError, match="expected pairs"):
        fit_reward(wrong, FLOW, [single], timesteps=UniformTimesteps())
