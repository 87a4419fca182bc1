"""`mmalign fit-user`: choices in, a head with one more user out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmalign.cli.probe_runs import columns_of
from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.evals.accuracy_run import data_config
from mmalign.evals.labelled_rows import read_labelled
from mmalign.evals.user_fitting import FittedUser, UserChoices, choices_by_user, fit_users
from mmalign.rewards.ideal_point_models import PalHead
from mmalign.rewards.ideal_point_reward import PalReward
from mmalign.rewards.loading import load

__all__ = ["fit_user"]


def fit_user(
    *,
    head: Path,
    choices: str,
    user: str | None = None,
    user_column: str | None = None,
    replace: bool = False,
    backbone: str = "pickscore",
    loss: str = "own",
    ridge: float = 1e-2,
    output: Path | None = None,
    columns: Sequence[str] = (),
    batch_size: int = 16,
    device: str | None = None,
    **source: Any,
) -> int:
    """Fit users to their choices and save the head with them.

    Args:
        head: folder of `PalHead.save`.
        choices: labelled pairs or rankings.
        user: whose choices they are.
        user_column: or the column that says whose.
        replace: whether known users are fitted anew.
        backbone: of the embeddings the head was trained on.
        loss: see `mmalign.rewards.ideal_point_training.fit_user`.
        ridge: see the same.
        output: folder to save to; the head's own by default.
        columns: `role=column` words.
        batch_size: pictures in one forward.
        device: of the backbone.
        source: further settings of the choices' source.

    Raises:
        ConfigError: choices, users or options do not fit.
        CheckpointError: no head there.
    """
    if batch_size < 1:
        raise ConfigError(explain("--batch-size", got=batch_size, expected="at least 1"))
    form = PalHead.load(head).settings.form
    rows = read_labelled(data_config(choices, columns=columns_of(columns), media="image", **source))
    reward = load(f"pal_{form}", weights=head, device=str(best_device(device)), backbone=backbone)
    if not isinstance(reward, PalReward):
        raise ConfigError(explain(f"pal_{form}", got=type(reward).__name__, expected="the built-in reward"))
    with Progress(console=Console(stderr=True)) as bars:
        task = bars.add_task("embed", total=rows.num_candidates)
        given = choices_by_user(
            reward,
            rows,
            user=user,
            column=user_column,
            batch_size=batch_size,
            progress=lambda count: bars.advance(task, count),
        )
    fitted = fit_users(reward, given, replace=replace, ridge=ridge, loss=loss)
    target = reward.head.save(head if output is None else output)
    _print(fitted, given, target, form)
    return 0


def _print(fitted: Sequence[FittedUser], given: UserChoices, target: Path, form: str) -> None:
    console = Console()
    table = Table("user", "choices", "agrees", "held-out prompts", "uniform mixture", "mixture")
    for entry in fitted:
        held_out = "-" if entry.held_out is None else f"{entry.held_out:.1%}"
        weights = " ".join(f"{weight:.2f}" for weight in entry.fit.weights.tolist())
        counts = (str(entry.fit.pairs), f"{entry.fit.accuracy:.1%}", held_out, f"{entry.uniform:.1%}")
        table.add_row(entry.name, *counts, weights)
    console.print(table)
    for reason, count in given.left_out.items():
        console.print(
            f"note: {count} pairs left out: {reason}", markup=False, highlight=False, soft_wrap=True
        )
    unsettled = [entry.name for entry in fitted if not entry.fit.converged]
    if unsettled:
        console.print(
            f"note: not converged: {', '.join(unsettled)}", markup=False, highlight=False, soft_wrap=True
        )
    console.print(
        f"{target}: load it as pal_{form} with user=NAME", markup=False, highlight=False, soft_wrap=True
    )
