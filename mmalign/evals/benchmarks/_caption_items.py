"""Caption benchmarks in a folder: which pictures, what is in them, and the metrics both of them report."""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

from mmalign.errors import ConfigError, explain
from mmalign.evals.base import Item, Metric
from mmalign.evals.benchmarks._captions import CaptionResult
from mmalign.evals.benchmarks._harness import media_folder, metric, official_file
from mmalign.evals.benchmarks._objects import (
    Form,
    ObjectVocabulary,
    ground_truth,
    read_coco,
    read_ground_truth,
)
from mmalign.evals.benchmarks._records import Record, image_key, read_json_records, read_lines
from mmalign.rewards.sample import Media

__all__ = ["ANNOTATION_FILES", "QUESTION", "caption_items", "caption_metrics", "truth_of", "vocabulary_of"]

QUESTION = "Please describe this image in detail."

ANNOTATION_FILES = {
    "ground_truth.json": "yours, instead of COCO's files: {image id: [object class, ...]}",
    "instances_{train,val}2014.json, captions_{train,val}2014.json": "COCO, here or in annotations/",
}

_LONGEST_PATH = 512


def caption_items(
    folder: Path, images: str | Path | None, *, listing: Sequence[str], synonyms: Sequence[str]
) -> list[Item]:
    """Items with `image_id`, `synonyms` and either `truth` or COCO's `categories` and `captions`.

    Args:
        folder: with the files of `ANNOTATION_FILES`.
        images: where the pictures are.
        listing: names of the file that lists them, the first that exists.
        synonyms: names of the synonym file.

    Raises:
        ConfigError: a file is missing.
        RowError: a record of one is malformed, or a picture is not annotated.
    """
    pictures = media_folder(folder, images)
    rows = read_json_records(official_file(folder, *listing))
    words = tuple(read_lines(official_file(folder, *synonyms)))
    there = _annotations(folder, [row.identifier("image_id") for row in rows])
    items, seen = [], dict[str, int]()
    for row in rows:
        image = image_key(row.identifier("image_id"))
        if image not in there:
            raise row.refuse("image_id", "an image of the annotations")
        number = seen[image] = seen.get(image, 0) + 1
        items.append(
            Item(
                id=image if number == 1 else f"{image}#{number}",
                prompt=row.optional_text("question") or row.optional_text("prompt") or QUESTION,
                media=(_picture(row, pictures, image),),
                expected={"image_id": image, "synonyms": words, **there[image]},
            )
        )
    return items


def _annotations(folder: Path, images: Sequence[str]) -> dict[str, dict[str, object]]:
    """What is known of each image: its classes, or categories and reference captions."""
    stored = folder / "ground_truth.json"
    if stored.is_file():
        return {image: {"truth": sorted(names)} for image, names in read_ground_truth(stored).items()}
    files = {
        kind: [
            official_file(folder, f"{kind}_{part}2014.json", f"annotations/{kind}_{part}2014.json")
            for part in ("train", "val")
        ]
        for kind in ("instances", "captions")
    }
    categories, captions = read_coco(files["instances"], files["captions"], images)
    # An image COCO knows nothing about is a wrong id, not an empty picture.
    return {
        image: {"categories": categories[image], "captions": captions[image]}
        for image in categories
        if categories[image] or captions.get(image)
    }


def _picture(row: Record, pictures: Path, image: str) -> Media:
    """A named file, the picture itself in base 64, or COCO's file name of the id."""
    given = row.optional_text("image")
    if given is None:
        return pictures / (f"COCO_val2014_{int(image):012d}.jpg" if image.isdigit() else image)
    if len(given) < _LONGEST_PATH:
        return pictures / given
    try:
        return base64.b64decode(given, validate=True)
    except binascii.Error as error:
        raise row.refuse("image", "a file name, or a picture in base 64") from error


def vocabulary_of(records: Sequence[Record], form: Form) -> ObjectVocabulary:
    """The vocabulary of the synonym lines that items carry.

    Raises:
        ConfigError: there are no records.
    """
    if not records:
        raise ConfigError(explain("answers", got="[none]", expected="at least one"))
    return ObjectVocabulary.from_lines(records[0]["synonyms"], form)


def truth_of(records: Sequence[Record], vocabulary: ObjectVocabulary) -> dict[str, frozenset[str]]:
    """Image id to object classes, from what items carry."""
    stored = {record["image_id"]: record for record in records}
    found = {image: frozenset(record["truth"]) for image, record in stored.items() if "truth" in record}
    raw = {image: record for image, record in stored.items() if "truth" not in record}
    categories = {image: record.texts("categories") for image, record in raw.items()}
    captions = {image: record.texts("captions") for image, record in raw.items()}
    derived = ground_truth(categories, captions, vocabulary)
    return found | {image: derived.get(image, frozenset()) for image in raw}


def caption_metrics(result: CaptionResult, names: tuple[str, str]) -> tuple[Metric, ...]:
    """Metrics of a caption benchmark: its two hallucination rates (captions, mentions), recall, length."""
    scored = result.items
    beside = ("recall", "mean_length")
    captions, mentions = names
    rates = [(item.id, item.hallucinates) for item in scored]
    shares = [(item.id, item.hallucinated_share) for item in scored]
    recalls = [(item.id, item.recall) for item in scored]
    lengths = [(item.id, item.length) for item in scored]
    values = result.metrics()
    rate = values[captions]
    unit = "in [0, 1]"
    return (
        metric(captions, rate, unit, higher_is_better=False, per_item=rates, beside=beside),
        metric(mentions, values["chair_i"], unit, higher_is_better=False, per_item=shares, beside=beside),
        metric("recall", values["recall"], unit, per_item=recalls),
        metric("mean_length", values["mean_length"], "words", higher_is_better=None, per_item=lengths),
    )
