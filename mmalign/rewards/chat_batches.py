"""Questions to a chat model put together: padded on the left, and only where that cannot change a number."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import ConfigError, explain

__all__ = ["RepetitionPenalty", "Row", "stacks"]

Row = Mapping[str, Tensor]
"""One question, ready for the model: CPU tensors with a leading axis of one."""


def stacks(
    rows: Sequence[Row], *, pad: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Places and stacked tensors of rows that fit into one call; every row is in one of them.

    Tensors of the text's shape are padded on the left; of all others (pictures, their sizes) the first axes
    are joined, and rows for which that is impossible are not put together. A row with a further axis of
    tokens stays alone.

    Args:
        rows: questions.
        pad: token that fills ids; masks and types are filled with 0.
        device: where the tensors go.

    Raises:
        ConfigError: a row has no attention mask, which alone says what is padding.
    """
    groups: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        if "attention_mask" not in row:
            message = explain("processor outputs", got=sorted(row), expected="an attention_mask among them")
            raise ConfigError(message)
        groups.setdefault(_layout(row, place), []).append(place)
    for places in groups.values():
        yield places, _stack([rows[place] for place in places], pad, device)


def _is_text(row: Row, name: str) -> bool:
    return row[name].shape == row["input_ids"].shape


def _layout(row: Row, place: int) -> Any:
    length = row["input_ids"].shape[1]
    layout = []
    for name, value in sorted(row.items()):
        if _is_text(row, name):
            layout.append((name,))
        elif value.ndim > 2 and value.shape[1] == length:
            return place  # an axis of tokens, which padding would have to shift
        else:
            layout.append((name, value.dtype, *value.shape[1:]))
    return tuple(layout)


def _stack(rows: Sequence[Row], pad: int, device: torch.device) -> dict[str, Tensor]:
    longest = max(row["input_ids"].shape[1] for row in rows)
    stacked: dict[str, Tensor] = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if _is_text(rows[0], name):
            fill = pad if name == "input_ids" else 0
            parts = [
                torch.nn.functional.pad(part, (longest - part.shape[1], 0), value=fill) for part in parts
            ]
        stacked[name] = torch.cat(parts).to(device)
    return stacked


class RepetitionPenalty:
    """The repetition penalty of generation over the tokens a row really has: padding is no repetition.

    score / penalty where it is above 0, score * penalty where it is below, for every token seen before.

    Args:
        penalty: 1 = none.
        mask: attention mask of the questions.
        pad: the padding token.
    """

    def __init__(self, penalty: float, mask: Tensor, pad: int) -> None:
        self.penalty, self.mask, self.pad = penalty, mask.bool(), pad

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Changed scores of the next token."""
        picked = scores.gather(1, input_ids)
        penalised = torch.where(picked < 0, picked * self.penalty, picked / self.penalty)
        changed = scores.scatter(1, input_ids, penalised)
        real = torch.ones_like(input_ids, dtype=torch.bool)
        real[:, : self.mask.shape[1]] = self.mask
        has_pad = ((input_ids == self.pad) & real).any(dim=1)
        changed[:, self.pad] = torch.where(has_pad, changed[:, self.pad], scores[:, self.pad])
        return changed
