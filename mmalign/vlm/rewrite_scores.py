"""What rewards say of pictures and videos that were painted of rewritten prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmalign.data.pair_making.stages import Stages, each_if_reached
from mmalign.errors import ConfigError, RowError, explain
from mmalign.rewards.base import Reward
from mmalign.rewards.sample import Sample
from mmalign.vlm.pair_making.scored_sections import PromptWriterConfig, RewriteReward
from mmalign.vlm.prompt_writer import Rewrites

__all__ = ["scored"]

_CLIPS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")


@dataclass
class _Judging:
    """One reward at work on painted files."""

    reward: Reward
    config: RewriteReward
    folder: Path
    samples: list[Sample] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, prompt: str, media: Any) -> None:
        """Take a picture or clip of rewrite `number`, or note why it cannot be scored."""
        if media is None:
            self.problems.setdefault(number, "painting failed")
            return
        try:
            found = self._samples(prompt, media)
        except RowError as error:
            self.problems.setdefault(number, str(error))
            return
        self.samples += found
        self.owners += [number] * len(found)

    def _samples(self, prompt: str, media: Any) -> list[Sample]:
        frames: list[Any] = []
        if not isinstance(media, list):
            path = self.folder / media
            if path.suffix.lower() not in _CLIPS:
                return [Sample(prompt=prompt, image=path)]
            if self.reward.card.modality != "image":
                return [Sample(prompt=prompt, video=path)]
            from mmalign.rewards.video_files import read_frames

            frames = list(read_frames(path, lambda total, _: _even(total, self.config.frames)))
        else:
            paths = [self.folder / name for name in media]
            if self.reward.card.modality != "image":
                return [Sample(prompt=prompt, frames=paths)]
            frames = [paths[place] for place in _even(len(paths), self.config.frames)]
        return [Sample(prompt=prompt, image=frame) for frame in frames]

    def values(self, count: int) -> tuple[list[float], list[str]]:
        """(Mean score, why it is missing) of rewrites 0 to count - 1, higher is better."""
        outputs = self.reward.card.outputs
        column = outputs.index(self.config.output) if self.config.output else 0
        sums, numbers = [0.0] * count, [0] * count
        if self.samples:
            result = self.reward.score(self.samples, batch_size=self.config.batch_size)
            for place, owner in enumerate(self.owners):
                # One picture that failed fails its rewrite: a mean over the others would be another number.
                sums[owner] += float(result.values[place, column])
                numbers[owner] += 1
                if result.errors[place] is not None:
                    self.problems.setdefault(owner, str(result.errors[place]))
        sign = 1.0 if self.reward.card.higher_is_better else -1.0
        means = [
            math.nan if not number or owner in self.problems else sign * total / number
            for owner, (total, number) in enumerate(zip(sums, numbers, strict=True))
        ]
        errors = [
            self.problems.get(owner, "" if not math.isnan(mean) else "nothing was painted")
            for owner, mean in enumerate(means)
        ]
        return means, errors


def _even(total: int, count: int) -> list[int]:
    """At most `count` places from the first to the last."""
    kept = min(total, count)
    return [0] if kept == 1 else [round(place * (total - 1) / (kept - 1)) for place in range(kept)]


def scored(
    rewrites: Sequence[Rewrites],
    load: Callable[[RewriteReward], Reward],
    stages: Stages,
    config: PromptWriterConfig,
) -> list[Rewrites]:
    """The painted rewrites with a score by every reward; one reward is in memory at a time.

    Where a reward cannot be reached (OSError), nothing is stored: the next run asks again.

    Args:
        rewrites: painted.
        load: a reward by its settings.
        stages: where records go.
        config: rewards, and whether they read the user's prompt or the rewrite.

    Raises:
        ConfigError: a reward has no output of that name, or compares candidates of one call.
    """
    tables: list[list[dict[str, Any]]] = []
    for chosen in config.rewards:
        reward = load(chosen)
        _require_single(reward, chosen)

        def asked(
            block: Sequence[Rewrites], reward: Reward = reward, chosen: RewriteReward = chosen
        ) -> list[dict[str, Any]]:
            judging, count = _Judging(reward, chosen, stages.folder / "painted"), 0
            for one in block:
                for text, media in zip(one.texts, one.media, strict=True):
                    for medium in media:
                        judging.add(count, one.prompt if config.judged_for == "original" else text, medium)
                    count += 1
            values, errors = (iter(column) for column in judging.values(count))
            return [
                {"scores": [next(values) for _ in one.texts], "errors": [next(errors) for _ in one.texts]}
                for one in block
            ]

        def work(
            block: Sequence[Rewrites], seed: int, asked: Callable[..., list[dict[str, Any]]] = asked
        ) -> list[dict[str, Any]]:
            del seed
            return each_if_reached(asked, block, _nothing)

        settings = {
            "reward": reward.fingerprint(),
            "output": chosen.output,
            "frames": chosen.frames,
            "judged_for": config.judged_for,
        }
        name = "".join(letter if letter.isalnum() else "_" for letter in f"scores_{chosen.column}")
        tables.append(
            stages.run(
                name,
                rewrites,
                work,
                key=lambda one: one.row.id,
                settings=settings,
                depends=lambda one: [list(one.texts), [list(media) for media in one.media]],
                alone=True,
            )
        )
        del reward
    return [
        replace(
            one,
            scores=tuple(zip(*(table[number]["scores"] for table in tables), strict=True)),
            errors=tuple(
                "; ".join(filter(None, problems))
                for problems in zip(*(table[number]["errors"] for table in tables), strict=True)
            ),
        )
        for number, one in enumerate(rewrites)
    ]


def _nothing(one: Rewrites) -> dict[str, Any]:
    """The record of rewrites that could not be scored this time."""
    return {"scores": [math.nan] * len(one.texts), "errors": ["no answer"] * len(one.texts)}


def _require_single(reward: Reward, chosen: RewriteReward) -> None:
    outputs = reward.card.outputs
    if chosen.output and chosen.output not in outputs:
        message = explain(f"reward {chosen.name} output", got=chosen.output, expected=", ".join(outputs))
        raise ConfigError(message)
    if getattr(reward, "relative", False):
        message = explain(
            f"reward {chosen.name}",
            got="[values that depend on the other candidates]",
            expected="values of single pictures",
            do="Name its members as rewards, and how to combine them in prompt_writer.combine.",
        )
        raise ConfigError(message)
