"""DPG-Bench: yes-or-no questions about pictures of long prompts (2403.05135), its total as released.

The released script skips the first question of the table, drops prompts with a file that raises, and reads
category scores from the last of four pictures before dependent questions are zeroed. This name reproduces all
of it; `dpg_fixed` does none of it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.base import Answer, Benchmark, Item, Outcome
from mmalign.evals.benchmarks._dependent_questions import (
    Question,
    QuestionedImage,
    QuestionedResult,
    aggregate,
    plain,
    question_of,
    read_question_table,
    score_image,
)
from mmalign.evals.benchmarks._harness import metric, official_file
from mmalign.rewards.sample import to_image

__all__ = ["BENCHMARK", "FILES", "PictureQuestions", "cut_grid", "outcome_of", "read_items", "score_pictures"]

PictureQuestions = Callable[[Image.Image, Sequence[str]], Sequence[str]]
"""From a picture and questions about it to one answer each."""

FILES: Mapping[str, str] = {
    "dpg_bench.csv": "TencentQQGYLab/ELLA, folder dpg_bench",
    "prompts/*.txt": "the same folder; where it is missing, prompts are taken from the table",
}


def cut_grid(image: Image.Image, resolution: int, count: int = 4) -> list[Image.Image]:
    """The pictures of a 2 x 2 grid, row by row.

    Args:
        image: the grid.
        resolution: side of one picture in pixels.
        count: the first so many.

    Raises:
        RowError: the grid is smaller than two pictures; the released script would ask about black areas.
    """
    if count > 1 and (image.width < 2 * resolution or image.height < 2 * resolution):
        got = f"[{image.width} x {image.height}]"
        message = explain("grid", got=got, expected=f"at least {2 * resolution} x {2 * resolution}")
        raise RowError(message, "bad_grid")
    corners = [(0, 0), (resolution, 0), (0, resolution), (resolution, resolution)]
    return [image.crop((x, y, x + resolution, y + resolution)) for x, y in corners[:count]]


def score_pictures(
    answers: Sequence[Answer], vqa: PictureQuestions, *, released: bool, resolution: int | None = None
) -> QuestionedResult:
    """Ask about generated pictures.

    Args:
        answers: pictures of items from `read_items`.
        vqa: answers questions about a picture.
        released: see `aggregate` and `score_image` of `_dependent_questions`.
        resolution: None where each answer is one picture; the side of one picture where each is a 2 x 2 grid.
    """
    questions = {
        answer.item.id: tuple(question_of(fields) for fields in answer.item.expected["questions"])
        for answer in answers
    }
    images: list[QuestionedImage] = []
    for answer in answers:
        about = answer.item.id
        try:
            pictures = _pictures(answer, resolution)
        except RowError as error:
            images.append(QuestionedImage(about, answer.copy, error=str(error)))
            continue
        for place, picture in enumerate(pictures):
            said = _ask(picture, questions[about], vqa)
            copy = answer.copy * len(pictures) + place
            images.append(score_image(about, questions[about], said, released=released, copy=copy))
    return aggregate(images, questions, released=released)


def _pictures(answer: Answer, resolution: int | None) -> list[Image.Image]:
    if answer.error is not None or len(answer.media) != 1:
        raise RowError(answer.error or f"{len(answer.media)} pictures, one expected", "no_picture")
    image = to_image(answer.media[0], where=f"answer to {answer.item.id}")
    return [image] if resolution is None else cut_grid(image, resolution)


def _ask(picture: Image.Image, questions: Sequence[Question], vqa: PictureQuestions) -> dict[int, str]:
    said = list(vqa(picture, [question.text for question in questions]))
    if len(said) != len(questions):
        message = explain("vqa", got=f"[{len(said)} answers]", expected=f"{len(questions)}, one per question")
        raise ConfigError(message)
    return {question.number: text for question, text in zip(questions, said, strict=True)}


def read_items(folder: Path, *, released: bool) -> list[Item]:
    """Prompts with their questions.

    Raises:
        ConfigError: the table is not there or lacks columns.
        RowError: a row is malformed; names row and column.
    """
    table = official_file(folder, "dpg_bench.csv", "dpg_bench/dpg_bench.csv")
    texts, questions = read_question_table(table, released=released)
    items = []
    for about, asked in questions.items():
        file = table.parent / "prompts" / f"{about}.txt"
        prompt = file.read_text(encoding="utf-8").strip() if file.is_file() else texts[about]
        items.append(Item(f"dpg/{about}", prompt, expected={"questions": [plain(one) for one in asked]}))
    return items


def outcome_of(result: QuestionedResult, notes: tuple[str, ...] = ()) -> Outcome:
    """The result as metrics; the total leads."""
    unit = "0 to 100"
    metrics = [metric("total", result.total, unit, per_item=result.prompts)]
    metrics += [metric(f"broad/{name}", value, unit) for name, value in result.broad.items()]
    metrics += [metric(f"category/{name}", value, unit) for name, value in result.detailed.items()]
    left_out = sum(value != value for value in result.prompts.values())
    counts = {
        "images": len(result.images),
        "failed": result.failed,
        "prompts": len(result.prompts),
        "prompts without a score": left_out,
        "answers neither yes nor no": result.unparsed,
    }
    return Outcome(tuple(metrics), counts, notes)


def _score(answers: Sequence[Answer], *, vqa: PictureQuestions, resolution: int | None = None) -> Outcome:
    result = score_pictures(answers, vqa, released=True, resolution=resolution)
    name = str(getattr(vqa, "name", "of the user's"))
    return outcome_of(result, (f"Questions answered by {name}; the published numbers are mPLUG's.",))


PROTOCOL: Mapping[str, str | int | float] = {
    "prompts": 1065,
    "images per prompt": 4,
    "answers": "mPLUG large",
}

OPTIONS: Mapping[str, Any] = {
    "resolution": "side of one picture, where each answer is a 2 x 2 grid as in the official folders"
}

BENCHMARK = Benchmark(
    name="dpg",
    title="Dense prompts, checked by yes-or-no questions; total and categories as the released script prints",
    produces="image",
    read=partial(read_items, released=True),
    score=_score,
    files=FILES,
    tools=("vqa",),
    options=OPTIONS,
    protocol=PROTOCOL,
    paper="2403.05135",
    official_code="TencentQQGYLab/ELLA",
    licence="Apache-2.0",
    departures=("Prompts that the released script drops without a word are counted.",),
)
