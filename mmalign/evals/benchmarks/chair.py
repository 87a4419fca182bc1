"""CHAIR: objects a caption names that are not in the COCO picture.

Source: arXiv 1809.02156; LisaAnne/Hallucination utils/chair.py. CHAIRs is the share of captions that name
anything absent, CHAIRi the share of absent objects among all named (repeats count). What is there: the
image's instance categories and the objects of its reference captions.

Mode `exact` has the released vocabulary rules: synonyms with stray spaces in the official file never match,
and a fixed list of word pairs is merged. Mode `strict` matches every synonym. Both use our own tokens and
singulars unless the vocabulary is given others (`ObjectVocabulary`, its `tokenise` and `singularise`).

The released script neither counts recall nor length; both stand beside here, because saying less lowers
CHAIR. Published numbers of vision-language models are for 500 pictures of val2014, "Please describe this
image in detail.", and 64 or 512 new tokens: state which.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.evals.base import Answer, Benchmark, Item, Outcome
from mmalign.evals.benchmarks._caption_items import (
    ANNOTATION_FILES,
    caption_items,
    caption_metrics,
    truth_of,
    vocabulary_of,
)
from mmalign.evals.benchmarks._captions import CaptionItem, CaptionResult, score_mentions
from mmalign.evals.benchmarks._harness import records_of
from mmalign.evals.benchmarks._objects import (
    Mention,
    ObjectVocabulary,
    ground_truth,
    read_coco,
    read_ground_truth,
    read_synonyms,
)
from mmalign.evals.benchmarks._records import (
    Mode,
    Record,
    answer_field,
    check_mode,
    failure,
    locate,
    read_json_records,
    read_lines,
    read_value,
)

__all__ = [
    "BENCHMARK",
    "CaptionItem",
    "CaptionResult",
    "Mention",
    "ObjectVocabulary",
    "ground_truth",
    "read_captions",
    "read_coco",
    "read_ground_truth",
    "read_synonyms",
    "score_answers",
]


def score_answers(
    records: Iterable[Mapping[str, Any]],
    truth: Mapping[str, frozenset[str]],
    vocabulary: ObjectVocabulary,
) -> CaptionResult:
    """CHAIRs, CHAIRi, recall and mean length of captions.

    Args:
        records: `image_id` and the caption under `caption`, `answer` or `text` (null where generation failed,
            with `error`); `id` where an image has several captions.
        truth: image id to the object classes in it, from `ground_truth` or `read_ground_truth`.
        vocabulary: from `read_synonyms`; its form says whether this is the released scorer.

    Raises:
        RowError: a field is missing, or an image is not annotated; the message names the record.
    """
    rows = locate(records, "captions")
    captions = [answer_field(record, ("caption", "answer", "text")) for record in rows]
    return score_mentions(
        rows,
        captions,
        [[] if caption is None else vocabulary.mentions(caption) for caption in captions],
        [failure(record, caption) for record, caption in zip(rows, captions, strict=True)],
        truth,
        form=vocabulary.form,
        protocol=f"chair({vocabulary.form})",
    )


def read_captions(path: str | Path) -> list[Record]:
    """Captions of a file, ready for `score_answers`.

    Args:
        path: JSON lines or a JSON list of objects with `image_id` and `caption`, `answer` or `text`; or the
            released layout, one object with `imgToEval`.

    Raises:
        RowError: a record is malformed; the message names it.
    """
    if any('"imgToEval"' in line for line in read_lines(path)):
        value = Record(read_value(path), str(path)).part("imgToEval")
        return [value.part(key) for key in value]
    records = read_json_records(path)
    for record in records:
        record.identifier("image_id")
    return records


# ------------------------------------------------------------------------------------------------ the harness


def _read(folder: Path, *, images: str | Path | None = None) -> list[Item]:
    return caption_items(folder, images, listing=("images.jsonl", "images.json"), synonyms=("synonyms.txt",))


def _score(answers: Sequence[Answer], *, mode: Mode = "exact") -> Outcome:
    check_mode(mode)
    records = records_of(answers)
    vocabulary = vocabulary_of(records, "original" if mode == "exact" else "strict")
    result = score_answers(records, truth_of(records, vocabulary), vocabulary)
    counts = {
        "answers": len(result.items),
        "failed": result.failed,
        "without objects": result.without_objects,
    }
    notes = (f"Scored as {result.protocol}, tokens and singulars by rule.",)
    return Outcome(caption_metrics(result, ("chair_s", "chair_i")), counts, notes)


BENCHMARK = Benchmark(
    name="chair",
    title="Objects in captions of COCO pictures that are not there",
    produces="text",
    read=_read,
    score=_score,
    files={
        "synonyms.txt": "LisaAnne/Hallucination, folder data",
        "images.jsonl": "yours: image_id, and optionally image (file) and question, one object a line",
        **ANNOTATION_FILES,
    },
    options={
        "images": "folder of the pictures, relative to the benchmark's folder",
        "mode": "vocabulary rules: exact (as released) or strict (every synonym can match)",
    },
    protocol={"pictures": 500, "prompt": "Please describe this image in detail.", "new tokens": 512},
    paper="1809.02156",
    official_code="LisaAnne/Hallucination",
    licence="COCO's terms",
    departures=(
        "Words are cut and made singular by rules of our own; the released script uses NLTK and pattern.",
        "CHAIRi without any mention is NaN; the released script ends with a division by zero.",
    ),
)
