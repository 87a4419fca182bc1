"""What is said and shown: turns of many spellings, with tags in the text, to `Message`s and media in order.

Public data write the place of an image as `<image>` in the text, as a content item, or not at all. Here every
place becomes a content item, and there are as many places as media; nothing is guessed beyond that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmalign.batch import ContentItem, Message
from mmalign.data.dialogues.fields import is_missing
from mmalign.data.rows import FieldError, check_prompt
from mmalign.errors import explain

__all__ = ["Turn", "embedded_images", "lay_out", "plain_text", "turns_of", "without_template"]

Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_TAG = re.compile(r"<(image|video|ImageHere)>")
_TYPES = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as the data write it.

    Args:
        role: who speaks.
        content: words with tags, or a list of content items.
    """

    role: Role
    content: Any


def turns_of(value: object, where: str) -> list[Turn]:
    """Turns of a list of messages, `role`/`content` or `from`/`value`.

    Raises:
        RowError: reason `bad_messages`, `unknown_role`.
    """
    messages = [value] if isinstance(value, Mapping) else value
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        message = explain(where, got=type(value).__name__, expected="a list of messages")
        raise FieldError(message, "bad_messages", where.rpartition(" ")[2])
    return [_turn(item, where) for item in messages]


def _turn(item: object, where: str) -> Turn:
    keys = (("role", "content"), ("from", "value"))
    found = next(
        (pair for pair in keys if isinstance(item, Mapping) and not is_missing(item.get(pair[0]))), None
    )
    if found is None or not isinstance(item, Mapping):
        message = explain(
            where, got=repr(item)[:60], expected="messages with role and content, or from and value"
        )
        raise FieldError(message, "bad_messages", where.rpartition(" ")[2])
    name, content = item[found[0]], item.get(found[1])
    role = _ROLES.get(str(name).lower())
    if role is None:
        message = explain(where, got=name, expected=f"a role among {', '.join(_ROLES)}")
        raise FieldError(message, "unknown_role", where.rpartition(" ")[2])
    return Turn(role, content)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Words, or the place of a medium; `tag` where the place was written inside the text."""

    type: Literal["text", "image", "video"]
    text: str = ""
    media: Any = None
    tag: bool = False


def _of_text(text: str) -> list[_Piece]:
    """Words and places, in order; line breaks beside a tag belong to the tag."""
    pieces: list[_Piece] = []
    parts = _TAG.split(text)
    for number, part in enumerate(parts):
        if number % 2:
            pieces.append(_Piece("video" if part == "video" else "image", tag=True))
            continue
        words = part.lstrip("\n") if number else part
        words = words.rstrip("\n") if number < len(parts) - 1 else words
        if words.strip() or len(parts) == 1:
            pieces.append(_Piece("text", words))
    return pieces


def _pieces(content: object, where: str) -> list[_Piece]:
    if isinstance(content, str):
        return _of_text(check_prompt(content, where=where, allow_empty=True))
    if is_missing(content):
        return []
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        message = explain(where, got=type(content).__name__, expected="a text or a list of content items")
        raise FieldError(message, "bad_content", where.rpartition(" ")[2])
    pieces: list[_Piece] = []
    for item in content:
        if isinstance(item, str):
            pieces += _of_text(item)
            continue
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind == "text":
            words = check_prompt(item.get("text"), where=where, allow_empty=True)
            pieces += _of_text(words) if words else []
        elif kind in _TYPES:
            media = next((item[key] for key in (kind, "url", "path") if not is_missing(item.get(key))), None)
            media = media.get("url", media) if isinstance(media, Mapping) else media
            pieces.append(_Piece("image" if _TYPES[kind] == "image" else "video", media=media))
        else:
            message = explain(
                where, got=repr(item)[:60], expected="content items of type text, image or video"
            )
            raise FieldError(message, "bad_content", where.rpartition(" ")[2])
    return pieces


def plain_text(content: object, where: str) -> str:
    """The words of a turn that shows nothing (an answer).

    Raises:
        RowError: reason `tag_in_answer` (media or their tags inside it), `bad_content`.
    """
    if isinstance(content, str) and not _TAG.search(content):
        return content
    pieces = _pieces(content, where)
    if any(piece.type != "text" for piece in pieces):
        message = explain(
            where,
            got="an answer that shows an image or video",
            expected="words",
            do="A tag in an answer would be read as a place of the prompt's media; write it differently.",
        )
        raise FieldError(message, "tag_in_answer", where.rpartition(" ")[2])
    return "".join(piece.text for piece in pieces)


def _count(laid: Sequence[Sequence[_Piece]], kind: str, *, tag: bool | None = None) -> int:
    return sum(
        piece.type == kind and (tag is None or piece.tag == tag) for pieces in laid for piece in pieces
    )


def lay_out(
    turns: Sequence[Turn], images: Sequence[Any], videos: Sequence[Any], *, where: str
) -> tuple[tuple[Message, ...], list[Any], list[Any]]:
    """Messages with one item per medium, and the media in the order in which they are shown.

    Media that no turn places stand before the words of the first user turn, images first. Media inside
    content items are used where the row has no column of them. Tags beside content items for the same media
    are left out. `<image>` in a row of videos alone means a video.

    Args:
        turns: the dialogue up to the turn that is answered.
        images: of the row's column, in order.
        videos: the same for videos.
        where: `file:row`, for messages.

    Raises:
        RowError: reason `image_count`, `video_count` (places and media differ in number), `no_question` (no
            user turn), `last_turn` (the last turn is not the user's), `empty_prompt`, `empty_turn`.
    """
    laid = [_pieces(turn.content, where) for turn in turns]
    if not images:
        images = [piece.media for pieces in laid for piece in pieces if piece.type == "image" and piece.media]
    if not videos:
        videos = [piece.media for pieces in laid for piece in pieces if piece.type == "video" and piece.media]
    if videos and not images and not _count(laid, "video"):
        laid = [
            [replace(piece, type="video") if piece.type == "image" else piece for piece in row]
            for row in laid
        ]
    for kind, media in (("image", images), ("video", videos)):
        if _count(laid, kind, tag=True) and 0 < _count(laid, kind, tag=False) == len(media):
            laid = [[piece for piece in row if not (piece.tag and piece.type == kind)] for row in laid]
    users = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if not users or turns[-1].role != "user":
        got = f"turns of {', '.join(turn.role for turn in turns) or 'nobody'}"
        message = explain(where, got=got, expected="a dialogue that ends with a turn of the user")
        raise FieldError(message, "last_turn" if users else "no_question")
    for kind, media in (("video", videos), ("image", images)):
        places = _count(laid, kind)
        if not places:
            front = [_Piece("image" if kind == "image" else "video") for _ in media]
            laid[users[0]] = [*front, *laid[users[0]]]
        elif places != len(media):
            message = explain(
                where,
                got=f"{places} places for {len(media)} {kind}s",
                expected=f"one <{kind}> tag or content item per {kind}, or none at all",
            )
            raise FieldError(message, f"{kind}_count")
    for turn, pieces in zip(turns, laid, strict=True):
        if not pieces and turn.role != "system":
            message = explain(
                where, got=f"an empty turn of the {turn.role}", expected="words or media in every turn"
            )
            raise FieldError(message, "empty_prompt" if turn is turns[-1] else "empty_turn")
    messages = tuple(
        Message(turn.role, tuple(ContentItem(piece.type, piece.text) for piece in pieces))
        for turn, pieces in zip(turns, laid, strict=True)
        if pieces
    )
    return messages, list(images), list(videos)


_MARK = re.compile(
    r"<\|im_start\|>(?P<chatml>system|user|assistant)\n|(?:^|(?<=\s)|(?<=</s>))(?P<role>USER|ASSISTANT|HUMAN|Human|Assistant):\s*"
)
_ENDS = ("<|im_end|>", "</s>", "<|endoftext|>")


def without_template(text: str) -> list[Turn]:
    """Turns of a prompt that is already written out in a chat template.

    What stands between the roles is kept; the template's own words before the first role, its system turn and
    the opened turn of the assistant at the end are not. A text without roles is one turn of the user.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        return [Turn("user", text)]
    turns = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        words = text[mark.end() : following.start() if following else len(text)].strip()
        for end in _ENDS:
            words = words.removesuffix(end).strip()
        role = _ROLES[(mark["chatml"] or mark["role"]).lower()]
        if words and role != "system":
            turns.append(Turn(role, words))
    return turns


_NAMED = re.compile(r"(?:Picture \d+:\s*)?<img>(?P<path>.*?)</img>\n?")


def embedded_images(text: str) -> list[Any] | str:
    """Content items of a prompt with `<img>PATH</img>` inside, as Qwen-VL's tokenizers write it."""
    if not _NAMED.search(text):
        return text
    items: list[Any] = []
    end = 0
    for found in _NAMED.finditer(text):
        if words := text[end : found.start()].strip("\n"):
            items.append({"type": "text", "text": words})
        items.append({"type": "image", "image": found["path"].strip()})
        end = found.end()
    return [*items, {"type": "text", "text": text[end:]}] if text[end:].strip() else items
