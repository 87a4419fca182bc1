"""One-step generators: what is sampled, what is recorded, and where training leads."""

from contextlib import contextmanager

import pytest
import torch

from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.errors import ConfigError, HyperparameterError
from mmalign.likelihood import Elbo, FlowSchedule, UniformTimesteps
from mmalign.rollout.one_step import GradientAtSample, OneStepRounds, one_step_sampler
from mmalign.rollout.score_distance import ScoreDistance
from mmalign.rollout.trajectory import first_noise

EVENT = (2, 3)
CENTRE = 0.5
WIDTH = 0.8


def batch_of(keys, *, valid=None):
    number = len(keys)
    return Batch(
        clean=torch.zeros(number, 1, *EVENT),
        conditioning=Conditioning({"text": torch.linspace(0, 1, number)}),
        labels=Labels(),
        weight=torch.ones(number),
        valid=torch.ones(number, dtype=torch.bool) if valid is None else valid,
        keys=RowKeys(keys, torch.zeros(number), 1),
        prompts=tuple(f"prompt {row}" for row in range(number)),
    )


class Gaussian:
    """The exact epsilon network of independent Gaussians; its mean can be moved."""

    def __init__(self, schedule, mean=CENTRE, deviation=WIDTH):
        self.schedule, self.mean, self.deviation = schedule, mean, deviation

    def __call__(self, noised, time, conditioning):
        alpha, sigma = self.schedule.coefficients(time)
        alpha, sigma = (each.reshape(-1, 1, 1) for each in (alpha, sigma))
        variance = (alpha * self.deviation) ** 2 + sigma**2
        return sigma * (noised - alpha * self.mean) / variance


class Affine(torch.nn.Module):
    """A generator in a network's clothes: its clean estimate at 399 is `mean + spread * noise`."""

    def __init__(self, schedule, mean=CENTRE, spread=WIDTH):
        super().__init__()
        self.schedule = schedule
        self.mean = torch.nn.Parameter(torch.full(EVENT, float(mean)))
        self.spread = torch.nn.Parameter(torch.tensor(float(spread)))

    def forward(self, noised, time, conditioning):
        alpha, sigma = (each.reshape(-1, 1, 1) for each in self.schedule.coefficients(time))
        return (noised - alpha * (self.mean + self.spread * noised)) / sigma


class Tracker:
    """An exact Gaussian whose mean and width follow the samples by gradient descent."""

    def __init__(self, schedule, rate=0.05):
        self.mean = torch.nn.Parameter(torch.full(EVENT, CENTRE))
        self.deviation = torch.nn.Parameter(torch.tensor(WIDTH))
        self.network, self.frozen = Gaussian(schedule), Gaussian(schedule)
        self.optimizer = torch.optim.Adam([self.mean, self.deviation], lr=rate)
        self.seen = []

    def score(self, noised, timestep, conditioning):
        self.network.mean, self.network.deviation = self.mean, self.deviation
        return self.network(noised, timestep, conditioning)

    @contextmanager
    def teacher(self):
        yield self.frozen

    def fit(self, errors, valid):
        with torch.enable_grad():
            loss = errors()[valid].mean()
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        self.seen.append(valid.tolist())
        return loss.detach()

    def state_dict(self):
        return {"mean": self.mean.detach().clone()}

    def load_state_dict(self, state):
        self.mean.data.copy_(state["mean"])


@pytest.fixture
def make_rounds(vp):
    def make(generator=None, **settings):
        sampler = one_step_sampler(vp, "epsilon", 399)
        chosen = {
            "generator": generator if generator is not None else Affine(vp),
            "sampler": sampler,
            "event": EVENT,
            "empty": {"text": torch.zeros(1)},
            "online": Tracker(vp),
            "elbo": Elbo(vp, "epsilon", UniformTimesteps(low=20, high=980)),
            "distance": ScoreDistance(),
            **settings,
        }
        return OneStepRounds(**chosen)

    return make


def brightness(latents, prompts):
    assert len(latents) == len(prompts)
    return latents.flatten(1).mean(1)


def test_a_generator_is_the_clean_estimate_at_its_timestep(vp, make_keys, network):
    keys = make_keys(5)
    start = first_noise(keys, EVENT)
    rows = {"text": torch.zeros(5)}
    found = one_step_sampler(vp, "v_prediction", 399).sample(network, keys, EVENT, rows, start=start).final
    time = torch.full((5,), 399)
    clean, _ = vp.split(network(start, time, rows), start, time, source="v_prediction")
    torch.testing.assert_close(found, clean)
    assert network.calls == [5, 5]


def test_a_flow_generator_starts_from_pure_noise(make_keys, network):
    keys = make_keys(5)
    rows = {"text": torch.zeros(5)}
    sampler = one_step_sampler(FlowSchedule(), "flow", 1.0)
    start = first_noise(keys, EVENT)
    found = sampler.sample(network, keys, EVENT, rows, start=start).final
    torch.testing.assert_close(found, start - network(start, torch.full((5,), 1000.0), rows))


def test_a_timestep_beyond_the_schedule_is_refused(vp):
    with pytest.raises(HyperparameterError, match="one-step generator timestep: got 1000"):
        one_step_sampler(vp, "epsilon", 1000)


def test_the_gradient_by_the_weights_is_the_recorded_one_times_the_sample_s(vp, make_rounds, make_keys):
    generator = Affine(vp, mean=-1.0)
    rounds = make_rounds(generator, reward=brightness, reward_weight=3.0, samples=2)
    batch = rounds.collect(batch_of(make_keys(5))).items.take(5)
    likelihood = GradientAtSample(rounds.sampler, EVENT)
    found = likelihood.evaluate(generator, batch, likelihood.draw(batch), keep_prediction=True)
    assert found.score.shape == (5, 2)
    torch.testing.assert_close(found.score, -batch.recorded["value"])
    found.score.sum().backward()
    torch.testing.assert_close(generator.mean.grad, -batch.recorded["pull"].sum((0, 1)))
    along = (batch.recorded["pull"] * batch.recorded["start"]).sum()
    torch.testing.assert_close(generator.spread.grad, -along)
    torch.testing.assert_close(found.prediction, -1.0 + WIDTH * batch.recorded["start"], rtol=1e-4, atol=1e-5)


def test_the_reward_pulls_by_its_weight(make_rounds, make_keys):
    batch = batch_of(make_keys(5))
    plain = make_rounds().collect(batch)
    pulled = make_rounds(reward=brightness, reward_weight=7.0).collect(batch)
    difference = pulled.items.batch.recorded["pull"] - plain.items.batch.recorded["pull"]
    torch.testing.assert_close(difference, torch.full_like(difference, -7.0 / 6))
    value = plain.items.batch.recorded["value"][:, 0] - 7.0 * pulled.facts["reward"]
    torch.testing.assert_close(pulled.items.batch.recorded["value"][:, 0], value)
    assert "reward" not in plain.facts


def test_guidance_is_the_teacher_s_alone(vp, make_rounds, make_keys):
    class Prompted(Gaussian):
        def __call__(self, noised, time, conditioning):
            return super().__call__(noised, time, conditioning) + conditioning["text"].reshape(-1, 1, 1)

    def pull_at(scale, prompt):
        rounds = make_rounds(teacher_guidance=scale, distance=ScoreDistance("squared"))
        rounds.online.frozen = Prompted(vp)
        keys = make_keys(5)
        rounds.online.fit = lambda errors, valid: torch.zeros(())  # equal score models
        batch = batch_of(keys)
        text = torch.full((5,), prompt)
        return rounds.collect(
            Batch(**{**vars(batch), "conditioning": Conditioning({"text": text})})
        ).items.batch.recorded["pull"]

    torch.testing.assert_close(pull_at(7.5, 0.2), pull_at(1.0, 1.5), rtol=1e-4, atol=1e-5)


def test_every_prompt_gives_an_item_and_bad_ones_count_nowhere(make_rounds, make_keys):
    valid = torch.tensor([True, False, True, True, True])

    def broken(latents, prompts):
        return brightness(latents, prompts) + torch.tensor([0, 0, torch.nan, 0, 0])

    rounds = make_rounds(reward=broken, reward_weight=1.0, score_steps=3)
    found = rounds.collect(batch_of(make_keys(5), valid=valid))
    assert len(found.items) == 5
    assert found.items.batch.valid.tolist() == [True, False, False, True, True]
    assert rounds.online.seen == [valid.tolist()] * 3
    assert found.facts["score_error"].shape == (3,)


def test_the_score_model_learns_from_other_samples_than_those_that_are_pulled(vp, make_rounds, make_keys):
    made = []

    def generator(noised, time, conditioning):
        made.append(noised)
        return Affine(vp)(noised, time, conditioning).detach()

    make_rounds(generator, score_steps=2).collect(batch_of(make_keys(5)))
    assert len(made) == 3
    assert len(torch.cat(made).flatten(1).unique(dim=0)) == 15


def test_a_weight_without_a_reward_is_refused(make_rounds):
    with pytest.raises(ConfigError, match=r"rollout\.reward"):
        make_rounds(reward_weight=1.0)


def trained(vp, make_rounds, make_keys, *, weight, kind="pseudo_huber", mean=CENTRE, steps=140):
    """Mean and spread of the generator after training."""
    generator = Affine(vp, mean=mean)
    rounds = make_rounds(
        generator, reward=brightness, reward_weight=weight, distance=ScoreDistance(kind), score_steps=3
    )
    likelihood = GradientAtSample(rounds.sampler, EVENT)
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.02)
    for step in range(steps):
        batch = rounds.collect(batch_of(make_keys(32, first=32 * step))).items.take(32)
        optimizer.zero_grad()
        (-likelihood.evaluate(generator, batch, likelihood.draw(batch)).score).mean().backward()
        optimizer.step()
    return float(generator.mean.detach().mean()), float(generator.spread.detach())


@pytest.mark.parametrize(
    "kind", ["pseudo_huber", *(pytest.param(name, marks=pytest.mark.slow) for name in ("squared", "kl"))]
)
@pytest.mark.slow
def test_without_a_reward_a_distant_generator_comes_to_the_teacher(kind, vp, make_rounds, make_keys):
    mean, spread = trained(vp, make_rounds, make_keys, weight=0.0, kind=kind, mean=-0.5)
    assert mean == pytest.approx(CENTRE, abs=0.12)
    assert spread == pytest.approx(WIDTH, abs=0.15)


@pytest.mark.slow
def test_the_reward_rises_and_the_generator_stays_near_the_teacher(vp, make_rounds, make_keys):
    held, spread = trained(vp, make_rounds, make_keys, weight=1.0, kind="squared")
    assert held > CENTRE + 0.05
    assert held < CENTRE + 1.0  # alone, the reward would take it to 3 in as many steps
    assert spread == pytest.approx(WIDTH, abs=0.2)
