"""How an online method samples: the section `rollout`, of media and of answers."""

from collections.abc import Mapping

from mmalign.errors import ConfigError, explain
from mmalign.methods.row import ROLLOUTS, Default, Method
from mmalign.train.resolving.row_defaults import Settings, fill
from mmalign.train.sections import OneStepConfig, RolloutConfig, RunConfig
from mmalign.train.token_sections import tokens_of

__all__ = ["ROLLOUT_SETTINGS", "resolve_rollout"]

_ROLLOUT: Settings = {
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
_ANSWERS: Settings = {
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
_ONE_STEP: Settings = {
    "timestep": ("generator_timestep", None),
    "teacher_guidance": ("teacher_guidance", 1.0),
    "reward_weight": ("reward_weight", 1.0),
    "distance": ("distance", "pseudo_huber"),
    "space": ("score_space", "sample"),
    "score_steps": ("score_steps", 1),
}

ROLLOUT_SETTINGS = (_ROLLOUT, _ANSWERS, _ONE_STEP)
"""Tables of what comes from rows under names of their own."""

_NO_ERRORS = frozenset({"transition", "reward"})
_NEED_REWARD = frozenset({"best_of_n", "mixed", "stepwise", "group", "backpropagation"})


def resolve_rollout(
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
    values = fill(rollout, _ROLLOUT, "rollout", defaults, filled)
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
    return type(rollout).model_validate(fill(rollout, read, "rollout", defaults, filled))


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
    values = fill(settings, _ONE_STEP, "rollout.one_step", defaults, filled)
    if values["reward_weight"] and rollout.reward is None:
        message = explain(
            f"{path}: rollout.reward",
            got=None,
            expected=f"a differentiable reward: rollout.one_step.reward_weight is {values['reward_weight']}",
            do="Example: rollout.reward=pickscore_v1, or rollout.one_step.reward_weight=0 to distil alone.",
        )
        raise ConfigError(message)
    return OneStepConfig.model_validate(values)
