"""Answers of a base model and of what a run trained, side by side: as text, Markdown, and a page."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from mmalign.batch import PreferenceRow
from mmalign.errors import ConfigError, explain
from mmalign.files import atomic_write
from mmalign.vlm.trained import TrainedVlm, load_base, load_trained

__all__ = ["Question", "answers_of", "main", "markdown", "page", "read_questions"]

_THUMBNAIL = 320


@dataclass(frozen=True)
class Question:
    """A prompt with what is shown beside it.

    Args:
        prompt: text.
        images: paths.
        videos: paths of files, or of folders of frames.
    """

    prompt: str
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()

    def row(self, number: int) -> PreferenceRow:
        """The question as a row without answers."""
        return PreferenceRow(
            prompt=self.prompt,
            candidates=(),
            kind="prompts",
            images=self.images,
            videos=self.videos,
            id=str(number),
            source=f"prompt {number + 1}",
        )


def read_questions(
    prompts: Sequence[str], prompts_file: Path | None, images: Sequence[str], videos: Sequence[str]
) -> list[Question]:
    """Questions of the command line and of a file.

    Args:
        prompts: each is asked about all of `images` and `videos`.
        prompts_file: text, a prompt per line, asked so too; or JSONL with `prompt`, `images` and `videos`,
            paths relative to the file.
        images: paths.
        videos: paths.

    Raises:
        ConfigError: there are none, the file cannot be read, or a path does not exist.
    """
    asked = [Question(prompt, tuple(images), tuple(videos)) for prompt in prompts]
    if prompts_file is not None:
        asked += _of_file(prompts_file, tuple(images), tuple(videos))
    if not asked:
        message = explain("mmalign sample", got="no prompts", expected="--prompt TEXT or --prompts-file FILE")
        raise ConfigError(message)
    for question in asked:
        for path in (*question.images, *question.videos):
            if not Path(path).exists():
                message = explain("mmalign sample", got=path, expected="a file or folder that exists")
                raise ConfigError(message)
    return asked


def _of_file(path: Path, images: tuple[str, ...], videos: tuple[str, ...]) -> list[Question]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        message = f"--prompts-file {path}: cannot be read ({error})."
        raise ConfigError(message) from error
    if path.suffix != ".jsonl":
        return [Question(line.strip(), images, videos) for line in lines]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"--prompts-file {path}, line {number}: no JSON ({error})."
            raise ConfigError(message) from error
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            message = explain(
                f"--prompts-file {path}, line {number}", got=line[:60], expected='{"prompt": ...}'
            )
            raise ConfigError(message)
        own = {
            name: tuple(str(path.parent / item) for item in record.get(name, ()))
            for name in ("images", "videos")
        }
        found.append(Question(record["prompt"], own["images"] or images, own["videos"] or videos))
    return found


def answers_of(
    loaded: TrainedVlm,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> dict[str, list[str]]:
    """Title of a model to its answers: "base", and "tuned" where there is something trained.

    Raises:
        RowError: a picture cannot be read.
    """
    rows = [question.row(number) for number, question in enumerate(questions)]
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    columns: dict[str, list[str]] = {}
    with loaded.base_weights():
        columns["base"] = loaded.model.generate(rows, **settings)
    if loaded.trainables is not None:
        columns["tuned"] = loaded.model.generate(rows, **settings)
    return columns


def markdown(questions: Sequence[Question], columns: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table: a row per question, a column per model."""
    header = ["prompt", "shown", *columns]
    lines = [header, ["---"] * len(header)]
    for number, question in enumerate(questions):
        shown = ", ".join(Path(path).name for path in (*question.images, *question.videos))
        lines.append([question.prompt, shown, *(answers[number] for answers in columns.values())])
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def page(questions: Sequence[Question], columns: Mapping[str, Sequence[str]]) -> str:
    """One HTML file with the pictures in it; clips are named."""
    rows = []
    for number, question in enumerate(questions):
        media = "".join(_picture(path) for path in question.images)
        media += "".join(f"<p>{html.escape(Path(path).name)}</p>" for path in question.videos)
        answers = "".join(f"<td>{html.escape(answer[number])}</td>" for answer in columns.values())
        rows.append(f"<tr><td>{media}</td><td>{html.escape(question.prompt)}</td>{answers}</tr>")
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in ("shown", "prompt", *columns))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>mmalign sample</title>'
        "<style>body{font:15px/1.45 system-ui,sans-serif;margin:2rem}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:.5rem;vertical-align:top;text-align:left;max-width:32rem}"
        "td{white-space:pre-wrap}img{max-width:320px;display:block;margin-bottom:.3rem}</style>"
        f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></html>\n"
    )


def _picture(path: str) -> str:
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        return f"<p>{html.escape(Path(path).name)}: {html.escape(str(error))}</p>"
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(Path(path).name)}" src="data:image/jpeg;base64,{data}">'


def main(
    *,
    model: str | None = None,
    run: Path | None = None,
    family: str | None = None,
    prompts: Sequence[str] = (),
    prompts_file: Path | None = None,
    images: Sequence[str] = (),
    videos: Sequence[str] = (),
    seed: int = 0,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    output: Path = Path("samples"),
    device: str | None = None,
) -> int:
    """`mmalign sample` of a language model. Returns 0; writes answers.jsonl, answers.md and answers.html.

    Args:
        model: hub id or folder; with a run, where its base model lies now.
        run: run folder or checkpoint.
        family: of `model`; default what its config says.
        prompts: as `read_questions` takes them.
        prompts_file: as `read_questions` takes it.
        images: as `read_questions` takes them.
        videos: as `read_questions` takes them.
        seed: of the draws.
        max_new_tokens: of one answer.
        temperature: 0 takes the likeliest token.
        output: folder to write to.
        device: default the best there is.

    Raises:
        ConfigError: neither a model nor a run is given, or there are no prompts.
    """
    questions = read_questions(prompts, prompts_file, images, videos)
    if run is not None:
        loaded = load_trained(run, source=model, device=device)
    elif model is not None:
        loaded = load_base(model, family=family, device=device)
    else:
        message = explain("mmalign sample", got="neither --model nor --run", expected="at least one of them")
        raise ConfigError(message)
    columns = answers_of(loaded, questions, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    output.mkdir(parents=True, exist_ok=True)
    records = [
        {"prompt": question.prompt, "images": list(question.images), "videos": list(question.videos)}
        | {title: answers[number] for title, answers in columns.items()}
        for number, question in enumerate(questions)
    ]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    atomic_write(output / "answers.jsonl", lines)
    atomic_write(output / "answers.md", markdown(questions, columns))
    atomic_write(output / "answers.html", page(questions, columns))
    for number, question in enumerate(questions):
        print(f"\n{question.prompt}")
        for title, answers in columns.items():
            print(f"  {title}: {answers[number]}")
    print(f"\n{len(questions)} prompts: {output / 'answers.html'}")
    return 0
