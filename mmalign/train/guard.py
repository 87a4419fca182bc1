"""The divergence guard: when the chosen samples get worse for long, say so, go back, or stop.

What is watched is `error/relative_chosen` of the panel: the policy's denoising error of chosen samples over
the reference's, less 1, on the same noise; of language models `nll/relative_chosen`, the same of the negative
log-likelihood of chosen answers, which rises when the margin grows by displacement. A run diverges when the
median of its last `patience` records is above `threshold`. A checkpoint is good when neither the record
before it nor the one after it was above; the start of a run is good too, as policy and reference are equal.

Nothing here touches a device or a file: records go in, decisions come out. The records are sums over all
ranks, so every rank decides alike. See `mmalign.train.rollback` for how a run goes back.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mmalign.train.sections import GuardConfig

__all__ = ["Decision", "Guard", "GuardState", "Remedy", "protected_steps", "remedies"]

Decision = Literal["go_on", "say", "roll_back", "stop"]

_WATCHED = (
    *("error/relative_chosen", "error/relative_candidates"),
    *("nll/relative_chosen", "nll/relative_answers"),
)
_REJECTED = ("error/relative_rejected", "nll/relative_rejected")
_KEPT = (
    *_WATCHED,
    *_REJECTED,
    "implicit_accuracy",
    "accuracy",
    "saturated",
    "grad_norm",
    "dropped_updates",
    "prompts",
)
_OPPOSITE = 0.1  # how far below one half the implicit accuracy lies when labels are suspected, at least
_SPIKE = 10.0  # a gradient norm over the median of those before it
_SATURATED = 0.5


@dataclass(frozen=True)
class Remedy:
    """Why a run diverges, as far as its records tell, and what to change.

    Args:
        cause: in words.
        changes: settings, the most promising first.
    """

    cause: str
    changes: tuple[str, ...]

    def __str__(self) -> str:
        """Both in one line."""
        return f"{self.cause} Try, in this order: {'; '.join(self.changes)}."


@dataclass
class GuardState:
    """What the guard remembers; JSON values throughout, saved with every checkpoint.

    Args:
        recent: the watched and the explaining numbers of the last records.
        alarmed: the run is above the threshold now, and has been warned.
        good_step: newest checkpoint known to be good.
        candidate: checkpoint whose next record decides.
        rollbacks: how often the run went back.
        rate_factor: what the learning rate is multiplied by.
        skipped: steps of data that rollbacks left behind.
        stopped: the settings under which the guard ended the run, else None.
        events: what happened, in order.
    """

    recent: list[dict[str, float]] = field(default_factory=list)
    alarmed: bool = False
    good_step: int | None = None
    candidate: int | None = None
    rollbacks: int = 0
    rate_factor: float = 1.0
    skipped: int = 0
    stopped: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)


class Guard:
    """Watches the records of one run.

    Args:
        config: when to act, and how; off by default.
        learning_rate: of the run, for the remedy.
        beta: of the run's objective, None where it has none.
        has_reference: whether the objective compares with a reference, which decides where beta should go.
        has_safeguard: whether the safeguard is on already.
        language: whether it watches a language model, which has likelihoods and no errors.
    """

    def __init__(
        self,
        config: GuardConfig | None = None,
        *,
        learning_rate: float | None = None,
        beta: float | None = None,
        has_reference: bool = True,
        has_safeguard: bool = False,
        language: bool = False,
    ) -> None:
        self.language = language
        self.config = config or GuardConfig(action="off")
        self.learning_rate, self.beta = learning_rate, beta
        self.has_reference, self.has_safeguard = has_reference, has_safeguard
        self.state = GuardState()

    # --- watching -------------------------------------------------------------------------------------------

    def observe(self, step: int, record: Mapping[str, float]) -> Decision:
        """What to do after a record: "say" is `message` for whoever watches. The same on every rank.

        Args:
            step: optimiser steps done.
            record: logged numbers; without the watched one it says nothing.
        """
        state, config = self.state, self.config
        value = _watched(record)
        if config.action == "off" or value is None:
            return "go_on"
        kept = {name: float(record[name]) for name in _KEPT if name in record}
        state.recent = [*state.recent, kept][-config.patience :]
        if value <= config.threshold and state.candidate is not None:
            state.good_step = state.candidate
        state.candidate = None
        risen = len(state.recent) == config.patience and self.level > config.threshold
        if not risen:
            if state.alarmed:
                state.alarmed = False
                self._note("recovered", step)
                return "say"
            return "go_on"
        if state.alarmed:
            return "go_on"
        return self._alarm(step)

    def _alarm(self, step: int) -> Decision:
        state, config = self.state, self.config
        state.alarmed = True
        decision: Decision = "say"
        if config.action == "rollback":
            able = state.good_step is not None and state.rollbacks < config.max_rollbacks
            decision = "roll_back" if able else "stop"
        elif config.action == "stop":
            decision = "stop"
        if decision == "stop":
            state.stopped = config.model_dump(mode="json")
        name = {"say": "diverging", "roll_back": "rolled back", "stop": "stopped"}[decision]
        self._note(name, step, remedy=str(self.remedy()))
        return decision

    def _note(self, what: str, step: int, **more: Any) -> None:
        self.state.events.append({"step": step, "event": what, "level": self.level, **more})

    @property
    def level(self) -> float:
        """Median over the last records of the chosen error over the reference's, less 1; NaN without any."""
        found = [value for value in map(_watched, self.state.recent) if value is not None]
        return statistics.median(found) if found else math.nan

    # --- checkpoints ----------------------------------------------------------------------------------------

    def saving(self, step: int) -> None:
        """A checkpoint of `step` is about to be written, together with this state."""
        state = self.state
        if step == 0:
            state.good_step = 0
        elif state.candidate is None and not state.alarmed and self._last_was_fine():
            state.candidate = step

    def _last_was_fine(self) -> bool:
        last = _watched(self.state.recent[-1]) if self.state.recent else None
        return last is None or last <= self.config.threshold

    @property
    def protected(self) -> tuple[int, ...]:
        """Steps whose checkpoints must not be pruned: those a rollback, or whoever reads of a stop, needs."""
        return protected_steps(self.config, self.state_dict())

    @property
    def wants_start(self) -> bool:
        """Whether the run should save its start, to have something to go back to."""
        return self.config.action == "rollback"

    def rolled_back(self, step: int, to: int) -> None:
        """The run goes back from `step` to `to`."""
        state = self.state
        state.rollbacks += 1
        state.rate_factor *= self.config.learning_rate_factor
        state.skipped += step - to
        state.recent, state.alarmed, state.candidate = [], False, None
        state.events[-1] |= {"to": to, "learning_rate_factor": state.rate_factor}

    # --- words ----------------------------------------------------------------------------------------------

    def remedy(self) -> Remedy:
        """What the last records say about the cause, and what to change."""
        return remedies(
            self.state.recent,
            learning_rate=None if self.learning_rate is None else self.learning_rate * self.state.rate_factor,
            beta=self.beta,
            has_reference=self.has_reference,
            has_safeguard=self.has_safeguard,
            language=self.language,
        )

    def message(self) -> str:
        """The last event as a line for whoever watches."""
        event, config = self.state.events[-1], self.config
        watched = "chosen answers' negative log-likelihood" if self.language else "chosen samples' error"
        if event["event"] == "recovered":
            return (
                f"guard: at step {event['step']} the {watched} is back below guard.threshold "
                f"{config.threshold:.0%} ({event['level']:+.1%})."
            )
        head = (
            f"guard: the run diverges: over the last {config.patience} records the {watched} is "
            f"{event['level']:+.1%} against the reference's (guard.threshold {config.threshold:.0%}), at "
            f"step {event['step']}."
        )
        return f"{head} {event['remedy']}{self._what_was_done(event)}"

    def _what_was_done(self, event: Mapping[str, Any]) -> str:
        config, state = self.config, self.state
        good = "the start" if state.good_step == 0 else f"step {state.good_step}"
        if event["event"] == "rolled back":
            return (
                f" Going back to {good}, with {event['learning_rate_factor']:g} of the learning rate and "
                f"other rows (rollback {state.rollbacks} of {config.max_rollbacks})."
            )
        if event["event"] == "stopped":
            last = "no good checkpoint is known" if state.good_step is None else f"last good: {good}"
            return f" The run is stopped ({last}); another guard setting goes on from here."
        return " guard.action=rollback or stop would act on it."

    def record(self) -> dict[str, float]:
        """What a logged record says of the guard; empty as long as nothing has happened."""
        found = {}
        if self.state.alarmed:
            found["guard/alarm"] = 1.0
        if self.state.rollbacks:
            found["guard/rollbacks"] = float(self.state.rollbacks)
        return found

    def summary(self) -> dict[str, Any]:
        """The guard's part of the training summary."""
        state = self.state
        return {
            "action": self.config.action,
            "alarm": state.alarmed,
            "stopped": state.stopped is not None,
            "rollbacks": state.rollbacks,
            "learning_rate_factor": state.rate_factor,
            "last_good_step": state.good_step,
            "events": list(state.events),
        }

    # --- saving ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as JSON values."""
        return {
            **{entry.name: getattr(self.state, entry.name) for entry in fields(GuardState)},
            "recent": [dict(entry) for entry in self.state.recent],
            "events": [dict(entry) for entry in self.state.events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; a checkpoint from before there was a guard gives an empty one.

        A run that was stopped goes on when any setting of its guard has changed; one that was only warned is
        judged anew where the guard may act now.
        """
        known = {entry.name for entry in fields(GuardState)}
        self.state = GuardState(**{name: value for name, value in state.items() if name in known})
        self.state.recent = [dict(entry) for entry in self.state.recent][-self.config.patience :]
        self.state.events = [dict(entry) for entry in self.state.events]
        if self.state.stopped not in (None, self.config.model_dump(mode="json")):
            self.state.stopped, self.state.alarmed = None, False
        if self.state.stopped is None and self.config.action in ("rollback", "stop"):
            self.state.alarmed = False


def protected_steps(config: GuardConfig, state: Mapping[str, Any]) -> tuple[int, ...]:
    """Steps whose checkpoints a guard of this state needs; none unless it may act.

    Args:
        config: of the guard.
        state: from a checkpoint, or `Guard.state_dict`.
    """
    if config.action not in ("rollback", "stop"):
        return ()
    return tuple(step for step in (state.get("good_step"), state.get("candidate")) if step is not None)


def _watched(record: Mapping[str, float]) -> float | None:
    """The watched number: of chosen samples, or of all where a row ranks several."""
    for name in _WATCHED:
        if name in record:
            return float(record[name])
    return None


def _mean(records: Sequence[Mapping[str, float]], *names: str) -> float:
    """Mean of the first of `names` that any record has; NaN without one."""
    for name in names:
        found = [record[name] for record in records if name in record]
        if found:
            return statistics.fmean(found)
    return math.nan


def remedies(
    records: Sequence[Mapping[str, float]],
    *,
    learning_rate: float | None = None,
    beta: float | None = None,
    has_reference: bool = True,
    has_safeguard: bool = False,
    language: bool = False,
) -> Remedy:
    """Cause and cure of a rising chosen error, from the panel.

    - gradient norms spike or updates are dropped: the steps are too large;
    - the rejected side is preferred: the labels are turned round;
    - the rejected error rises more than the chosen one: pushing rejected samples away drags the chosen along;
    - neither: both sides drift and nothing is separated, the steps are too large.

    Args:
        records: the last ones.
        learning_rate: now.
        beta: of the objective, None where it has none.
        has_reference: with one, a higher beta keeps the policy near it; without, beta weighs the margin, and
            a lower one lets the supervised part lead.
        has_safeguard: the safeguard is on already.
        language: answers have likelihoods, and a term that raises the chosen one's is the safeguard.
    """
    chosen, rejected = _mean(records, *_WATCHED), _mean(records, *_REJECTED)
    accuracy = _mean(records, "implicit_accuracy", "accuracy")
    slower = "a lower train.learning_rate"
    if learning_rate is not None:
        slower = f"train.learning_rate={learning_rate / 2:.3g} (half)"
    closer: tuple[str, ...] = ()
    if beta is not None:
        value, why = (2 * beta, "stays nearer the reference") if has_reference else (beta / 2, "pushes less")
        closer = (f"objective.beta={value:g} ({why})",)
    stop_earlier: tuple[str, ...] = ()
    if _mean(records, "saturated") > _SATURATED:
        stop_earlier = (f"fewer train.steps ({_mean(records, 'saturated'):.0%} of the pairs teach no more)",)
    if _spikes(records):
        cause = "Gradients spike or updates were dropped: the steps are too large."
        return Remedy(cause, (slower, "more train.warmup_steps", *closer))
    # Three standard errors of a coin, as far as the records tell how many pairs they are of.
    chance = 1.5 / math.sqrt(max(sum(record.get("prompts", math.inf) for record in records), 1.0))
    if accuracy < 0.5 - max(chance, _OPPOSITE):
        cause = f"The rejected side is preferred in {1 - accuracy:.0%} of the pairs: the labels look swapped."
        return Remedy(cause, ("`mmalign data check` on the pairs", slower))
    if rejected > max(chosen, 0.0):
        what = "answers' negative log-likelihood" if language else "samples' error"
        cause = f"The rejected {what} rises more ({rejected:+.1%}): pushing them away drags the chosen along."
        guarded: tuple[str, ...] = () if has_safeguard else ("the safeguard, safeguard.mu=0.9",)
        if language:
            guarded = ("a term that keeps the chosen answer likely (method dpop or rpo_sft)",)
        return Remedy(cause, (*guarded, slower, *closer, *stop_earlier))
    cause = "Both sides drift and the margin does not grow: the steps are too large."
    if math.isnan(rejected):
        cause = "The samples drift away from the reference: the steps are too large."
    return Remedy(cause, (slower, *closer, "a lower adapter.rank", *stop_earlier))


def _spikes(records: Sequence[Mapping[str, float]]) -> bool:
    norms = [record["grad_norm"] for record in records if "grad_norm" in record]
    dropped = [record["dropped_updates"] for record in records if "dropped_updates" in record]
    spiked = any(norms[n] > _SPIKE * statistics.median(norms[:n]) for n in range(1, len(norms)))
    return spiked or (len(dropped) > 1 and dropped[-1] > dropped[0])
