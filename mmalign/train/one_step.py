"""The parts of a run that trains a one-step generator: its sampler, its teacher, what pulls its samples."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from mmalign.errors import ConfigError, explain
from mmalign.likelihood import VPSchedule
from mmalign.likelihood.reference import FrozenCopy, make_reference
from mmalign.rollout.collectors import SampleReward
from mmalign.rollout.one_step import GradientAtSample, OneStepRounds, one_step_sampler
from mmalign.rollout.score_distance import ScoreDistance
from mmalign.rollout.trajectory import Sampler
from mmalign.train.config import ResolvedRun
from mmalign.train.model import PreferenceModel
from mmalign.train.parts import make_likelihood
from mmalign.train.score_model import load_teacher, make_score_model
from mmalign.train.step import StepParts

__all__ = ["generator_sampler", "one_step_parts"]


def generator_sampler(run: ResolvedRun, model: PreferenceModel) -> Sampler:
    """One call of the network at the run's timestep, else at the noisiest one.

    Raises:
        ConfigError: several steps, or guidance of a generator that takes none.
        HyperparameterError: the schedule has no such timestep.
    """
    rollout, schedule = run.config.rollout, model.schedule
    for name, value in (("num_steps", rollout.num_steps), ("guidance_scale", rollout.guidance_scale)):
        if value != 1:
            message = explain(
                f"{run.path}: rollout.{name}",
                got=value,
                expected="1: the generator is one call of its network",
                do="Guidance of the teacher is rollout.one_step.teacher_guidance.",
            )
            raise ConfigError(message)
    timestep = rollout.one_step.timestep
    if timestep is None:
        timestep = schedule.num_timesteps - 1 if isinstance(schedule, VPSchedule) else 1.0
    return one_step_sampler(schedule, model.prediction, timestep)


def one_step_parts(
    run: ResolvedRun,
    model: PreferenceModel,
    parts: StepParts,
    sampler: Sampler,
    reward: SampleReward | None,
    sum_across: Callable[[Tensor], Tensor],
) -> tuple[OneStepRounds, StepParts]:
    """What collects the samples of a one-step generator, and the step's parts for them.

    Args:
        run: resolved.
        model: the generator.
        parts: as made for an offline run, with a frozen copy of the start unless a teacher is named.
        sampler: from `generator_sampler`.
        reward: of samples, differentiable.
        sum_across: sums a tensor over ranks.

    Raises:
        ConfigError: guidance of a teacher that is told its guidance, a teacher of another shape, or settings
            that the score model does not have.
    """
    settings = run.config.rollout.one_step
    guidance = settings.teacher_guidance or 1.0
    if getattr(model, "embeds_guidance", False) and guidance != 1:
        message = explain(
            f"{run.path}: rollout.one_step.teacher_guidance",
            got=guidance,
            expected="1 for a model that is told its guidance as an input",
        )
        raise ConfigError(message)
    teacher = load_teacher(run, next(model.network.parameters()).device)
    if teacher is not None:
        network, elbo = _network_of(run, model, teacher), make_likelihood(run.config.likelihood, teacher)
    elif isinstance(parts.reference, FrozenCopy):
        network, elbo = parts.reference.network, make_likelihood(run.config.likelihood, model)
    else:
        message = "a run of a one-step generator without a named teacher has a frozen copy of its start"
        raise AssertionError(message)
    rounds = OneStepRounds(
        generator=parts.denoiser,
        sampler=sampler,
        event=model.latent_shape,
        empty={} if guidance == 1 else model.guidance_conditioning().shared,
        online=make_score_model(run, model, network, sum_across),
        elbo=elbo,
        distance=ScoreDistance(
            settings.distance or "pseudo_huber", settings.space or "sample", settings.huber_constant
        ),
        reward=reward,
        reward_weight=settings.reward_weight or 0.0,
        teacher_guidance=guidance,
        samples=run.config.rollout.samples or 1,
        score_steps=settings.score_steps or 1,
    )
    likelihood = GradientAtSample(sampler, model.latent_shape)
    return rounds, replace(parts, likelihood=likelihood, reference=make_reference("none"))


def _network_of(run: ResolvedRun, model: PreferenceModel, teacher: PreferenceModel) -> nn.Module:
    """The teacher's network, whose samples have the generator's shape."""
    if teacher.latent_shape != model.latent_shape:
        message = explain(
            f"{run.path}: rollout.one_step.teacher",
            got=f"samples of shape {list(teacher.latent_shape)}",
            expected=f"those of the generator, {list(model.latent_shape)}",
        )
        raise ConfigError(message)
    return teacher.network
