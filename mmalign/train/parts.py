"""The parts of a run, from a resolved configuration: devices, model, likelihood, reference, objective."""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch import nn

from mmalign import objectives, registry
from mmalign.data.config import DataConfig
from mmalign.data.readers import RowTable
from mmalign.data.segments import FrameGrid
from mmalign.errors import ConfigError, explain
from mmalign.likelihood import (
    Denoiser,
    Draws,
    Elbo,
    Inversion,
    ListedTimesteps,
    LogitNormalTimesteps,
    Reference,
    UniformTimesteps,
)
from mmalign.likelihood.reference import FrozenCopy, make_reference
from mmalign.likelihood.reference_rules import SyncRule
from mmalign.likelihood.tokens import Tokens
from mmalign.likelihood.weighting import MinSnr
from mmalign.objectives import Objective, ObjectiveState
from mmalign.objectives.predictions import safeguarded
from mmalign.train.adapters import Trainables, attach
from mmalign.train.compiling import compile_blocks
from mmalign.train.config import LikelihoodConfig, ResolvedRun
from mmalign.train.distributed.modes import mode_of, require_fitting, require_library
from mmalign.train.distributed.networks import make_room, prepare_network, prepare_reference
from mmalign.train.distributed.sharding import unsynced
from mmalign.train.model import PreferenceModel, TrainedModel, denoising, in_time
from mmalign.train.recomputing import Recomputed
from mmalign.train.row_needs import RowNeeds
from mmalign.train.split_backward import SplitBackward
from mmalign.train.step import StepParts
from mmalign.train.supply import IN_TIME, OF_THE_PAIR, Safeguard, Supply
from mmalign.train.token_sections import TokensConfig, tokens_of
from mmalign.train.token_supply import OF_THE_ROW, TokenSupply
from mmalign.train.tracking import available_trackers

__all__ = [
    "DTYPES",
    "attach_and_refer",
    "denoiser_of",
    "draws_of",
    "frame_grid",
    "in_time",
    "likelihood_of",
    "load_model",
    "make_accelerator",
    "make_likelihood",
    "make_objective",
    "reads_time",
    "reference_kind",
    "row_needs",
]

_PATIENCE = timedelta(hours=2)
"""How long a process waits for the others; NCCL's own 10 minutes end while the first one samples, evaluates
or saves a large network alone. One that has died is noticed at once, by whoever started it."""

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_accelerator(run: ResolvedRun) -> Accelerator:
    """Devices, mixed precision and trackers of a run."""
    config = run.config
    torch.set_float32_matmul_precision("high" if config.train.allow_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.train.allow_tf32
    folder = Path(config.train.output)
    require_library()
    try:
        accelerator = Accelerator(
            mixed_precision=config.train.mixed_precision,
            cpu=config.train.device == "cpu",
            log_with=available_trackers(config.log.trackers) or None,
            project_config=ProjectConfiguration(
                project_dir=str(folder), logging_dir=str(folder / "tracking")
            ),
            # The loop scales by itself; a number from the environment would divide the loss once more.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # Frozen buffers do not change: nothing to broadcast at every forward.
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False),
                AutocastKwargs(cache_enabled=_keeps_casts(config.model.gradient_checkpointing)),
                InitProcessGroupKwargs(timeout=_PATIENCE),
            ],
        )
    except ValueError as error:
        message = f"train.mixed_precision {config.train.mixed_precision}: {error} Use bf16 or no."
        raise ConfigError(message) from error
    require_fitting(run, mode_of(accelerator), reference_kind(run))
    return accelerator


def make_likelihood(config: LikelihoodConfig, model: PreferenceModel) -> Elbo:
    """The bound a configuration asks for, on the model's own schedule: at random noise, or at inversions."""
    if config.timesteps == "listed":
        timesteps: Any = ListedTimesteps(values=config.values, stratified=config.stratified)
    elif config.timesteps == "logit_normal":
        timesteps = LogitNormalTimesteps(
            mean=config.logit_mean, std=config.logit_std, stratified=config.stratified
        )
    else:
        timesteps = UniformTimesteps(low=config.low, high=config.high, stratified=config.stratified)
    shared: dict[str, Any] = {
        "schedule": model.schedule,
        "prediction": model.prediction,
        "timesteps": timesteps,
        "share_timestep": config.share_timestep,
        "error_space": None if config.error_space == "native" else config.error_space,
        "reduction": config.reduction,
    }
    if config.snr_gamma is not None:
        shared["weighting"] = MinSnr(config.snr_gamma, config.snr_form or "exact")
    if config.share_noise is not None:
        shared["share_noise"] = config.share_noise
    if config.kind != "inversion":
        return Elbo(**shared)
    settings = config.inversion
    return Inversion(
        **shared,
        method=settings.method or "ddim",
        num_steps=settings.num_steps,
        eta=settings.eta,
        landing=settings.landing,
    )


def likelihood_of(run: ResolvedRun, model: TrainedModel) -> Elbo | Tokens:
    """How a run scores candidates: denoising errors, or tokens of language models."""
    tokens = tokens_of(run.config)
    if tokens is None:
        likelihood = make_likelihood(run.config.likelihood, denoising(model))
        return replace(likelihood, inner_axis=in_time(model).time_axis) if reads_time(run) else likelihood
    return Tokens(tokens.head_chunk, run.method.views)


def reads_time(run: ResolvedRun) -> bool:
    """Whether the run's objective reads labels of latent frames."""
    return bool(objectives.build(run.method.objective, **run.objective_arguments).needs & IN_TIME)


def data_of(run: ResolvedRun) -> DataConfig:
    """The run's data section; pairs that are ties as wholes stay where labels in time are what is learnt."""
    data = run.config.data
    if data.tie_policy == "drop" and tokens_of(run.config) is None and reads_time(run):
        return data.model_copy(update={"tie_policy": "soft"})
    return data


def frame_grid(run: ResolvedRun, model: TrainedModel) -> FrameGrid | None:
    """The latent frames that a run's labels lie on; None where its objective reads no such labels.

    Raises:
        ConfigError: the model's media have no time axis, or clips are cut where labels do not begin.
    """
    if tokens_of(run.config) is not None or not reads_time(run):
        return None
    return _grid(run, model)


def _grid(run: ResolvedRun, model: TrainedModel) -> FrameGrid:
    """The latent frames of the model's clips.

    Raises:
        ConfigError: as `frame_grid`.
    """
    timed, start = in_time(model), getattr(run.config.media, "start", "first")
    if start != "first":
        message = explain(
            f"{run.config.media_name}.start",
            got=start,
            expected=f"first: method {run.method.name} counts time from the beginning of the clips",
        )
        raise ConfigError(message)
    held, fps = getattr(timed, "frame_grid", None), getattr(timed, "fps", None)
    if held is not None and fps is not None:
        return FrameGrid.of_pictures(held, fps)
    return FrameGrid(timed.latent_shape[timed.time_axis], timed.duration)


def row_needs(run: ResolvedRun, model: TrainedModel, objective: Objective, *, is_online: bool) -> RowNeeds:
    """What a run reads of every row besides media and labels.

    Args:
        run: resolved.
        model: whose clips labels in time belong to.
        objective: of the run.
        is_online: rewards are those of samples, not of rows.

    Raises:
        ConfigError: as `frame_grid`.
    """
    return RowNeeds(
        reward="reward" in objective.needs and not is_online,
        frames=frame_grid(run, model),
        apart=_grid(run, model) if "shared_prefix" in run.method.needs else None,
        columns=objective.needs & OF_THE_PAIR if tokens_of(run.config) is None else frozenset(),
    )


def make_objective(run: ResolvedRun) -> tuple[Objective, Supply | TokenSupply]:
    """The run's loss, safeguarded if asked, and what a step has to hand it besides scores.

    Raises:
        ConfigError: the objective is no comparison of a pair that could be safeguarded, or weighs a pair by
            its noise level while each side has its own.
    """
    objective = objectives.build(run.method.objective, **run.objective_arguments)
    if "noise_level" in objective.needs and not run.config.likelihood.share_timestep:
        message = explain(
            "likelihood.share_timestep",
            got=False,
            expected=f"true: objective {run.method.objective} weighs a pair by its one noise level",
            do="Leave it out, or take another objective.schedule.",
        )
        raise ConfigError(message)
    settings, tokens = run.config.safeguard, tokens_of(run.config)
    if tokens is not None:
        return objective, TokenSupply(objective.needs, run.method.views, tokens.head_chunk)
    if settings.mu is None:
        return objective, Supply(objective.needs)
    if "safeguard" not in objective.needs:
        objective = safeguarded(objective)
    return objective, Supply(objective.needs, Safeguard(settings.mu, settings.scope, settings.epsilon))


def reference_kind(run: ResolvedRun) -> str:
    """The reference a run uses: what the configuration says, or what fits the method and the adapter.

    Raises:
        ConfigError: the method needs a reference and the configuration says none.
    """
    asked, needs = run.config.reference.kind, run.method.reference != "none"
    if run.method.rollout == "one_step":
        return _teacher_kind(run)
    if run.method.reference == "pool":
        if asked != "auto":
            message = explain(
                "reference.kind", got=asked, expected=f"auto: method {run.method.name} brings its own"
            )
            raise ConfigError(message)
        return "pool"
    if asked == "none" and needs:
        message = explain(
            "reference.kind", got="none", expected=f"a reference: method {run.method.name} compares with one"
        )
        raise ConfigError(message)
    if not needs and asked not in ("auto", "none"):
        message = explain(
            "reference.kind", got=asked, expected=f"auto or none: method {run.method.name} has no reference"
        )
        raise ConfigError(message)
    if not needs:
        return "none"
    if asked != "auto":
        return asked
    return "adapters_off" if run.config.adapter.kind == "lora" else "frozen"


def _teacher_kind(run: ResolvedRun) -> str:
    """A frozen copy of the start where that is the teacher; a teacher that is named comes with the rollout.

    Raises:
        ConfigError: the configuration asks for another reference.
    """
    reference = run.config.reference
    if reference.kind not in ("auto", "frozen") or reference.offload:
        message = explain(
            "reference",
            got=str(reference.model_dump(exclude_defaults=True)),
            expected=f"nothing: method {run.method.name} stays near rollout.one_step.teacher",
        )
        raise ConfigError(message)
    return "frozen" if run.config.rollout.one_step.teacher is None else "none"


def denoiser_of(model: TrainedModel) -> Callable[[nn.Module], Denoiser]:
    """A factory of denoisers around any network that fits the model's inputs.

    Of a language model, the factory makes what its likelihood calls: hidden states of the scored tokens.
    """
    policy: Callable[[nn.Module], Denoiser] | None = getattr(model, "policy", None)
    if policy is not None:
        return policy

    def make(network: nn.Module) -> Denoiser:
        def denoise(
            noised: torch.Tensor, timestep: torch.Tensor, conditioning: Mapping[str, torch.Tensor]
        ) -> torch.Tensor:
            return denoising(model).denoise(noised, timestep, conditioning, network=network)

        return denoise

    return make


def load_model(run: ResolvedRun, device: torch.device) -> TrainedModel:
    """The family's model in the run's precision; fully trained networks are read in float32."""
    family = registry.find("families", run.config.model.family)
    dtype = DTYPES[run.config.train.mixed_precision]
    full = run.config.adapter.kind == "none"
    tokens = tokens_of(run.config)
    if tokens is not None:
        return language_model(run, tokens, family, device=device, dtype=dtype)
    model: TrainedModel = family.load(
        run.config.model,
        run.config.media,
        device=device,
        dtype=dtype,
        network_dtype=torch.float32 if full else None,
    )
    return model


def language_model(
    run: ResolvedRun, tokens: TokensConfig, family: Any, *, device: torch.device, dtype: torch.dtype
) -> TrainedModel:
    """The family's language model, told what the method wants of every row."""
    model: TrainedModel = family.load(
        run.config.model,
        tokens,
        device=device,
        dtype=dtype,
        network_dtype=torch.float32 if run.config.adapter.kind == "none" else None,
        views=run.method.views,
        record=objectives.build(run.method.objective, **run.objective_arguments).needs & OF_THE_ROW,
    )
    return model


def attach_and_refer(
    run: ResolvedRun,
    kind: str,
    accelerator: Accelerator,
    model: TrainedModel,
    *,
    table: RowTable,
) -> tuple[Trainables, StepParts]:
    """Attach the adapter, make the reference at the right moment, prepare the network for the devices.

    A frozen copy and stored errors belong to the network before anything is attached; switching adapters
    off and averaging need them attached.
    """
    config = run.config
    likelihood = likelihood_of(run, model)
    keeps_casts = _keeps_casts(config.model.gradient_checkpointing)
    autocast = _autocast(accelerator, config.train.mixed_precision, keeps_casts=keeps_casts)

    def reference_at(moment: str) -> Reference | None:
        return _reference(
            run, kind, accelerator, model, likelihood, table=table, autocast=autocast, moment=moment
        )

    make_room(accelerator, model.network, copied=kind == "frozen")
    compiles = config.model.compile == "blocks"
    if compiles:  # before stored errors are computed: policy and reference must round alike
        compile_blocks(model, model.network, device=accelerator.device)
    before = reference_at("before")
    if compiles and isinstance(before, FrozenCopy):  # copies of modules are not compiled
        compile_blocks(model, before.network, device=accelerator.device)
    trainables = attach(
        model.network,
        config.adapter,
        default_targets=model.adapter_targets,
        seed=config.train.seed,
        trains=getattr(model, "trains", None),
    )
    prepared = prepare_network(accelerator, model, trainables)
    trainables = prepared.trainables
    reference = prepare_reference(accelerator, before) if before else reference_at("after")
    if reference is None:
        message = explain("reference", got=kind, expected="a kind that is made before or after attaching")
        raise ConfigError(message)
    model.network = prepared.network
    objective, supply = make_objective(run)
    state = ObjectiveState()
    if accelerator.num_processes > 1:
        state = ObjectiveState(sum_across=lambda value: accelerator.reduce(value, reduction="sum"))
    parts = StepParts(
        denoise=denoiser_of(model)(model.network),
        likelihood=likelihood,
        reference=reference,
        objective=objective,
        state=state,
        autocast=autocast,
        base=_base_for_panel(reference, trainables, denoiser_of(model)),
        supply=supply,
        split=_split(run, model),
        draws=draws_of(run),
    )
    return trainables, parts


def draws_of(run: ResolvedRun) -> Draws:
    """How often a row is drawn at a visit."""
    return Draws(run.config.likelihood.draws, run.config.likelihood.antithetic)


def _split(run: ResolvedRun, model: TrainedModel) -> SplitBackward | None:
    """How backward passes are cut; None where they are not."""
    train, network = run.config.train, model.network
    if not train.split_backward:
        return None
    return SplitBackward(train.split_size, unsynced=lambda: unsynced(network))


def _base_for_panel(
    reference: Reference, trainables: Trainables, make_denoise: Callable[[nn.Module], Denoiser]
) -> Reference | None:
    """The base model for the panel of methods without a reference, where adapters can be switched off."""
    if reference.kind != "none" or trainables.lora is None:
        return None
    return make_reference("adapters_off", network=trainables.network, make_denoise=make_denoise)


def _keeps_casts(recomputes: Recomputed) -> bool:
    """Whether autocast keeps its half-precision copies of trained weights until a forward pass ends.

    Blocks that are recomputed cast their weights anew in any case, so the copies are only in the way: 5 GB of
    SDXL's whole network.
    """
    return not recomputes


def _autocast(
    accelerator: Accelerator, precision: str, *, keeps_casts: bool
) -> Callable[[], AbstractContextManager[None]]:
    if precision == "no":
        return contextlib.nullcontext
    device_type, dtype = accelerator.device.type, DTYPES[precision]
    return lambda: torch.autocast(device_type, dtype=dtype, cache_enabled=keeps_casts)


def _reference(
    run: ResolvedRun,
    kind: str,
    accelerator: Accelerator,
    model: TrainedModel,
    likelihood: Elbo | Tokens,
    *,
    table: RowTable,
    autocast: Callable[[], AbstractContextManager[None]],
    moment: str,
) -> Reference | None:
    """The reference, or None when it is made at the other moment."""
    if (kind in ("frozen", "stored")) != (moment == "before"):
        return None
    if kind == "pool":  # the samples' own maker, which the rollout brings
        return make_reference("none")
    if kind == "stored" and isinstance(likelihood, Tokens):
        from mmalign.train.stored_tokens import stored_token_reference

        return stored_token_reference(
            run, model, likelihood, table=table, accelerator=accelerator, autocast=autocast
        )
    if kind == "stored":
        from mmalign.train.stored import stored_reference

        likelihood = make_likelihood(run.config.likelihood, denoising(model))
        return stored_reference(
            run, denoising(model), likelihood, table=table, accelerator=accelerator, autocast=autocast
        )
    settings = run.config.reference
    rule = None
    if kind == "synced" and settings.sync_every is not None and settings.mixing is not None:
        rule = SyncRule(every=settings.sync_every, mixing=settings.mixing)
    return make_reference(
        kind,
        network=model.network,
        make_denoise=denoiser_of(model),
        offload=settings.offload,
        decay=settings.decay,
        rule=rule,
    )
