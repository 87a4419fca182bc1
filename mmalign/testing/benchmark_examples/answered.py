"""Benchmarks of answers in miniature."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.evals.base import Answer, Item
from mmalign.evals.benchmarks.pope import SPLITS
from mmalign.evals.benchmarks.videohallucer import SUBSETS
from mmalign.testing.benchmark_examples.example import BenchmarkExample, write_lines

__all__ = ["ANSWERED"]


def _write_pope(folder: Path) -> None:
    things = [("dog", "yes"), ("cat", "no"), ("cup", "yes")]
    for split in SPLITS:
        rows = [
            {"question_id": number, "image": "1.jpg", "text": f"Is there a {thing}?", "label": label}
            for number, (thing, label) in enumerate(things, start=1)
        ]
        write_lines(folder / f"coco_pope_{split}.json", rows)


def _answer_pope(item: Item, copy: int) -> Answer:
    """Right about the dog and the cat, wrong about the cup."""
    return Answer(item, text="Yes, there is." if "dog" in item.prompt else "No", copy=copy)


_SYNONYMS = ["person, man, woman", "dog, puppy", "chair, seat", "dining table, table"]


def _write_captions(folder: Path) -> None:
    (folder / "synonyms.txt").write_text("\n".join(_SYNONYMS) + "\n")
    (folder / "ground_truth.json").write_text('{"1": ["person", "dog"], "2": ["chair"], "3": ["dog"]}')
    rows = [{"image_id": number, "question": "What is there?"} for number in (1, 2, 3)]
    write_lines(folder / "images.jsonl", rows)


_CAPTIONS = {"1": "a man with a dog near a table", "2": "an empty chair", "3": "nothing can be seen here"}


def _answer_caption(item: Item, copy: int) -> Answer:
    return Answer(item, text=_CAPTIONS[item.id], copy=copy)


def _write_mmhal(folder: Path) -> None:
    rows = [
        {
            "image_src": f"https://example.org/{number}.jpg",
            "image_content": ["Dog", "Ball"],
            "question": f"What is it? ({number})",
            "gt_answer": "A dog.",
            "model_answer": "",
            "question_type": kind,
        }
        for number, kind in enumerate(("attribute", "counting", "other"))
    ]
    (folder / "response_template.json").write_text(json.dumps(rows))


def _answer_mmhal(item: Item, copy: int) -> Answer:
    return Answer(item, text="A dog, of course." if item.id == "0" else "A cat.", copy=copy)


def _rate(prompt: str) -> str:
    """A judge: the dog is right, the cat is not."""
    return "Good.\nRating: 5" if "of course" in prompt else "Wrong.\nRating: 1"


def _judged(folder: Path) -> Mapping[str, Any]:
    del folder
    return {"judge": _rate, "judge_name": "rule"}


_ANNOTATIONS: list[dict[str, Any]] = [
    {"id": 1, "type": "generative", "truth": ["dog", "table"], "hallu": ["cat"]},
    {"id": 2, "type": "generative", "truth": ["car"], "hallu": ["dog", "cat"]},
    *({"id": 3 + n, "type": "discriminative-hallucination", "truth": "no"} for n in range(2)),
    {"id": 5, "type": "discriminative-attribute-state", "truth": "no"},
    {"id": 6, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 7, "type": "discriminative-attribute-action", "truth": "no"},
    {"id": 8, "type": "relation", "truth": "no"},
]


def _write_amber(folder: Path) -> None:
    (folder / "annotations.json").write_text(json.dumps(_ANNOTATIONS))
    words = {"dog": ["puppy"], "cat": ["kitten"], "table": ["desk"], "car": ["van"]}
    (folder / "relation.json").write_text(json.dumps(words))
    (folder / "safe_words.txt").write_text("sky\n")
    queries = [{"id": row["id"], "image": f"{row['id']}.jpg", "query": "What?"} for row in _ANNOTATIONS]
    (folder / "query_all.json").write_text(json.dumps(queries))


def _answer_amber(item: Item, copy: int) -> Answer:
    said = {"1": "A puppy and a kitten at a desk.", "2": "A van.", "4": "Yes"}
    return Answer(item, text=said.get(item.id, "No"), copy=copy)


def _without_taggers(folder: Path) -> Mapping[str, Any]:
    del folder
    return {"mode": "strict", "nouns": "vocabulary", "similarity": "equal"}


def _write_pairs(folder: Path) -> None:
    for name in SUBSETS.values():
        rows = [
            {
                "basic": {"video": "1.mp4", "question": f"Is there a {thing}?", "answer": "yes"},
                "hallucination": {"video": "1.mp4", "question": f"Does the {thing} fly?", "answer": "no"},
            }
            for thing in ("dog", "bird")
        ]
        (folder / name).mkdir()
        (folder / name / f"{name}.json").write_text(json.dumps(rows))


def _answer_pair(item: Item, copy: int) -> Answer:
    """Wrong about the flying bird alone."""
    return Answer(item, text="No." if "Does the dog" in item.prompt else "Yes.", copy=copy)


ANSWERED: Mapping[str, BenchmarkExample] = {
    "pope": BenchmarkExample(_write_pope, _answer_pope),
    "chair": BenchmarkExample(_write_captions, _answer_caption, not_means=frozenset({"chair_i", "recall"})),
    "object_halbench": BenchmarkExample(
        _write_captions, _answer_caption, not_means=frozenset({"response_rate", "chair_i", "recall"})
    ),
    "mmhal": BenchmarkExample(_write_mmhal, _answer_mmhal, scoring=_judged),
    "amber": BenchmarkExample(
        _write_amber,
        _answer_amber,
        scoring=_without_taggers,
        total=("descriptions", "questions"),
        not_means=frozenset({"CHAIR", "Cover", "Cog"}),
    ),
    "videohallucer": BenchmarkExample(_write_pairs, _answer_pair, total=("pairs",), answers_per_part=2),
}
"""Benchmark to its example."""
