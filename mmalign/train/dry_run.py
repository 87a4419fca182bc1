"""The plan of a run without the run: what it would train, how much memory it would take."""

from typing import Any, cast

import torch
import yaml
from rich.console import Console
from torch import nn

from mmalign.train.adapters import Trainables, attach
from mmalign.train.config import ResolvedRun, resolved_content
from mmalign.train.model import PreferenceModel, denoising
from mmalign.train.parts import DTYPES, load_model, reference_kind
from mmalign.train.plan import (
    Activations,
    MemoryItem,
    Plan,
    count_activations,
    derived_values,
    layout_of,
    memory_estimate,
    print_plan,
)
from mmalign.train.planning.launches import Launch
from mmalign.train.rollout_memory import memory_of_rollouts, rows_with_gradient
from mmalign.train.rollouts import is_online, require_fitting
from mmalign.train.token_plan import plan_dialogues
from mmalign.train.token_sections import tokens_of

__all__ = ["describe"]


def _encoders(model: Any) -> dict[str, nn.Module]:
    named: dict[str, nn.Module] = {}
    if getattr(model, "vae", None) is not None:
        named["VAE"] = model.vae
    for number, encoder in enumerate(getattr(model, "encoders", [])):
        named[f"text encoder {number + 1}"] = encoder
    if getattr(model, "conditioned", False) and getattr(model, "sees_pictures", False):
        named["picture encoder"] = cast("Any", model).image_encoder
    return named


def _activations(run: ResolvedRun, model: PreferenceModel, trainables: Trainables) -> Activations:
    """Of one micro-batch, counted on the meta device with the model's own inputs."""
    inputs = model.meta_inputs(rows_with_gradient(run))
    dtype = DTYPES[run.config.train.mixed_precision]

    def forward(network: nn.Module) -> torch.Tensor:
        return model.denoise(*inputs, network=network)

    return count_activations(trainables.network, forward, autocast=None if dtype is torch.float32 else dtype)


def _memory(
    run: ResolvedRun, model: PreferenceModel, trainables: Trainables, kind: str, reward_bytes: int | None
) -> list[MemoryItem]:
    """Device memory per component."""
    online = is_online(run)
    encoders = _encoders(model)
    if run.config.media.cache:  # who samples has to decode
        encoders = {name: module for name, module in encoders.items() if online and name == "VAE"}
    activations = _activations(run, model, trainables)
    found = memory_estimate(
        run,
        trainables,
        encoders=encoders,
        activation_bytes=activations.kept,
        reference_kind=kind,
        recomputed_bytes=activations.recomputed,
        launch=Launch.here(),
    )
    if not online:
        return found
    rows = model.meta_inputs(1)[2].values()
    trained = sum(value.numel() * value.element_size() for value in trainables.parameters.values())
    return found + memory_of_rollouts(
        run,
        latent_elements=torch.Size(model.latent_shape).numel(),
        conditioning_bytes=sum(value.numel() * value.element_size() for value in rows),
        trained_bytes=trained,
        reward_bytes=reward_bytes,
    )


def describe(
    run: ResolvedRun, console: Console | None = None, *, reward_bytes: int | None = None
) -> dict[str, Any]:
    """Print the plan of a run without touching its output folder. Returns the numbers it printed.

    Args:
        run: resolved.
        console: to print on.
        reward_bytes: size of the reward that scores the samples; None: none, or not known.
    """
    console = console or Console()
    denoises = tokens_of(run.config) is None
    plan = _plan_media(run, reward_bytes) if denoises else plan_dialogues(run)
    console.print(
        yaml.safe_dump(resolved_content(plan.run), sort_keys=False).rstrip(), highlight=False, markup=False
    )
    console.print()
    print_plan(
        plan.run,
        derived=plan.derived,
        trainables=plan.trainables,
        memory=plan.memory,
        console=console,
        launch=Launch.here(),
    )
    for note in plan.notes:
        console.print(f"  {note}", highlight=False, markup=False)
    console.print("  peak, time of a step, disk, and what fits a card: `mmalign plan`", highlight=False)
    return {
        "derived": plan.derived,
        "trained": plan.trainables.count,
        "memory": {item.component: item.num_bytes for item in plan.memory},
    }


def _plan_media(run: ResolvedRun, reward_bytes: int | None) -> Plan:
    device = torch.device(
        "cuda" if torch.cuda.is_available() and run.config.train.device == "auto" else "cpu"
    )
    model = denoising(load_model(run, device))
    if is_online(run):
        require_fitting(run, model)
    trainables = attach(
        model.network,
        run.config.adapter,
        default_targets=model.adapter_targets,
        seed=run.config.train.seed,
        trains=getattr(model, "trains", None),
    )
    return Plan(
        run=run,
        trainables=trainables,
        derived=derived_values(run, layout_of(run), torch.Size(model.latent_shape).numel()),
        memory=_memory(run, model, trainables, reference_kind(run), reward_bytes),
        notes=list(getattr(model, "notes", [])),
    )
