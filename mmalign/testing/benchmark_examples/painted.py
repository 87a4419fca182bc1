"""Benchmarks of pictures and clips in miniature; their tools read the picture's red channel."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmalign.evals.base import Answer, Item
from mmalign.evals.benchmarks.hpdv2 import STYLES
from mmalign.evals.benchmarks.vbench import DIMENSIONS
from mmalign.evals.detectors import Detection
from mmalign.testing.benchmark_examples.example import BenchmarkExample, write_lines
from mmalign.testing.simple_rewards import Brightness

__all__ = ["PAINTED", "LightDetector"]


def _paint(item: Item, copy: int) -> Answer:
    """A picture whose red channel hangs on the prompt's length and the copy."""
    level = (40 * len(item.prompt) + 100 * copy) % 256
    return Answer(item, media=(np.full((8, 8, 3), level, dtype=np.uint8),), copy=copy)


class LightDetector:
    """Finds a dog in every picture and a bench to its left in those that are not dark.

    Args:
        calibrated_for: benchmarks whose official numbers it is taken to reproduce.
    """

    name = "light"
    labels: Sequence[str] = ("dog", "bench", "person")

    def __init__(self, *calibrated_for: str) -> None:
        self.calibrated_for: Sequence[str] = calibrated_for

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """The same two boxes, picture by picture."""
        dog = Detection("dog", 0.95, (5.0, 2.0, 8.0, 6.0))
        bench = Detection("bench", 0.92, (0.0, 2.0, 3.0, 6.0))
        return [[dog, bench] if _red(image) > 0.25 else [dog] for image in images]

    def provenance(self) -> Mapping[str, Any]:
        """Its name."""
        return {"name": self.name}


def _red(picture: Image.Image) -> float:
    """Red of the first pixel in [0, 1]."""
    value = picture.convert("RGB").getpixel((0, 0))
    assert isinstance(value, tuple), "RGB pixels are triples"
    return value[0] / 255


def _colours(picture: Image.Image, found: Sequence[Detection], name: str) -> list[str]:
    del name
    return ["green" if _red(picture) > 0.5 else "red"] * len(found)


def _yes_or_no(picture: Image.Image, questions: Sequence[str]) -> list[str]:
    return ["yes" if 10 * _red(picture) > len(question) % 10 else "no" for question in questions]


def _probabilities(picture: Image.Image, questions: Sequence[str]) -> list[float]:
    return [0.5 + 0.5 * _red(picture)] * len(questions)


def _similarity(picture: Image.Image, text: str) -> float:
    return 0.3 * _red(picture) + 0.001 * len(text)


_SCENES: list[dict[str, Any]] = [
    {"tag": "two_object", "include": [{"class": "dog", "count": 1}, {"class": "bench", "count": 1}]},
    {"tag": "counting", "include": [{"class": "dog", "count": 1}], "exclude": [{"class": "dog", "count": 2}]},
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "green"}]},
]


def _write_scenes(folder: Path) -> None:
    prompts = ("a dog and a bench", "one dog", "a green dog")
    rows = [{**scene, "prompt": prompt} for scene, prompt in zip(_SCENES, prompts, strict=True)]
    write_lines(folder / "evaluation_metadata.jsonl", rows)


def _official_detector(folder: Path) -> Mapping[str, Any]:
    del folder
    return {"detector": LightDetector("geneval"), "colours": _colours}


def _other_detector(folder: Path) -> Mapping[str, Any]:
    del folder
    return {"detector": LightDetector(), "colours": _colours}


def _write_questions(folder: Path) -> None:
    columns = ("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad")
    more = ("category_detailed", "tuple", "question_natural_language")
    rows = [
        ("a", 1, "0", "entity - whole", "Is there a dog?"),
        ("a", 2, "0", "attribute - color", "Is it brown?"),
        ("b", 1, "0", "entity - whole", "Is there a cat?"),
        ("b", 2, "1", "global", "Dark?"),
        ("c", 1, "0", "relation - spatial", "Left?"),
    ]
    with (folder / "dpg_bench.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*columns, *more))
        for about, number, parents, category, question in rows:
            text = f"a picture of {about}" + " and more" * (about == "b")
            writer.writerow([about, text, "", number, parents, "", "", f"{category} (x)", question])


def _asked(folder: Path) -> Mapping[str, Any]:
    del folder
    return {"vqa": _yes_or_no}


def _write_styles(folder: Path) -> None:
    for style in STYLES:
        (folder / f"{style}.json").write_text(json.dumps([f"{style} of a dog", f"{style}, a cat"]))


def _rewarded(folder: Path) -> Mapping[str, Any]:
    del folder
    return {"reward": Brightness()}


def _write_compositions(folder: Path) -> None:
    color, place = "a green dog and a red bench", "a girl on the right of a dog"
    files = {
        "color_val.txt": color,
        "spatial_val.txt": f"{place}\na dog on the right of a bench",
        "non_spatial_val.txt": "A person is walking.",
        "numeracy_val.txt": "two dogs and one bench",
        "new_objects.txt": "dog - dogs\nbench - benches",
    }
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    (folder / "words.json").write_text(json.dumps({color: {"phrases": ["a green dog", "a red bench"]}}))


def _four_categories(folder: Path) -> Mapping[str, Any]:
    categories = ("color", "spatial", "non_spatial", "numeracy")
    return {"categories": categories, "words": folder / "words.json"}


def _every_tool(folder: Path) -> Mapping[str, Any]:
    del folder
    return {"yes": _probabilities, "detector": LightDetector(), "similarity": _similarity}


def _write_clips(folder: Path) -> None:
    prompts = [{"prompt_en": text, "dimension": ["scene"]} for text in ("a cat", "a dog")]
    (folder / "VBench_full_info.json").write_text(json.dumps(prompts))
    for name, clips in (("results", ("a cat-0", "a dog-0", "a dog-1")), ("lacking", ("a cat-0", "a dog-0"))):
        listed = [{"video_path": f"clips/{clip}.mp4", "video_results": 0.5} for clip in clips]
        measured = {
            dimension.replace(" ", "_"): [0.5, listed if dimension == "scene" else []]
            for dimension in DIMENSIONS
        }
        (folder / f"{name}.json").write_text(json.dumps(measured))


def _unseen(item: Item, copy: int) -> Answer:
    """The official package saw the clips; only its results come here."""
    return Answer(item, copy=copy)


def _results(folder: Path) -> Mapping[str, Any]:
    return {"results": folder / "results.json"}


def _other_results(
    answers: Sequence[Answer], options: Mapping[str, Any]
) -> tuple[Sequence[Answer], Mapping[str, Any]]:
    return answers, {"results": options["results"].with_name("lacking.json")}


PAINTED: Mapping[str, BenchmarkExample] = {
    "geneval": BenchmarkExample(
        _write_scenes, _paint, copies=2, scoring=_official_detector, total=("images",)
    ),
    "geneval_hf": BenchmarkExample(
        _write_scenes, _paint, copies=2, scoring=_other_detector, total=("images",)
    ),
    # As released, categories are read from the last picture of a prompt: order matters among several.
    "dpg": BenchmarkExample(_write_questions, _paint, scoring=_asked, total=("images",)),
    "dpg_fixed": BenchmarkExample(_write_questions, _paint, copies=2, scoring=_asked, total=("images",)),
    "hpdv2": BenchmarkExample(_write_styles, _paint, scoring=_rewarded, total=("images",)),
    "compbench": BenchmarkExample(
        _write_compositions,
        _paint,
        copies=2,
        reading=_four_categories,
        scoring=_every_tool,
        total=("images",),
    ),
    "vbench": BenchmarkExample(
        _write_clips,
        _unseen,
        scoring=_results,
        total=(),
        lacking=_other_results,
        lost=("clip values", -1),
    ),
}
"""Benchmark to its example."""
