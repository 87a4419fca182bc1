"""What rewards say of clips, always under the prompt that was asked for first."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.audio.pair_making.making import Group
from mmalign.data.pair_making.sections import RewardChoice
from mmalign.data.pair_making.stages import AGAIN, Stages, each_if_reached
from mmalign.errors import ConfigError, explain
from mmalign.rewards.base import Reward
from mmalign.rewards.sample import Sample

__all__ = ["scored"]


def scored(
    groups: Sequence[Group],
    load: Callable[[RewardChoice], Reward],
    stages: Stages,
    scorers: Sequence[RewardChoice],
) -> list[Group]:
    """The groups with a score of every clip by every reward; one reward is in memory at a time.

    Clips of edited prompts are scored under the original prompt. Rewards where lower is better count with
    their sign turned. Where a reward or a file cannot be reached (OSError), nothing is stored: the next run
    asks again. What a reward refuses stays refused.

    Raises:
        ConfigError: a reward of something else than sound, or without an output of that name.
    """
    found = list(groups)
    for chosen in scorers:
        reward = load(chosen)
        _require_sound(reward, chosen)

        def work(
            block: Sequence[Group], seed: int, reward: Reward = reward, chosen: RewardChoice = chosen
        ) -> list[dict[str, Any]]:
            del seed
            return each_if_reached(
                partial(_block, reward=reward, chosen=chosen, stages=stages), block, _nothing
            )

        records = stages.run(
            "".join(letter if letter.isalnum() else "_" for letter in f"scores_{chosen.column}"),
            found,
            work,
            key=lambda group: group.row.id,
            settings={"reward": reward.fingerprint(), "output": chosen.output},
            depends=lambda group: [group.row.prompt, list(group.files)],
            alone=True,
        )
        del reward
        found = [_with(group, record, chosen.column) for group, record in zip(found, records, strict=True)]
    return found


def _require_sound(reward: Reward, chosen: RewardChoice) -> None:
    card = reward.card
    # A function of the user's own takes whatever a sample holds.
    if card.modality != "audio" and ":" not in chosen.name:
        message = explain(
            f"scorer {chosen.name}", got=f"[a reward of {card.modality}]", expected="one of audio"
        )
        raise ConfigError(message)
    if chosen.output and chosen.output not in card.outputs:
        message = explain(f"scorer {chosen.name} output", got=chosen.output, expected=", ".join(card.outputs))
        raise ConfigError(message)


def _nothing(group: Group) -> dict[str, Any]:
    """The record of a group without scores."""
    return {"scores": [None] * len(group.files), "errors": [""] * len(group.files)}


def _block(
    block: Sequence[Group], reward: Reward, chosen: RewardChoice, stages: Stages
) -> list[dict[str, Any]]:
    """Scores of the groups' clips, None where one has none, and why.

    Raises:
        OSError: a file or the reward cannot be reached.
    """
    samples = [
        Sample(prompt=group.row.prompt, audio=_readable(stages.folder / name))
        for group in block
        for name in group.files
        if name is not None
    ]
    outputs = reward.card.outputs
    column = outputs.index(chosen.output) if chosen.output else 0
    sign = 1.0 if reward.card.higher_is_better else -1.0
    result = reward.score(samples, batch_size=chosen.batch_size) if samples else None
    values = iter((result.values[:, column] * sign).tolist() if result is not None else [])
    problems = iter(result.errors if result is not None else [])
    records = []
    for group in block:
        scores: list[float | None] = []
        errors: list[str] = []
        for name in group.files:
            value = next(values) if name is not None else math.nan
            problem = next(problems) if name is not None else "no clip"
            scores.append(value if math.isfinite(value) and problem is None else None)
            errors.append(problem or ("" if math.isfinite(value) else "the score is no number"))
        records.append({"scores": scores, "errors": errors})
    return records


def _readable(path: Path) -> Path:
    """The path; OSError where it may not be read: no fault of the sound."""
    path.open("rb").close()
    return path


def _with(group: Group, record: dict[str, Any], title: str) -> Group:
    before = group.scores or tuple({} for _ in group.variants)
    values = [math.nan if value is None else float(value) for value in record["scores"]]
    errors = group.errors or ("",) * len(group.variants)
    return replace(
        group,
        scores=tuple({**old, title: value} for old, value in zip(before, values, strict=True)),
        errors=tuple(
            old or new or record.get(AGAIN, "") for old, new in zip(errors, record["errors"], strict=True)
        ),
    )
