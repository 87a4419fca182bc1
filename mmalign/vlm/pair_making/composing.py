"""Multi-image pairs from end to end: compose rows, let the policy answer, keep where it looked elsewhere."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from mmalign.batch import PreferenceRow
from mmalign.data.pair_making.stages import Stages
from mmalign.errors import ConfigError, explain
from mmalign.seeding import derive_seed
from mmalign.vlm.pair_making.multi_image import (
    LIMITS,
    Attended,
    Composite,
    Layout,
    attention_ratio,
    collage,
    picture_in_picture,
    rejects,
    sequence,
)
from mmalign.vlm.pair_making.output import MadePair

__all__ = ["Looker", "compose", "multi_image_pairs"]

Looker = Callable[[Sequence[PreferenceRow], int], Sequence[Attended]]
"""(rows, seed) to the answer of the policy to each, with its attention on every image."""

Decode = Callable[[bytes | str], Image.Image]


def compose(
    row: PreferenceRow,
    others: Sequence[PreferenceRow],
    layout: Layout,
    decode: Decode,
    *,
    seed: int,
    noise: float = 0.0,
) -> Composite:
    """A row of several images in a layout; how many of them, and whose, is drawn.

    Args:
        row: one image, one question, one true answer.
        others: rows to draw further images from.
        layout: how images are shown.
        decode: opens an image.
        seed: of every draw.
        noise: standard deviation on the other images of a single picture.

    Raises:
        ConfigError: a row without exactly one image, or fewer other rows than the smallest layout needs.
    """
    if len(row.images) != 1:
        message = explain(f"row {row.id} images", got=len(row.images), expected="1: it is put among others")
        raise ConfigError(message)
    draw = random.Random(seed)
    pool = [other for other in others if other.images and other.images[0] != row.images[0]]
    numbers = [number for kind, number in LIMITS if kind == layout and number <= len(pool) + 1]
    if not numbers:
        message = explain(
            f"{layout} of row {row.id}", got=f"[{len(pool)} other images]", expected="more rows"
        )
        raise ConfigError(message)
    images = [other.images[0] for other in draw.sample(pool, draw.choice(numbers) - 1)]
    own = draw.getrandbits(32)
    if layout == "sequence":
        return sequence(row, images, seed=own)
    opened = [decode(image) for image in images]
    image = decode(row.images[0])
    if layout == "collage":
        return collage(row, image, opened, seed=own, noise=noise)
    return picture_in_picture(row, image, opened[0], seed=own, noise=noise)


def multi_image_pairs(
    rows: Sequence[PreferenceRow],
    look: Looker,
    decode: Decode,
    stages: Stages,
    *,
    layouts: Sequence[Layout] = ("sequence", "collage", "picture_in_picture"),
    noise: float = 0.0,
) -> tuple[list[MadePair], Counter[str]]:
    """The answer of the data over the policy's where that looked elsewhere, and what was left out by reason.

    Every row is composed once in every layout.

    Args:
        rows: one image, one question, one true answer each.
        look: the policy with its attention.
        decode: opens an image.
        stages: where answers are kept.
        layouts: how images are shown.
        noise: see `compose`.

    Raises:
        ConfigError: as `compose`.
    """
    wanted = [(row, layout) for row in rows for layout in layouts]
    composites: dict[str, Composite] = {}

    def key(item: tuple[PreferenceRow, Layout]) -> str:
        return f"{item[0].id}/{item[1]}"

    def made(item: tuple[PreferenceRow, Layout]) -> Composite:
        # The same whether or not the answer is known already.
        seed = derive_seed(stages.seed, "compose", key(item))
        return compose(item[0], rows, item[1], decode, seed=seed, noise=noise)

    def work(block: Sequence[tuple[PreferenceRow, Layout]], seed: int) -> list[dict[str, Any]]:
        shown = [made(item) for item in block]
        composites.update(zip(map(key, block), shown, strict=True))
        looked = look([composite.row for composite in shown], seed)
        return [_judged(composite, attended) for composite, attended in zip(shown, looked, strict=True)]

    # Which images may stand beside a row depends on all of them.
    pool = sorted(row.id for row in rows)
    settings = {"layouts": list(layouts), "noise": noise, "rows": pool}
    records = stages.run("looks", wanted, work, key=key, settings=settings)
    pairs: list[MadePair] = []
    counts: Counter[str] = Counter()
    for item, record in zip(wanted, records, strict=True):
        if record["left_out"]:
            counts[record["left_out"]] += 1
            continue
        composite = composites.get(key(item)) or made(item)
        columns = {
            "layout": composite.layout,
            "num_images": composite.number,
            "target": composite.target,
            "attention_ratio": record["ratio"],
            "perplexity": record["perplexity"],
        }
        truth = composite.row.candidates[0].text or ""
        pairs.append(MadePair(composite.row, truth.strip(), record["answer"], item[1], columns))
    counts["rows"] = len(pairs)
    return pairs, counts


def _judged(composite: Composite, attended: Attended) -> dict[str, Any]:
    ratio = attention_ratio(composite, attended)
    return {
        "answer": attended.answer.strip(),
        "ratio": None if ratio != ratio else ratio,
        "perplexity": attended.perplexity,
        "left_out": rejects(composite, attended),
    }
