"""Object HalBench: objects an answer names that are not in the picture.

Source: RLHF-V (arXiv 2312.00849); RLHF-V/RLAIF-V eval/eval_gpt_obj_halbench.py. 300 pictures, one of eight
prompts each. A language model lists the objects of an answer; they are matched with COCO's classes as in
CHAIR. The response rate divides by the answers that name any of these, the mention rate is CHAIRi; recall and
length are part of the benchmark.

Two sources of objects, and numbers of one never compare with numbers of the other:

* `score_captions`: the words of the answer, no language model; protocol `objhal(caption)`.
* `score_answers`: a judge's list, asked for now or stored; protocol `objhal(llm:<name>)`. Published numbers
  used gpt-3.5-turbo-0613 with the released prompt, and a tagger for "a <object>". The prompt here is our own;
  give the released one as `template`, and a tagger as `normalise`, to come near them.

Modes: `exact` reads the judge's list as released (the whole text, or its last line), and drops objects whose
whole name the vocabulary lacks; `strict` reads the first list in the text and falls back to the last words of
a name ("kitchen table" counts as table). An answer of three words or fewer names nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, explain
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
from mmalign.evals.benchmarks._judging import EXTRACTION_TEMPLATE, extraction_prompt, parse_objects
from mmalign.evals.benchmarks._objects import Mention, ObjectVocabulary
from mmalign.evals.benchmarks._records import (
    Mode,
    Record,
    answer_field,
    check_mode,
    failure,
    locate,
    read_json_records,
)

__all__ = [
    "BENCHMARK",
    "EXTRACTION_TEMPLATE",
    "CaptionItem",
    "CaptionResult",
    "extraction_prompt",
    "object_words",
    "parse_objects",
    "read_answers",
    "score_answers",
    "score_captions",
    "score_objects",
]

_ANSWERS = ("caption", "answer", "text")
_SHORT = 3
"""Answers of so many words or fewer name nothing; no judge is asked (released)."""


def object_words(name: str, vocabulary: ObjectVocabulary, mode: Mode = "exact") -> list[str]:
    """Words of the vocabulary's kind that an object's name stands for.

    The name is lower-cased and made singular. Known neighbours in it count alone ("old traffic light" is
    "traffic light"). Otherwise the whole name is one word, as the released tagger makes of a run of nouns;
    the strict mode takes the longest end of it that the vocabulary knows, so that an adjective cannot hide an
    object.
    """
    words = [vocabulary.singular(word) for word in vocabulary.tokenise(name.lower())]
    merged = vocabulary.merged_only(words)
    if merged:
        return merged
    if mode == "strict":
        ends = [" ".join(words[start:]) for start in range(len(words))]
        return [end for end in ends if end in vocabulary.nodes][:1]
    return [" ".join(words)] if words else []


def score_captions(
    records: Iterable[Mapping[str, Any]], truth: Mapping[str, frozenset[str]], vocabulary: ObjectVocabulary
) -> CaptionResult:
    """The caption mode: objects are the words of the answer, repeats counted. No language model.

    Args:
        records: `image_id` and the answer under `caption`, `answer` or `text`.
        truth: image id to object classes.
        vocabulary: of form `refined` for the released rules.

    Raises:
        RowError: a field is missing, or an image is not annotated.
    """
    rows = locate(records, "answers")
    captions = [answer_field(record, _ANSWERS) for record in rows]
    return score_mentions(
        rows,
        captions,
        [[] if caption is None else vocabulary.mentions(caption) for caption in captions],
        [failure(record, caption) for record, caption in zip(rows, captions, strict=True)],
        truth,
        form=vocabulary.form,
        protocol=f"objhal(caption, {vocabulary.form})",
    )


def score_objects(
    records: Iterable[Mapping[str, Any]],
    truth: Mapping[str, frozenset[str]],
    vocabulary: ObjectVocabulary,
    *,
    protocol: str = "objhal(objects)",
) -> CaptionResult:
    """Objects that are already words of the vocabulary's kind; every one counts, repeats too.

    Args:
        records: `image_id`, the answer, and `objects`, a list of texts, or null with an `error`.
        truth: image id to object classes.
        vocabulary: maps the objects to classes; others do not count.
        protocol: for the result.

    Raises:
        RowError: a field is missing, or an image is not annotated.
    """
    rows = locate(records, "answers")
    captions = [answer_field(record, _ANSWERS) for record in rows]
    unread = [record.get("objects") is None for record in rows]
    errors = [
        record.optional_text("error") or "no objects" if missing else None
        for record, missing in zip(rows, unread, strict=True)
    ]
    named: list[list[Mention]] = [
        [] if missing else vocabulary.known(record.texts("objects"))
        for record, missing in zip(rows, unread, strict=True)
    ]
    return score_mentions(rows, captions, named, errors, truth, form=vocabulary.form, protocol=protocol)


def score_answers(
    records: Iterable[Mapping[str, Any]],
    truth: Mapping[str, frozenset[str]],
    vocabulary: ObjectVocabulary,
    *,
    mode: Mode = "exact",
    judge: Callable[[str], str] | None = None,
    judge_name: str = "stored",
    template: str = EXTRACTION_TEMPLATE,
    attempts: int = 3,
    normalise: Callable[[str], list[str]] | None = None,
) -> CaptionResult:
    """Objects that a language model finds in the answers, each counted once an answer.

    Args:
        records: `image_id`, the answer under `caption`, `answer` or `text`, and its `question`; what a judge
            wrote, where it was asked before: `extraction` (text) or `extract_objs` (a list).
        truth: image id to object classes.
        vocabulary: of form `refined` for the released rules.
        mode: how the judge's text and the objects are read.
        judge: prompt to text, asked where nothing is stored.
        judge_name: which model, with its version: it moves the numbers, and stands in the protocol.
        template: see `extraction_prompt`.
        attempts: how often the judge is asked until its text holds a list; after that the answer has no
            number, is counted in `failed`, and its item says why. The released script asks a hundred times
            and then stops.
        normalise: object name to words of the vocabulary's kind; None uses `object_words`.

    Raises:
        ConfigError: unknown mode, or neither a judge nor something stored.
        RowError: a field is missing, or an image is not annotated.
    """
    check_mode(mode)
    rows = locate(records, "answers")
    ready = []
    for record in rows:
        answer = answer_field(record, _ANSWERS)
        listed = _listed(record, answer, mode, judge, template, attempts)
        if isinstance(listed, str):
            ready.append(record.with_fields(objects=None, error=listed))
            continue
        words = [
            word
            for name in listed
            for word in (object_words(name, vocabulary, mode) if normalise is None else normalise(name))
        ]
        ready.append(record.with_fields(objects=list(dict.fromkeys(words))))
    return score_objects(ready, truth, vocabulary, protocol=f"objhal(llm:{judge_name}, {mode})")


def _listed(
    record: Record,
    answer: str | None,
    mode: Mode,
    judge: Callable[[str], str] | None,
    template: str,
    attempts: int,
) -> Sequence[str] | str:
    """Objects listed for one answer; why there are none, as text."""
    if answer is None:
        return failure(record, answer) or "no answer"
    if len(answer.split()) <= _SHORT:
        return ()
    if isinstance(record.get("extract_objs"), list):
        return record.texts("extract_objs")
    if record.get("extraction") is not None:
        found = parse_objects(record.text("extraction"), mode)
        return "the judge's text holds no list of objects" if found is None else found
    if judge is None:
        message = explain(
            f"{record.where} extraction",
            got="[nothing stored]",
            expected="what a judge wrote, or a judge to ask",
            do="Pass judge=, or use score_captions, which needs none.",
        )
        raise ConfigError(message)
    prompt = extraction_prompt(record.text("question"), answer, template)
    for _ in range(attempts):
        found = parse_objects(judge(prompt), mode)
        if found is not None:
            return found
    return f"the judge's text held no list of objects, {attempts} times"


def read_answers(path: str | Path) -> list[Record]:
    """Answers of a file, ready for `score_answers` or `score_captions`.

    The released layout: one object a line with `image_id`, `question` or `prompt`, and `answer` or `text`;
    "Assistant:" is cut from answers, as there.

    Raises:
        RowError: a record is malformed; the message names it.
    """
    found = []
    for record in read_json_records(path):
        record.identifier("image_id")
        question = record.optional_text("question") or record.optional_text("prompt")
        if question is None:
            raise record.refuse("question", "the question asked (or under prompt)")
        answer = answer_field(record, ("text", "answer", "caption"))
        cut = None if answer is None else answer.replace("Assistant:", "").strip()
        others = {name: record[name] for name in record if name not in ("text", "answer", "prompt")}
        found.append(Record({**others, "question": question, "caption": cut}, record.where))
    return found


# ------------------------------------------------------------------------------------------------ the harness


def _read(folder: Path, *, images: str | Path | None = None) -> list[Item]:
    listing = ("obj_halbench_300_with_image.jsonl", "images.jsonl", "images.json")
    return caption_items(folder, images, listing=listing, synonyms=("synonyms_refine.txt", "synonyms.txt"))


def _score(
    answers: Sequence[Answer],
    *,
    judge: Callable[[str], str] | None = None,
    judge_name: str = "unnamed",
    mode: Mode = "exact",
) -> Outcome:
    check_mode(mode)
    records = records_of(answers)
    vocabulary = vocabulary_of(records, "refined" if mode == "exact" else "strict")
    truth = truth_of(records, vocabulary)
    if judge is None:
        result = score_captions(records, truth, vocabulary)
    else:
        result = score_answers(records, truth, vocabulary, mode=mode, judge=judge, judge_name=judge_name)
    counts = {
        "answers": len(result.items),
        "failed": result.failed,
        "without objects": result.without_objects,
    }
    notes = (f"Scored as {result.protocol}; never beside numbers of another protocol.",)
    return Outcome(caption_metrics(result, ("response_rate", "chair_i")), counts, notes)


BENCHMARK = Benchmark(
    name="object_halbench",
    title="Objects in answers about COCO pictures that are not there, read by a judge or from the words",
    produces="text",
    read=_read,
    score=_score,
    files={
        "synonyms_refine.txt": "RLHF-V/RLAIF-V, folder eval/data",
        "obj_halbench_300_with_image.jsonl": "RLHF-V/RLAIF-V, folder eval/data",
        **ANNOTATION_FILES,
    },
    options={
        "images": "folder of the pictures, where the list does not hold them",
        "mode": "how the judge's text is read and objects are matched: exact or strict",
        "judge_name": "which language model listed the objects; none: the words of the answer",
    },
    protocol={"pictures": 300, "beams": 3, "temperature": 0, "objects": "caption, or llm:<judge>"},
    paper="2312.00849",
    official_code="RLHF-V/RLAIF-V",
    licence="COCO's terms for the pictures",
    departures=(
        "The judge is yours and its prompt our own; the released numbers are gpt-3.5-turbo-0613's.",
        "Object names are cut by rules of our own; the released script tags them with spaCy.",
        "An answer whose objects cannot be read is counted and left out; the released script stops.",
    ),
)
