"""`mmalign fit-user`: one more user for a PAL head, from a few choices; the head itself stays as it is."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.labelled_rows import LabelledRows
from mmalign.rewards.base import Prepared
from mmalign.rewards.ideal_point_reward import PalReward
from mmalign.rewards.ideal_point_training import Choices, UserFit, fit_user
from mmalign.rewards.sample import Sample

__all__ = ["FittedUser", "UserChoices", "choices_by_user", "fit_users"]

FOLDS = 10
"""Parts of the prompts that are held out one after the other."""


@dataclass(frozen=True)
class UserChoices:
    """Choices by user, embedded.

    Args:
        choices: user to choices, the file's first candidate left.
        prompts: user to the prompt of each choice.
        left_out: reason to number of pairs that are no choice: ties, no user, a picture that cannot be read.
    """

    choices: Mapping[str, Choices]
    prompts: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class FittedUser:
    """A user the head now has.

    Args:
        name: of the user.
        fit: mixture, loss and accuracy on the choices it was fitted to.
        uniform: accuracy of the uniform mixture on the same choices: what is known of a user without choices.
        held_out: accuracy on choices of prompts that were left out of the fit, each prompt once; None with
            fewer than two prompts.
    """

    name: str
    fit: UserFit
    uniform: float
    held_out: float | None


def choices_by_user(
    reward: PalReward,
    rows: LabelledRows,
    *,
    user: str | None = None,
    column: str | None = None,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda _: None,
) -> UserChoices:
    """Every two candidates of every row as choices of the row's user.

    Args:
        reward: head and backbone.
        rows: labelled pairs or rankings, in the file's order.
        user: whose choices all rows are.
        column: the rows' column that names the user, instead.
        batch_size: pictures in one forward.
        progress: called with the number of candidates that are done.

    Raises:
        ConfigError: neither a user nor a column, or both; no choice at all.
    """
    if (user is None) == (column is None):
        got = "neither" if user is None else "both"
        raise ConfigError(explain("fit-user", got=got, expected="--user NAME or --user-column COLUMN"))
    images, prompts, bad = _embeddings(reward, rows, batch_size, progress)
    pairs = rows.pairs()
    left_out: Counter[str] = Counter()
    places: dict[str, list[int]] = {}
    for number in range(len(pairs)):
        first, second = int(pairs.first[number]), int(pairs.second[number])
        whose = user if column is None else rows.rows[pairs.row[number]].columns.get(column)
        reason = bad.get(first) or bad.get(second) or ("tie" if pairs.human[number] == 0 else "")
        reason = reason or ("no_user" if whose is None or str(whose) == "" else "")
        if reason:
            left_out[reason] += 1
        else:
            places.setdefault(str(whose), []).append(number)
    if not places:
        told = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
        message = explain(rows.name, got=f"no usable choice ({told})", expected="pairs that a user decided")
        raise ConfigError(message)
    found = {}
    for name, chosen in places.items():
        left, right = (torch.from_numpy(side[chosen]) for side in (pairs.first, pairs.second))
        y = torch.from_numpy(np.where(pairs.human[chosen] > 0, -1, 1))
        found[name] = Choices(images[left], images[right], y, None if prompts is None else prompts[left])
    told_prompts = {name: tuple(pairs.prompts[place] for place in chosen) for name, chosen in places.items()}
    return UserChoices(found, told_prompts, dict(left_out))


def _embeddings(
    reward: PalReward, rows: LabelledRows, batch_size: int, progress: Callable[[int], None]
) -> tuple[Tensor, Tensor | None, dict[int, str]]:
    """Embeddings of all candidates, zeros where one failed, and the reasons of those by number."""
    width, count = reward.head.settings.input, rows.num_candidates
    images = torch.zeros(count, width)
    prompts = torch.zeros(count, width) if reward.head.settings.needs_prompt else None
    bad: dict[int, str] = {}
    for numbers, batch in _batches(reward, rows, batch_size, bad):
        with torch.no_grad():
            pictures, texts = reward.embed(batch)
        images[numbers] = pictures.float().cpu()
        if prompts is not None and texts is not None:
            prompts[numbers] = texts.float().cpu()
        progress(len(numbers))
    progress(len(bad))
    return images, prompts, bad


def _batches(
    reward: PalReward, rows: LabelledRows, size: int, bad: dict[int, str]
) -> Iterator[tuple[list[int], list[Prepared]]]:
    numbers: list[int] = []
    batch: list[Prepared] = []
    for number, (row, _, candidate) in enumerate(rows.candidates()):
        try:
            batch.append(reward.media(Sample(prompt=row.prompt, image=candidate.image)))
        except RowError as error:
            bad[number] = error.reason
            continue
        numbers.append(number)
        if len(numbers) == size:
            yield numbers, batch
            numbers, batch = [], []
    if numbers:
        yield numbers, batch


def fit_users(
    reward: PalReward,
    given: UserChoices,
    *,
    replace: bool = False,
    ridge: float = 1e-2,
    loss: str = "own",
) -> list[FittedUser]:
    """Fit every user of the choices and add them to the reward's head. Returns them by name.

    Args:
        reward: its head gains the users.
        given: choices by user.
        replace: whether users the head knows already are fitted anew.
        ridge: see `fit_user`.
        loss: see `fit_user`.

    Raises:
        ConfigError: a user the head knows, without `replace`; nothing is changed then.
        HyperparameterError: see `fit_user`.
    """
    known = sorted(set(given.choices) & set(reward.head.users))
    if known and not replace:
        expected, do = "users that the head does not have yet", "--replace fits them anew."
        raise ConfigError(explain("fit-user", got=", ".join(known), expected=expected, do=do))
    head = reward.head.cpu()
    found = []
    for name, choices in sorted(given.choices.items()):
        fit = fit_user(head, choices, ridge=ridge, loss=loss)
        held_out = _held_out(reward, choices, given.prompts[name], ridge, loss)
        uniform = _accuracy(reward, choices, torch.zeros_like(fit.logits))
        found.append(FittedUser(name, fit, uniform, held_out))
    for entry in found:
        head.set_user(entry.name, entry.fit.logits)
    head.to(reward.device)
    return found


def _held_out(
    reward: PalReward, choices: Choices, prompts: Sequence[str], ridge: float, loss: str
) -> float | None:
    """Accuracy on each part of the prompts when the user is fitted to the others."""
    order = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    folds = min(FOLDS, len(order))
    if folds < 2:
        return None
    fold = torch.tensor([order[prompt] % folds for prompt in prompts])
    right = 0.0
    for number in range(folds):
        fit = fit_user(reward.head, choices.part((fold != number).nonzero()[:, 0]), ridge=ridge, loss=loss)
        kept = choices.part((fold == number).nonzero()[:, 0])
        right += _accuracy(reward, kept, fit.logits) * len(kept.y)
    return right / len(prompts)


@torch.no_grad()
def _accuracy(reward: PalReward, choices: Choices, logits: Tensor) -> float:
    """Share of choices a mixture agrees with; equal rewards count as the file's first candidate."""
    head = reward.head
    weights = head.weights_of(logits.to(head.logits.dtype)[None]).expand(len(choices.y), -1)
    left, right = (head(items, weights, choices.prompts) for items in (choices.left, choices.right))
    return float(((right > left) == (choices.y > 0)).double().mean())
