"""Filling a configuration from its method's row, and remembering what differs from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.methods.row import ROLLOUTS, Default, Method
from mmalign.train.audio_sections import AudioRunConfig
from mmalign.train.sections import (
    AdapterConfig,
    InversionConfig,
    LikelihoodConfig,
    OneStepConfig,
    ReferenceConfig,
    RolloutConfig,
    RunConfig,
    SafeguardConfig,
    Section,
    TrainConfig,
)
from mmalign.train.token_sections import CorruptionConfig, TokensConfig, tokens_of

__all__ = ["ROW_SETTINGS", "Difference", "ResolvedRun", "resolve_with_row"]


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
    _require_suits(method, path, modality=modality)
    defaults = _defaults(method, config.model.family, modality)
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
    train = _resolve_train(config, defaults, filled)
    for name in ("steps", "learning_rate"):
        if getattr(train, name) is None and not (name == "steps" and train.epochs is not None):
            message = (
                f"{path}: train.{name}: missing, and method {method.name!r} has no default for family "
                f"{config.model.family!r}. Set train.{name}."
            )
            raise ConfigError(message)
    reference = _resolve_reference(config, method, defaults, filled, path)
    updates = {
        "train": train,
        "adapter": _resolve_adapter(config, defaults, filled),
        "reference": reference,
        "likelihood": _resolve_likelihood(config, method, defaults, filled, path),
        "safeguard": _resolve_safeguard(config, method, defaults, filled, path),
        "rollout": _resolve_rollout(config, method, defaults, filled, path),
    }
    if (tokens := tokens_of(config)) is not None:
        updates["tokens"] = _resolve_tokens(tokens, method, defaults, filled, path)
    config = config.model_copy(update=updates)
    _require_stored_fits(config, method, path)
    _require_mixable(config, method, path)
    return ResolvedRun(
        config=config,
        method=method,
        objective_arguments=arguments,
        filled=filled,
        differences=_differences(config, defaults, arguments, row_arguments),
        path=path,
    )


def _defaults(method: Method, family: str, modality: str) -> dict[str, Default]:
    """What is recommended: each layer over those before it; of steps and epochs only the upper one's.

    Numbers of training that hold for any language model lie under everything that a row says; those of sound
    over what a row says of all media, which are numbers of pictures.
    """
    from mmalign.methods import audio, vlm

    def of(name: str) -> Mapping[str, Default]:
        return method.defaults.get(name, {})

    layers = {
        "language": (vlm.PRESET, {**of("*"), **of("language"), **of(family)}),
        "audio": (of("*"), audio.PRESET, {**of("audio"), **of(family)}),
    }
    found: dict[str, Default] = {}
    for layer in layers.get(modality, (method.defaults_for(family, modality),)):
        left = {name: value for name, value in found.items() if _ALTERNATIVES.get(name) not in layer}
        found = {**left, **layer}
    return found


_ALTERNATIVES = {"steps": "epochs", "epochs": "steps"} | {
    "warmup_steps": "warmup_ratio",
    "warmup_ratio": "warmup_steps",
}
"""Settings of which one is enough."""


def _resolve_train(
    config: RunConfig, defaults: Mapping[str, Default], filled: dict[str, Default]
) -> TrainConfig:
    """The training section with what the row recommends where the file leaves it open."""
    updates: dict[str, Any] = {}
    for name in ("steps", "epochs", "learning_rate", "optimizer", "warmup_steps", "warmup_ratio"):
        other = _ALTERNATIVES.get(name)
        decided = other is not None and (getattr(config.train, other) is not None or other in updates)
        if getattr(config.train, name) is None and name in defaults and not decided:
            updates[name] = defaults[name].value
            filled[f"train.{name}"] = defaults[name]
    # These have a value of their own, which the row's goes before and the file's after.
    for name in _ROW_BEFORE_DEFAULT:
        if name in defaults and name not in config.train.model_fields_set:
            updates[name] = defaults[name].value
            filled[f"train.{name}"] = defaults[name]
    values = {**config.train.model_dump(), **updates}
    if values["optimizer"] is None:
        values["optimizer"] = "adamw"
    if values["warmup_steps"] is None and values["warmup_ratio"] is None:
        values["warmup_steps"] = 0
    return TrainConfig.model_validate(values)


_ROW_BEFORE_DEFAULT = ("schedule", "weight_decay", "adam_beta2", "max_grad_norm")


def _resolve_adapter(
    config: RunConfig, defaults: Mapping[str, Default], filled: dict[str, Default]
) -> AdapterConfig:
    """The adapter with the row's rank and alpha where the file leaves them open.

    An alpha belongs to its rank: beside a rank of the file's own it stays what the section says, that rank.
    """
    adapter, rank = config.adapter, defaults.get("rank")
    if adapter.kind != "lora" or rank is None:
        return adapter
    updates: dict[str, object] = {}
    if "rank" not in adapter.model_fields_set:
        updates["rank"], filled["adapter.rank"] = rank.value, rank
    has_rank = updates.get("rank", adapter.rank) == rank.value
    if has_rank and adapter.alpha is None and "lora_alpha" in defaults:
        updates["alpha"], filled["adapter.alpha"] = defaults["lora_alpha"].value, defaults["lora_alpha"]
    return AdapterConfig.model_validate({**adapter.model_dump(), **updates})


# What a training run does besides the objective; a method with another function needs its own loop.
_FUNCTIONS = frozenset({"mmalign.likelihood.reference_rules.SyncRule"})

# TRL's values, for methods without their own.
_SYNC = {"sync_every": 512, "mixing": 0.6}


def _resolve_reference(
    config: RunConfig, method: Method, defaults: Mapping[str, Default], filled: dict[str, Default], path: str
) -> ReferenceConfig:
    """The reference with the settings of a moving one decided; a method whose own moves gets it from `auto`.

    Raises:
        ConfigError: settings of a synced reference with another one, or a dropout that would blur it.
    """
    reference = config.reference
    if method.reference == "pool" and config.adapter.dropout > 0:
        message = (
            f"{path}: the earlier checkpoints that method {method.name} compares with need adapter.dropout 0"
        )
        raise ConfigError(message)
    is_synced = reference.kind == "synced" or (reference.kind == "auto" and method.reference == "synced")
    given = [name for name in _SYNC if getattr(reference, name) is not None]
    if not is_synced:
        if given:
            message = explain(
                f"{path}: reference.{given[0]}",
                got=getattr(reference, given[0]),
                expected=f"no value: the reference {reference.kind} does not follow the policy by it",
                do="Set reference.kind=synced, or take the setting out.",
            )
            raise ConfigError(message)
        if reference.kind == "auto" and method.reference == "ema":
            if config.adapter.dropout > 0:
                message = f"{path}: the averaged reference of method {method.name} needs adapter.dropout 0"
                raise ConfigError(message)
            return ReferenceConfig.model_validate({**reference.model_dump(), "kind": "ema"})
        return reference
    if config.adapter.dropout > 0:
        message = f"{path}: the synced reference of method {method.name} needs adapter.dropout 0"
        raise ConfigError(message)
    missing = [name for name in _SYNC if name not in given]
    filled |= {f"reference.{name}": defaults[name] for name in missing if name in defaults}
    values = {name: defaults[name].value if name in defaults else _SYNC[name] for name in missing}
    return ReferenceConfig.model_validate({**reference.model_dump(), "kind": "synced", **values})


_INVERSION: Mapping[str, tuple[str, object]] = {
    "method": ("inversion_method", "ddim"),
    "num_steps": ("inversion_steps", None),
    "eta": ("inversion_eta", None),
}
_ROLLOUT: Mapping[str, tuple[str, object]] = {
    "num_steps": ("sampling_steps", 20),
    "guidance_scale": ("guidance_scale", 5.0),
    "eta": ("sampling_eta", 1.0),
    "samples": ("samples", 4),
    "threshold": ("threshold", 0.0),
    "divert_start": ("divert_start", 0),
    "inner_steps": ("inner_steps", 0),
    "refresh_every": ("refresh_every", 1),
    "capacity": ("capacity", 4),
    "gradient_steps": ("gradient_steps", 1),
    "train_share": ("train_share", 1.0),
}
_ANSWERS: Mapping[str, tuple[str, object]] = {
    "samples": ("samples", 4),
    "threshold": ("threshold", 0.0),
    "temperature": ("answer_temperature", 1.0),
    "top_p": ("answer_top_p", 1.0),
    "max_new_tokens": ("answer_tokens", 256),
    "offline_share": ("offline_share", 0.0),
    "hidden": ("hidden_share", 0.99),
    "similar": ("similar", 0.97),
    "hiding_rounds": ("hiding_rounds", 5),
    "swap": ("swap", 0.5),
}
_CORRUPTION: Mapping[str, tuple[str, object]] = {
    "kind": ("corruption", "crop"),
    "strength": ("corruption_strength", None),
    "versions": ("corruption_versions", None),
}
_CHOICE: Mapping[str, tuple[str, object]] = {
    "kinds": ("corruption_kinds", ()),
    "similar": ("corruption_similar", 0.8),
    "weigh": ("corruption_weigh", True),
}
_LEVELS: Mapping[str, tuple[str, object]] = {
    "snr_gamma": ("snr_gamma", None),
    "snr_form": ("snr_form", None),
}
_ONE_STEP: Mapping[str, tuple[str, object]] = {
    "timestep": ("generator_timestep", None),
    "teacher_guidance": ("teacher_guidance", 1.0),
    "reward_weight": ("reward_weight", 1.0),
    "distance": ("distance", "pseudo_huber"),
    "space": ("score_space", "sample"),
    "score_steps": ("score_steps", 1),
}
"""Setting of a section to (its key among a row's defaults, its value where the row has none)."""

ROW_SETTINGS: frozenset[str] = frozenset(
    {
        *("mu", "lora_alpha"),
        *(
            key
            for table in (_INVERSION, _ROLLOUT, _ANSWERS, _ONE_STEP, _CORRUPTION, _CHOICE, _LEVELS)
            for key, _ in table.values()
        ),
    }
)
"""Keys of a row's defaults that are named otherwise in their sections."""


def _fill(
    section: Section,
    table: Mapping[str, tuple[str, object]],
    where: str,
    defaults: Mapping[str, Default],
    filled: dict[str, Default],
) -> dict[str, object]:
    """The section's settings, those left open taken from the row, else from the table."""
    values = section.model_dump()
    for name, (key, fallback) in table.items():
        if values[name] is not None:
            continue
        values[name] = defaults[key].value if key in defaults else fallback
        if key in defaults:
            filled[f"{where}.{name}"] = defaults[key]
    return values


def _resolve_likelihood(
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
    inversion = likelihood.inversion
    if kind == "inversion":
        values = _fill(inversion, _INVERSION, "likelihood.inversion", defaults, filled)
        inversion = InversionConfig.model_validate(values)
    elif inversion != InversionConfig():
        message = explain(
            f"{path}: likelihood.inversion",
            got=str(inversion.model_dump(exclude_defaults=True)),
            expected=f"nothing: likelihood {kind} inverts nothing",
            do="Set likelihood.kind=inversion, or take the section out.",
        )
        raise ConfigError(message)
    levels = _fill(likelihood, _LEVELS, "likelihood", defaults, filled) if kind != "tokens" else {}
    if levels and levels["snr_form"] is not None and levels["snr_gamma"] is None:
        message = explain(
            f"{path}: likelihood.snr_form", got=levels["snr_form"], expected="likelihood.snr_gamma beside it"
        )
        raise ConfigError(message)
    return LikelihoodConfig.model_validate(
        {**likelihood.model_dump(), **levels, "kind": kind, "inversion": inversion.model_dump()}
    )


def _resolve_safeguard(
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
    values = _fill(safeguard, {"mu": ("mu", None)}, "safeguard", defaults, filled)
    return SafeguardConfig.model_validate(values)


def _resolve_rollout(
    config: RunConfig, method: Method, defaults: Mapping[str, Default], filled: dict[str, Default], path: str
) -> RolloutConfig:
    """How an online method samples; an offline one has no such section.

    Raises:
        ConfigError: settings for a method that samples nothing, or no reward for one that needs one.
    """
    rollout = config.rollout
    if method.rollout not in ROLLOUTS:
        if rollout != type(rollout)():
            message = explain(
                f"{path}: rollout",
                got=str(rollout.model_dump(exclude_defaults=True)),
                expected=f"no such section: method {method.name} learns from data alone",
                do="Take the section out, or choose an online method.",
            )
            raise ConfigError(message)
        return rollout
    if method.data == "prompts" and config.media.prompt_dropout > 0:
        message = explain(
            f"{path}: {config.media_name}.prompt_dropout",
            got=config.media.prompt_dropout,
            expected=f"0: method {method.name} trains on samples of the prompt, not of the empty one",
        )
        raise ConfigError(message)
    if (method.likelihood in _NO_ERRORS) and config.guard.action in ("rollback", "stop"):
        message = explain(
            f"{path}: guard.action",
            got=config.guard.action,
            expected=f"warn or off: method {method.name} has no denoising errors for the guard to watch",
            do="Watch the reward of fresh samples (rollout/reward, rollout/score, reward/policy) instead.",
        )
        raise ConfigError(message)
    if method.rollout in _NEED_REWARD and rollout.reward is None:
        message = explain(
            f"{path}: rollout.reward",
            got=None,
            expected="who scores the samples: a name of `mmalign rewards`, an ensemble file, module:function",
            do="Example: rollout.reward=pickscore_v1",
        )
        raise ConfigError(message)
    if tokens_of(config) is not None:
        return _with_answers(rollout, method, defaults, filled, path)
    values = _fill(rollout, _ROLLOUT, "rollout", defaults, filled)
    values["one_step"] = _resolve_one_step(config, method, defaults, filled, path).model_dump()
    return RolloutConfig.model_validate(values)


_WRITTEN = {
    "offline_share": ("mixed",),
    **dict.fromkeys(("hidden", "similar", "hiding_rounds", "swap"), ("bias_driven",)),
    **dict.fromkeys(("samples", "threshold", "reward"), ("best_of_n", "mixed")),
}
"""Settings of answers that mean something to some rollouts alone."""


def _with_answers(
    rollout: RolloutConfig,
    method: Method,
    defaults: Mapping[str, Default],
    filled: dict[str, Default],
    path: str,
) -> RolloutConfig:
    """How a language model writes its answers.

    Raises:
        ConfigError: a setting that the method's way of making answers does not know, or too few answers.
    """
    for name, kinds in _WRITTEN.items():
        if getattr(rollout, name) is not None and method.rollout not in kinds:
            message = explain(
                f"{path}: rollout.{name}",
                got=getattr(rollout, name),
                expected=f"no value: it is of methods that make answers by {' or '.join(kinds)}",
                do=f"Method {method.name} makes them by {method.rollout}.",
            )
            raise ConfigError(message)
    samples = rollout.samples if rollout.samples is not None else 2
    if samples < 2:
        message = explain(
            f"{path}: rollout.samples", got=samples, expected="at least 2: the best answer meets the worst"
        )
        raise ConfigError(message)
    read = {name: item for name, item in _ANSWERS.items() if method.rollout in _WRITTEN.get(name, ROLLOUTS)}
    return type(rollout).model_validate(_fill(rollout, read, "rollout", defaults, filled))


def _resolve_one_step(
    config: RunConfig, method: Method, defaults: Mapping[str, Default], filled: dict[str, Default], path: str
) -> OneStepConfig:
    """What a one-step generator is held to; others have no such section.

    Raises:
        ConfigError: the section belongs to another method, or a weighted reward is not named.
    """
    rollout, settings = config.rollout, config.rollout.one_step
    if method.rollout != "one_step":
        if settings != OneStepConfig():
            message = explain(
                f"{path}: rollout.one_step",
                got=str(settings.model_dump(exclude_defaults=True)),
                expected=f"no such section: method {method.name} trains no one-step generator",
            )
            raise ConfigError(message)
        return settings
    values = _fill(settings, _ONE_STEP, "rollout.one_step", defaults, filled)
    if values["reward_weight"] and rollout.reward is None:
        message = explain(
            f"{path}: rollout.reward",
            got=None,
            expected=f"a differentiable reward: rollout.one_step.reward_weight is {values['reward_weight']}",
            do="Example: rollout.reward=pickscore_v1, or rollout.one_step.reward_weight=0 to distil alone.",
        )
        raise ConfigError(message)
    return OneStepConfig.model_validate(values)


_NO_ERRORS = frozenset({"transition", "reward"})
_NEED_REWARD = frozenset({"best_of_n", "mixed", "stepwise", "group", "backpropagation"})


def _resolve_tokens(
    tokens: TokensConfig,
    method: Method,
    defaults: Mapping[str, Default],
    filled: dict[str, Default],
    path: str,
) -> TokensConfig:
    """The section with its corruption decided; a method without corrupted images has none.

    Raises:
        ConfigError: settings of a corruption that nothing uses.
    """
    corruption = tokens.corruption
    if any(view.images == "corrupted" for view in method.views):
        values = _fill(corruption, _CORRUPTION, "tokens.corruption", defaults, filled)
        made = _with_choice(corruption, values, defaults, filled, path)
        return tokens.model_copy(update={"corruption": made})
    if corruption != CorruptionConfig():
        message = explain(
            f"{path}: tokens.corruption",
            got=str(corruption.model_dump(exclude_defaults=True)),
            expected=f"nothing: method {method.name} compares with no corrupted image",
            do="Take the section out, or choose a method that does (mdpo).",
        )
        raise ConfigError(message)
    return tokens


def _with_choice(
    given: CorruptionConfig,
    values: dict[str, object],
    defaults: Mapping[str, Default],
    filled: dict[str, Default],
    path: str,
) -> CorruptionConfig:
    """The corruption with how one of several versions is chosen; one version is no choice.

    Raises:
        ConfigError: settings of a choice where there is one version.
    """
    if values["versions"] in (None, 1):
        named = [name for name in _CHOICE if getattr(given, name) not in (None, ())]
        if named:
            message = explain(
                f"{path}: tokens.corruption.{named[0]}",
                got=getattr(given, named[0]),
                expected="nothing: it says how one of several versions is chosen, and there is one",
                do="Set tokens.corruption.versions above 1.",
            )
            raise ConfigError(message)
        return CorruptionConfig.model_validate(values)
    asked = given.model_copy(update={"kinds": given.kinds or ((given.kind,) if given.kind else None)})
    chosen = {
        name: value
        for name, value in _fill(asked, _CHOICE, "tokens.corruption", defaults, filled).items()
        if name in _CHOICE
    }
    return CorruptionConfig.model_validate({**values, **chosen})


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


def _require_stored_fits(config: RunConfig, method: Method, path: str) -> None:
    """Stored reference scores belong to draws and answers that are known before training.

    Raises:
        ConfigError: the draws depend on the policy, or the objective reads more than scores.
    """
    if config.reference.kind == "stored" and config.likelihood.kind == "tokens":
        from mmalign import objectives

        needs = method.needs | objectives.row(method.objective).needs
        reasons = [
            f"its objective reads {name}, for which the reference has to run"
            for name in ("kl", "reference_entropy")
            if name in needs
        ]
        if method.reference in ("ema", "synced"):
            reasons.append(f"its reference moves ({method.reference})")
        if any(view.images == "corrupted" for view in method.views):
            reasons.append("images are corrupted anew at every visit")
        if reasons:
            message = explain(
                f"{path}: reference.kind",
                got="stored",
                expected=f"auto, adapters_off or frozen with method {method.name}: {'; '.join(reasons)}",
            )
            raise ConfigError(message)
        return
    if config.reference.kind == "stored" and "preference" in method.needs:
        message = explain(
            f"{path}: reference.kind",
            got="stored",
            expected=f"auto, adapters_off or frozen: method {method.name} compares frames, and what is "
            "stored are errors of whole clips",
        )
        raise ConfigError(message)
    if config.reference.kind == "stored" and config.likelihood.kind != "elbo":
        message = explain(
            f"{path}: reference.kind",
            got="stored",
            expected=f"auto, adapters_off or frozen: with likelihood {config.likelihood.kind} the noised "
            "samples depend on the policy, so that nothing can be computed before",
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
        **{name: (f"reference.{name}", getattr(config.reference, name)) for name in _SYNC},
    }
    found = []
    for name, (setting, value) in actual.items():
        default = defaults.get(name)
        expected = default.value if default else row_arguments.get(name)
        if expected is not None and value is not None and value != expected:
            found.append(Difference(setting, value, expected, default.mark if default else "row"))
    return tuple(found)
