"""References: the scores the policy is compared with, each way of having them without waste.

    kind          second network   moves   what it is
    adapters_off  no               no      the same network with its adapters switched off
    frozen        yes              no      a copy, optionally kept on the CPU between uses
    ema           no               yes     the trained weights' moving average, swapped in for the forward
    synced        no               yes     the trained weights as they were some steps ago, or a mix (TR-DPO)
    stored        no               no      computed once (`stored.py`, `stored_tokens.py`)
    none          no               no      for objectives without a reference

A step evaluates the reference first, under no_grad: the policy's graph is then not alive while it runs.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.batch import Batch
from mmalign.errors import CheckpointError, ConfigError, HyperparameterError, explain, unknown_name
from mmalign.likelihood.adapters import Toggle, adapter_toggle
from mmalign.likelihood.base import AnyDraw, AnyPolicy, Evaluation, Likelihood, Reference
from mmalign.likelihood.reference_rules import SyncRule
from mmalign.likelihood.schedules import Number
from mmalign.likelihood.stored import ReferenceTable, StoredReference
from mmalign.likelihood.stored_tokens import StoredTokenReference
from mmalign.likelihood.token_table import TokenTable
from mmalign.likelihood.trained_weights import TrainedWeights
from mmalign.sharded import local_parts, place

__all__ = [
    "AdaptersOff",
    "EmaReference",
    "FrozenCopy",
    "NoReference",
    "SyncedReference",
    "make_reference",
]


class NoReference:
    """For objectives that compare with nothing."""

    kind = "none"

    def evaluate(
        self, likelihood: Likelihood, batch: Batch, draw: AnyDraw, *, keep_prediction: bool = False
    ) -> Evaluation | None:
        """None."""
        del likelihood, batch, draw, keep_prediction
        return None

    def update(self, step: int) -> None:
        """Nothing moves."""
        del step


class AdaptersOff:
    """The trained network with its adapters switched off: no second model.

    Args:
        denoise: the policy's own denoiser or language model.
        toggle: from `adapter_toggle`, or any factory of contexts that switch adapters off and on again.
    """

    kind = "adapters_off"

    def __init__(self, denoise: AnyPolicy, toggle: Toggle) -> None:
        self._denoise = denoise
        self._toggle = toggle

    def evaluate(
        self, likelihood: Likelihood, batch: Batch, draw: AnyDraw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Scores without adapters; they are on again afterwards, also after an error."""
        with torch.no_grad(), self._toggle():
            return likelihood.evaluate(self._denoise, batch, draw, keep_prediction=keep_prediction)

    def update(self, step: int) -> None:
        """Nothing moves."""
        del step


class FrozenCopy:
    """A second network that never changes.

    Args:
        network: the reference's weights; frozen here and put into evaluation mode.
        make_denoise: builds a denoiser (or `TokenPolicy`) around a network.
        offload: keep the network on the CPU between uses; each use moves it to the batch's device and back.
    """

    kind = "frozen"

    def __init__(
        self, network: nn.Module, make_denoise: Callable[[nn.Module], AnyPolicy], *, offload: bool = False
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.offload = offload
        self._denoise = make_denoise(self.network)
        if offload:
            self.network.to("cpu")

    @classmethod
    def copy_of(
        cls,
        network: nn.Module,
        make_denoise: Callable[[nn.Module], AnyPolicy],
        *,
        offload: bool = False,
        dtype: torch.dtype | None = None,
    ) -> "FrozenCopy":
        """A frozen copy of `network` as it is now; the original keeps its own gradients and mode.

        Args:
            network: what to copy.
            make_denoise: builds a denoiser (or `TokenPolicy`) around a network.
            offload: see the class.
            dtype: of the copy. Another dtype than the policy computes in puts rounding noise on the logit.
        """
        copied = copy.deepcopy(network)
        return cls(copied if dtype is None else copied.to(dtype), make_denoise, offload=offload)

    def evaluate(
        self, likelihood: Likelihood, batch: Batch, draw: AnyDraw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Scores of the copy."""
        if self.offload:
            self.network.to(batch.clean.device)
        try:
            with torch.no_grad():
                return likelihood.evaluate(self._denoise, batch, draw, keep_prediction=keep_prediction)
        finally:
            if self.offload:
                self.network.to("cpu")

    def update(self, step: int) -> None:
        """Nothing moves."""
        del step


class EmaReference:
    """The moving average of the trained weights: `shadow <- decay * shadow + (1 - decay) * trained`.

    Only trained weights are kept twice; for the forward they are swapped in, so there is no second network.
    Decay 0 with `every` is a reference that is replaced by the policy every so many steps.

    Args:
        network: the trained network, before its first step.
        denoise: the policy's own denoiser or language model.
        decay: in [0, 1]; 1 never moves.
        every: follow the policy every so many optimiser steps.

    Source: 2404.09656, equations 7 and 8 (there alpha = 1 - decay and tau = every).
    """

    kind = "ema"

    def __init__(self, network: nn.Module, denoise: AnyPolicy, *, decay: Number, every: int = 1) -> None:
        if not 0.0 <= decay <= 1.0:
            raise HyperparameterError(
                explain("EmaReference decay", got=decay, expected="a number between 0 and 1")
            )
        if every < 1:
            raise HyperparameterError(
                explain("EmaReference every", got=every, expected="at least 1 optimiser step")
            )
        self.decay = decay
        self.every = every
        self._denoise = denoise
        self._trained = TrainedWeights(network)
        self._shadow = self._trained.copy()

    def evaluate(
        self, likelihood: Likelihood, batch: Batch, draw: AnyDraw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Scores with the averaged weights; the trained ones are back afterwards, also after an error."""
        with torch.no_grad(), self._trained.swapped(self._shadow):
            return likelihood.evaluate(self._denoise, batch, draw, keep_prediction=keep_prediction)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the policy when `step` is a multiple of `every`."""
        if step % self.every == 0:
            self._move(1.0 - self.decay)

    @torch.no_grad()
    def _move(self, share: Number) -> None:
        shadow = local_parts(list(self._shadow.values()))
        torch._foreach_lerp_(shadow, local_parts(self._trained.values()), share)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name."""
        return dict(self._shadow)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            CheckpointError: other names or shapes than the trained weights.
        """
        wrong = self._trained.misfits(state)
        if wrong:
            message = (
                f"reference average: {len(wrong)} weights differ from the network's (first: {wrong[:3]}). "
                "Was the run made with another adapter or network?"
            )
            raise CheckpointError(message)
        for name, value in self._shadow.items():
            place(value, state[name])


class SyncedReference(EmaReference):
    """TR-DPO: every so many optimiser steps `shadow <- (1 - mixing) * shadow + mixing * trained`.

    A moving average that stands still between its moves; swapped in and saved like `EmaReference`.

    Args:
        network: the trained network, before its first step.
        denoise: the policy's own denoiser or language model.
        rule: how often, and how much of the policy the new reference takes (1 replaces it).

    Source: 2404.09656, equations 7 and 8.
    """

    kind = "synced"

    def __init__(self, network: nn.Module, denoise: AnyPolicy, *, rule: SyncRule) -> None:
        super().__init__(network, denoise, decay=1.0 - rule.mixing, every=rule.every)
        self.rule = rule

    def update(self, step: int) -> None:
        """Move when the rule says so."""
        if self.rule.is_due(step):
            self._move(self.rule.mixing)


_KINDS = ("adapters_off", "frozen", "ema", "synced", "stored", "none")


def make_reference(
    kind: str,
    *,
    network: nn.Module | None = None,
    make_denoise: Callable[[nn.Module], AnyPolicy] | None = None,
    offload: bool = False,
    dtype: torch.dtype | None = None,
    decay: Number | None = None,
    every: int = 1,
    rule: SyncRule | None = None,
    table: ReferenceTable | TokenTable | None = None,
    facts: Mapping[str, str] | None = None,
    likelihood: Likelihood | None = None,
) -> Reference:
    """The reference of a run config's `reference.kind`.

    Args:
        kind: adapters_off, frozen, ema, synced, stored or none.
        network: the trained network (all kinds but stored and none).
        make_denoise: builds a denoiser (or `TokenPolicy`) around a network (same).
        offload: frozen: keep the copy on the CPU between uses.
        dtype: frozen: dtype of the copy.
        decay: ema: decay per update.
        every: ema: optimiser steps per update.
        rule: synced: when it moves, and how far.
        table: stored: the precomputed errors, or log-probabilities of a language model.
        facts: stored: what the run's numbers depend on besides the likelihood; compared with the table's.
        likelihood: stored: adds what the scores depend on.

    Raises:
        UnknownNameError: no such kind.
        ConfigError: the kind lacks one of its arguments.
    """
    if kind not in _KINDS:
        raise unknown_name("reference kind", kind, _KINDS)
    if kind == "none":
        return NoReference()
    if kind == "stored":
        table, likelihood = _given(kind, "table", table), _given(kind, "likelihood", likelihood)
        if isinstance(table, TokenTable):
            return StoredTokenReference(table, likelihood, facts or {})
        return StoredReference(table, likelihood, facts or {})
    network = _given(kind, "network", network)
    make_denoise = _given(kind, "make_denoise", make_denoise)
    if kind == "frozen":
        return FrozenCopy.copy_of(network, make_denoise, offload=offload, dtype=dtype)
    if kind == "ema":
        return EmaReference(network, make_denoise(network), decay=_given(kind, "decay", decay), every=every)
    if kind == "synced":
        return SyncedReference(network, make_denoise(network), rule=_given(kind, "rule", rule))
    return AdaptersOff(make_denoise(network), adapter_toggle(network))


def _given(kind: str, name: str, value: Any) -> Any:
    if value is None:
        raise ConfigError(explain(f"reference {kind}", got=f"no {name}", expected=f"the argument {name}"))
    return value
