"""Scores from denoising errors at a sampled timestep: the likelihood of diffusion and flow models.

    score = -error / 2,    error = w(t) * mean over the event axes of (prediction - target)^2

`w` is 1 in the network's own parametrisation; another `error_space` changes it to the exact weight of that
space. The noise and the timestep are shared by the candidates of a prompt and by policy and reference:
sharing is worth a factor of about four in gradient variance.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.batch import Batch
from mmalign.errors import ConfigError, HyperparameterError, ShapeError, explain, unknown_name
from mmalign.likelihood.base import Denoiser, Draw, Evaluation
from mmalign.likelihood.draws import noise_sign, unmirrored
from mmalign.likelihood.schedules import PREDICTIONS, Number, Prediction, Schedule
from mmalign.likelihood.timesteps import TimestepSampler
from mmalign.likelihood.weighting import MinSnr
from mmalign.methods.row import LikelihoodKind
from mmalign.objectives.clips import errors_along
from mmalign.seeding import row_normal
from mmalign.shapes import flatten_candidates, unflatten_candidates

__all__ = ["BetaUnits", "Elbo", "beta_conventions", "squared_error"]


class BetaUnits(NamedTuple):
    """One strength of the preference signal in the two conventions of the literature.

    Args:
        mean: multiplies `-(mean of squares) / 2`: the published code, and this package.
        sum: multiplies `-(sum of squares)`: the Diffusion-DPO paper's pseudo-code.
        num_elements: of one sample, which converts one into the other.
    """

    mean: Number
    sum: float
    num_elements: int

    def __str__(self) -> str:
        """Both units in one line, for logs."""
        return (
            f"beta {self.mean:g} on half the mean error = {self.sum:.4g} on the summed error "
            f"({self.num_elements} elements)"
        )


def beta_conventions(beta: Number, num_elements: int) -> BetaUnits:
    """Beta in both units: `beta_sum = beta / (2 * num_elements)`.

    5000 is 0.153 for a 4 x 64 x 64 latent and 0.0381 for 4 x 128 x 128: the same beta is a quarter of the
    strength at twice the resolution.

    Raises:
        HyperparameterError: no elements.
    """
    if num_elements < 1:
        message = explain("beta_conventions num_elements", got=num_elements, expected="at least 1")
        raise HyperparameterError(message)
    return BetaUnits(mean=beta, sum=beta / (2 * num_elements), num_elements=num_elements)


def squared_error(
    prediction: Float[Tensor, "prompt candidate *event"],
    target: Float[Tensor, "prompt candidate *event"],
    *,
    mask: Float[Tensor, "prompt candidate *event"] | None,
    reduction: Literal["mean", "sum"],
) -> Float[Tensor, "prompt candidate"]:
    """Mean or sum over the event axes of `(prediction - target)^2`, in float32 or wider.

    Half-precision predictions are widened before they are subtracted: rounding in an error of 0.1 would be
    multiplied by beta / 2 = 2500 afterwards. With a mask, squares are weighted by it and the mean divides by
    its sum; a candidate whose mask is all zero has error 0.
    """
    wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    squares = (prediction.to(wide) - target.to(wide)).square().flatten(2)
    if mask is None:
        return squares.mean(-1) if reduction == "mean" else squares.sum(-1)
    weights = mask.to(wide).flatten(2)
    total = (squares * weights).sum(-1)
    if reduction == "sum":
        return total
    count = weights.sum(-1)
    return total / torch.where(count > 0, count, 1.0)


@dataclass(frozen=True)
class Elbo:
    """Timestep-sampled evidence lower bound.

    Args:
        schedule: how noise and data mix.
        prediction: what the network predicts.
        timesteps: how the timestep is drawn.
        share_noise: the candidates of a prompt get the same noise.
        share_timestep: the candidates of a prompt get the same timestep.
        error_space: measure the error as if the network predicted this; None is its own parametrisation.
        reduction: over the event axes. "sum" makes beta depend on the resolution: see `beta_conventions`.
        weighting: of noise levels, beside that of the error space; None weighs all alike.
        inner_axis: event axis (time) along which scores are kept, too, one per position, each from the mean
            over the other axes; None keeps none.

    Raises:
        ConfigError: the error space cannot be reached from the prediction at some timestep.
        HyperparameterError: the timesteps do not fit the schedule.

    Source: 2311.12908, equation 14 and its official code.
    """

    schedule: Schedule
    prediction: Prediction
    timesteps: TimestepSampler
    share_noise: bool = True
    share_timestep: bool = True
    error_space: Prediction | None = None
    reduction: Literal["mean", "sum"] = "mean"
    weighting: MinSnr | None = None
    inner_axis: int | None = None
    kind: ClassVar[LikelihoodKind] = "elbo"

    def __post_init__(self) -> None:
        """Check names, ranges and the error space."""
        for name in (self.prediction, self.error_space):
            if name is not None and name not in PREDICTIONS:
                raise unknown_name("prediction", name, PREDICTIONS)
        if self.reduction not in ("mean", "sum"):
            raise unknown_name("reduction", self.reduction, ("mean", "sum"))
        self.timesteps.check(self.schedule)
        if self._converts and self.schedule.loses_clean(self.prediction):
            message = explain(
                "Elbo.error_space",
                got=f"{self.error_space} for a network that predicts {self.prediction}",
                expected=f"{self.prediction}, because this schedule reaches pure noise, "
                f"where {self.prediction} does not determine {self.error_space}",
                do="Leave error_space empty.",
            )
            raise ConfigError(message)

    @property
    def _converts(self) -> bool:
        return self.error_space is not None and self.error_space != self.prediction

    def draw(self, batch: Batch, denoise: Denoiser | None = None) -> Draw:
        """Timesteps, noise, noised samples and targets of a batch, decided by its row keys alone."""
        del denoise  # nothing here depends on the policy
        clean = batch.clean.to(torch.promote_types(batch.clean.dtype, torch.float32))
        return self.draw_at(clean, timestep=self._timesteps(batch), noise=self._noise(batch).to(clean.dtype))

    def draw_at(
        self,
        clean: Float[Tensor, "prompt candidate *event"],
        *,
        timestep: Shaped[Tensor, "prompt candidate"],
        noise: Float[Tensor, "prompt candidate *event"],
    ) -> Draw:
        """The draw with a given timestep and noise (a grid for evaluation, recorded numbers)."""
        noised = self.schedule.add_noise(clean, noise, timestep)
        target = self.schedule.target(self.prediction, clean, noise, timestep).detach()
        return Draw(timestep=timestep, noise=noise, noised=noised, target=target)

    def evaluate(
        self, denoise: Denoiser, batch: Batch, draw: Draw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Score and error of every candidate under `denoise`.

        Args:
            denoise: the network.
            batch: supplies the conditioning and the element mask.
            draw: from `draw`; pass the same one to policy and reference.
            keep_prediction: also return the raw prediction.

        Raises:
            ShapeError: the network's output or the element mask has another shape than the sample.
        """
        num_candidates = draw.noised.shape[1]
        time = self.schedule.network_time(flatten_candidates(draw.timestep))
        output = denoise(flatten_candidates(draw.noised), time, batch.conditioning.rows(num_candidates))
        prediction = unflatten_candidates(output, num_candidates)
        _require_shape("prediction of the network", prediction, draw.target)
        if batch.element_mask is not None:
            _require_shape("Batch.element_mask", batch.element_mask, draw.target)
        error = squared_error(prediction, draw.target, mask=batch.element_mask, reduction=self.reduction)
        inner = self._inner_score(prediction, draw.target, batch)
        if self._converts or self.weighting is not None:
            weight = self._error_weight(draw.timestep, error.dtype)
            error = error * weight
            inner = None if inner is None else inner * weight.unsqueeze(-1)
        found = Evaluation.from_error(error, prediction if keep_prediction else None)
        return found if inner is None else replace(found, inner=inner)

    def _inner_score(
        self, prediction: Tensor, target: Tensor, batch: Batch
    ) -> Float[Tensor, "prompt candidate inner"] | None:
        """Half the negative error at every position of the inner axis, unweighted; None without one.

        Raises:
            ConfigError: an element mask, or a sum over elements, beside it.
        """
        if self.inner_axis is None:
            return None
        if batch.element_mask is not None or self.reduction != "mean":
            got = "an element mask" if batch.element_mask is not None else f"reduction {self.reduction}"
            message = explain(
                "scores along time", got=got, expected="means over all elements of a latent frame"
            )
            raise ConfigError(message)
        return -0.5 * errors_along(prediction, target, axis=self.inner_axis)

    def describe(self) -> dict[str, str]:
        """Everything a stored error depends on, in words."""
        return {
            **self.schedule.describe(),
            "prediction": self.prediction,
            "timesteps": repr(self.timesteps),
            "share_noise": str(self.share_noise),
            "share_timestep": str(self.share_timestep),
            "error_space": self.error_space or self.prediction,
            "reduction": self.reduction,
            # Stored errors of runs without it keep the description they always had.
            **({} if self.weighting is None else {"weighting": repr(self.weighting)}),
            **({} if self.inner_axis is None else {"inner_axis": str(self.inner_axis)}),
        }

    def _error_weight(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        space = self.error_space or self.prediction
        weight = self.schedule.error_weight(timestep, source=self.prediction, to=space, dtype=dtype)
        if self.weighting is None:
            return weight
        return weight * self.weighting(self.schedule, timestep, space=space, dtype=dtype)

    def _timesteps(self, batch: Batch) -> Shaped[Tensor, "prompt candidate"]:
        num_candidates, keys = batch.num_candidates, unmirrored(batch.keys)
        if not self.share_timestep:
            return self.timesteps.sample(keys, self.schedule, num_candidates=num_candidates)
        return self.timesteps.sample(keys, self.schedule).unsqueeze(1).expand(-1, num_candidates)

    def _noise(self, batch: Batch) -> Float[Tensor, "prompt candidate *event"]:
        num_candidates, event = batch.num_candidates, tuple(batch.clean.shape[2:])
        key, sign = unmirrored(batch.keys).key, noise_sign(batch.keys)
        if self.share_noise:
            noise = row_normal(key, event, purpose="noise").unsqueeze(1)
        else:
            noise = row_normal(key, (num_candidates, *event), purpose="noise_candidate")
        if sign is not None:
            noise = noise * sign.view(-1, *(1 for _ in noise.shape[1:]))
        return noise.expand(-1, num_candidates, *event)


def _require_shape(where: str, got: Tensor, like: Tensor) -> None:
    if got.shape != like.shape:
        message = explain(
            where, got=f"{list(got.shape)}", expected=f"{list(like.shape)} (prompt, candidate, event)"
        )
        raise ShapeError(message)
