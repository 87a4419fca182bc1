"""What a run stands on, and what keeps it from drifting: the sections `likelihood` and `safeguard`."""

from collections.abc import Mapping

from mmalign.errors import ConfigError, explain
from mmalign.methods.row import Default, Method
from mmalign.train.resolving.row_defaults import Settings, fill
from mmalign.train.sections import InversionConfig, LikelihoodConfig, RunConfig, SafeguardConfig
from mmalign.train.token_sections import tokens_of

__all__ = ["LIKELIHOOD_SETTINGS", "resolve_likelihood", "resolve_safeguard"]

_INVERSION: Settings = {
    "method": ("inversion_method", "ddim"),
    "num_steps": ("inversion_steps", None),
    "eta": ("inversion_eta", None),
}
_LEVELS: Settings = {
    "snr_gamma": ("snr_gamma", None),
    "snr_form": ("snr_form", None),
    "share_noise": ("share_noise", None),
}

_WITHOUT_DRAWS: Mapping[str, str] = {
    "inversion": "noise that the policy's own trajectory decides",
    "on_policy": "noised samples that came from a trajectory of the policy",
    "transition": "states of one sampled trajectory",
    "reward": "a reward's gradient and no noise to draw",
}
"""What stands in the place of a draw."""

LIKELIHOOD_SETTINGS = (_INVERSION, _LEVELS)
"""Tables of what comes from rows under names of their own."""


def resolve_likelihood(
    config: RunConfig, method: Method, defaults: Mapping[str, Default], filled: dict[str, Default], path: str
) -> LikelihoodConfig:
    """The likelihood with its kind and the settings of an inversion decided.

    Raises:
        ConfigError: the method stands on another likelihood.
    """
    likelihood = config.likelihood
    own = method.likelihood or ("elbo" if tokens_of(config) is None else "tokens")
    kind = own if likelihood.kind == "auto" else likelihood.kind
    free = ("elbo", "inversion")
    if kind != own and not (kind in free and own in free):
        message = explain(
            f"{path}: likelihood.kind", got=kind, expected=f"auto: method {method.name} stands on {own}"
        )
        raise ConfigError(message)
    if kind == "tokens" and (given := likelihood.model_dump(exclude_defaults=True, exclude={"kind"})):
        message = explain(
            f"{path}: likelihood",
            got=str(given),
            expected="no settings: log-probabilities of tokens know no timesteps and no noise",
            do="Take the section out.",
        )
        raise ConfigError(message)
    if kind != "elbo" and (likelihood.draws > 1 or likelihood.antithetic):
        message = explain(
            f"{path}: likelihood.draws",
            got=f"{likelihood.draws}{' antithetic' if likelihood.antithetic else ''} with likelihood {kind}",
            expected="1: only denoising errors at noise that nobody else has a say in (likelihood elbo) can "
            f"be drawn again for the same row; method {method.name} has "
            f"{_WITHOUT_DRAWS.get(kind, 'noise of its own')}",
            do="Take draws and antithetic out, or raise train.batch_size for gradients with less noise.",
        )
        raise ConfigError(message)
    if config.train.split_backward and kind in ("tokens", "reward"):
        message = explain(
            f"{path}: train.split_backward",
            got=True,
            expected=f"false: likelihood {kind} does not score candidates one by one",
            do="Lower train.batch_size, or use model.gradient_checkpointing=true.",
        )
        raise ConfigError(message)
    inversion = likelihood.inversion
    if kind == "inversion":
        values = fill(inversion, _INVERSION, "likelihood.inversion", defaults, filled)
        inversion = InversionConfig.model_validate(values)
    elif inversion != InversionConfig():
        message = explain(
            f"{path}: likelihood.inversion",
            got=str(inversion.model_dump(exclude_defaults=True)),
            expected=f"nothing: likelihood {kind} inverts nothing",
            do="Set likelihood.kind=inversion, or take the section out.",
        )
        raise ConfigError(message)
    levels = fill(likelihood, _LEVELS, "likelihood", defaults, filled) if kind != "tokens" else {}
    if levels and levels["snr_form"] is not None and levels["snr_gamma"] is None:
        message = explain(
            f"{path}: likelihood.snr_form", got=levels["snr_form"], expected="likelihood.snr_gamma beside it"
        )
        raise ConfigError(message)
    return LikelihoodConfig.model_validate(
        {**likelihood.model_dump(), **levels, "kind": kind, "inversion": inversion.model_dump()}
    )


def resolve_safeguard(
    config: RunConfig, method: Method, defaults: Mapping[str, Default], filled: dict[str, Default], path: str
) -> SafeguardConfig:
    """The safeguard; a method that is one takes its mu from its row.

    Raises:
        ConfigError: the method needs the number and nobody gives it.
    """
    from mmalign import objectives

    safeguard = config.safeguard
    if "safeguard" not in objectives.row(method.objective).needs or safeguard.mu is not None:
        return safeguard
    if "mu" not in defaults:
        message = f"{path}: safeguard.mu: missing, and method {method.name!r} has no default for this family."
        raise ConfigError(message)
    values = fill(safeguard, {"mu": ("mu", None)}, "safeguard", defaults, filled)
    return SafeguardConfig.model_validate(values)
