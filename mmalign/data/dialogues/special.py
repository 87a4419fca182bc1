"""Formats whose records need more than other names: ratings, reports, templates, lists, markers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmalign.data.dialogues.content import Turn, embedded_images, turns_of, without_template
from mmalign.data.dialogues.fields import DroppedRowError, Fields, as_number
from mmalign.data.dialogues.media import FirstOf
from mmalign.data.dialogues.reading import Answer, Dialogue, dialogue, first_present, read_dialogue
from mmalign.data.dialogues.spans import Span, changed_spans, marked_spans, sentence_spans, severity_of
from mmalign.data.rows import FieldError
from mmalign.errors import explain
from mmalign.seeding import derive_seed

__all__ = [
    "read_chexalign",
    "read_ha_dpo",
    "read_llava_hound",
    "read_mdpo",
    "read_opa_dpo",
    "read_povid",
    "read_rlaif_v",
    "read_rlhf_v",
    "read_rrpo",
    "read_vlfeedback",
]


def read_rlhf_v(fields: Fields) -> Dialogue:
    """RLHF-V: question, chosen and rejected stand in one JSON text."""
    record = fields.parsed("text")
    if not isinstance(record, Mapping):
        message = explain(
            fields.place("text"), got=repr(record)[:60], expected="question, chosen, rejected as JSON"
        )
        raise FieldError(message, "malformed_json", fields.columns["text"])
    inside = {"question": "question", "chosen": "chosen", "rejected": "rejected"}
    columns = {**fields.columns, **inside}
    return read_dialogue(replace(fields, values={**fields.values, **record}, columns=columns))


def read_rlaif_v(fields: Fields) -> Dialogue:
    """RLAIF-V: a plain pair, with stored log-probabilities in the `withlogp` shards.

    `logps` is [sum, mean, [per token]] of the chosen answer and the same of the rejected one.
    """
    found = read_dialogue(fields)
    stored = fields.parsed("logps")
    if stored is None or not fields.answered:
        return found
    if not isinstance(stored, list) or len(stored) != 6:
        message = explain(
            fields.place("logps"), got=repr(stored)[:60], expected="[sum, mean, [per token]] of both answers"
        )
        raise FieldError(message, "bad_number", fields.columns["logps"])
    sums = [fields.finite(stored[place], "logps") for place in (0, 3)]
    tokens = [fields.numbers(stored[place], "logps") for place in (2, 5)]
    return replace(found, sides={**found.sides, "reference": sums, "reference_tokens": tokens})


def read_mdpo(fields: Fields) -> Dialogue:
    """Pairs of mDPO: the prompt is written out in the model's template."""
    turns = without_template(fields.text("question", reason="empty_prompt"))
    found = read_dialogue(fields)
    return replace(found, turns=tuple(turns))


def read_povid(fields: Fields) -> Dialogue:
    """POVID: the first question and its two answers; later turns repeat the pattern and are not read."""
    columns = dict(fields.columns)
    values = dict(fields.values)
    for role in ("messages", "rejected_messages"):
        turns = turns_of(fields.value(role) or [], fields.place(role))
        end = next((place for place, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
        values[columns[role]] = [
            {"role": turn.role, "content": turn.content} for turn in turns[: end + 1] if turn.role != "system"
        ]
    return read_dialogue(replace(fields, values=values))


def read_llava_hound(fields: Fields) -> Dialogue:
    """LLaVA-Hound: a video is named by the folder of its frames, or by a file of that name."""
    found = read_dialogue(fields)
    named = tuple(
        FirstOf((video, f"{video}.mp4")) if isinstance(video, str) and "." not in video else video
        for video in found.videos
    )
    return replace(found, videos=named)


def read_chexalign(fields: Fields) -> Dialogue:
    """CheXalign: images named in the prompt or in a column split by `|`; a pair or four scored reports."""
    found = _scored_reports(fields) if "rating_1" in fields.columns else read_dialogue(fields)
    turns = tuple(
        Turn(turn.role, embedded_images(turn.content) if isinstance(turn.content, str) else turn.content)
        for turn in found.turns
    )
    images = [
        path for image in found.images for path in (image.split("|") if isinstance(image, str) else [image])
    ]
    return replace(found, turns=turns, images=tuple(images))


_REPORTS = range(1, 5)


def _scored_reports(fields: Fields) -> Dialogue:
    """Four sampled reports with their GREEN scores; equal scores say nothing."""
    answers = []
    for number in _REPORTS if fields.answered else ():
        text = fields.text(f"answer_{number}", reason="empty_answer")
        answers.append(Answer(text, fields.number(f"rating_{number}")))
    skipped = Counter({"no_rating": sum(answer.reward is None for answer in answers)})
    answers = [answer for answer in answers if answer.reward is not None]
    found = dialogue(fields, [Turn("user", fields.text("question", reason="empty_prompt"))], answers)
    return replace(found, pairs=None, skipped=+skipped)


def read_vlfeedback(fields: Fields) -> Dialogue:
    """VLFeedback: completions rated by aspect; the reward is their mean, or one aspect (`dialogue.aspect`).

    A completion without a numeric rating is left out and counted.

    Source: vlf-silkie/VLFeedback de0bff3.
    """
    turns = [Turn("user", fields.text("question", reason="empty_prompt"))]
    answers, ratings, skipped = [], [], Counter[str]()
    for item in _completions(fields) if fields.answered else ():
        rated = _rating(fields, item.get("annotations"))
        text = first_present(item, "response", "text")
        if not isinstance(text, str) or not text.strip():
            skipped["empty_answer"] += 1
        elif rated is None:
            skipped["no_rating"] += 1
        else:
            answers.append(Answer(text, rated[0], item.get("model")))
            ratings.append(rated[1])
    found = dialogue(fields, turns, answers)
    return replace(found, pairs=None, per_answer={**found.per_answer, "ratings": ratings}, skipped=skipped)


def _completions(fields: Fields) -> list[Mapping[str, Any]]:
    """Completions as a list of records: `datasets` stores such a list as one record of lists."""
    value = fields.value("ratings")
    if isinstance(value, Mapping):
        names = [name for name, column in value.items() if isinstance(column, list)]
        count = min((len(value[name]) for name in names), default=0)
        return [{name: value[name][place] for name in names} for place in range(count)]
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        message = explain(
            fields.place("ratings"), got=repr(value)[:60], expected="a list of rated completions"
        )
        raise FieldError(message, "bad_ratings", fields.columns["ratings"])
    return value


def _rating(fields: Fields, annotations: Any) -> tuple[float, dict[str, float]] | None:
    """(reward, rating by aspect) of a completion; None where a rating it needs is no number."""
    given = {
        name: first_present(note, "Rating", "rating") if isinstance(note, Mapping) else note
        for name, note in (annotations.items() if isinstance(annotations, Mapping) else ())
    }
    aspect = fields.options.aspect
    if aspect is not None:
        names = [name for name in given if name.lower() == aspect.lower()]
        if not names:
            message = explain(
                f"{fields.place('ratings')} dialogue.aspect",
                got=aspect,
                expected=f"one of {', '.join(given) or 'the rated aspects (none here)'}",
            )
            raise FieldError(message, "no_aspect", fields.columns["ratings"])
        given = {names[0]: given[names[0]]}
    numbers = {name: number for name, value in given.items() if (number := as_number(value)) is not None}
    if not numbers or len(numbers) < len(given):
        return None
    return sum(numbers.values()) / len(numbers), numbers


def read_ha_dpo(fields: Fields) -> Dialogue:
    """HA-DPO: lists of chosen and rejected variants of a description, every two of which meet; or a question.

    Descriptions come without a question: one of `dialogue.questions` is drawn. Questions that the model
    answered right are left out. Images are those of Visual Genome, by number.

    Source: opendatalab/HA-DPO 42f72c5, models/llava-v1_5/train_dpo.py.
    """
    if fields.value("right") in (True, 1):
        message = f"{fields.where}: the model's answer was right; there is nothing to correct."
        raise DroppedRowError(message, "answered_right", fields.columns["right"])
    if fields.value("question") is None:
        choices = fields.options.questions
        question = choices[derive_seed(fields.seed, "question", fields.where) % len(choices)]
        fields = replace(
            fields, values={**fields.values, "": question}, columns={**fields.columns, "question": ""}
        )
    found = read_dialogue(fields)
    if "images" in fields.columns:
        return found
    number = fields.words(str(fields.value("image_id") or ""), "image_id", reason="missing_image")
    paths = tuple(f"{folder}{number}.jpg" for folder in ("VG_100K/", "VG_100K_2/", ""))
    return replace(found, images=(FirstOf(paths),))


def read_opa_dpo(fields: Fields) -> Dialogue:
    """OPA-DPO: the true answer over the model's own one, with the revised answer and its weights beside them.

    `token_severity` and `image_relation` hold spans per candidate, `revised` the third answer with its own
    spans (see `with_revised`).

    Source: zhyang2226/OPA-DPO db90180, utils/data_utils_dpo.py.
    """
    found = read_dialogue(fields)
    found = replace(found, images=tuple(_encoded(image) for image in found.images))
    if not fields.answered:
        return found
    own = _two(fields, found)[1]
    revised = fields.text("revised", reason="empty_answer") if "revised" in fields.columns else None
    report = fields.parsed("report")
    if revised is None:
        return found
    if not isinstance(report, Mapping):
        return replace(found, extras={**found.extras, "revised": {"text": revised}})
    names = [name for name in report if name not in ("image_description", "image description")]
    judged = [(name, report[name]) for name in names if isinstance(report[name], Mapping)]
    weights: dict[str, dict[str, list[Span]]] = {}
    missing = 0
    for place, name in enumerate(("token_severity", "image_relation")):
        before = [(_part(note, "copied"), severity_of(note)[place]) for key, note in judged if key != "Added"]
        after = [
            (_part(note, "rewritten"), 1.0 if key == "Added" else severity_of(note)[place])
            for key, note in judged
        ]
        spans, missed = sentence_spans(own, before)
        spans_after, missed_after = sentence_spans(revised, after, with_end=True)
        weights[name] = {"own": spans, "revised": spans_after}
        missing = missed + missed_after
    # The true answer is compared unweighted, whole with its end.
    whole = [(0, len(found.answers[0].text) + 1, 1.0)]
    extras: dict[str, Any] = dict(found.extras)
    extras["revised"] = {"text": revised} | {name: value["revised"] for name, value in weights.items()}
    if missing:
        extras["sentences_not_found"] = missing
    per_answer = {name: [whole, value["own"]] for name, value in weights.items()}
    return replace(found, extras=extras, per_answer={**found.per_answer, **per_answer})


def _encoded(image: Any) -> Any:
    """OPA-DPO writes the images themselves, in base64; a path has an ending."""
    return f"data:;base64,{image}" if isinstance(image, str) and "." not in image[-6:] else image


def _part(sentence: Mapping[str, Any], kind: str) -> str:
    found = first_present(sentence, f"{kind} content", f"{kind}_content")
    return found if isinstance(found, str) else ""


def _two(fields: Fields, found: Dialogue) -> list[str]:
    """The texts of both answers."""
    if len(found.answers) != 2:
        message = explain(fields.where, got=f"{len(found.answers)} answers", expected="2")
        raise FieldError(message, "wrong_count", fields.columns["chosen"])
    return [answer.text for answer in found.answers]


def read_rrpo(fields: Fields) -> Dialogue:
    """RRPO: the phrases in which the answers differ, from `<MASK>` markers or by alignment of words.

    Rows without any phrase are left out: nothing in them is compared.

    Source: pritamqu/RRPO a905573, docs/DATA.md, train_llavavideo.py, videochat2/diff_lib.py.
    """
    found = read_dialogue(fields)
    how = fields.options.phrases
    if not fields.answered or how == "none":
        return found
    texts = _two(fields, found)
    marked = [fields.value(role) for role in ("chosen_marked", "rejected_marked")]
    spans = [
        marked_spans(copy, text) if isinstance(copy, str) else None
        for copy, text in zip(marked, texts, strict=True)
    ]
    source = "markers"
    if None in spans or how == "align":
        if how == "markers":
            message = (
                f"{fields.where}: the marked answers are missing or not the answers. phrases: auto aligns "
                "words."
            )
            raise FieldError(message, "no_markers", fields.columns.get("chosen_marked", ""))
        source, aligned = "alignment", changed_spans(texts[0], texts[1])
        spans = list(aligned)
    if not any(spans):
        message = f"{fields.where}: no phrase differs between the answers; nothing would be compared."
        raise DroppedRowError(message, "no_phrase")
    return replace(
        found,
        per_answer={**found.per_answer, "phrase": spans},
        sides={**found.sides, "spans": spans},
        extras={**found.extras, "phrases_from": source},
    )
