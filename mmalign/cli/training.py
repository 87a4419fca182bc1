"""`mmalign train`: a config that names a reward row trains a reward, any other one a policy."""

from collections.abc import Sequence
from pathlib import Path

from mmalign.errors import ConfigError

__all__ = ["main", "trains_a_reward"]


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
    if trains_a_reward(config_path, overrides):
        from mmalign.rewards.training import run as rewards

        return rewards.main(config_path, overrides, dry_run=dry_run, resume=resume)
    from mmalign.train import run as policies

    return policies.main(config_path, overrides, dry_run=dry_run, resume=resume)


def trains_a_reward(config_path: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a config names a reward row; a file that cannot be read names none."""
    from mmalign.methods.rewards import REWARD_ROWS
    from mmalign.rewards.training.config import method_of

    try:
        return method_of(config_path, overrides) in REWARD_ROWS
    except ConfigError:  # the reader of policies' configs says it with file and line
        return False
