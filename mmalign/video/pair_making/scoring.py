"""What rewards say of clips: whole ones and stretches; of pictures the mean over frames; judges of two.

A reward of clips is given the file, a reward of pictures frames at even distances, a function of the user's
own both. Rewards where lower is better count with their sign turned.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.data.config import VideoLimits
from mmalign.data.pair_making.sections import RewardChoice
from mmalign.data.pair_making.stages import AGAIN, Stages, if_reached
from mmalign.data.video_media import decode_clip
from mmalign.errors import ConfigError, RowError, explain
from mmalign.rewards.base import Reward
from mmalign.rewards.frame_mean import FrameMean
from mmalign.rewards.frames import even_frames
from mmalign.rewards.sample import Sample
from mmalign.video.pair_making.making import Group, limits_of
from mmalign.video.pair_making.plan import VideoPairPlan

__all__ = [
    "Values",
    "frames_of",
    "judged_in_both_orders",
    "neighbours_judged",
    "require_readable",
    "require_reward",
    "scored",
    "values_of_frames",
]

Values = list[tuple[float, str]]
"""A value (NaN where there is none) and why it is missing, per clip."""

Load = Callable[[RewardChoice], Reward]


def require_reward(reward: Reward, chosen: RewardChoice) -> None:
    """Raise ConfigError where a reward sees neither clips nor pictures, or has no output of that name."""
    card = reward.card
    if card.modality not in ("video", "image") and ":" not in chosen.name:
        got, expected = f"[a reward of {card.modality}]", "one of video, or of images: the mean over frames"
        raise ConfigError(explain(f"scorer {chosen.name}", got=got, expected=expected))
    if chosen.output and chosen.output not in card.outputs:
        message = explain(f"scorer {chosen.name} output", got=chosen.output, expected=", ".join(card.outputs))
        raise ConfigError(message)


def scored(groups: Sequence[Group], load: Load, stages: Stages, plan: VideoPairPlan) -> list[Group]:
    """The groups with a score of every clip by every reward; one reward is in memory at a time.

    Where a reward or a file cannot be reached (OSError), nothing is stored: the next run asks again. What a
    reward refuses stays refused.

    Raises:
        ConfigError: a reward that cannot see clips, or without an output of that name.
    """
    found = list(groups)
    for chosen in plan.scorers:
        reward = load(chosen)
        require_reward(reward, chosen)

        def work(
            block: Sequence[Group], seed: int, reward: Reward = reward, chosen: RewardChoice = chosen
        ) -> list[dict[str, Any]]:
            del seed
            return [
                if_reached(
                    partial(_record, group, reward, chosen, stages, plan),
                    {"scores": [None] * len(group.files), "errors": [""] * len(group.files)},
                )
                for group in block
            ]

        records = stages.run(
            "".join(letter if letter.isalnum() else "_" for letter in f"scores_{chosen.column}"),
            found,
            work,
            key=lambda group: group.row.id,
            settings={
                "reward": reward.fingerprint(),
                "output": chosen.output,
                "frames": plan.frames,
                "limits": limits_of(plan),
            },
            depends=lambda group: [group.row.prompt, list(group.files)],
            alone=True,
        )
        del reward
        found = [_with(group, record, chosen.column) for group, record in zip(found, records, strict=True)]
    return found


def _record(
    group: Group, reward: Reward, chosen: RewardChoice, stages: Stages, plan: VideoPairPlan
) -> dict[str, Any]:
    scores: list[float | None] = []
    errors: list[str] = []
    for name in group.files:
        value, error = math.nan, "no clip"
        if name is not None:
            path = stages.folder / name
            require_readable(path)
            value, error = _whole(group.row.prompt, path, reward, chosen, plan)
        scores.append(value if math.isfinite(value) else None)
        errors.append(error)
    return {"scores": scores, "errors": errors}


def _whole(
    prompt: str, path: Path, reward: Reward, chosen: RewardChoice, plan: VideoPairPlan
) -> tuple[float, str]:
    """The value of a whole clip, and why it is missing."""
    own = ":" in chosen.name
    if reward.card.modality == "video" and not own:
        return _values([Sample(prompt=prompt, video=path)], reward, chosen)[0]
    try:
        frames, fps = frames_of(path, limits=plan.data.video)
    except RowError as error:
        return math.nan, f"{error.reason}: {error}"
    if own:
        sample = Sample(prompt=prompt, video=path, frames=list(frames), extras={"fps": fps})
        return _values([sample], reward, chosen)[0]
    sample = Sample(prompt=prompt, frames=list(frames))
    return _values([sample], FrameMean(reward, plan.frames), chosen)[0]


def require_readable(path: Path) -> None:
    """Raise OSError where a file is not there or may not be read: no fault of what is in it."""
    path.open("rb").close()


def frames_of(
    path: Path, *, limits: VideoLimits, fps: float | None = None
) -> tuple[UInt8[Tensor, "frame 3 height width"], float]:
    """Frames of a clip, and how many there are a second.

    Raises:
        RowError: it cannot be read.
    """
    clip = decode_clip(str(path), where=path.name, limits=limits, fps=fps)
    return clip.frames, clip.fps


def values_of_frames(
    parts: Sequence[UInt8[Tensor, "_ 3 height width"]],
    prompt: str,
    fps: float,
    reward: Reward,
    chosen: RewardChoice,
) -> Values:
    """Values of parts of clips: a reward of clips sees their frames, one of pictures each of them.

    Args:
        parts: frames of each.
        prompt: of all.
        fps: frames per second.
        reward: scores them.
        chosen: its output and batch size.
    """
    if reward.card.modality == "video" or ":" in chosen.name:
        samples = [Sample(prompt=prompt, frames=list(part), extras={"fps": fps}) for part in parts]
        return _values(samples, reward, chosen)
    samples = [Sample(prompt=prompt, frames=list(part)) for part in parts]
    return _values(samples, FrameMean(reward, None), chosen)


def _values(samples: Sequence[Sample], reward: Reward, chosen: RewardChoice) -> Values:
    result = reward.score(samples, batch_size=chosen.batch_size)
    column = reward.card.outputs.index(chosen.output) if chosen.output else 0
    sign = 1.0 if reward.card.higher_is_better else -1.0
    found: Values = []
    for value, error in zip(result.values[:, column].tolist(), result.errors, strict=True):
        good = math.isfinite(value) and error is None
        found.append((sign * value, "") if good else (math.nan, error or "the score is no number"))
    return found


def _with(group: Group, record: dict[str, Any], title: str) -> Group:
    values = [math.nan if value is None else float(value) for value in record["scores"]]
    errors = group.errors or ("",) * len(group.variants)
    return replace(
        group,
        scores=tuple({**old, title: value} for old, value in zip(group.scores, values, strict=True)),
        errors=tuple(
            old or new or record.get(AGAIN, "") for old, new in zip(errors, record["errors"], strict=True)
        ),
    )


# ------------------------------------------------------------------------------------------------ judges


def judged_in_both_orders(
    pairs: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    prompt: str,
    judge: Reward,
    chosen: RewardChoice,
) -> Values:
    """1 where a judge prefers the first of two clips whichever is shown first, 0 the second, 0.5 a tie.

    Two answers that contradict each other are a tie; NaN where an answer holds no verdict. Judges of the
    catalogue (outputs `in_order` and `swapped`) ask in both orders themselves; a function of the user's own
    is given the first clip as `frames` and the second as `extras["other"]`, then the other way round, and
    says how likely its own is the better one.

    Args:
        pairs: frames of the two clips of each.
        prompt: of all.
        judge: a pairwise judge.
        chosen: its settings.

    Raises:
        ConfigError: a reward of single clips.
    """
    asks_both = {"in_order", "swapped"} <= set(judge.card.outputs)
    if not asks_both and ":" not in chosen.name:
        expected = "a pairwise judge, with outputs in_order and swapped"
        message = explain(f"judge {chosen.name}", got=", ".join(judge.card.outputs), expected=expected)
        raise ConfigError(message)
    forward = [_compared(first, second, prompt) for first, second in pairs]
    if asks_both:
        columns = [judge.card.outputs.index(name) for name in ("in_order", "swapped")]
        result = judge.score(forward, batch_size=chosen.batch_size)
        shares = result.values[:, columns]
        errors: Sequence[str | None] = result.errors
    else:
        turned = [_compared(second, first, prompt) for first, second in pairs]
        one, two = (judge.score(side, batch_size=chosen.batch_size) for side in (forward, turned))
        shares = torch.stack([one.first(), 1.0 - two.first()], dim=1)
        errors = [first or second for first, second in zip(one.errors, two.errors, strict=True)]
    return [
        (verdict, "" if math.isfinite(verdict) else error or "no verdict")
        for verdict, error in zip(map(_verdict, shares.tolist()), errors, strict=True)
    ]


def neighbours_judged(
    groups: Sequence[Group], load: Load, stages: Stages, plan: VideoPairPlan
) -> list[tuple[float, ...]]:
    """Verdicts on clips (0, 1), (2, 3), ... of every group, as `judged_in_both_orders`; () without a judge.

    Where the judge or a file cannot be reached, nothing is stored, as in `scored`.

    Raises:
        ConfigError: a reward of single clips.
    """
    chosen = plan.judge
    if chosen is None:
        return [()] * len(groups)
    judge = load(chosen)

    def verdict(group: Group, first: int) -> float | None:
        paths = [stages.folder / name for name in group.files[first : first + 2] if name is not None]
        if len(paths) < 2:
            return None
        for path in paths:
            require_readable(path)
        try:
            shown = [_shown(path, plan) for path in paths]
        except RowError:
            return None
        value, _ = judged_in_both_orders([(shown[0], shown[1])], group.row.prompt, judge, chosen)[0]
        return value if math.isfinite(value) else None

    def verdicts(group: Group) -> dict[str, Any]:
        return {"verdicts": [verdict(group, 2 * number) for number in range(len(group.files) // 2)]}

    def work(block: Sequence[Group], seed: int) -> list[dict[str, Any]]:
        del seed
        return [
            if_reached(partial(verdicts, group), {"verdicts": [None] * (len(group.files) // 2)})
            for group in block
        ]

    records = stages.run(
        "verdicts",
        groups,
        work,
        key=lambda group: group.row.id,
        settings={"judge": judge.fingerprint(), "frames": plan.frames, "limits": limits_of(plan)},
        depends=lambda group: [group.row.prompt, list(group.files)],
        alone=True,
    )
    return [
        tuple(math.nan if value is None else float(value) for value in record["verdicts"])
        for record in records
    ]


def _shown(path: Path, plan: VideoPairPlan) -> list[Tensor]:
    """Frames of a clip at even distances."""
    frames, _ = frames_of(path, limits=plan.data.video)
    return list(frames[even_frames(len(frames), min(plan.frames, len(frames)))])


def _compared(first: Sequence[Tensor], second: Sequence[Tensor], prompt: str) -> Sample:
    return Sample(prompt=prompt, frames=list(first), extras={"other": list(second)})


def _verdict(shares: Sequence[float]) -> float:
    """Of how likely the first clip is the better one, shown first and shown second."""
    if not all(math.isfinite(share) for share in shares):
        return math.nan
    if all(share > 0.5 for share in shares):
        return 1.0
    return 0.0 if all(share < 0.5 for share in shares) else 0.5
