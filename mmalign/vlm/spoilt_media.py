"""Media of a row as a method's views show them: spoilt, in several versions, or blank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from mmalign.batch import PreferenceRow
from mmalign.data.rows import FieldError
from mmalign.errors import explain
from mmalign.methods.row import View
from mmalign.seeding import derive_seed
from mmalign.vlm.corruptions.others import OtherRows
from mmalign.vlm.inputs import MediaKind
from mmalign.vlm.media import Clip, Picture

__all__ = ["Opened", "SpoiltMedia"]

Opened = Mapping[MediaKind, Sequence[Picture | Clip]]
"""Decoded media of a candidate, in the order of the row."""


@dataclass(frozen=True)
class SpoiltMedia:
    """What views show in the place of a row's media.

    Args:
        corrupt: spoils a picture: (image, seed) to image; with `frames`, a video at once.
        further: spoil it in other ways: every view of spoilt media is then made once by each.
        others: pictures of other rows, for what shows those.
    """

    corrupt: Any = None
    further: tuple[Any, ...] = ()
    others: OtherRows | None = None

    def num_versions(self, view: View) -> int:
        """How often a view is made."""
        return 1 + len(self.further) if view.images == "corrupted" else 1

    def __call__(
        self, row: PreferenceRow, opened: Opened, view: View, key: int, *, version: int = 0
    ) -> dict[MediaKind, list[Picture | Clip]]:
        """The media of a view; one row draws one corruption, whichever answers stand beside it.

        Args:
            row: whose media these are.
            opened: them.
            view: of the method.
            key: decides every random choice.
            version: which one, where there are several.

        Raises:
            RowError: the row has no media (`no_image`), or no other row has any (`no_other_image`).
        """
        items = [*opened["image"], *opened["video"]]
        if not items:
            message = explain(
                f"{row.source or row.id}: images",
                got="[none]",
                expected="at least one: the method compares with other images",
            )
            raise FieldError(message, reason="no_image", field_name="images")
        made: dict[MediaKind, list[Picture | Clip]] = {"image": [], "video": []}
        for number, item in enumerate(items):
            seed = derive_seed(key, "corruption", number, *([version] if version else []))
            frames = (item.image,) if isinstance(item, Picture) else item.frames
            spoil = (self.corrupt, *self.further)[version]
            if view.images == "corrupted" and getattr(spoil, "needs_other", False):
                spoil = spoil.beside(self._other(row, items, seed))
            spoilt = tuple(_spoilt(frames, view, spoil, seed))
            if isinstance(item, Picture):
                made["image"].append(Picture.of(spoilt[0]))
            else:
                digest = f"{item.digest}:{view.images}:{seed}"
                made["video"].append(replace(item, frames=spoilt, digest=digest))
        return made

    def _other(self, row: PreferenceRow, items: Sequence[Picture | Clip], seed: int) -> Sequence[Image.Image]:
        if self.others is not None:
            return self.others(row, own=frozenset(item.digest for item in items), seed=seed)
        message = explain(
            f"{row.source or row.id}: images",
            got="[no other rows]",
            expected="rows to take another image from",
            do="Give them with VlmModel.show_rows.",
        )
        raise FieldError(message, reason="no_other_image", field_name="images")


def _spoilt(frames: Sequence[Image.Image], view: View, spoil: Any, seed: int) -> Sequence[Image.Image]:
    """A picture, or the frames of a video, as a view shows them."""
    if view.images == "blank":
        return [Image.new("RGB", frame.size) for frame in frames]
    if len(frames) > 1 and hasattr(spoil, "frames"):
        together: Sequence[Image.Image] = spoil.frames(frames, seed)
        return together
    return [spoil(frame, seed) for frame in frames]  # one seed: all are spoilt alike
