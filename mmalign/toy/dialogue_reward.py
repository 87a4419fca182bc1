"""The judge of the toy world of dialogues as a reward of answers, and prompts that carry what it needs.

    mmalign.toy.dialogue_reward:score

is what a run names as its reward: exact, for every row says what was painted.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from mmalign.errors import RowError, explain
from mmalign.rewards.sample import Sample
from mmalign.toy.dialogue_answers import DESCRIBE, describe, judge, objects_of
from mmalign.toy.dialogue_pairs import png_bytes
from mmalign.toy.dialogue_scenes import Picture, draw_pictures
from mmalign.toy.scenes import Scene

__all__ = ["TRUTH", "score", "write_prompts"]

TRUTH = "truth"
"""Column that describes the picture."""


def score(samples: Sequence[Sample]) -> list[float]:
    """Of each description the harmonic mean of precision and recall of the kinds it names, in [0, 1].

    Precision alone would be greatest for who says least.

    Raises:
        RowError: reason `no_truth`, a row does not say what was painted.
    """
    found = []
    for sample in samples:
        truth = sample.extras.get(TRUTH)
        if not isinstance(truth, str):
            message = explain(sample.id, got=f"no column {TRUTH!r}", expected="rows of write_prompts")
            raise RowError(message, reason="no_truth")
        picture = Picture(objects_of(truth), Scene((), (0, 0, 0)))
        judged = judge(sample.text or "", picture)
        found.append(judged.score if judged.mentioned else math.nan)
    return found


def write_prompts(num: int, path: Path, *, seed: int) -> Path:
    """Write questions for descriptions of pictures outside the held-out split, without any answer.

    Args:
        num: of pictures.
        path: of a parquet file; columns `prompt`, `images` and what was painted, in words.
        seed: of pictures and wordings.

    Returns the path.
    """
    import pyarrow
    from pyarrow import parquet

    records = [
        {
            "prompt": [{"role": "user", "content": [_item("image", None), _item("text", question)]}],
            "images": [{"bytes": png_bytes(picture), "path": None}],
            TRUTH: describe(picture.groups),
        }
        for number, picture in enumerate(draw_pictures(num, seed=seed, held_out=False))
        for question in (DESCRIBE[number % len(DESCRIBE)],)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def _item(kind: str, text: str | None) -> dict[str, str | None]:
    return {"type": kind, "text": text}
