"""Filling a configuration from its method's row, and remembering what differs from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.methods.row import ROLLOUTS, Default, Method
from mmalign.train.audio_sections import AudioRunConfig
from mmalign.train.resolving.likelihood import LIKELIHOOD_SETTINGS, resolve_likelihood, resolve_safeguard
from mmalign.train.resolving.reference import SYNC, require_stored_fits, resolve_reference
from mmalign.train.resolving.rollout import ROLLOUT_SETTINGS, resolve_rollout
from mmalign.train.resolving.row_defaults import defaults_of
from mmalign.train.resolving.tokens import TOKEN_SETTINGS, resolve_tokens
from mmalign.train.resolving.training import resolve_adapter, resolve_train
from mmalign.train.sections import RunConfig
from mmalign.train.token_sections import tokens_of

__all__ = ["ROW_SETTINGS", "Difference", "ResolvedRun", "resolve_with_row"]

_TABLES = (*LIKELIHOOD_SETTINGS, *ROLLOUT_SETTINGS, *TOKEN_SETTINGS)

ROW_SETTINGS: frozenset[str] = frozenset(
    {"mu", "lora_alpha", *(key for table in _TABLES for key, _ in table.values())}
)
"""Keys of a row's defaults that are named otherwise in their sections."""

# What a training run does besides the objective; a method with another function needs its own loop.
_FUNCTIONS = frozenset({"mmalign.likelihood.reference_rules.SyncRule"})


@dataclass(frozen=True)
class Difference:
    """A setting that differs from the method's row."""

    setting: str
    value: object
    row_value: object
    mark: str


@dataclass(frozen=True)
class ResolvedRun:
    """A configuration with everything decided.

    Args:
        config: the file, the overrides and the row's defaults merged.
        method: the method's row.
        objective_arguments: what the objective is built with.
        filled: settings the row supplied, with their evidence.
        differences: settings that differ from the row.
        path: the file, for messages.
    """

    config: RunConfig
    method: Method
    objective_arguments: dict[str, float | int | str | bool]
    filled: dict[str, Default] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    path: str = ""


_TIMED = ("audio", "video")


def _require_suits(method: Method, path: str, *, modality: str) -> None:
    """Refuse a row whose objective means nothing on this likelihood, or needs what no step supplies."""
    language = modality == "language"
    from mmalign import objectives
    from mmalign.train.supply import IN_TIME, RECORDED, SUPPLIED
    from mmalign.train.token_supply import SUPPLIED_TOKENS

    own = "tokens" if language else "elbo"
    likelihood = method.likelihood or own
    row = objectives.row(method.objective)
    if language:
        supplied = SUPPLIED_TOKENS | {view.becomes for view in method.views}
    else:
        supplied = SUPPLIED if method.rollout in ROLLOUTS else SUPPLIED - RECORDED
        supplied = supplied | IN_TIME if modality in _TIMED else supplied
    missing = row.needs - supplied
    if (likelihood == "tokens") != language:
        kinds = ("language models", "image models" if language else f"{modality} models")
        reason = f"is for {kinds[language]}, and this family is one of {kinds[not language]}"
    elif likelihood in row.refuses:
        reason = f"makes no sense on the likelihood {likelihood!r}: {row.refuses[likelihood]}"
    elif missing:
        reason = f"needs {', '.join(sorted(missing))} of every candidate, which these runs do not supply"
    else:
        return
    message = f"{path}: method: {method.name!r} {reason}. `mmalign methods` lists the others."
    raise ConfigError(message)


def resolve_with_row(config: RunConfig, path: str) -> ResolvedRun:
    """The run of a validated configuration.

    Args:
        config: what the file and the overrides say.
        path: the file, for messages.

    Raises:
        ConfigError: the method cannot be trained so, or a number is missing.
        UnknownNameError: the method or an objective argument does not exist.
    """
    from mmalign import methods, objectives, registry

    method = methods.find(config.method)
    if method.function and method.function not in _FUNCTIONS:
        message = explain(
            f"{path}: method",
            got=method.name,
            expected="a method that is its objective and its reference, and nothing else",
            do=f"This one needs {method.function}: call it in a loop of your own.",
        )
        raise ConfigError(message)
    modality = registry.modality(config.model.family)
    if config.model.channels_last and modality != "image":
        message = explain(
            f"{path}: model.channels_last",
            got=True,
            expected=f"false: family {config.model.family} makes no pictures, and has other filters",
        )
        raise ConfigError(message)
    _require_suits(method, path, modality=modality)
    defaults = defaults_of(method, config.model.family, modality)
    parameters = objectives.signature(method.objective).parameters
    arguments: dict[str, float | int | str | bool] = {
        name: item.value for name, item in defaults.items() if name in parameters
    }
    arguments |= dict(method.objective_arguments)
    for name in config.objective:
        if name not in parameters:
            kind = f"argument of objective {method.objective!r} (config section objective):"
            raise unknown_name(kind, name, parameters)
    row_arguments = dict(arguments)
    arguments |= config.objective

    filled: dict[str, Default] = {
        f"objective.{name}": item
        for name, item in defaults.items()
        if name in parameters and name not in config.objective
    }
    train = resolve_train(config, defaults, filled)
    for name in ("steps", "learning_rate"):
        if getattr(train, name) is None and not (name == "steps" and train.epochs is not None):
            message = (
                f"{path}: train.{name}: missing, and method {method.name!r} has no default for family "
                f"{config.model.family!r}. Set train.{name}."
            )
            raise ConfigError(message)
    reference = resolve_reference(config, method, defaults, filled, path)
    updates = {
        "train": train,
        "adapter": resolve_adapter(config, defaults, filled),
        "reference": reference,
        "likelihood": resolve_likelihood(config, method, defaults, filled, path),
        "safeguard": resolve_safeguard(config, method, defaults, filled, path),
        "rollout": resolve_rollout(config, method, defaults, filled, path),
    }
    if (tokens := tokens_of(config)) is not None:
        updates["tokens"] = resolve_tokens(tokens, method, defaults, filled, path)
    config = config.model_copy(update=updates)
    require_stored_fits(config, method, path)
    _require_mixable(config, method, path)
    return ResolvedRun(
        config=config,
        method=method,
        objective_arguments=arguments,
        filled=filled,
        differences=_differences(config, defaults, arguments, row_arguments),
        path=path,
    )


def _require_mixable(config: RunConfig, method: Method, path: str) -> None:
    """A mixture needs two rows in a micro-batch and has the label of one: of pairs and examples that holds.

    Raises:
        ConfigError: there is nothing to mix with, or sounds of rows with other labels would be mixed.
    """
    share = config.audio.mix_augmentation if isinstance(config, AudioRunConfig) else 0.0
    if share > 0 and config.train.batch_size < 2:
        message = explain(
            f"{path}: audio.mix_augmentation",
            got=f"{share} with train.batch_size {config.train.batch_size}",
            expected="train.batch_size 2 or more: rows are mixed with others of their micro-batch",
        )
        raise ConfigError(message)
    if share == 0 or (method.data in ("pairs", "chosen") and "preference" not in method.needs):
        return
    labels = "stretches of pairs" if "preference" in method.needs else method.data
    message = explain(
        f"{path}: audio.mix_augmentation",
        got=share,
        expected=f"0 with method {method.name}, which learns from {labels}: a mixture would have the "
        "label of one row and the sound of two",
    )
    raise ConfigError(message)


def _differences(
    config: RunConfig,
    defaults: Mapping[str, Default],
    arguments: Mapping[str, object],
    row_arguments: Mapping[str, object],
) -> tuple[Difference, ...]:
    """What this run does otherwise than the row recommends."""
    actual: dict[str, tuple[str, object]] = {
        **{name: (f"objective.{name}", value) for name, value in arguments.items()},
        **{
            name: (f"train.{name}", getattr(config.train, name))
            for name in (
                "steps",
                "epochs",
                "learning_rate",
                "optimizer",
                "warmup_steps",
                "warmup_ratio",
                "schedule",
                "weight_decay",
                "adam_beta2",
                "max_grad_norm",
            )
        },
        "effective_batch": (
            "effective batch on one device",
            config.train.batch_size * config.train.accumulation,
        ),
        "ema_decay": ("train.ema_decay", config.train.ema_decay or "none"),
        "resolution": ("image.resolution", getattr(config.media, "resolution", None)),
        "prompt_dropout": (f"{config.media_name}.prompt_dropout", config.media.prompt_dropout),
        "rank": ("adapter.rank", config.adapter.rank if config.adapter.kind == "lora" else None),
        "lora_alpha": ("adapter.alpha", config.adapter.alpha if config.adapter.kind == "lora" else None),
        **{name: (f"reference.{name}", getattr(config.reference, name)) for name in SYNC},
    }
    found = []
    for name, (setting, value) in actual.items():
        default = defaults.get(name)
        expected = default.value if default else row_arguments.get(name)
        if expected is not None and value is not None and value != expected:
            found.append(Difference(setting, value, expected, default.mark if default else "row"))
    return tuple(found)
