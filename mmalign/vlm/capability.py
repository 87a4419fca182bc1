"""What a loaded model can do exactly: answers packed behind one prompt, one vision pass for all."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["Mode", "choose_mode"]


@dataclass(frozen=True)
class Mode:
    """How micro-batches are laid out.

    Args:
        packed: answers of one prompt share its row.
        shared: media are encoded once and put in place by us; False: the model's own forward does it per row.
        note: one sentence for the run's opening lines.
    """

    packed: bool
    shared: bool
    note: str


def choose_mode(model: "VlmModel") -> Mode:
    """The fastest mode in which the model gives the numbers of its own forward."""
    packed = model.tokens.packing != "plain"
    shared = model.tokens.share_vision != "off"
    return Mode(packed and shared, shared, "")
