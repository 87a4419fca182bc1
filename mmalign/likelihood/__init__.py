"""How likely a candidate is under a model: schedules, timestep-sampled scores, references. Torch only.

elbo = Elbo(VPSchedule.from_scheduler_config(config), "epsilon", UniformTimesteps())
draw = elbo.draw(batch)
reference = AdaptersOff(denoise, adapter_toggle(network)).evaluate(elbo, batch, draw)
policy = elbo.evaluate(denoise, batch, draw)
"""

from mmalign.likelihood.base import Denoiser, Draw, Evaluation, Likelihood, Reference
from mmalign.likelihood.elbo import BetaUnits, Elbo, beta_conventions, squared_error
from mmalign.likelihood.reference import (
    AdaptersOff,
    EmaReference,
    FrozenCopy,
    NoReference,
    SyncedReference,
    adapter_toggle,
    make_reference,
)
from mmalign.likelihood.reference_rules import SyncRule
from mmalign.likelihood.schedules import (
    FlowSchedule,
    Prediction,
    Schedule,
    VPSchedule,
    prediction_from_config,
    schedule_from_config,
)
from mmalign.likelihood.stored import ReferenceTable, StoredReference, precompute_errors
from mmalign.likelihood.timesteps import (
    ListedTimesteps,
    LogitNormalTimesteps,
    TimestepSampler,
    UniformTimesteps,
)
from mmalign.likelihood.token_statistics import (
    log_sum_squares,
    normalised_entropy,
    sum_by_segment,
    token_log_probs,
    vocabulary_kl,
)

__all__ = [
    "AdaptersOff",
    "BetaUnits",
    "Denoiser",
    "Draw",
    "Elbo",
    "EmaReference",
    "Evaluation",
    "FlowSchedule",
    "FrozenCopy",
    "Likelihood",
    "ListedTimesteps",
    "LogitNormalTimesteps",
    "NoReference",
    "Prediction",
    "Reference",
    "ReferenceTable",
    "Schedule",
    "StoredReference",
    "SyncRule",
    "SyncedReference",
    "TimestepSampler",
    "UniformTimesteps",
    "VPSchedule",
    "adapter_toggle",
    "beta_conventions",
    "log_sum_squares",
    "make_reference",
    "normalised_entropy",
    "precompute_errors",
    "prediction_from_config",
    "schedule_from_config",
    "squared_error",
    "sum_by_segment",
    "token_log_probs",
    "vocabulary_kl",
]
