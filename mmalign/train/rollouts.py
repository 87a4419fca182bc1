"""From a run's `rollout` section to what makes its samples: sampler, reward, collector, snapshots."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import cast

import torch
from torch import Tensor

from mmalign.data.readers import RowTable
from mmalign.errors import ConfigError, explain
from mmalign.likelihood import Ddim, DpmSolver, FlowSchedule, FlowSde, Transition, VPSchedule
from mmalign.likelihood.on_policy import OnPolicyElbo
from mmalign.likelihood.snapshots import SnapshotPool
from mmalign.methods.row import ROLLOUTS
from mmalign.rollout.backpropagation import RewardOfSamples
from mmalign.rollout.collectors import (
    BestOfN,
    Collector,
    Groups,
    Prompts,
    SampleReward,
    StepReward,
    Stepwise,
)
from mmalign.rollout.data_collectors import ExpertStates, SelfPlay, Unsampled
from mmalign.rollout.grids import ddim_grid, grid_of
from mmalign.rollout.pools import PoolRule
from mmalign.rollout.replay import ReplayBuffer
from mmalign.rollout.trajectory import Sampler
from mmalign.train.config import ResolvedRun
from mmalign.train.model import (
    PaintingModel,
    PreferenceModel,
    SoundingModel,
    TrainedModel,
    denoising,
    writing,
)
from mmalign.train.one_step import generator_sampler, one_step_parts
from mmalign.train.online import AnswerReward, OnlineSource, PixelReward, RunReward, WaveReward
from mmalign.train.step import StepParts
from mmalign.train.supply import Supply
from mmalign.train.token_sections import AnswerRolloutConfig

__all__ = ["is_online", "make_online", "make_sampler", "opening_lines", "require_fitting"]

_OWN_GRID = ("expert_states", "stepwise", "one_step")
"""Rollouts that visit timesteps of their own: published ones, or one alone."""


def is_online(run: ResolvedRun) -> bool:
    """Whether the method samples while it trains."""
    return run.method.rollout in ROLLOUTS


def opening_lines(run: ResolvedRun) -> list[str]:
    """What a run says of its rollouts before it starts; nothing of an offline run."""
    if not is_online(run):
        return []
    rollout, kind = run.config.rollout, run.method.rollout
    judged = f"; scored by {rollout.reward}" if rollout.reward is not None else ""
    if isinstance(rollout, AnswerRolloutConfig):
        return [_of_answers(rollout, kind) + judged]
    lines = [
        f"rollout: {kind}, {rollout.num_steps} steps, guidance {rollout.guidance_scale:g}, eta "
        f"{rollout.eta:g}{judged}"
    ]
    if run.config.likelihood.kind in ("transition", "reward") and run.config.guard.action != "off":
        lines.append(
            "guard: nothing to watch, this method has no denoising errors; watch the reward of samples"
        )
    if kind == "stepwise":
        lines.append(
            "a loss near log 2 = 0.693 is normal here: mean log-probabilities of one step hardly differ. "
            "rollout/score says whether samples get better"
        )
    return lines


def _of_answers(rollout: AnswerRolloutConfig, kind: str) -> str:
    """How answers are written, in words."""
    how = f"temperature {rollout.temperature:g}, top_p {rollout.top_p:g}, {rollout.max_new_tokens} tokens"
    if kind == "bias_driven":
        return f"rollout: {kind}, {rollout.hidden:g} of the visual tokens hidden, {how}"
    share = f", {rollout.offline_share:.0%} of micro-batches from the data" if kind == "mixed" else ""
    return f"rollout: {kind}, {rollout.samples} answers per prompt, {how}{share}"


def make_sampler(run: ResolvedRun, model: PreferenceModel) -> Sampler:
    """Grid, kernel and guidance of the run's samples, on the model's own schedule.

    Raises:
        ConfigError: the run's settings were not resolved.
    """
    rollout, schedule = run.config.rollout, model.schedule
    if rollout.num_steps is None or rollout.guidance_scale is None or rollout.eta is None:
        message = explain("rollout", got=str(rollout), expected="settings that were resolved with the row")
        raise ConfigError(message)
    kind = run.method.rollout
    if kind == "one_step":
        return generator_sampler(run, model)
    if kind == "expert_states" and isinstance(schedule, VPSchedule):
        # 950, 900, ..., 0, to which every row adds up to 49: its states cover all noise levels.
        grid = ddim_grid(schedule, rollout.num_steps, offset=0, last="clean")
        return Sampler(schedule, model.prediction, grid, DpmSolver(), rollout.guidance_scale)
    if kind == "stepwise" and isinstance(schedule, VPSchedule):
        grid = ddim_grid(schedule, rollout.num_steps)  # the last step is random, too: it leads to timestep 0
    else:
        spaced = {} if rollout.spacing is None else {"timestep_spacing": rollout.spacing}
        grid = grid_of(schedule, {**model.scheduler_config, **spaced}, rollout.num_steps)
    flow = isinstance(schedule, FlowSchedule)
    kernel = FlowSde(rollout.eta) if flow else Ddim(eta=rollout.eta)
    return Sampler(schedule, model.prediction, grid, kernel, rollout.guidance_scale)


@dataclass(frozen=True)
class _Scored:
    """A pixel reward over latents."""

    model: PaintingModel
    reward: PixelReward

    def finished(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards of finished samples."""
        with _no_autocast(latents):
            return self.reward(self.model.decode_pixels(latents), prompts)

    def estimated(self, latents: Tensor, timestep: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores of clean estimates at a timestep."""
        with _no_autocast(latents):
            time = self.model.schedule.network_time(timestep)
            return self.reward(self.model.decode_pixels(latents), prompts, time)


@dataclass(frozen=True)
class _Heard:
    """A reward of sounds over latents."""

    model: SoundingModel
    reward: WaveReward

    def finished(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards of finished samples."""
        with _no_autocast(latents):
            waves = self.model.decode_waveforms(latents)
            return self.reward.score_waves(waves, self.model.sampling_rate, prompts)


def _no_autocast(value: Tensor) -> AbstractContextManager[None]:
    """Rewards and decoders decide their own precision."""
    if not torch.is_autocast_enabled(value.device.type):
        return nullcontext()
    return torch.autocast(value.device.type, enabled=False)


_NEED_PIXELS = ("stepwise", "backpropagation", "one_step")


def _heard(run: ResolvedRun, model: SoundingModel, reward: RunReward | None) -> _Heard:
    """A reward of sounds, for a method that asks for finished samples alone.

    Raises:
        ConfigError: there is none, it judges something else, or the method needs more of it.
    """
    where, kind = f"{run.path}: rollout.reward", run.method.rollout
    if not isinstance(reward, WaveReward):
        got = None if reward is None else f"{reward.name}, which hears no sound"
        expected = "a reward of sounds: start the run by `mmalign train`, or pass one"
        raise ConfigError(explain(where, got=got, expected=expected))
    if kind in _NEED_PIXELS:
        message = explain(
            f"{run.path}: method",
            got=run.method.name,
            expected="a method that scores finished samples: rewards of sounds give no gradient and judge no "
            "noised ones",
            do="Take online_crpo, online_diffusion_dpo or flow_grpo.",
        )
        raise ConfigError(message)
    return _Heard(model, reward)


def _require_reward(run: ResolvedRun, reward: RunReward | None) -> PixelReward:
    kind, where = run.method.rollout, f"{run.path}: rollout.reward"
    if reward is not None and not isinstance(reward, PixelReward):
        judges = "answers" if isinstance(reward, AnswerReward) else "sounds"
        got = f"{reward.name}, which judges {judges}"
        raise ConfigError(explain(where, got=got, expected="a reward of pictures for an image model"))
    if reward is None:
        message = explain(where, got=None, expected="a reward: start the run by `mmalign train`, or pass one")
        raise ConfigError(message)
    if kind == "stepwise" and not reward.takes_timestep:
        message = explain(
            where,
            got=f"{reward.name}, which judges finished images",
            expected="a step-aware preference model",
            do="Use spm_sd15 or spm_sdxl, or train one of your own and load it as step_aware.",
        )
        raise ConfigError(message)
    if kind in ("backpropagation", "one_step") and not reward.is_differentiable:
        message = explain(
            where, got=f"{reward.name}, through which no gradient flows", expected="a differentiable reward"
        )
        raise ConfigError(message)
    return reward


def _painting(run: ResolvedRun, model: PreferenceModel) -> PaintingModel:
    """The model as one whose samples are pictures, which rewards see.

    Raises:
        ConfigError: they are clips.
    """
    if not isinstance(model, PaintingModel):
        message = explain(
            f"{run.path}: rollout.reward",
            got=f"a reward of samples of {model.family}, which are clips",
            expected="samples of pictures or sounds",
            do="Make pairs of scored clips with `mmalign pairs make`, and train on them in rounds.",
        )
        raise ConfigError(message)
    return model


def make_online(
    run: ResolvedRun,
    trained: TrainedModel,
    parts: StepParts,
    network: torch.nn.Module,
    *,
    reward: RunReward | None,
    table: RowTable,
    device: torch.device,
    rank: int,
    sum_across: Callable[[Tensor], Tensor],
) -> tuple[OnlineSource, StepParts]:
    """The source of an online run's batches, and the step's parts with the likelihood they need.

    Args:
        run: an online method's.
        trained: samples and decodes, or writes.
        parts: as made for an offline run.
        network: the trained network, before its first step.
        reward: scores samples, where the method wants a reward.
        table: the run's rows.
        device: where the network is.
        rank: this device's number.
        sum_across: sums a tensor over ranks.

    Raises:
        ConfigError: no reward, or one that the method cannot use; settings that fit neither model nor batch.
    """
    if isinstance(run.config.rollout, AnswerRolloutConfig):
        made = _make_answers(run, run.config.rollout, trained, reward, table)
        return replace(made, autocast=parts.autocast, device=device, rank=rank, sum_across=sum_across), parts
    model = denoising(trained)
    require_fitting(run, model)
    if isinstance(model, SoundingModel):
        model.make_room_for(table.prompts())
    sampler = make_sampler(run, model)
    snapshot = _snapshot(run, parts, network)
    policy = parts.denoiser if snapshot is None else snapshot.denoise
    empty = {} if sampler.guidance_scale == 1 else model.guidance_conditioning().shared
    prompts = Prompts(policy, sampler, model.latent_shape, empty)
    scored: _Scored | _Heard | None = None
    if run.config.rollout.reward is not None or reward is not None:
        if isinstance(model, SoundingModel):
            scored = _heard(run, model, reward)
        else:
            scored = _Scored(_painting(run, model), _require_reward(run, reward))
    collector: Collector
    if run.method.rollout == "one_step":
        finished = None if scored is None else scored.finished
        collector, parts = one_step_parts(run, model, parts, sampler, finished, sum_across)
    else:
        collector = _collector(run, prompts, scored, sum_across)
        parts = _with_likelihood(run, model, parts, sampler, scored)
    own = snapshot
    if run.method.rollout == "self_play" and snapshot is not None:
        parts, own = replace(parts, reference=snapshot), None
    source = OnlineSource(
        collector=collector,
        batch_size=run.config.train.batch_size,
        seed=run.config.train.seed,
        autocast=parts.autocast,
        device=device,
        rank=rank,
        sum_across=sum_across,
        snapshot=own,
    )
    return source, parts


def _make_answers(
    run: ResolvedRun,
    rollout: AnswerRolloutConfig,
    model: TrainedModel,
    reward: RunReward | None,
    table: RowTable,
) -> OnlineSource:
    """The source of a language model that learns from its own answers, on one device.

    Raises:
        ConfigError: no reward where the method wants one, or one that does not judge answers.
    """
    if reward is not None and not isinstance(reward, AnswerReward):
        judges = "pictures" if isinstance(reward, PixelReward) else "sounds"
        got = f"{reward.name}, which judges {judges}"
        message = explain(f"{run.path}: rollout.reward", got=got, expected="a reward of answers")
        raise ConfigError(message)
    if reward is None and run.method.rollout != "bias_driven":
        message = explain(
            f"{run.path}: rollout.reward",
            got=None,
            expected="a reward: start the run by `mmalign train`, or pass one",
        )
        raise ConfigError(message)
    made = writing(model).collectors(
        rollout, kind=run.method.rollout, reward=reward, row=table.__getitem__, seed=run.config.train.seed
    )
    return OnlineSource(
        collector=made.online,
        batch_size=run.config.train.batch_size,
        seed=run.config.train.seed,
        autocast=nullcontext,
        offline=made.offline,
        offline_share=rollout.offline_share or 0.0,
        restored=made.restored,
    )


def require_fitting(run: ResolvedRun, model: PreferenceModel) -> None:
    """Refuse settings that would be paid for and mean nothing.

    Raises:
        ConfigError: a model that needs a picture or has two experts, guidance of one that is told its
            guidance, a spacing where steps are not the run's to place, or a buffer below a micro-batch.
    """
    rollout, batch_size = run.config.rollout, run.config.train.batch_size
    if getattr(model, "embeds_guidance", False) and rollout.guidance_scale != 1:
        message = explain(
            f"{run.path}: rollout.guidance_scale",
            got=rollout.guidance_scale,
            expected="1 for a model that is told its guidance as an input",
            do="Set model.guidance to what it is told, and rollout.guidance_scale=1.",
        )
        raise ConfigError(message)
    if getattr(model, "conditioned", False):
        message = explain(
            f"{run.path}: method",
            got=f"{run.method.name}, which samples from prompts alone",
            expected="a method of stored candidates: this model's clips go on from a picture",
            do="Make pairs with `mmalign pairs make`, and train on them.",
        )
        raise ConfigError(message)
    if getattr(model, "expert", None) is not None:
        message = explain(
            f"{run.path}: method",
            got=f"{run.method.name}, which samples at all noise levels by the trained network alone",
            expected="a method of stored candidates: this model has two experts, of which one is trained",
            do="Make pairs with `mmalign pairs make`, which samples by both, and train on them.",
        )
        raise ConfigError(message)
    _require_free_spacing(run, model)
    if run.method.rollout == "expert_states" and (rollout.capacity or 1) < batch_size:
        message = explain(
            f"{run.path}: rollout.capacity",
            got=rollout.capacity,
            expected=f"at least train.batch_size = {batch_size}: every micro-step samples as many "
            "trajectories, and those beyond the capacity would be lost unseen",
            do=f"Set rollout.capacity={batch_size}, or a smaller micro-batch with more accumulation.",
        )
        raise ConfigError(message)


def _require_free_spacing(run: ResolvedRun, model: PreferenceModel) -> None:
    spacing, kind = run.config.rollout.spacing, run.method.rollout
    flow = isinstance(model.schedule, FlowSchedule)
    if spacing is None or not (flow or kind in _OWN_GRID):
        return
    why = (
        "a flow-matching model, whose sigmas its shift places" if flow else f"{kind}, which has its own grid"
    )
    message = explain(f"{run.path}: rollout.spacing", got=spacing, expected=f"none for {why}")
    raise ConfigError(message)


def _snapshot(run: ResolvedRun, parts: StepParts, network: torch.nn.Module) -> SnapshotPool | None:
    """Earlier states of the policy, for the methods that sample with them."""
    kind, rollout = run.method.rollout, run.config.rollout
    if kind not in ("expert_states", "self_play"):
        return None
    if kind == "expert_states" and (rollout.refresh_every or 1) == 1:
        return None  # it would be the policy: samples are made before an update, never within one
    return SnapshotPool(
        network,
        parts.denoiser,
        every=rollout.refresh_every or 1,
        capacity=1 if kind == "expert_states" else rollout.capacity or 1,
        seed=run.config.train.seed,
    )


def _finished(scored: _Scored | _Heard | None) -> SampleReward:
    if scored is None:
        raise ConfigError(explain("rollout.reward", got=None, expected="a reward for this method"))
    return scored.finished


def _estimated(scored: _Scored | _Heard | None) -> StepReward:
    if not isinstance(scored, _Scored):
        raise ConfigError(explain("rollout.reward", got=None, expected="a step-aware preference model"))
    return scored.estimated


def _collector(
    run: ResolvedRun,
    prompts: Prompts,
    scored: _Scored | _Heard | None,
    sum_across: Callable[[Tensor], Tensor],
) -> Collector:
    rollout = run.config.rollout
    samples = rollout.samples or 1
    match run.method.rollout:
        case "best_of_n":
            return BestOfN(prompts, _finished(scored), samples, rollout.threshold or None)
        case "stepwise":
            rule = PoolRule(
                samples, rollout.threshold or 0.0, rollout.divert_start or 0, rollout.inner_steps or 0
            )
            return Stepwise(prompts, _estimated(scored), rule)
        case "group":
            share = rollout.train_share or 1.0
            return Groups(prompts, _finished(scored), samples, share, sum_across=sum_across)
        case "self_play":
            return SelfPlay(prompts)
        case "expert_states":
            grid = prompts.sampler.grid
            stride = prompts.sampler.schedule.num_timesteps // len(grid)
            shift = stride - 1 if isinstance(prompts.sampler.schedule, VPSchedule) else 0
            return ExpertStates(prompts, ReplayBuffer(rollout.capacity or 1), shift)
    return Unsampled(prompts.empty)


def _with_likelihood(
    run: ResolvedRun,
    model: PreferenceModel,
    parts: StepParts,
    sampler: Sampler,
    scored: _Scored | _Heard | None,
) -> StepParts:
    """The likelihood of the method's items, in the place of the bound."""
    rollout = run.config.rollout
    match run.config.likelihood.kind:
        case "transition":
            shared = run.method.rollout == "stepwise" and not rollout.inner_steps
            transition = Transition(
                model.schedule,
                model.prediction,
                sampler.kernel,
                guidance_scale=sampler.guidance_scale,
                shared_state=shared,
            )
            supply = replace(cast("Supply", parts.supply), likelihood=transition)
            return replace(parts, likelihood=transition, supply=supply)
        case "on_policy":
            elbo = parts.likelihood
            settings = {each.name: getattr(elbo, each.name) for each in fields(OnPolicyElbo) if each.init}
            return replace(parts, likelihood=OnPolicyElbo(**settings))
        case "reward":
            likelihood = RewardOfSamples(
                sampler,
                _finished(scored),
                model.latent_shape,
                samples=rollout.samples or 1,
                gradient_steps=rollout.gradient_steps or 1,
            )
            return replace(parts, likelihood=likelihood)
    return parts
