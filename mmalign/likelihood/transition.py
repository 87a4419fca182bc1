"""Scores from the steps of a sampler: how likely the next state of a trajectory is under a model.

    score = log N(next state; mean, std^2), the mean over the event axes

The states come from a rollout (`Batch.recorded`), and nothing is drawn. Guidance stands inside the score: the
step was taken with it, so its density has it too. Policy and reference both pay for two halves of rows in one
call. Where the candidates are successors of one state the network runs once per prompt.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.batch import Batch
from mmalign.errors import ConfigError, HyperparameterError, ShapeError, explain, unknown_name
from mmalign.likelihood.base import Denoiser, Draw, Evaluation
from mmalign.likelihood.elbo import squared_error
from mmalign.likelihood.kernels import Moments, Step, TransitionKernel, log_density
from mmalign.likelihood.schedules import PREDICTIONS, Number, Prediction, Schedule
from mmalign.methods.row import LikelihoodKind
from mmalign.objectives.base import wide
from mmalign.shapes import flatten_candidates, unflatten_candidates

__all__ = ["UNCONDITIONAL", "Transition", "guided", "split_guidance"]

UNCONDITIONAL = "uncond."
"""Conditioning of the unconditional half of guidance: `uncond.text` stands in for `text`."""


def split_guidance(rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`(conditioning, empty)`: entries named `uncond.*` apart, without the prefix."""
    conditioning = {name: value for name, value in rows.items() if not name.startswith(UNCONDITIONAL)}
    empty = {
        name.removeprefix(UNCONDITIONAL): value
        for name, value in rows.items()
        if name.startswith(UNCONDITIONAL)
    }
    return conditioning, empty


def guided(
    denoise: Denoiser,
    noised: Float[Tensor, " row *event"],
    time: Shaped[Tensor, " row"],
    conditioning: Mapping[str, Tensor],
    empty: Mapping[str, Tensor],
    scale: Number,
) -> Float[Tensor, " row *event"]:
    """Prediction under classifier-free guidance: `uncond + scale * (cond - uncond)`, in one call.

    At scale 1 the network runs on the rows as they are. The two halves are combined in float32: a scale of 5
    would multiply the rounding of half precision.

    Args:
        denoise: the network.
        noised: noised samples.
        time: the network's time input.
        conditioning: one entry per row.
        empty: what stands in for the entries of the same names in the unconditional half; others are shared.
        scale: of guidance.

    Raises:
        ConfigError: guidance is asked for and nothing says what the empty prompt is.
    """
    if scale == 1:
        return denoise(noised, time, conditioning)
    if not empty or not empty.keys() <= conditioning.keys():
        message = explain(
            "guidance",
            got=f"scale {scale:g} with empty conditioning {sorted(empty)}",
            expected=f"some of the names of the conditioning, {sorted(conditioning)}",
            do=f"Pass the empty prompt's embeddings (in a batch: under {UNCONDITIONAL!r} plus the name), or "
            "set the scale to 1.",
        )
        raise ConfigError(message)
    both = {name: torch.cat([empty.get(name, value), value]) for name, value in conditioning.items()}
    output = wide(denoise(torch.cat([noised, noised]), torch.cat([time, time]), both))
    without, given = output.chunk(2)
    return without + scale * (given - without)


@dataclass(frozen=True)
class Transition:
    """Log-probability of recorded steps.

    A batch brings, by name in `Batch.recorded`, `[prompt, candidate, ...]`: `state`, `timestep` and
    `next_timestep`. Its clean data are the next states.

    Args:
        schedule: how noise and data mix.
        prediction: what the network predicts.
        kernel: how the steps were taken; a random one.
        guidance_scale: of classifier-free guidance, as in the sampler; 1 is none.
        shared_state: the candidates of a prompt are successors of one state at one timestep, so the network
            runs once per prompt. The caller's word: nothing looks at the values.
        reduction: over the event axes: "mean" as published, or "sum".

    Raises:
        ConfigError: the kernel is deterministic, or meant for another kind of schedule.
        HyperparameterError: the guidance scale is not finite.
        UnknownNameError: a prediction or reduction that does not exist.

    Source: RockeyCoss/SPO `ddim_with_logprob`; yifan123/flow_grpo `sde_step_with_logprob`.
    """

    schedule: Schedule
    prediction: Prediction
    kernel: TransitionKernel
    guidance_scale: Number = 1.0
    shared_state: bool = False
    reduction: Literal["mean", "sum"] = "mean"
    kind: ClassVar[LikelihoodKind] = "transition"

    def __post_init__(self) -> None:
        """Check names, the kernel and the scale."""
        if self.prediction not in PREDICTIONS:
            raise unknown_name("prediction", self.prediction, PREDICTIONS)
        if self.reduction not in ("mean", "sum"):
            raise unknown_name("reduction", self.reduction, ("mean", "sum"))
        if not math.isfinite(self.guidance_scale):
            message = explain(
                "Transition.guidance_scale", got=self.guidance_scale, expected="a finite number"
            )
            raise HyperparameterError(message)
        self.kernel.check(self.schedule)
        if not self.kernel.is_random:
            message = explain(
                "Transition.kernel",
                got=f"{self.kernel!r}, whose steps are deterministic",
                expected="one with noise: only random steps have a probability",
                do="Set eta or the noise level above 0.",
            )
            raise ConfigError(message)

    def draw(self, batch: Batch, denoise: Denoiser | None = None) -> Draw:
        """The recorded steps: states as noised samples, next states as targets, and 0 as noise."""
        del denoise
        state, target = wide(recorded(batch, "state")), wide(batch.clean)
        if state.shape != target.shape:
            message = explain(
                "Batch.recorded['state']", got=f"{list(state.shape)}", expected=f"{list(target.shape)}"
            )
            raise ShapeError(message)
        nothing = torch.zeros((), dtype=state.dtype, device=state.device).expand_as(state)
        return Draw(recorded(batch, "timestep"), nothing, state, target.detach())

    def evaluate(
        self, denoise: Denoiser, batch: Batch, draw: Draw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Log-probability of every step as the score, mean squared distance from its mean as the error.

        Args:
            denoise: the network.
            batch: supplies conditioning, next timesteps and the element mask.
            draw: from `draw`.
            keep_prediction: also return the guided prediction.

        Raises:
            ConfigError: something the steps need was not recorded, or candidates that share a state have
                conditioning of their own.
        """
        num_candidates = draw.noised.shape[1]
        count = 1 if self.shared_state else num_candidates
        state, timestep = draw.noised[:, :count], draw.timestep[:, :count]
        conditioning, empty = split_guidance(self._rows(batch, count))
        time = self.schedule.network_time(flatten_candidates(timestep))
        output = guided(denoise, flatten_candidates(state), time, conditioning, empty, self.guidance_scale)
        prediction = unflatten_candidates(output, count)
        moments = self._moments(batch, draw, prediction)
        mean, std = moments.mean.expand_as(draw.target), moments.std.expand(-1, num_candidates)
        error = squared_error(mean, draw.target, mask=batch.element_mask, reduction="mean")
        score = log_density(error, std, self._num_elements(batch, draw))
        kept = prediction.expand_as(draw.target) if keep_prediction else None
        return Evaluation(score=score, error=error, prediction=kept)

    def mean_drift(
        self,
        batch: Batch,
        draw: Draw,
        policy: Float[Tensor, "prompt candidate *event"],
        reference: Float[Tensor, "prompt candidate *event"],
    ) -> Float[Tensor, "prompt candidate"]:
        """How far apart two models' steps lead: `mean (mean - mean_ref)^2 / (2 s^2)`, with gradient.

        s is the noise per square root of time on flows, as Flow-GRPO has it: the KL divergence per element of
        the two steps is this divided by the length of the step. On other schedules it is that divergence.

        Args:
            batch: as in `evaluate`.
            draw: the same.
            policy: prediction that `evaluate` kept.
            reference: the same of the reference; carries no gradient.
        """
        count = 1 if self.shared_state else draw.noised.shape[1]
        ours = self._moments(batch, draw, policy[:, :count])
        theirs = self._moments(batch, draw, reference[:, :count].detach())
        gap = (ours.mean - theirs.mean).square().flatten(2).mean(-1)
        drift = torch.where(ours.rate > 0, gap / (2 * ours.rate.square()), torch.nan)
        return drift.to(gap.dtype).expand(-1, draw.noised.shape[1])

    def describe(self) -> dict[str, str]:
        """Everything a score depends on besides the recorded steps, in words."""
        return {
            **self.schedule.describe(),
            "prediction": self.prediction,
            "kernel": repr(self.kernel),
            "guidance_scale": repr(float(self.guidance_scale)),
            "reduction": self.reduction,
        }

    def _moments(
        self, batch: Batch, draw: Draw, prediction: Float[Tensor, "prompt candidate *event"]
    ) -> Moments:
        count = prediction.shape[1]
        step = Step(
            self.schedule,
            self.prediction,
            draw.noised[:, :count],
            prediction,
            draw.timestep[:, :count],
            recorded(batch, "next_timestep")[:, :count],
        )
        return self.kernel.moments(step)

    def _rows(self, batch: Batch, count: int) -> dict[str, Tensor]:
        if self.shared_state and batch.conditioning.per_candidate:
            message = explain(
                "Transition.shared_state",
                got=f"conditioning per candidate: {sorted(batch.conditioning.per_candidate)}",
                expected="one conditioning per prompt, so that one forward serves all candidates",
                do="Move it to Conditioning.shared, or set shared_state to False.",
            )
            raise ConfigError(message)
        return batch.conditioning.rows(count)

    def _num_elements(self, batch: Batch, draw: Draw) -> int | Tensor:
        if self.reduction == "mean":
            return 1
        if batch.element_mask is None:
            return math.prod(draw.target.shape[2:])
        return batch.element_mask.to(draw.target.dtype).flatten(2).sum(-1)


def recorded(batch: Batch, name: str) -> Shaped[Tensor, "prompt candidate ..."]:
    """What a rollout kept under `name`.

    Raises:
        ConfigError: it kept no such thing.
    """
    if name not in batch.recorded:
        message = explain(
            f"Batch.recorded[{name!r}], needed to score steps",
            got=sorted(batch.recorded),
            expected="state, timestep and next_timestep of every step",
            do="Build the batch from a rollout that keeps them.",
        )
        raise ConfigError(message)
    return batch.recorded[name]
