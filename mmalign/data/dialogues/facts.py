"""What `mmalign data check` says of dialogues: lengths of answers, what is shown, repeated rows."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmalign.batch import Candidate, Media, PreferenceRow
from mmalign.data.config import ImageLimits
from mmalign.data.dialogues.media import video_frames
from mmalign.data.media import decode_image, read_media
from mmalign.data.rows import FieldError
from mmalign.data.statistics import mean_of, share_of
from mmalign.errors import explain

__all__ = ["DialogueFacts"]

_BIAS = 0.6
"""Share of longer chosen answers from which the note about length is worth reading."""


@dataclass
class DialogueFacts:
    """Collects facts about the rows looked at.

    Args:
        limits: sizes beyond which an image is refused.
        decode: whether images are decoded, or only read.
    """

    limits: ImageLimits
    decode: bool
    prompts: list[str] = field(default_factory=list)
    words: list[tuple[int, ...]] = field(default_factory=list)
    kind: str = "pairs"
    media: Counter[str] = field(default_factory=Counter)
    frames: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    rows_seen: Counter[str] = field(default_factory=Counter)
    images_seen: Counter[str] = field(default_factory=Counter)

    def look(self, row: PreferenceRow) -> None:
        """Open the media of a row and note what it says. Raises RowError."""
        own = [self._own(candidate, row.source) for candidate in row.candidates]
        shared = self._all(row.images, row.videos, row.source)
        self.images_seen.update(shared)
        # The same answers in the other order are the same pair with the opposite label, worth knowing too.
        answers = sorted(
            f"{candidate.text}|{seen}" for candidate, seen in zip(row.candidates, own, strict=True)
        )
        self.rows_seen["|".join([row.prompt, *shared, *answers])] += 1
        self.kind = row.kind
        self.prompts.append(row.prompt)
        self.words.append(tuple(len((candidate.text or "").split()) for candidate in row.candidates))
        self.turns.append(sum(message.role != "system" for message in row.messages))
        count = len(row.images)
        self.media["rows with one image" if count == 1 else "rows with several images"] += count > 0
        self.media["rows with video"] += bool(row.videos)
        self.media["rows of text alone"] += not row.images and not row.videos
        self.media["rows whose answers see different media"] += any(own)

    def _own(self, candidate: Candidate, where: str) -> list[str]:
        return self._all(candidate.images or (), candidate.videos or (), f"{where} candidate")

    def _all(self, images: tuple[bytes | str, ...], videos: tuple[Media, ...], where: str) -> list[str]:
        seen = [self._image(image, f"{where} images[{place}]") for place, image in enumerate(images)]
        return seen + [self._video(video, f"{where} videos[{place}]") for place, video in enumerate(videos)]

    def _image(self, image: bytes | str, where: str) -> str:
        data = read_media(image, where=where, max_bytes=self.limits.max_bytes)
        if self.decode:
            self.sizes.append(decode_image(data, where=where, limits=self.limits).original_size)
        self.num_bytes.append(len(data))
        return hashlib.blake2b(data, digest_size=12).hexdigest()

    def _video(self, video: Media, where: str) -> str:
        frames = video_frames(video, where=where)
        if frames:
            self.frames.append(len(frames))
            # The first frame stands for the folder: decoding all of them would take minutes.
            return self._image(frames[0], where)
        size = len(video) if isinstance(video, bytes) else os.path.getsize(str(video))
        if not size:
            raise FieldError(explain(where, got="0 bytes", expected="a video"), "empty_file", "videos")
        return hashlib.blake2b(str(video).encode(), digest_size=12).hexdigest()

    def answer_facts(self) -> dict[str, Any]:
        """Lengths in words, with 95 % intervals over prompts; of pairs also which side is the longer one."""
        if not self.words or not self.words[0]:
            return {}
        if self.kind != "pairs":
            lengths = [count for counts in self.words for count in counts]
            return {"words": [min(lengths), int(np.median(lengths)), max(lengths)]}
        sides = [np.array([counts[side] for counts in self.words], dtype=np.float64) for side in (0, 1)]
        longer = (sides[0] > sides[1]) + 0.5 * (sides[0] == sides[1])
        facts: dict[str, Any] = {}
        for name, values in (("chosen", sides[0]), ("rejected", sides[1])):
            facts[f"words_{name}"] = mean_of(values.tolist(), self.prompts).describe(1)
        facts["chosen_longer"] = share_of(longer.tolist(), self.prompts).describe()
        facts["longest_words"] = int(max(side.max() for side in sides))
        return facts

    def advice(self) -> list[str]:
        """A note where the preferred answers are mostly the longer ones."""
        if self.kind != "pairs" or not self.words:
            return []
        longer = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in self.words]
        share = share_of(longer, self.prompts)
        if share.low is None or share.low <= _BIAS:
            return []
        return [
            f"The chosen answer is the longer one in {share.describe(2)} of pairs: a model may learn "
            "to write more. Methods that control length are lc_dpo_chexalign, simpo and ld_dpo; "
            "`mmalign data audit` measures the bias."
        ]

    def prompt_facts(self) -> dict[str, Any]:
        """Over the rows looked at."""
        count = Counter(self.prompts)
        return {
            "unique": len(count),
            "empty": sum(not prompt.strip() for prompt in self.prompts),
            "longest_characters": max(map(len, count), default=0),
            "most_repeated": max(count.values(), default=0),
        }

    def media_facts(self) -> dict[str, Any]:
        """What is shown: rows by kind of media, frames of videos, turns."""
        facts: dict[str, Any] = {name: count for name, count in self.media.items() if count}
        if self.frames:
            facts["frames per video"] = [min(self.frames), int(np.median(self.frames)), max(self.frames)]
        if any(count > 1 for count in self.turns):
            facts["turns before the answer"] = [min(self.turns), int(np.median(self.turns)), max(self.turns)]
        return facts
