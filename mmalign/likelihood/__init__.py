"""How likely a candidate is under a model: timestep-sampled scores, tokens, references. Torch only.

elbo = Elbo(VPSchedule.from_scheduler_config(config), "epsilon", UniformTimesteps())
draw = elbo.draw(batch)
reference = AdaptersOff(denoise, adapter_toggle(network)).evaluate(elbo, batch, draw)
policy = elbo.evaluate(denoise, batch, draw)
"""

from mmalign.likelihood.adapters import adapter_toggle, adapters_off
from mmalign.likelihood.base import (
    AnyDraw,
    AnyPolicy,
    Denoiser,
    Draw,
    Evaluation,
    Likelihood,
    Reference,
    TokenDraw,
    TokenPolicy,
)
from mmalign.likelihood.cosine_schedule import CosineSchedule
from mmalign.likelihood.draws import Draws
from mmalign.likelihood.elbo import BetaUnits, Elbo, beta_conventions, squared_error
from mmalign.likelihood.inversion import Inversion, InversionMethod
from mmalign.likelihood.inversion_steps import Landing
from mmalign.likelihood.kernels import (
    Ddim,
    DpmSolver,
    Estimate,
    FlowSde,
    Moments,
    Step,
    TransitionKernel,
    log_probability,
)
from mmalign.likelihood.own_answers import head_argmax, with_own_answers
from mmalign.likelihood.reference import (
    AdaptersOff,
    EmaReference,
    FrozenCopy,
    NoReference,
    SyncedReference,
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
from mmalign.likelihood.snapshots import SnapshotPool
from mmalign.likelihood.stored import ReferenceTable, StoredReference, precompute_errors
from mmalign.likelihood.stored_tokens import CONTENT_KEY, StoredTokenReference, precompute_log_probs
from mmalign.likelihood.timesteps import (
    ListedTimesteps,
    LogitNormalTimesteps,
    TimestepSampler,
    UniformTimesteps,
)
from mmalign.likelihood.token_head import TokenHead, TokenStates, head_log_probs, token_head
from mmalign.likelihood.token_head_statistics import HeadStatistic, head_statistics
from mmalign.likelihood.token_statistics import (
    log_sum_squares,
    normalised_entropy,
    sum_by_segment,
    token_log_probs,
    vocabulary_kl,
)
from mmalign.likelihood.token_table import TokenTable, content_key
from mmalign.likelihood.tokens import Tokens, scatter_scored
from mmalign.likelihood.transition import Transition, guided, split_guidance

__all__ = [
    "CONTENT_KEY",
    "AdaptersOff",
    "AnyDraw",
    "AnyPolicy",
    "BetaUnits",
    "CosineSchedule",
    "Ddim",
    "Denoiser",
    "DpmSolver",
    "Draw",
    "Draws",
    "Elbo",
    "EmaReference",
    "Estimate",
    "Evaluation",
    "FlowSchedule",
    "FlowSde",
    "FrozenCopy",
    "HeadStatistic",
    "Inversion",
    "InversionMethod",
    "Landing",
    "Likelihood",
    "ListedTimesteps",
    "LogitNormalTimesteps",
    "Moments",
    "NoReference",
    "Prediction",
    "Reference",
    "ReferenceTable",
    "Schedule",
    "SnapshotPool",
    "Step",
    "StoredReference",
    "StoredTokenReference",
    "SyncRule",
    "SyncedReference",
    "TimestepSampler",
    "TokenDraw",
    "TokenHead",
    "TokenPolicy",
    "TokenStates",
    "TokenTable",
    "Tokens",
    "Transition",
    "TransitionKernel",
    "UniformTimesteps",
    "VPSchedule",
    "adapter_toggle",
    "adapters_off",
    "beta_conventions",
    "content_key",
    "guided",
    "head_argmax",
    "head_log_probs",
    "head_statistics",
    "log_probability",
    "log_sum_squares",
    "make_reference",
    "normalised_entropy",
    "precompute_errors",
    "precompute_log_probs",
    "prediction_from_config",
    "scatter_scored",
    "schedule_from_config",
    "split_guidance",
    "squared_error",
    "sum_by_segment",
    "token_head",
    "token_log_probs",
    "vocabulary_kl",
    "with_own_answers",
]
