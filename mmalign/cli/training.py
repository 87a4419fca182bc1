"""`mmalign train`: a config that names a reward row trains a reward, any other one a policy."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.cli.loading import undisturbed
from mmalign.errors import ConfigError

if TYPE_CHECKING:
    from mmalign.train.config import ResolvedRun
    from mmalign.train.online import RunReward

__all__ = [
    "local_device",
    "main",
    "reward_bytes",
    "sample_reward",
    "trains_a_reward",
    "trains_a_step_aware_model",
]


def main(
    config_path: Path, overrides: Sequence[str] = (), dry_run: bool = False, resume: str | None = None
) -> int:
    """Run or describe a config. Returns the exit code.

    Args:
        config_path: YAML file.
        overrides: `section.key=value`.
        dry_run: say what a run would do.
        resume: "auto", "none", or (policies) a checkpoint.

    Raises:
        ConfigError: the file cannot be used.
    """
    if trains_a_step_aware_model(config_path, overrides):
        from mmalign.diffusion import step_aware_training

        return step_aware_training.main(config_path, overrides, dry_run=dry_run, resume=resume)
    if trains_a_reward(config_path, overrides):
        from mmalign.rewards.training import run as rewards

        return rewards.main(config_path, overrides, dry_run=dry_run, resume=resume)
    with undisturbed():
        from mmalign.train import run as policies

    return policies.main(
        config_path,
        overrides,
        dry_run=dry_run,
        resume=resume,
        reward_of=sample_reward,
        reward_bytes_of=reward_bytes,
    )


def reward_bytes(run: "ResolvedRun") -> int | None:
    """Size of the files of what scores a run's samples, in the run's dtype of it; None where nobody knows.

    Raises:
        UnknownNameError: nobody provides it.
    """
    from mmalign.rewards import card

    rollout = run.config.rollout
    name = rollout.reward
    if name is None or ":" in name or name.endswith((".yaml", ".yml")):
        return None
    sizes = [weights.bytes for weights in card(name).weights]
    return sum(sizes) or None


def local_device(device: str) -> str:
    """Where this process's reward stands: on the CPU if the run is, else on the process's own device."""
    from mmalign.devices import best_device

    best = "cpu" if device == "cpu" else best_device().type
    own = os.environ.get("LOCAL_RANK")
    return f"cuda:{own}" if best == "cuda" and own is not None else best


def sample_reward(run: "ResolvedRun") -> "RunReward | None":
    """What scores a run's samples or answers, loaded as its `rollout` section says; None where nothing does.

    Training knows no rewards: here the two meet.

    Raises:
        ConfigError: options the reward does not have.
        CheckpointError: its weights are missing.
        UnknownNameError: nobody provides it.
    """
    from mmalign.rewards import load
    from mmalign.rewards.on_answers import OnAnswers
    from mmalign.rewards.on_pixels import OnPixels
    from mmalign.rewards.on_sounds import OnSounds
    from mmalign.train.audio_sections import AudioRunConfig
    from mmalign.train.token_sections import AnswerRolloutConfig

    rollout = run.config.rollout
    if rollout.reward is None:
        return None
    options: dict[str, Any] = dict(rollout.reward_options)
    if ":" not in rollout.reward and not rollout.reward.endswith((".yaml", ".yml")):
        options |= {
            "weights": rollout.reward_weights,
            "device": local_device(run.config.train.device),
            "dtype": rollout.reward_dtype,
        }
    reward = load(rollout.reward, **options)
    if isinstance(rollout, AnswerRolloutConfig):
        return OnAnswers(reward, judged_as=rollout.judged_as)
    return OnSounds(reward) if isinstance(run.config, AudioRunConfig) else OnPixels(reward)


def trains_a_reward(config_path: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a config names a row that trains a head; a file that cannot be read names none."""
    from mmalign.methods.rewards import REWARD_ROWS

    return _method(config_path, overrides) in REWARD_ROWS


def trains_a_step_aware_model(config_path: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a config trains a step-aware preference model; a file that cannot be read does not."""
    from mmalign.methods.rewards import STEP_AWARE

    return _method(config_path, overrides) == STEP_AWARE


def _method(config_path: Path, overrides: Sequence[str]) -> str:
    from mmalign.config_files import read_config

    try:
        return str(read_config(config_path, overrides).content.get("method", ""))
    except ConfigError:  # the reader of policies' configs says it with file and line
        return ""
