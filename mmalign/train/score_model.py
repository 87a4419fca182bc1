"""The online score model of a one-step generator: a network, or an adapter on the frozen teacher.

It has its own optimiser and lives in the rollout's state, so a resumed run goes on with both.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmalign import registry
from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.files import under
from mmalign.likelihood import Denoiser
from mmalign.train.adapters import Trainables, attach
from mmalign.train.checkpoint import flatten_optimizer, restore_optimizer
from mmalign.train.config import AdapterConfig, ResolvedRun
from mmalign.train.model import PreferenceModel
from mmalign.train.optim import Updater, make_optimizer
from mmalign.train.parts import DTYPES, denoiser_of

__all__ = ["ScoreModel", "load_teacher", "make_score_model"]


@dataclass
class ScoreModel:
    """Tracks the generator's samples; see `mmalign.rollout.one_step.OnlineScore`.

    Args:
        denoise: the tracking network.
        trainables: its trained weights.
        updater: applies gradients.
        frozen: the teacher's own network; None where it is the tracking one without its adapter.
        sum_across: sums a tensor over ranks.
    """

    denoise: Denoiser
    trainables: Trainables
    updater: Updater
    frozen: Denoiser | None = None
    sum_across: Callable[[Tensor], Tensor] = field(default=lambda value: value)

    def score(
        self, noised: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Float[Tensor, " row *event"]:
        """The tracking network's prediction."""
        return self.denoise(noised, timestep, conditioning)

    @contextmanager
    def teacher(self) -> Iterator[Denoiser]:
        """The frozen network, or the tracking one without its adapter."""
        if self.frozen is not None:
            yield self.frozen
            return
        with self.trainables.disabled():
            yield self.denoise

    def fit(
        self, errors: Callable[[], Float[Tensor, " row"]], valid: Bool[Tensor, " row"]
    ) -> Float[Tensor, ""]:
        """One update on the valid rows of all ranks; returns their mean error before it."""
        with torch.enable_grad():
            found = errors()
            total = torch.where(valid, found, torch.zeros_like(found)).sum()
            total.backward()
        counts = torch.stack([total.detach().to(torch.float32), valid.sum().to(torch.float32)])
        error, count = self._over_ranks(counts).unbind()
        self.updater.apply(1.0 / count.clamp(min=1.0), is_empty=count == 0)
        # Casts made before the update would be used again until the outermost autocast ends.
        torch.clear_autocast_cache()
        return error / count.clamp(min=1.0)

    def _over_ranks(self, counts: Tensor) -> Tensor:
        """Sum gradients and counts over the ranks, in one message."""
        parameters = list(self.trainables.parameters.values())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([counts, *(gradient.flatten() for gradient in gradients)])
        summed = self.sum_across(flat)
        if summed is not flat:
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, part in zip(gradients, summed[len(counts) :].split(sizes), strict=True):
                gradient.copy_(part.view_as(gradient))
        return summed[: len(counts)]

    def state_dict(self) -> dict[str, Tensor]:
        """Trained weights and optimiser, as tensors."""
        tensors, described = flatten_optimizer(self.updater.optimizer)
        text = torch.frombuffer(bytearray(json.dumps(described).encode()), dtype=torch.uint8)
        return {
            **{f"weights.{name}": value for name, value in self.trainables.state().items()},
            **{f"optimizer.{name}": value for name, value in tensors.items()},
            "described": text,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            CheckpointError: it belongs to another score model.
        """
        if "described" not in state:
            message = "checkpoint rollout: no score model in it. Was it made by another method?"
            raise CheckpointError(message)
        device = next(iter(self.trainables.parameters.values())).device
        self.trainables.load({name: value.to(device) for name, value in under(state, "weights.").items()})
        described = json.loads(bytes(state["described"].tolist()).decode())
        restore_optimizer(self.updater.optimizer, under(state, "optimizer."), described)


def load_teacher(run: ResolvedRun, device: torch.device) -> PreferenceModel | None:
    """The model that `rollout.one_step.teacher` names, None where the teacher is the run's own start."""
    source = run.config.rollout.one_step.teacher
    if source is None:
        return None
    plain = {"source": source, "revision": None, "variant": None, "config_source": None, "vae": None}
    settings = run.config.model.model_copy(update=plain)
    whole = run.config.rollout.one_step.score_adapter == "none"
    teacher: PreferenceModel = registry.find("families", settings.family).load(
        settings,
        run.config.media,
        device=device,
        dtype=DTYPES[run.config.train.mixed_precision],
        network_dtype=torch.float32 if whole else None,
    )
    return teacher


def make_score_model(
    run: ResolvedRun, model: PreferenceModel, teacher: nn.Module, sum_across: Callable[[Tensor], Tensor]
) -> ScoreModel:
    """The score model of a run, equal to the teacher at its start.

    Args:
        run: resolved.
        model: knows how networks of its family are called.
        teacher: its network, frozen and without adapters; it gets one here, or is copied.
        sum_across: sums a tensor over ranks.

    Raises:
        ConfigError: the run trains in half precision with a scale, which the score model does not have.
    """
    config, settings = run.config, run.config.rollout.one_step
    if config.train.mixed_precision == "fp16":
        message = explain(
            f"{run.path}: train.mixed_precision",
            got="fp16",
            expected="bf16 or no: gradients of the score model and at the samples are not scaled",
        )
        raise ConfigError(message)
    make_denoise = denoiser_of(model)
    whole = settings.score_adapter == "none"
    network = copy.deepcopy(teacher) if whole else teacher
    adapter = AdapterConfig(
        kind=settings.score_adapter or "lora",
        rank=settings.score_rank or config.adapter.rank,
        targets=config.adapter.targets,
    )
    trainables = attach(network, adapter, default_targets=model.adapter_targets, seed=config.train.seed + 1)
    rate = settings.score_learning_rate or config.train.learning_rate
    parameters = list(trainables.parameters.values())
    optimizer = make_optimizer(parameters, config.train.model_copy(update={"learning_rate": rate}))
    return ScoreModel(
        denoise=make_denoise(trainables.network),
        trainables=trainables,
        updater=Updater(parameters, optimizer, max_grad_norm=config.train.max_grad_norm),
        frozen=make_denoise(teacher) if whole else None,
        sum_across=sum_across,
    )
