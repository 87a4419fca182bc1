"""What the evaluation store costs per item: 10 000 pictures scored by a function, its memory, and once more.

The function does next to nothing, so the figures are those of the harness: reading files, hashing, keys,
parquet parts. Memory is what Python holds in use (tracemalloc), measured in a run of its own.
"""

import time
import tracemalloc
from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from mmalign.evals.scoring import Picture, score_missing, scores_table
from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.sample import Sample, to_image

__all__ = ["measure"]

ITEMS = 10_000


def brightness(samples: Sequence[Sample]) -> list[float]:
    """Mean of all channels, 0 to 255."""
    pictures = [to_image(sample.image) for sample in samples if sample.image is not None]
    return [float(np.asarray(picture).mean()) for picture in pictures]


def pictures_in(folder: Path, count: int) -> list[Picture]:
    """`count` different pictures of 64 x 64 pixels, written as PNG."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        buffer = BytesIO()
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
            buffer, "PNG", compress_level=1
        )
        path = folder / f"{number:05d}.png"
        path.write_bytes(buffer.getvalue())
        found.append(Picture(str(number), f"prompt {number}", path, sha256(buffer.getvalue()).hexdigest()))
    return found


def measure(folder: Path, items: int = ITEMS) -> dict[str, float]:
    """Items per second, seconds to find that nothing is left, and memory after a tenth and after all."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = pictures_in(folder, items)
    reward = FunctionReward(brightness, name="brightness")
    started = time.perf_counter()
    score_missing(reward, pictures, folder / "store")
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    score_missing(reward, pictures, folder / "store")
    again = time.perf_counter() - started
    peaks = []
    for count in (items // 10, items):
        tracemalloc.start()
        score_missing(reward, pictures[:count], folder / f"store-{count}")
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    stored = len(scores_table(folder / "store").stored_keys())
    return {
        "items": float(stored),
        "items_per_second": items / seconds,
        "seconds_when_nothing_is_left": again,
        "peak_mib_tenth": peaks[0],
        "peak_mib_all": peaks[1],
    }


if __name__ == "__main__":
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(measure(Path(home)), indent=2))
