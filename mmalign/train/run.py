"""From a configuration to a finished run: load, attach, wire, train, save. What `mmalign train` calls."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    gather_object,
)
from diffusers.training_utils import EMAModel
from rich.console import Console
from torch import nn

from mmalign import objectives, registry
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.sampler import RowOrder
from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.files import atomic_write, fingerprint, read_json_lines, write_json
from mmalign.likelihood import (
    Denoiser,
    Elbo,
    ListedTimesteps,
    LogitNormalTimesteps,
    Reference,
    UniformTimesteps,
)
from mmalign.likelihood.reference import make_reference
from mmalign.likelihood.reference_rules import SyncRule
from mmalign.objectives import ObjectiveState
from mmalign.train.adapters import Trainables, attach
from mmalign.train.checkpoint import find_latest, load_checkpoint, prune, set_aside_later
from mmalign.train.config import LikelihoodConfig, ResolvedRun, load_run
from mmalign.train.loader import Layout, MicroBatch, StepSampler, make_loader
from mmalign.train.loop import CHECKPOINTS, Loop, peak_memory_gib, quarantine_path, require_same_run
from mmalign.train.metrics import verdict
from mmalign.train.model import PreferenceModel
from mmalign.train.optim import Updater, make_optimizer, make_schedule
from mmalign.train.plan import derived_values, memory_estimate, print_plan, saved_activation_bytes
from mmalign.train.samples import SampleGrids
from mmalign.train.step import StepParts
from mmalign.train.tracking import Tracking, available_trackers

__all__ = ["CONFIG_FILE", "SUMMARY_FILE", "RunResult", "describe", "main", "prepare", "train"]

CONFIG_FILE = "mmalign_config.yaml"
SUMMARY_FILE = "training_summary.json"
_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Args:
        folder: run folder.
        steps: optimiser steps done.
        records: logged metrics.
        verdict: what they say, in words.
        finished: False when a signal stopped it early.
        model: the loaded model with the trained weights, for whoever called from Python.
        trainables: the trained weights.
    """

    folder: Path
    steps: int
    records: list[dict[str, Any]]
    verdict: list[str]
    finished: bool
    model: PreferenceModel
    trainables: Trainables
    extras: dict[str, Any] = field(default_factory=dict)


def main(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    resume: str | None = None,
) -> int:
    """Run or describe a configuration; the command line's `train`. Returns the exit code."""
    settings = [*overrides, *([f"train.resume={resume}"] if resume else [])]
    run = load_run(config_path, settings)
    if dry_run:
        describe(run)
        return 0
    train(run)
    return 0


# --- parts --------------------------------------------------------------------------------------------------


def make_accelerator(run: ResolvedRun) -> Accelerator:
    """Devices, mixed precision and trackers of a run."""
    config = run.config
    torch.set_float32_matmul_precision("high" if config.train.allow_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.train.allow_tf32
    folder = Path(config.train.output)
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
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as error:
        message = f"train.mixed_precision {config.train.mixed_precision}: {error} Use bf16 or no."
        raise ConfigError(message) from error
    supported = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in supported:
        message = explain(
            "accelerate configuration",
            got=str(accelerator.distributed_type),
            expected="one device, or several with plain data parallelism",
            do="Run `accelerate config` again without DeepSpeed and FSDP, or launch with --multi_gpu.",
        )
        raise ConfigError(message)
    return accelerator


def make_likelihood(config: LikelihoodConfig, model: PreferenceModel) -> Elbo:
    """The timestep-sampled bound a configuration asks for, on the model's own schedule."""
    if config.timesteps == "listed":
        timesteps: Any = ListedTimesteps(values=config.values, stratified=config.stratified)
    elif config.timesteps == "logit_normal":
        timesteps = LogitNormalTimesteps(
            mean=config.logit_mean, std=config.logit_std, stratified=config.stratified
        )
    else:
        timesteps = UniformTimesteps(low=config.low, high=config.high, stratified=config.stratified)
    return Elbo(
        schedule=model.schedule,
        prediction=model.prediction,
        timesteps=timesteps,
        share_noise=config.share_noise,
        share_timestep=config.share_timestep,
        error_space=None if config.error_space == "native" else config.error_space,
        reduction=config.reduction,
    )


def reference_kind(run: ResolvedRun) -> str:
    """The reference a run uses: what the configuration says, or what fits the method and the adapter.

    Raises:
        ConfigError: the method needs a reference and the configuration says none.
    """
    asked, needs = run.config.reference.kind, run.method.reference != "none"
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


def denoiser_of(model: PreferenceModel) -> Callable[[nn.Module], Denoiser]:
    """A factory of denoisers around any network that fits the model's inputs."""

    def make(network: nn.Module) -> Denoiser:
        def denoise(
            noised: torch.Tensor, timestep: torch.Tensor, conditioning: Mapping[str, torch.Tensor]
        ) -> torch.Tensor:
            return model.denoise(noised, timestep, conditioning, network=network)

        return denoise

    return make


def load_model(run: ResolvedRun, device: torch.device) -> PreferenceModel:
    """The family's model in the run's precision; fully trained networks are read in float32."""
    family = registry.find("families", run.config.model.family)
    dtype = _DTYPES[run.config.train.mixed_precision]
    full = run.config.adapter.kind == "none"
    model: PreferenceModel = family.load(
        run.config.model,
        run.config.image,
        device=device,
        dtype=dtype,
        network_dtype=torch.float32 if full else None,
    )
    return model


def _identity(run: ResolvedRun, layout: Layout, kind: str, num_rows: int) -> dict[str, Any]:
    """What must agree for a checkpoint to continue a run: everything that changes the numbers."""
    config = run.config
    train = config.train.model_dump(
        include={
            "seed",
            "learning_rate",
            "optimizer",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "weight_decay",
            "schedule",
            "warmup_steps",
            "max_grad_norm",
            "mixed_precision",
            "ema_decay",
        }
    )
    if config.train.schedule != "constant":
        train["steps"] = config.train.steps
    return {
        "method": config.method,
        "objective": {name: run.objective_arguments[name] for name in sorted(run.objective_arguments)},
        "model": config.model.model_dump(
            mode="json", exclude={"attention", "gradient_checkpointing", "offload_encoders"}
        ),
        "adapter": config.adapter.model_dump(mode="json"),
        "reference": {
            "ema": f"ema, decay {config.reference.decay}",
            "synced": f"synced, every {config.reference.sync_every}, mixing {config.reference.mixing}",
            "stored": f"stored, {config.reference.draws_per_row} draws",
        }.get(kind, kind),
        "likelihood": config.likelihood.model_dump(mode="json"),
        "image": config.image.model_dump(mode="json", exclude={"cache"}),
        "effective_batch": layout.effective_batch,
        # Statistics over the batch (KTO's zero point) see one micro-step of all devices.
        "rows_together": layout.batch_size * layout.world_size if run.method.couples_rows else None,
        "rows": num_rows,
        "data": fingerprint(config.data.model_dump(mode="json", exclude={"max_bad_share"})),
        "train": train,
    }


def _require_agreement(start_step: int, identity: Mapping[str, Any]) -> None:
    """Refuse to start when the ranks would start from different places or settings.

    Raises:
        CheckpointError: they differ; usually the machines do not share the run folder.
    """
    states = gather_object([(start_step, fingerprint(dict(identity)))])
    if len(set(states)) > 1:
        steps = sorted({step for step, _ in states})
        message = (
            f"train.output: the processes disagree: they would start from steps {steps} (or with different "
            "settings). All machines need one shared run folder and the same configuration."
        )
        raise CheckpointError(message)


def _check_output(folder: Path, run: ResolvedRun) -> Path | None:
    """The checkpoint to continue from, or None for a fresh run.

    Raises:
        CheckpointError: starting anew would overwrite a run, or the named checkpoint does not exist.
    """
    resume = run.config.train.resume
    latest = find_latest(folder / CHECKPOINTS)
    if resume == "auto":
        return latest
    if resume == "none":
        if latest is not None:
            message = (
                f"train.resume=none: {folder} already holds a run ({latest.name}). Nothing is overwritten: "
                "choose another train.output, remove the folder yourself, or continue it with "
                "train.resume=auto."
            )
            raise CheckpointError(message)
        return None
    path = Path(resume)
    if not path.is_dir():
        message = explain(
            "train.resume", got=resume, expected="auto, none, or a checkpoint folder that exists"
        )
        raise CheckpointError(message)
    return find_latest(path / CHECKPOINTS) or path


# --- dry run ------------------------------------------------------------------------------------------------


def _encoders(model: Any) -> dict[str, nn.Module]:
    named: dict[str, nn.Module] = {}
    if getattr(model, "vae", None) is not None:
        named["VAE"] = model.vae
    for number, encoder in enumerate(getattr(model, "encoders", [])):
        named[f"text encoder {number + 1}"] = encoder
    return named


def _activation_bytes(run: ResolvedRun, model: PreferenceModel, trainables: Trainables) -> int:
    """Activations of one micro-batch, counted on the meta device with the model's own inputs."""
    rows = run.config.train.batch_size * (1 if run.method.data == "unpaired" else 2)
    inputs = model.meta_inputs(rows)

    def forward(network: nn.Module) -> torch.Tensor:
        dtype = _DTYPES[run.config.train.mixed_precision]
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
            return model.denoise(*inputs, network=network)

    return saved_activation_bytes(trainables.network, forward)


def describe(run: ResolvedRun, console: Console | None = None) -> dict[str, Any]:
    """Print the plan of a run without touching its output folder. Returns the numbers it printed."""
    console = console or Console()
    device = torch.device(
        "cuda" if torch.cuda.is_available() and run.config.train.device == "auto" else "cpu"
    )
    model = load_model(run, device)
    trainables = attach(
        model.network, run.config.adapter, default_targets=model.adapter_targets, seed=run.config.train.seed
    )
    layout = Layout(
        run.config.train.batch_size, run.config.train.accumulation, int(os.environ.get("WORLD_SIZE", "1"))
    )
    num_elements = torch.Size(model.latent_shape).numel()
    derived = derived_values(run, layout, num_elements)
    kind = reference_kind(run)
    memory = memory_estimate(
        run,
        trainables,
        encoders={} if run.config.image.cache else _encoders(model),
        activation_bytes=_activation_bytes(run, model, trainables),
        reference_kind=kind,
    )
    console.print(yaml.safe_dump(_resolved(run), sort_keys=False).rstrip(), highlight=False, markup=False)
    console.print()
    print_plan(run, derived=derived, trainables=trainables, memory=memory, console=console)
    for note in getattr(model, "notes", []):
        console.print(f"  {note}", highlight=False, markup=False)
    return {
        "derived": derived,
        "trained": trainables.count,
        "memory": {item.component: item.num_bytes for item in memory},
    }


def _resolved(run: ResolvedRun) -> dict[str, Any]:
    """The configuration as it can be run again: everything explicit."""
    content = run.config.model_dump(mode="json")
    content["objective"] = dict(run.objective_arguments)
    return content


def _versions() -> dict[str, str]:
    found = {}
    for package in ("mmalign", "torch", "diffusers", "transformers", "accelerate", "peft", "datasets"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


# --- training -----------------------------------------------------------------------------------------------


def train(
    run: ResolvedRun, *, model: PreferenceModel | None = None, table: RowTable | None = None
) -> RunResult:
    """Train a resolved run to its end, or to a signal.

    Args:
        run: from `load_run`.
        model: a model loaded before (its network must carry no adapter yet).
        table: rows opened before.

    Raises:
        MmalignError: anything a user can mend; the message says how.
    """
    loop, loader = prepare(run, model=model, table=table)
    started = time.perf_counter()
    loop.train(iter(loader))
    loop.model.network = loop.trainables.network
    return _finish(loop, seconds=time.perf_counter() - started)


def prepare(
    run: ResolvedRun, *, model: PreferenceModel | None = None, table: RowTable | None = None
) -> tuple[Loop, Iterable[MicroBatch]]:
    """A run short of its first step: the loop, restored if there is a checkpoint, and its loader."""
    config = run.config
    accelerator = make_accelerator(run)
    folder = Path(config.train.output)
    start = _check_output(folder, run)
    checkpoint = load_checkpoint(start) if start is not None else None
    layout = Layout(
        config.train.batch_size,
        config.train.accumulation,
        accelerator.num_processes,
        accelerator.process_index,
    )
    table = table if table is not None else open_rows(config.data, kind=run.method.data)
    kind = reference_kind(run)
    identity = _identity(run, layout, kind, len(table))
    start_step = 0
    if checkpoint is not None:
        # Before anything is written: a run that is refused leaves the folder as it was.
        require_same_run(checkpoint, identity, folder)
        start_step = checkpoint.step
    _require_agreement(start_step, identity)
    if accelerator.is_main_process:
        for path in set_aside_later(folder / CHECKPOINTS, start_step):
            logging.getLogger(__name__).warning("going back to step %d: kept as %s", start_step, path)
        # A kill between a checkpoint and its pruning leaves one too many.
        prune(folder / CHECKPOINTS, keep=config.train.keep_checkpoints)
        _open_quarantine(run, table, start_step=start_step)
    table.report.check(config.data.max_bad_share, quarantine=quarantine_path(run))
    model = model if model is not None else load_model(run, accelerator.device)
    model.limit_images(config.data.images)
    order = RowOrder.for_table(
        table,
        seed=config.train.seed,
        shuffle=config.data.shuffle,
        draws_per_row=config.reference.draws_per_row if kind == "stored" else None,
    )
    trainables, parts = _attach_and_refer(run, kind, accelerator, model, table=table)
    parameters = list(trainables.parameters.values())
    optimizer = make_optimizer(parameters, config.train)
    decay = config.train.ema_decay
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / CONFIG_FILE, yaml.safe_dump(_resolved(run), sort_keys=False))
    tracking = Tracking(accelerator, folder, run, start_step=start_step)
    grids = SampleGrids(model, trainables, config.samples, folder / "samples")
    loop = Loop(
        run=run,
        accelerator=accelerator,
        model=model,
        network=model.network,
        trainables=trainables,
        parts=parts,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, config.train),
        updater=Updater(
            parameters,
            optimizer,
            max_grad_norm=config.train.max_grad_norm,
            scaler=getattr(accelerator, "scaler", None),
        ),
        ema=None if decay is None else EMAModel(parameters, decay=decay, foreach=True),
        layout=layout,
        tracking=tracking,
        folder=folder,
        identity=identity,
        on_update=_grid_hook(grids, run, accelerator, model, trainables, tracking),
    )
    if checkpoint is not None:
        loop.restore(checkpoint)
        tracking.say(f"continuing {folder} after step {checkpoint.step}")
    for line in [*table.describe().splitlines(), *table.advice()]:
        tracking.say(line)
    _opening_lines(run, layout, model, trainables, kind, tracking)
    loader = make_loader(
        table,
        order,
        model,
        StepSampler(layout, start_step=loop.progress.step, steps=config.train.steps or 0),
        rows_per_step=layout.effective_batch,
        world_size=layout.world_size,
        num_workers=config.train.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    return loop, cast("Iterable[MicroBatch]", loader)


def _open_quarantine(run: ResolvedRun, table: RowTable, *, start_step: int) -> None:
    """List the rows that were unusable on opening; forget those of steps that will be repeated."""
    path = quarantine_path(run)
    found = read_json_lines(path) if path.exists() and start_step > 0 else []
    listed = [record for record in found if 0 < record.get("step", 0) <= start_step]
    opening: list[dict[str, Any]] = [
        {
            "step": 0,
            "index": None,
            "source": f"{issue.file}:{issue.row}",
            "reason": issue.reason,
            "message": issue.message,
        }
        for issue in table.issues
    ]
    if listed or opening or path.exists():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in [*opening, *listed])
        atomic_write(path, "".join(lines))


def _attach_and_refer(
    run: ResolvedRun,
    kind: str,
    accelerator: Accelerator,
    model: PreferenceModel,
    *,
    table: RowTable,
) -> tuple[Trainables, StepParts]:
    """Attach the adapter, make the reference at the right moment, prepare the network for the devices.

    A frozen copy and stored errors belong to the network before anything is attached; switching adapters
    off and averaging need them attached.
    """
    config = run.config
    likelihood = make_likelihood(config.likelihood, model)
    autocast = _autocast(accelerator, config.train.mixed_precision)

    def reference_at(moment: str) -> Reference | None:
        return _reference(
            run, kind, accelerator, model, likelihood, table=table, autocast=autocast, moment=moment
        )

    before = reference_at("before")
    trainables = attach(
        model.network, config.adapter, default_targets=model.adapter_targets, seed=config.train.seed
    )
    reference = before or reference_at("after")
    if reference is None:
        message = explain("reference", got=kind, expected="a kind that is made before or after attaching")
        raise ConfigError(message)
    model.network = accelerator.prepare_model(trainables.network)
    state = ObjectiveState()
    if accelerator.num_processes > 1:
        state = ObjectiveState(sum_across=lambda value: accelerator.reduce(value, reduction="sum"))
    parts = StepParts(
        denoise=denoiser_of(model)(model.network),
        likelihood=likelihood,
        reference=reference,
        objective=objectives.build(run.method.objective, **run.objective_arguments),
        state=state,
        autocast=autocast,
        base=_base_for_panel(reference, trainables, denoiser_of(model)),
    )
    return trainables, parts


def _base_for_panel(
    reference: Reference, trainables: Trainables, make_denoise: Callable[[nn.Module], Denoiser]
) -> Reference | None:
    """The base model for the panel of methods without a reference, where adapters can be switched off."""
    if reference.kind != "none" or trainables.lora is None:
        return None
    return make_reference("adapters_off", network=trainables.network, make_denoise=make_denoise)


def _autocast(accelerator: Accelerator, precision: str) -> Callable[[], AbstractContextManager[None]]:
    if precision == "no":
        return contextlib.nullcontext
    device_type, dtype = accelerator.device.type, _DTYPES[precision]
    return lambda: torch.autocast(device_type, dtype=dtype)


def _reference(
    run: ResolvedRun,
    kind: str,
    accelerator: Accelerator,
    model: PreferenceModel,
    likelihood: Elbo,
    *,
    table: RowTable,
    autocast: Callable[[], AbstractContextManager[None]],
    moment: str,
) -> Reference | None:
    """The reference, or None when it is made at the other moment."""
    if (kind in ("frozen", "stored")) != (moment == "before"):
        return None
    if kind == "stored":
        from mmalign.train.stored import stored_reference

        return stored_reference(
            run, model, likelihood, table=table, accelerator=accelerator, autocast=autocast
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


def _grid_hook(
    grids: SampleGrids,
    run: ResolvedRun,
    accelerator: Accelerator,
    model: PreferenceModel,
    trainables: Trainables,
    tracking: Tracking,
) -> Callable[[int], None]:
    """Draw a grid every so many steps, on the main process, with the unwrapped network."""
    config = run.config.samples

    def hook(step: int) -> None:
        is_due = step == run.config.train.steps or (config.every is not None and step % config.every == 0)
        if not (config.prompts and is_due and accelerator.is_main_process):
            return
        with _bare(model, trainables.network):
            path = grids.write(step)
        if run.config.image.cache is not None:
            model.release_encoders()  # the plan of a cached run has no room for them
        tracking.log_picture("samples", path, step)

    return hook


@contextlib.contextmanager
def _bare(model: PreferenceModel, network: nn.Module) -> Iterator[None]:
    prepared, model.network = model.network, network
    try:
        yield
    finally:
        model.network = prepared


def _opening_lines(
    run: ResolvedRun,
    layout: Layout,
    model: PreferenceModel,
    trainables: Trainables,
    kind: str,
    tracking: Tracking,
) -> None:
    for name, value in derived_values(run, layout, torch.Size(model.latent_shape).numel()).items():
        tracking.say(f"{name}: {value}")
    tracking.say(f"trained weights: {trainables.count:,}; reference: {kind}")
    if run.method.couples_rows:
        together = layout.batch_size * layout.world_size
        tracking.say(
            f"rows of one micro-step ({together} over all devices) share a statistic of {run.method.name}; "
            f"accumulation does not widen it{': raise train.batch_size' if together < 8 else ''}"
        )
    suggested = getattr(model, "suggested_timesteps", None)
    used = run.config.likelihood.model_dump(mode="json")
    if suggested and any(used[key] != value for key, value in suggested.items()):
        tracking.say(
            f"this model is usually trained with likelihood {suggested}; the run uses other timesteps"
        )
    for note in getattr(model, "notes", []):
        tracking.say(note)
    for item in run.differences:
        tracking.say(
            f"differs from the row ({item.mark}): {item.setting} = {item.value}, row {item.row_value}"
        )


def _finish(loop: Loop, *, seconds: float) -> RunResult:
    """Save what users load, write the summary, say what the numbers say."""
    run, config, accelerator = loop.run, loop.run.config, loop.accelerator
    finished = loop.progress.step == config.train.steps
    findings = verdict(loop.tracking.records, num_dropped=loop.progress.num_dropped)
    already = loop.start_step == loop.progress.step and (loop.folder / SUMMARY_FILE).is_file()
    if accelerator.is_main_process and finished and not already:
        averaged = (
            loop.trainables.swapped(loop.ema.shadow_params)
            if loop.ema is not None
            else contextlib.nullcontext()
        )
        with averaged:
            if config.adapter.kind == "lora":
                loop.model.save_adapter(loop.folder)
            else:
                loop.model.save_model(loop.folder / "model")
        write_json(
            loop.folder / SUMMARY_FILE,
            {
                "method": run.method.name,
                "steps": loop.progress.step,
                "seconds": round(seconds, 3),
                "trained_weights": loop.trainables.count,
                "peak_memory_gib": round(peak_memory_gib(accelerator.device), 3),
                "dropped_updates": loop.progress.num_dropped,
                "unreadable_rows": loop.progress.num_bad_rows,
                "weights": "average" if loop.ema is not None else "last",
                "last_record": loop.tracking.records[-1] if loop.tracking.records else {},
                "verdict": findings,
                "versions": _versions(),
            },
        )
        for line in findings:
            loop.tracking.say(line)
    accelerator.wait_for_everyone()
    return RunResult(
        folder=loop.folder,
        steps=loop.progress.step,
        records=loop.tracking.records,
        verdict=findings,
        finished=finished,
        model=loop.model,
        trainables=loop.trainables,
    )
