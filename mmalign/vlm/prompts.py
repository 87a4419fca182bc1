"""Dialogues as text and tokens: chat template, placeholders, where an answer begins, what ends a turn.

The prompt is rendered by the model's own chat template, and so is the seam to the answer: what the template
puts between the call for an answer and its first letter, and what it puts behind its last one up to the token
that ends the turn. Where a template ends turns without a token (LLaVA 1.5), the tokenizer's end of text is
added, or the model would never learn to stop.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from jinja2.exceptions import TemplateError
from torch import Tensor

from mmalign.batch import Candidate, ContentItem, Message, PreferenceRow
from mmalign.data.rows import FieldError
from mmalign.errors import ConfigError, explain
from mmalign.vlm.inputs import MediaKind

__all__ = [
    "Encoding",
    "Seam",
    "find_seam",
    "messages_of",
    "render",
    "span_weights",
    "split_answer",
    "tokenise",
]

Span = tuple[int, int, float]
"""Start and end in characters, and a value."""

_TAG = re.compile(r"[ \t]*<(image|video)>[ \t]*\n?|\n?[ \t]*<(image|video)>[ \t]*")
_SENTINEL = "Xq7"


# --- messages -----------------------------------------------------------------------------------------------


def messages_of(
    row: PreferenceRow,
    candidate: Candidate,
    *,
    counts: tuple[int, int],
    system_prompt: str | None,
    placeholders: Sequence[str],
) -> tuple[Message, ...]:
    """The dialogue that a candidate answers, its media as content items.

    Args:
        row: its messages, or one user turn of its media and its prompt.
        candidate: may answer another prompt than the row's.
        counts: images and videos that come with it.
        system_prompt: put in front of a dialogue that has none.
        placeholders: of the model; a text that holds one would take the place of a medium.

    Raises:
        FieldError: `image_count`, tags or items and media do not match; `placeholder_in_text`.
    """
    messages = row.messages
    if not messages or candidate.prompt is not None:
        text = row.prompt if candidate.prompt is None else candidate.prompt
        messages = (Message("user", _one_turn(text, counts)),)
    elif not any(item.type != "text" for message in messages for item in message.content):
        messages = tuple(Message(message.role, _tags_as_items(message)) for message in messages)
    _check_counts(row, messages, counts)
    _check_texts(row, messages, placeholders)
    if system_prompt is not None and messages[0].role != "system":
        messages = (Message("system", (ContentItem("text", system_prompt),)), *messages)
    return messages


def _one_turn(text: str, counts: tuple[int, int]) -> tuple[ContentItem, ...]:
    """Media first, then the words; tags in the words say where the media are instead."""
    images, videos = counts
    if re.search(r"<(?:image|video)>", text) and (images or videos):
        return _split_tags(text)
    media = (*(ContentItem("image"),) * images, *(ContentItem("video"),) * videos)
    return (*media, ContentItem("text", text))


def _tags_as_items(message: Message) -> tuple[ContentItem, ...]:
    return tuple(
        item
        for part in message.content
        for item in (_split_tags(part.text) if message.role == "user" else (part,))
    )


def _split_tags(text: str) -> tuple[ContentItem, ...]:
    """Text and media in reading order; the line break that sets a tag apart goes with it."""
    items: list[ContentItem] = []
    last = 0
    for found in _TAG.finditer(text):
        if words := text[last : found.start()]:
            items.append(ContentItem("text", words))
        items.append(ContentItem("image" if "image" in (found[1], found[2]) else "video"))
        last = found.end()
    if words := text[last:]:
        items.append(ContentItem("text", words))
    return tuple(items)


def _check_counts(row: PreferenceRow, messages: Sequence[Message], counts: tuple[int, int]) -> None:
    shown = tuple(
        sum(item.type == kind for message in messages for item in message.content)
        for kind in ("image", "video")
    )
    if shown != counts:
        message = explain(
            f"{row.source or row.id}: media",
            got=f"[{counts[0]} images, {counts[1]} videos; {shown[0]} and {shown[1]} places in the text]",
            expected="one place per image and video",
            do="Add the missing <image> or <video>, or the missing file.",
        )
        raise FieldError(message, reason="image_count", field_name="images")


def _check_texts(row: PreferenceRow, messages: Sequence[Message], placeholders: Sequence[str]) -> None:
    tokens = {*placeholders, "<image>", "<video>"} if row.images or row.videos else set(placeholders)
    for message in messages:
        for item in message.content:
            require_no_placeholder(row, item.text, tokens)


def require_no_placeholder(row: PreferenceRow, text: str, placeholders: Sequence[str] | set[str]) -> None:
    """Refuse words that the tokenizer would read as the place of a medium.

    Raises:
        FieldError: `placeholder_in_text`.
    """
    held = sorted(token for token in placeholders if token in text)
    if held:
        complaint = explain(
            f"{row.source or row.id}: text",
            got=f"[{held[0]} among the words]",
            expected="the places of images and videos as content items or as tags, not both",
            do="Take the tag out of the text.",
        )
        raise FieldError(complaint, reason="placeholder_in_text", field_name="prompt")


# --- templates ----------------------------------------------------------------------------------------------


def render(processor: Any, messages: Sequence[Message], *, answer: bool = True) -> str:
    """The dialogue as the model's chat template writes it.

    Args:
        processor: or tokenizer.
        messages: the dialogue.
        answer: call for an answer behind it.

    Raises:
        FieldError: `chat_template`, the template refuses the dialogue (a system turn, roles out of turn).
    """
    template = getattr(processor, "chat_template", None)
    if not template:
        return "\n".join(_words(message) for message in messages) + ("\n" if answer else "")
    sees = hasattr(processor, "tokenizer")
    turns = [
        {"role": message.role, "content": _contents(message) if sees else _words(message)}
        for message in messages
    ]
    try:
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
    except TemplateError as error:
        roles = [message.role for message in messages]
        complaint = explain(
            "dialogue",
            got=roles,
            expected="turns that the model's chat template takes",
            do=f"It says: {error}",
        )
        raise FieldError(complaint, reason="chat_template", field_name="messages") from error
    return str(text)


def _words(message: Message) -> str:
    return "".join(item.text for item in message.content)


def _contents(message: Message) -> list[dict[str, str]]:
    return [
        {"type": "text", "text": item.text} if item.type == "text" else {"type": item.type}
        for item in message.content
    ]


@dataclass(frozen=True)
class Seam:
    """What stands between a prompt and an answer, and behind the answer.

    Args:
        lead: text between the call for an answer and its first letter.
        end: text that ends the turn, up to the token that says so.
    """

    lead: str
    end: str


def find_seam(processor: Any, *, specials: Sequence[str], end_of_text: str | None) -> Seam:
    """The seam of a chat template, read off a dialogue with a known answer.

    Args:
        processor: or tokenizer.
        specials: tokens of the tokenizer that end things.
        end_of_text: added where the template ends a turn without a token.

    Raises:
        ConfigError: the model has no token that could end an answer.
    """
    question = Message("user", (ContentItem("text", "?"),))
    asked = render(processor, [question])
    answered = render(
        processor, [question, Message("assistant", (ContentItem("text", _SENTINEL),))], answer=False
    )
    place = answered.rfind(_SENTINEL)
    lead = answered[len(asked) : place] if place >= 0 and answered.startswith(asked) else ""
    behind = answered[place + len(_SENTINEL) :] if place >= 0 else ""
    ends = [behind.find(token) + len(token) for token in specials if token and token in behind]
    if ends:
        return Seam(lead, behind[: min(ends)])
    if not end_of_text:
        message = explain(
            "chat template",
            got="[turns without a token that ends them, and a tokenizer without eos_token]",
            expected="either, or the model never learns to stop",
            do="Set tokenizer.eos_token.",
        )
        raise ConfigError(message)
    return Seam(lead, end_of_text)


# --- tokens -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """Token ids of a text with the characters they stand for.

    Args:
        ids: token ids.
        offsets: start and end of each token in characters; empty where the tokenizer cannot say.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...] = ()


def tokenise(tokenizer: Any, text: str, *, begin: bool = True) -> Encoding:
    """A whole text as tokens; what begins texts is added once, unless the text says it itself.

    Chat templates of some families write the token of the beginning, and their tokenizers would write it
    again.

    Args:
        tokenizer: fast or slow.
        text: with placeholders expanded.
        begin: whether anything is added at all.
    """
    bos = tokenizer.bos_token
    begins = bool(bos) and text.startswith(bos)
    fast = bool(getattr(tokenizer, "is_fast", False))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
    ids = tuple(found["input_ids"])
    offsets = tuple(tuple(pair) for pair in found["offset_mapping"]) if fast else ()
    first = () if begins or not begin else _beginning(tokenizer)
    return Encoding((*first, *ids), (*((0, 0),) * len(first), *offsets) if fast else ())


def _beginning(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that the tokenizer puts before every text."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def split_answer(prompt: Sequence[int], whole: Sequence[Sequence[int]]) -> int:
    """Where answers begin: behind the prompt, or at the first token in which any of the texts differs.

    A tokenizer may merge the end of the prompt with the beginning of an answer. The merged token then belongs
    to the answer, in all of them.

    Args:
        prompt: token ids of the prompt alone.
        whole: of prompt and answer, for every answer.
    """
    start = len(prompt)
    for ids in whole:
        shared = next(
            (place for place, (one, other) in enumerate(zip(prompt, ids, strict=False)) if one != other),
            min(len(prompt), len(ids)),
        )
        start = min(start, shared)
    return start


def span_weights(
    text: str, spans: Sequence[Span], offsets: Sequence[tuple[int, int]], *, default: float = 1.0
) -> Float[Tensor, " token"]:
    """One number per token from numbers over stretches of text: that of the stretch a token overlaps most.

    Args:
        text: the answer.
        spans: (start, end, value) in characters; overlapping ones: the later wins ties. An end of one more
            than the text has takes the first token of the end of turn in.
        offsets: start and end of every token in characters of `text`; empty ones (end of turn) touch no span.
        default: of tokens outside all spans.

    Raises:
        FieldError: `bad_span`, one that does not lie in the text.
    """
    values = torch.full((len(offsets),), float(default))
    covered = [0] * len(offsets)
    for start, end, value in spans:
        if not 0 <= start <= end <= len(text) + 1:
            message = explain("spans", got=[start, end], expected=f"0 <= start <= end <= {len(text) + 1}")
            raise FieldError(message, reason="bad_span", field_name="spans")
        for place, (first, last) in enumerate(offsets):
            overlap = min(last, end) - max(first, start)
            if overlap > 0 and overlap >= covered[place]:
                values[place], covered[place] = float(value), overlap
    return values


def as_ids(ids: Sequence[int]) -> Int[Tensor, " position"]:
    """Token ids as a tensor."""
    return torch.tensor(list(ids), dtype=torch.int64)


def media_in(messages: Sequence[Message]) -> list[MediaKind]:
    """Kinds of the media in reading order."""
    return [item.type for message in messages for item in message.content if item.type != "text"]
