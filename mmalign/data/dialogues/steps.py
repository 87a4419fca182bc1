"""Windows of two trajectories as pairs: every step shows its own pictures and is answered by an action.

A record holds the steps of the better attempt and those of the worse one:

    {"instruction": "Put the block on the plate.",
     "chosen_steps": [{"images": ["a/0.png"], "action": "1 0 2"}, ...],
     "rejected_steps": [{"images": ["b/0.png"], "action": "2 1 0"}, ...]}

Until a model reads the row it is a pair like any other, whose answers are the actions in order and whose
pictures are those of all steps. `as_steps` takes it apart: every step becomes a candidate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmalign.batch import Candidate, ContentItem, Message, PreferenceRow
from mmalign.data.dialogues.fields import Fields
from mmalign.data.dialogues.reading import Answer, Dialogue, prompt_turns
from mmalign.data.rows import FieldError
from mmalign.errors import explain

__all__ = ["OF_WORSE", "as_steps", "has_steps", "read_trajectories"]

OF_WORSE = "of_worse"
"""Number of every step: 0 of the better trajectory, 1 of the worse."""

_SIDES = ("chosen", "rejected")


def read_trajectories(fields: Fields) -> Dialogue:
    """A window of two attempts as a pair: actions joined, pictures of all steps in a row.

    Raises:
        RowError: reasons `no_steps`, `bad_step`, `step_count` (the attempts differ in steps or pictures).
    """
    if any(fields.columns[side] not in fields.values for side in _SIDES):
        # Encoded pictures lie in the same cells, and only words are looked at now: sides that can differ.
        return Dialogue(tuple(prompt_turns(fields)), tuple(Answer(side) for side in _SIDES))
    sides = [_steps(fields, side) for side in _SIDES]
    shapes = [[len(images) for images, _ in steps] for steps in sides]
    if shapes[0] != shapes[1] or len(set(shapes[0])) != 1:
        message = explain(
            fields.where,
            got=f"pictures per step {shapes[0]} and {shapes[1]}",
            expected="as many steps on both sides, each with the same number of pictures",
            do="Cut both attempts to the same window: `python vlm/rank_trajectories.py` does so.",
        )
        raise FieldError(message, "step_count", fields.columns["rejected"])
    seen = [tuple(image for images, _ in steps for image in images) for steps in sides]
    answers = tuple(
        Answer("\n".join(action for _, action in steps), images=images)
        for steps, images in zip(sides, seen, strict=True)
    )
    actions = [[action for _, action in steps] for steps in sides]
    return Dialogue(tuple(prompt_turns(fields)), answers, images=seen[0], sides={"actions": actions})


def _steps(fields: Fields, side: str) -> list[tuple[tuple[Any, ...], str]]:
    """(Pictures, action) of every step of one side."""
    column, value = fields.columns[side], fields.parsed(side)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        message = explain(fields.place(side), got=repr(value)[:60], expected="a list of steps")
        raise FieldError(message, "no_steps", column)
    found = []
    for number, step in enumerate(value):
        images = step.get("images", step.get("image")) if isinstance(step, Mapping) else None
        action = step.get("action") if isinstance(step, Mapping) else None
        if images is None or not isinstance(action, str) or not action.strip():
            message = explain(
                f"{fields.place(side)}[{number}]",
                got=repr(step)[:60],
                expected="{images: [...], action: words or action tokens}",
            )
            raise FieldError(message, "bad_step", column)
        found.append((tuple(images) if isinstance(images, list | tuple) else (images,), action))
    return found


def has_steps(row: PreferenceRow) -> bool:
    """Whether a row is a window of two trajectories that was not taken apart yet."""
    return all(f"actions_{side}" in row.extras for side in _SIDES) and len(row.candidates) == len(_SIDES)


def as_steps(row: PreferenceRow) -> PreferenceRow:
    """The row with steps for candidates, those of the better trajectory first; `extras` number the sides.

    Every step answers the instruction beside its own pictures.

    Args:
        row: with `actions_chosen` and `actions_rejected`, and pictures of all steps on both sides.
    """
    actions = [list(row.extras[f"actions_{side}"]) for side in _SIDES]
    count = len(actions[0])
    seen = [row.images if candidate.images is None else candidate.images for candidate in row.candidates]
    cameras = len(seen[0]) // count
    steps = tuple(
        Candidate(text=action, images=images[place * cameras : (place + 1) * cameras])
        for texts, images in zip(actions, seen, strict=True)
        for place, action in enumerate(texts)
    )
    kept = {name: value for name, value in row.extras.items() if not name.startswith("actions_")}
    return replace(
        row,
        candidates=steps,
        images=seen[0][:cameras],
        messages=_with_pictures(row.messages, cameras),
        extras={**kept, OF_WORSE: [0.0] * count + [1.0] * len(actions[1])},
    )


def _with_pictures(messages: Sequence[Message], cameras: int) -> tuple[Message, ...]:
    """The dialogue with the pictures of one step, in front of the instruction."""
    if not messages:
        return ()
    bare = [
        Message(message.role, tuple(item for item in message.content if item.type == "text"))
        for message in messages
    ]
    last = bare[-1]
    shown = Message(last.role, (*(ContentItem("image"),) * cameras, *last.content))
    return (*bare[:-1], shown)
