"""Pictures of other rows, for corruptions that show one in the place of, or mixed with, a row's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmalign.batch import PreferenceRow
from mmalign.data.rows import FieldError
from mmalign.errors import RowError, explain
from mmalign.seeding import derive_seed
from mmalign.vlm.media import MediaReader

__all__ = ["OtherRows"]

_TRIES = 64
"""Rows looked at before a row is given up: in a data set with several pictures one is found long before."""


@dataclass(frozen=True)
class OtherRows:
    """The rows of a run, to take pictures of.

    Args:
        table: rows by number, as the loader reads them.
        media: opens their pictures.
    """

    table: Any
    media: MediaReader

    def __call__(self, row: PreferenceRow, *, own: frozenset[str], seed: int) -> Sequence[Image.Image]:
        """A picture, or the frames of a clip, of a row drawn by the seed; never one of the row's own.

        Several rows may ask about one picture: what counts as other is another content, not another row.

        Args:
            row: which one looks for others.
            own: digests of its media.
            seed: decides which row and which of its pictures.

        Raises:
            RowError: no other picture is found, `no_other_image`.
        """
        for attempt in range(_TRIES):
            number = derive_seed(seed, "other row", attempt) % len(self.table)
            try:
                found = self._shown(self.table[number], derive_seed(seed, "other picture", attempt))
            except RowError:  # the row is counted at its own turn
                continue
            if found is not None and found[0] not in own:
                return found[1]
        message = explain(
            f"{row.source or row.id}: images",
            got=f"[no other picture in {_TRIES} rows]",
            expected="rows with several pictures",
            do="Choose a corruption that needs no other row: crop, diffusion_noise.",
        )
        raise FieldError(message, reason="no_other_image", field_name="images")

    def _shown(self, row: PreferenceRow, seed: int) -> tuple[str, Sequence[Image.Image]] | None:
        """Digest and frames of one of the row's media; None where it has none."""
        shown = (*row.images, *row.videos)
        if not shown:
            return None
        place, where = seed % len(shown), row.source or row.id
        if place < len(row.images):
            picture = self.media.picture(row.images[place], where=where)
            return picture.digest, (picture.image,)
        clip = self.media.clip(row.videos[place - len(row.images)], where=where)
        return clip.digest, clip.frames
