"""How much the clips of pairs move, as an audit sees it: what rows say of it, or what their frames show."""

from typing import Any

from mmalign.batch import PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.video_facts import look_at_clip, stored_fps
from mmalign.errors import MissingExtraError

__all__ = ["SeenMotions"]

_FRAMES_FPS = 8.0
"""Of folders of frames whose rate nobody says: motion is then that of neighbouring frames."""


class SeenMotions:
    """How much the two sides of pairs of clips move; every clip is decoded once.

    `records` is what `mmalign.data.motion_bias.motion_bias` reads; `notes` says why nothing was measured.

    Args:
        config: with limits of clips.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._known: dict[str, float] = {}
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def look(self, row: PreferenceRow, light: PreferenceRow, *, turned: bool) -> None:
        """Keep the motion of a decided pair.

        Args:
            row: as it was read.
            light: the same with hashes in place of media.
            turned: whether its columns belong to the candidates the other way round.

        Raises:
            RowError: a clip cannot be decoded.
        """
        clips = [candidate.video for candidate in row.candidates]
        if row.preference == 0.5 or len(clips) != 2 or None in clips or self.notes:
            return
        given = [row.extras.get(f"motion_{side}") for side in ("chosen", "rejected")]
        sides = [float(value) for value in given if isinstance(value, int | float)]
        if len(sides) == 2:
            sides = sides[::-1] if turned else sides
        else:
            try:
                sides = [
                    self._motion(row, number, one.id or "") for number, one in enumerate(light.candidates)
                ]
            except MissingExtraError as error:
                self.notes.append(f"How much clips move was not measured: {error}")
                return
        self.records.append({"prompt": row.prompt, "motion_chosen": sides[0], "motion_rejected": sides[1]})

    def _motion(self, row: PreferenceRow, number: int, key: str) -> float:
        clip = row.candidates[number].video
        if key not in self._known and clip is not None:
            limits = self._config.video
            fps = stored_fps(row) or limits.frames_fps or _FRAMES_FPS
            where = f"{row.source} candidate {number}"
            self._known[key] = look_at_clip(clip, where=where, limits=limits, stored_fps=fps).motion
        return self._known[key]
