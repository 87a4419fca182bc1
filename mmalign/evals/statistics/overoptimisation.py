"""Is training still making things better, or only the reward it trains on? Gains, and a warning in words.

A proxy reward that keeps growing while rewards of other families fall is the sign of over-optimisation
(reward hacking). Every reward is measured in standard deviations of the base model's scores, so that they can
be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.statistics.bootstrap import DEFAULT, Resampling, bootstrap_mean
from mmalign.evals.statistics.inputs import Matrix, Values, as_matrix, as_vector
from mmalign.evals.statistics.results import Interval, Result

__all__ = [
    "Overoptimisation",
    "overoptimisation_report",
    "standardised_gain",
]

_FEW_HELD_OUT = 3
_FALLS = 2  # checkpoints in a row
_MOVED = 0.5  # base standard deviations at which a picture statistic is worth a word
_SYMPTOMS = {
    "saturation": ("colours are getting stronger", "colours are fading"),
    "contrast": ("contrast is growing", "contrast is fading"),
    "sharpness": ("pictures are getting sharper than the base model's", "pictures are getting blurred"),
    "bytes_per_pixel": ("pictures fill with fine detail or noise", "pictures are getting flat"),
    "brightness": ("pictures are getting brighter", "pictures are getting darker"),
    "length": ("answers are getting longer", "answers are getting shorter"),
    "diversity": ("samples of one prompt differ more", "samples of one prompt are becoming alike"),
}


def standardised_gain(scores: Matrix) -> Float64[np.ndarray, " checkpoint"]:
    """Mean gain over the base model in standard deviations of the base model's scores.

    gain_c = mean over prompts of (x_c - x_0) / std(x_0), sample standard deviation

    Args:
        scores: [checkpoint, prompt]; row 0 is the base model. NaN = failed: a checkpoint's gain is over the
            prompts that it and the base model both have.

    Returns:
        One gain per checkpoint, 0 for the base model; NaN where all of a checkpoint failed.

    Raises:
        ConfigError: one prompt, a base model without spread, no scores.
    """
    return _mean_gains(_prompt_gains(scores))


def _prompt_gains(scores: Matrix) -> Float64[np.ndarray, "checkpoint prompt"]:
    table = as_matrix("standardised_gain", scores, missing_ok=True)
    base = table[0][~np.isnan(table[0])]
    spread = float(base.std(ddof=1)) if len(base) > 1 else 0.0
    if not spread > 1e-12 * max(float(np.abs(base).max(initial=0.0)), 1e-300):
        message = explain(
            "standardised_gain",
            got=f"{len(base)} base scores with standard deviation {spread:.3g}",
            expected="at least two prompts on which the base model scores differently",
        )
        raise ConfigError(message)
    return np.asarray((table - table[0]) / spread)


def _mean_gains(table: Float64[np.ndarray, "checkpoint prompt"]) -> Float64[np.ndarray, " checkpoint"]:
    there = ~np.isnan(table)
    gains = np.full(len(table), np.nan)
    np.divide(np.where(there, table, 0.0).sum(axis=1), there.sum(axis=1), out=gains, where=there.any(axis=1))
    return gains


@dataclass(frozen=True)
class Overoptimisation(Result):
    """The gains of a training run's checkpoints, and whether they are real.

    Args:
        checkpoints: names; the first is the base model.
        proxy: name of the reward that was trained on.
        proxy_gain: its standardised gain.
        held_out: standardised gains of rewards that were not.
        held_out_mean: their mean.
        gap: proxy gain - mean held-out gain.
        symptoms: standardised change of picture or text statistics (saturation, sharpness, length, ...).
        drift: distance from the base model, where given (KL, KID).
        alarm: proxy gain grew while the mean held-out gain fell for two checkpoints in a row.
        alarm_from: the checkpoint before the fall: the last one to trust; empty without an alarm.
        fall: change of the mean held-out gain over the two checkpoints of the alarm, with its interval over
            prompts; None without an alarm, or where rewards were not measured on the same prompts.
        best: the checkpoint with the highest mean held-out gain.
        warnings: what is wrong, in words; empty where nothing is.
    """

    checkpoints: tuple[str, ...]
    proxy: str
    proxy_gain: Float64[np.ndarray, " checkpoint"]
    held_out: Mapping[str, Float64[np.ndarray, " checkpoint"]]
    held_out_mean: Float64[np.ndarray, " checkpoint"]
    gap: Float64[np.ndarray, " checkpoint"]
    symptoms: Mapping[str, Float64[np.ndarray, " checkpoint"]]
    drift: Float64[np.ndarray, " checkpoint"] | None
    alarm: bool
    alarm_from: str
    fall: Interval | None
    best: str
    warnings: tuple[str, ...]

    def describe(self) -> str:
        """A table of gains, then the warnings."""
        width = max(len(name) for name in self.checkpoints)
        lines = [f"{'':<{width}}  proxy   held out   drift"]
        for place, name in enumerate(self.checkpoints):
            drift = "" if self.drift is None else f"{self.drift[place]:7.3g}"
            gains = f"{self.proxy_gain[place]:+6.2f}   {self.held_out_mean[place]:+8.2f}"
            lines.append(f"{name:<{width}}  {gains}   {drift}".rstrip())
        return "\n".join([*lines, *(self.warnings or ("No sign of over-optimisation.",))])


def overoptimisation_report(
    proxy_scores: Matrix,
    held_out_scores: Mapping[str, Matrix],
    *,
    checkpoints: Sequence[str] | None = None,
    proxy: str = "the training reward",
    symptoms: Mapping[str, Matrix] | None = None,
    drift: Values | None = None,
    how: Resampling = DEFAULT,
) -> Overoptimisation:
    """Over-optimisation report of a run: what the training reward gained, and what others say.

    Alarm: for two checkpoints in a row the proxy gain grows and the mean held-out gain falls.

    Args:
        proxy_scores: [checkpoint, prompt] scores of the reward that was trained on; row 0 is the base model.
        held_out_scores: by name, the same of rewards that were not, from other families (a CLIP type, a BLIP
            type, a VLM judge): three at least, or the report says that there are too few.
        checkpoints: names; numbers where not given.
        proxy: name of the training reward.
        symptoms: by name, [checkpoint, prompt] statistics of the samples (`saturation`, `contrast`,
            `sharpness`, `bytes_per_pixel`, `brightness`, `length`, `diversity`, or others).
        drift: distance of each checkpoint from the base model.
        how: the bootstrap of `fall`.

    Raises:
        ShapeError: different numbers of checkpoints.
        ConfigError: no held-out reward, one checkpoint only, a base model whose scores do not vary.
    """
    proxy_gain = standardised_gain(proxy_scores)
    if not held_out_scores or len(proxy_gain) < 2:
        got = f"{len(held_out_scores)} held-out rewards, {len(proxy_gain)} checkpoints"
        expected = "at least one held-out reward, the base model and one checkpoint"
        raise ConfigError(explain("overoptimisation", got=got, expected=expected))
    names = tuple(checkpoints) if checkpoints is not None else tuple(str(n) for n in range(len(proxy_gain)))
    tables = {name: _prompt_gains(table) for name, table in held_out_scores.items()}
    gains = {name: _mean_gains(table) for name, table in tables.items()}
    moved = {name: standardised_gain(table) for name, table in (symptoms or {}).items()}
    distance = None if drift is None else as_vector("overoptimisation drift", drift)
    sizes = {"checkpoints": names, **gains, **moved, **({} if distance is None else {"drift": distance})}
    for what, values in sizes.items():
        if len(values) != len(proxy_gain):
            expected = f"{len(proxy_gain)} checkpoints, as in the proxy's scores"
            raise ShapeError(explain(f"overoptimisation {what}", got=len(values), expected=expected))
    mean = np.stack(list(gains.values())).mean(axis=0)
    start = _alarm_start(proxy_gain, mean)
    fall = None if start is None else _fall(list(tables.values()), start, how)
    best = int(np.nanargmax(mean)) if not np.isnan(mean).all() else 0
    return Overoptimisation(
        checkpoints=names,
        proxy=proxy,
        proxy_gain=proxy_gain,
        held_out=gains,
        held_out_mean=mean,
        gap=proxy_gain - mean,
        symptoms=moved,
        drift=distance,
        alarm=start is not None,
        alarm_from="" if start is None else names[start],
        fall=fall,
        best=names[best],
        warnings=tuple(_warnings(names, proxy, proxy_gain, gains, mean, moved, start, fall, best)),
    )


def _alarm_start(
    proxy: Float64[np.ndarray, " checkpoint"], held_out: Float64[np.ndarray, " checkpoint"]
) -> int | None:
    """The checkpoint before the first two in a row at which the proxy grows and the others fall."""
    # A step to or from a failed (NaN) checkpoint is no evidence: comparisons with NaN are False.
    apart = (np.diff(proxy) > 0) & (np.diff(held_out) < 0)
    for place in range(len(apart) - _FALLS + 1):
        if apart[place : place + _FALLS].all():
            return place
    return None


def _fall(
    tables: list[Float64[np.ndarray, "checkpoint prompt"]], start: int, how: Resampling
) -> Interval | None:
    """How far the mean held-out gain fell over the alarm, prompts resampled."""
    changes = [table[start + _FALLS] - table[start] for table in tables]
    if len({len(change) for change in changes}) > 1:
        return None
    change = np.stack(changes).mean(axis=0)
    known = change[~np.isnan(change)]
    return bootstrap_mean(known, how) if len(known) else None


def _warnings(
    names: tuple[str, ...],
    proxy: str,
    proxy_gain: Float64[np.ndarray, " checkpoint"],
    gains: Mapping[str, Float64[np.ndarray, " checkpoint"]],
    mean: Float64[np.ndarray, " checkpoint"],
    symptoms: Mapping[str, Float64[np.ndarray, " checkpoint"]],
    start: int | None,
    fall: Interval | None,
    best: int,
) -> list[str]:
    """What a person should be told, most serious first."""
    told = []
    if start is not None:
        noise = (
            " That fall is within the noise of these prompts." if fall is not None and fall.holds(0.0) else ""
        )
        told.append(
            f"Over-optimisation: from {names[start]} on, {proxy} rose from {proxy_gain[start]:+.2f} to "
            f"{proxy_gain[start + _FALLS]:+.2f} standard deviations while the held-out rewards fell from "
            f"{mean[start]:+.2f} to {mean[start + _FALLS]:+.2f}.{noise} Use {names[best]}, which they rate "
            "highest."
        )
    against = [name for name, gain in gains.items() if gain[-1] < 0]
    if proxy_gain[-1] > 0 and against:
        values = ", ".join(f"{name} ({gains[name][-1]:+.2f})" for name in against)
        told.append(
            f"{names[-1]} is better than the base model by {proxy} ({proxy_gain[-1]:+.2f}) and worse by "
            f"{values}."
        )
    for name, change in symptoms.items():
        if abs(change[-1]) >= _MOVED:
            up, down = _SYMPTOMS.get(name, (f"{name} is growing", f"{name} is falling"))
            told.append(
                f"{names[-1]}: {up if change[-1] > 0 else down} ({name} {change[-1]:+.2f} sd of the base)."
            )
    failed = [name for name, gain in {proxy: proxy_gain, **gains}.items() if np.isnan(gain).any()]
    if failed:
        told.append(
            f"Some checkpoints have no scores at all by {', '.join(failed)}; they cannot raise an alarm."
        )
    if len(gains) < _FEW_HELD_OUT:
        told.append(
            f"Only {len(gains)} held-out reward{'s' if len(gains) > 1 else ''}: use three of different "
            "families (CLIP, BLIP, VLM), since rewards of one family share their mistakes."
        )
    return told
