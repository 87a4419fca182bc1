"""Best of n: the candidate of each prompt that a reward likes most."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from mmalign.errors import ConfigError, explain
from mmalign.rewards.aggregation import groups_of
from mmalign.rewards.base import Reward
from mmalign.rewards.sample import Sample

__all__ = ["Best", "best_of_n"]


@dataclass(frozen=True)
class Best:
    """The choice among the candidates of one group.

    Args:
        group: what they share: the prompt, unless asked otherwise.
        place: index of the chosen sample in the list that was given; None where every candidate failed.
        value: its reward; NaN where there is none.
        gap: how much better it is than the next best, >= 0; NaN without a second candidate.
        candidates: places of all candidates, in their order.
        failed: places of those without a value.
    """

    group: Hashable
    place: int | None
    value: float
    gap: float
    candidates: tuple[int, ...]
    failed: tuple[int, ...]


def best_of_n(
    reward: Reward,
    samples: Sequence[Sample],
    *,
    group: str = "prompt",
    output: str = "",
    batch_size: int = 16,
) -> list[Best]:
    """One choice per group, in the order in which groups first appear.

    Failed candidates are never chosen; of equal ones the first is. A reward whose lower values are better is
    read that way.

    Args:
        reward: any, also an ensemble that compares the candidates of a prompt.
        samples: candidates of all prompts, in any order.
        group: what makes samples candidates of one group: "prompt", "all" or "extras.NAME".
        output: of the reward; "" takes the first.
        batch_size: of the reward.

    Raises:
        ConfigError: the reward has no such output; a `group` that is none.
    """
    outputs = reward.card.outputs
    if output and output not in outputs:
        raise ConfigError(explain("best_of_n output", got=output, expected=f"one of {', '.join(outputs)}"))
    column = outputs.index(output) if output else 0
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(groups_of(samples, group)):
        places.setdefault(key, []).append(place)
    values: list[float] = reward.score(samples, batch_size=batch_size).values[:, column].tolist()
    sign = 1.0 if reward.card.higher_is_better else -1.0
    return [_best(key, candidates, values, sign) for key, candidates in places.items()]


def _best(key: Hashable, candidates: Sequence[int], values: Sequence[float], sign: float) -> Best:
    failed = tuple(place for place in candidates if not math.isfinite(values[place]))
    ranked = sorted(
        (place for place in candidates if math.isfinite(values[place])),
        key=lambda place: (-sign * values[place], place),
    )
    if not ranked:
        return Best(key, None, math.nan, math.nan, tuple(candidates), failed)
    gap = math.nan if len(ranked) < 2 else sign * (values[ranked[0]] - values[ranked[1]])
    return Best(key, ranked[0], values[ranked[0]], gap, tuple(candidates), failed)
