"""What a reader must know before believing a table of results, in words."""

from collections.abc import Mapping
from typing import Any

from mmalign.evals.prompts import PUBLIC_SETS
from mmalign.evals.results import Results

__all__ = ["warnings_of"]


def warnings_of(results: Results, record: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a table, in words."""
    found: list[str] = []
    for column in results.columns:
        cut = results.truncated[column.title]
        if cut > 0:
            found.append(f"{column.title} read only the beginning of {cut:.0%} of the prompts.")
        if column.reward.role == "training":
            found.append(f"{column.title} was trained on: a gain in it alone proves nothing.")
    for model in results.models:
        lacking = len(results.jobs) - len(model.pictures)
        if lacking:
            found.append(f"{model.spec.name} has no picture for {lacking} of {len(results.jobs)} samples.")
    found += [
        f"{reward['title']} could not score {_pictures(reward['failed'])}; failures count for no side."
        for reward in record["rewards"]
        if reward["failed"]
    ]
    found += _other_sizes(results)
    found += _of_clips(results, record)
    held_out = [column for column in results.columns if column.reward.role == "held_out"]
    training = [column for column in results.columns if column.reward.role == "training"]
    for comparison in record["comparisons"]:
        gains = {title: gap["difference"] for title, gap in comparison["differences"].items()}
        rose = [c.title for c in training if c.title in gains and (gains[c.title]["low"] or 0) > 0]
        fell = [c.title for c in held_out if c.title in gains and (gains[c.title]["high"] or 0) < 0]
        if rose and fell:
            found.append(
                f"{comparison['model']} gained in what it was trained on ({', '.join(rose)}) and lost in "
                f"{', '.join(fell)}: this looks like over-optimisation."
            )
    if len({model.recipe.get("dtype") for model in results.models}) > 1:
        found.append("The models painted in different precisions; part of a difference may be rounding.")
    return found


_MOTION = ("frame_difference", "motion", "dynamic", "flow")
"""Parts of the names of rewards, or of their titles, that measure how much clips move."""


def _of_clips(results: Results, record: Mapping[str, Any]) -> list[str]:
    """Of clips: quality without a measure of motion beside it, and clips of other shapes."""
    if record["media"] != "clips":
        return []
    found: list[str] = []
    names = [f"{column.reward.name} {column.title}".lower() for column in results.columns]
    if not any(part in name for name in names for part in _MOTION):
        found.append(
            "No measure of motion stands beside these rewards, and most of them like clips that hardly move: "
            "add {name: 'mmalign.evals.video.pixels:frame_difference', title: motion, frames: 0} to the "
            "suite's rewards."
        )
    shapes = {
        tuple(model.recipe[name] for name in ("num_frames", "height", "width", "fps"))
        for model in results.models
        if "num_frames" in model.recipe
    }
    if len(shapes) > 1:
        found.append("The models' clips differ in frames, size or rate, on which rewards and motion depend.")
    return found


def _other_sizes(results: Results) -> list[str]:
    """Public sets that have another number of prompts here than in the tables of papers."""
    found = []
    for name in results.suite.prompts:
        known = PUBLIC_SETS.get(name)
        count = sum(item.id.startswith(f"{name}/") for item in results.items)
        if known is not None and count and known.count != count:
            found.append(
                f"{name}: {count} prompts of {known.count}{f' ({known.note})' if known.note else ''}."
            )
    return found


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"
