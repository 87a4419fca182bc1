"""`mmalign data check`: what is in a data set, what is wrong with it, and whether one can train on it."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmalign.batch import PreferenceRow
from mmalign.data.audio_facts import AudioFacts
from mmalign.data.config import DataConfig
from mmalign.data.dialogues.facts import DialogueFacts
from mmalign.data.media import decode_image, read_media
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import RowReport, issue_of
from mmalign.data.video_facts import VideoFacts
from mmalign.errors import RowError, TrainingError

__all__ = ["CheckReport", "check", "print_report", "write_json_report"]

Decode = Literal["all", "sample", "none"]

_SAMPLE = 500
_WORD = re.compile(r"\w+|[^\w\s]")
_CLIP_TOKENS = 77


@dataclass
class CheckReport:
    """What `check` found.

    Args:
        path: the data set.
        kind: pairs, lists or unpaired.
        layout: what was recognised.
        rows: usable rows after opening, before their media were looked at.
        read: rows read, kept and left out, by reason.
        looked_at: rows whose media were opened.
        decode: which images were decoded.
        prompts: numbers about prompts.
        images: numbers about image sizes.
        audio: numbers about clips of sound.
        video: numbers about clips.
        duplicates: numbers about repeated pairs and images among the rows looked at.
        answers: numbers about the lengths of answers, of dialogues.
        shown: what the rows looked at show, of dialogues.
        advice: what would make things better.
        ok: whether the share of bad rows is below the limit.
        verdict: one sentence.
    """

    path: str
    kind: str
    layout: str
    rows: int
    read: RowReport
    looked_at: int = 0
    decode: str = "sample"
    prompts: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    audio: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    ok: bool = True
    verdict: str = ""


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` numbers spread evenly over 0 .. count-1."""
    if count <= wanted:
        return list(range(count))
    return [int(place) for place in np.linspace(0, count - 1, wanted)]


def estimated_tokens(prompt: str) -> int:
    """About as many tokens as CLIP makes of a prompt: words and marks, long words in pieces of six."""
    pieces = (max(1, -(-len(word.encode()) // 6)) for word in _WORD.findall(prompt))
    return 2 + sum(pieces)


def _prompt_facts(table: RowTable, dialogues: DialogueFacts) -> dict[str, Any]:
    """Over all rows, from the prompt column alone; of dialogues, over those looked at."""
    if any("prompt" not in part.match.columns for part in table.parts):
        return dialogues.prompt_facts()
    count: Counter[str] = Counter()
    empty = 0
    for part in table.parts:
        values = part.records.column(part.match.columns["prompt"])[part.selection.record]
        texts = [value if isinstance(value, str) else "" for value in values]
        empty += sum(not text.strip() for text in texts)
        count.update(texts)
    lengths = [len(prompt) for prompt in count]
    return {
        "unique": len(count),
        "empty": empty,
        "longest_characters": max(lengths, default=0),
        "most_repeated": max(count.values(), default=0),
        "over_77_tokens_estimated": sum(
            number for prompt, number in count.items() if estimated_tokens(prompt) > _CLIP_TOKENS
        ),
    }


@dataclass
class _Media:
    """Collects facts about the images, sounds and clips of the rows looked at."""

    audio: AudioFacts
    video: VideoFacts
    sizes: list[tuple[int, int]] = field(default_factory=list)
    bytes_per_image: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    rows_seen: Counter[str] = field(default_factory=Counter)
    images_seen: Counter[str] = field(default_factory=Counter)

    def look(self, row: PreferenceRow, config: DataConfig, dialogues: DialogueFacts) -> None:
        """Open the images of a row. Raises RowError."""
        if row.messages:
            dialogues.look(row)
            return
        digests = self.video.look(row)
        media = "clip" if digests else "image"
        if not digests:
            digests = self.audio.look(row)
            media = "sound" if digests else "image"
        for number, candidate in enumerate(row.candidates):
            if candidate.image is None:
                continue
            where = f"{row.source} candidate {number}"
            data = read_media(candidate.image, where=where, max_bytes=config.images.max_bytes)
            digests.append(hashlib.blake2b(data, digest_size=12).hexdigest())
            if dialogues.decode:
                self.sizes.append(decode_image(data, where=where, limits=config.images).original_size)
            self.bytes_per_image.append(len(data))
        prompts = {candidate.prompt for candidate in row.candidates}
        same = len(set(digests)) == 1 < len(digests) and len(prompts) == 1
        if row.kind == "pairs" and same and config.identical == "drop":
            message = f"{row.source}: both candidates are the same {media}; such a pair teaches nothing."
            raise RowError(message, reason="identical_candidates")
        self.images_seen.update(digests)
        # Swapped candidates are the same pair with the opposite label, which is worth knowing too.
        self.rows_seen["|".join([row.prompt, *sorted(digests)])] += 1

    def image_facts(self) -> dict[str, Any]:
        """Sizes in pixels and bytes."""
        if not self.bytes_per_image:
            return {}
        facts: dict[str, Any] = {"looked_at": len(self.bytes_per_image)}
        facts["mean_bytes"] = int(np.mean(self.bytes_per_image))
        if self.sizes:
            heights, widths = zip(*self.sizes, strict=True)
            shorter = [min(size) for size in self.sizes]
            facts |= {
                "height": [min(heights), int(np.median(heights)), max(heights)],
                "width": [min(widths), int(np.median(widths)), max(widths)],
                "shorter_side_under_512": sum(side < 512 for side in shorter),
                "shorter_side_under_1024": sum(side < 1024 for side in shorter),
            }
        return facts

    def duplicate_facts(self) -> dict[str, int]:
        """Repeated images, sounds or clips, and rows."""
        media = "clips" if self.video.num_clips else "sounds" if self.audio.num_bytes else "images"
        return {
            "repeated_rows": sum(count - 1 for count in self.rows_seen.values()),
            f"{media}_used_more_than_once": sum(count > 1 for count in self.images_seen.values()),
        }


def _rows(table: RowTable, indices: list[int], report: RowReport) -> Iterator[PreferenceRow]:
    for index in indices:
        try:
            yield table[index]
        except RowError as error:
            report.add_bad(issue_of(error, table.where(index)))


def check(
    config: DataConfig, *, decode: Decode = "sample", html: str | Path | None = None, num_preview: int = 24
) -> CheckReport:
    """Look at a data set as training would.

    Args:
        config: what to read.
        decode: every image, sound or clip, those of about 500 rows spread over the data set, or none (rows
            are still read).
        html: page with a preview to write.
        num_preview: rows in the preview.

    Raises:
        ConfigError: the data set cannot be opened at all.
    """
    table = open_rows(config)
    opened = table.report
    report = RowReport(read=opened.read - opened.kept, dropped=opened.dropped.copy(), bad=opened.bad.copy())
    report.examples = {reason: list(messages) for reason, messages in opened.examples.items()}
    indices = _spread(len(table), len(table) if decode == "all" else _SAMPLE)
    dialogues = DialogueFacts(config.images, decode != "none")
    audio = AudioFacts(config.audio, decode != "none")
    video = VideoFacts(config.video, decode != "none")
    media = _Media(
        audio=audio,
        video=video,
        sizes=dialogues.sizes,
        bytes_per_image=dialogues.num_bytes,
        rows_seen=dialogues.rows_seen,
        images_seen=dialogues.images_seen,
    )
    for row in _rows(table, indices, report):
        try:
            media.look(row, config, dialogues)
            report.add_kept()
        except RowError as error:
            report.add_bad(issue_of(error, row.source))
    found = CheckReport(
        path=config.all_sources[0].path,
        kind=table.kind,
        layout=table.describe(),
        rows=len(table),
        read=report,
        looked_at=len(indices),
        decode=decode,
        prompts=_prompt_facts(table, dialogues),
        images=media.image_facts(),
        audio=audio.facts(),
        video=video.facts(),
        duplicates=media.duplicate_facts(),
        answers=dialogues.answer_facts(),
        shown=dialogues.media_facts(),
        advice=[
            *table.advice(),
            *_advice(config, table),
            *dialogues.advice(),
            *audio.advice(),
            *video.advice(),
        ],
    )
    _judge(found, config)
    if html is not None:
        _write_page(found, table, config, html, num_preview)
    return found


def _advice(config: DataConfig, table: RowTable) -> list[str]:
    found = []
    ties = table.report.dropped.get("tie", 0)
    labelled = any({"segment_labels", "segments"} & set(part.records.columns) for part in table.parts)
    if ties and labelled:
        found.append(
            f"{ties} pairs are ties as wholes and are dropped; methods that read their labels in time keep "
            "them."
        )
    elif ties:
        found.append(
            f"{ties} ties are dropped; tie_policy soft keeps them at preference 0.5, random throws a coin."
        )
    if config.all_sources[0].lists == "keep" and table.kind == "lists":
        found.append("Rows are rankings; methods for pairs need lists: pairs (or best_worst).")
    return found


def _judge(found: CheckReport, config: DataConfig) -> None:
    try:
        found.read.check(config.max_bad_share)
        seen = found.looked_at
        scope = "every row" if seen == found.rows else f"{seen} of {found.rows} rows"
        found.verdict = (
            f"Ready: {found.rows} {found.kind}; media of {scope} looked at, {found.read.num_bad} bad."
        )
    except TrainingError as error:
        found.ok, found.verdict = False, str(error)


def _write_page(
    found: CheckReport, table: RowTable, config: DataConfig, path: str | Path, num_preview: int
) -> None:
    from mmalign.data.preview import write_preview

    rows = list(_rows(table, _spread(len(table), num_preview), RowReport()))
    problems = [message for messages in found.read.examples.values() for message in messages]
    write_preview(
        path,
        rows,
        title=f"mmalign data check: {Path(found.path).name}",
        facts=_facts(found),
        verdict=found.verdict,
        problems=problems,
        limits=config.images,
        audio=config.audio,
        video=config.video,
    )


def _facts(found: CheckReport) -> list[tuple[str, str]]:
    """Name and value of everything worth a line."""
    lines = [("recognised", found.layout), ("rows", f"{found.rows} usable {found.kind}")]
    lines += [(f"dropped: {reason}", str(count)) for reason, count in found.read.dropped.most_common()]
    lines += [(f"bad: {reason}", str(count)) for reason, count in found.read.bad.most_common()]
    lines.append(("media looked at", f"{found.looked_at} rows (decode: {found.decode})"))
    names = {
        "unique": "unique prompts",
        "empty": "empty prompts",
        "longest_characters": "longest prompt, characters",
        "most_repeated": "most rows of one prompt",
        "over_77_tokens_estimated": "rows over 77 tokens (estimate; the rest is cut)",
    }
    lines += [(names[name], str(value)) for name, value in found.prompts.items()]
    for name, value in found.shown.items():
        label = f"{name}: smallest, median, largest" if isinstance(value, list) else name
        lines.append((label, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    lines += [(_ANSWERS[name], str(value).strip("[]")) for name, value in found.answers.items()]
    for name, value in found.images.items():
        if isinstance(value, list):
            lines.append((f"image {name}: smallest, median, largest", ", ".join(map(str, value))))
        elif name != "looked_at":
            lines.append((f"images: {name.replace('_', ' ')}", str(value)))
    lines += _media_lines("sounds", found.audio) + _media_lines("clips", found.video)
    lines += [(name.replace("_", " "), str(value)) for name, value in found.duplicates.items()]
    return lines


def _media_lines(media: str, facts: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            listed = ", ".join(f"{key} ({count})" for key, count in value.items())
            lines.append((f"{media}: {name.replace('_', ' ')}", listed))
        elif isinstance(value, list):
            lines.append((f"{media}: {name}: least, median, most", ", ".join(map(str, value))))
        elif name != "looked_at":
            lines.append((f"{media}: {name.replace('_', ' ')}", str(value)))
    return lines


_ANSWERS = {
    "words": "words of an answer: least, median, most",
    "words_chosen": "words of the chosen answer, mean",
    "words_rejected": "words of the rejected answer, mean",
    "chosen_longer": "chosen answer is the longer one, share",
    "longest_words": "longest answer, words",
}


def print_report(found: CheckReport) -> None:
    """Print the report as a table with the verdict last."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _facts(found):
        table.add_row(escape(name), escape(value))
    console.print(table)
    for messages in found.read.examples.values():
        for message in messages:
            console.print(f"  [red]bad[/red] {escape(message)}", highlight=False)
    for line in found.advice:
        console.print(f"  [yellow]note[/yellow] {escape(line)}", highlight=False)
    mark = "[green]ok[/green]" if found.ok else "[red]not usable as it is[/red]"
    console.print(f"{mark} {escape(found.verdict)}", highlight=False)


def write_json_report(found: CheckReport) -> None:
    """Print the report as JSON."""
    read = found.read
    record = {entry.name: getattr(found, entry.name) for entry in fields(found)} | {
        "read": {
            "read": read.read,
            "kept": read.kept,
            "dropped": dict(read.dropped),
            "bad": dict(read.bad),
            "bad_share": read.bad_share,
            "examples": read.examples,
        }
    }
    print(json.dumps(record, indent=2, ensure_ascii=False))
