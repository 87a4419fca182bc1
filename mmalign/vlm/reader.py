"""From a row to tokens: what a loader worker does for a language model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from mmalign.batch import Candidate, Media, Message, PreferenceRow
from mmalign.data.rows import FieldError
from mmalign.errors import ConfigError, explain
from mmalign.methods.row import View
from mmalign.vlm.fitting import cut, fit_answers, longest_dialogue
from mmalign.vlm.inputs import AnswerTokens, MediaKind, Medium, PromptTokens
from mmalign.vlm.media import Clip, MediaReader, Picture, process
from mmalign.vlm.prompts import (
    Encoding,
    Seam,
    as_ids,
    find_seam,
    media_in,
    messages_of,
    render,
    require_no_placeholder,
    span_weights,
    split_answer,
    tokenise,
)
from mmalign.vlm.recorded import completed, numbers_of
from mmalign.vlm.spoilt_media import Opened, SpoiltMedia
from mmalign.vlm.traits import Settings, VlmTraits

__all__ = ["DialogueReader", "Shown"]


@dataclass(frozen=True, eq=False)
class Shown:
    """A candidate with what it is seen beside.

    Args:
        candidate: its text and prompt.
        number: of the candidate in the row whose numbers it carries.
        media: opened, in reading order.
        messages: the dialogue it answers.
    """

    candidate: Candidate
    number: int
    media: tuple[Picture | Clip, ...]
    messages: tuple[Message, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for candidates that share a prompt."""
        return (self.messages, tuple(item.digest for item in self.media))


@dataclass(frozen=True)
class DialogueReader:
    """Rows to prompts, media and answers as tokens, on the CPU.

    Args:
        traits: of the family.
        media: opens images and videos.
        settings: of the processor's image part.
        max_length: tokens of prompt and longest answer together.
        max_completion_length: tokens of an answer.
        fit: what happens to rows with media that are longer.
        system_prompt: in front of dialogues without one.
        views: candidates that are made here: answers beside other images.
        spoilt: what those views show.
        record: names of numbers of the data that go along.
    """

    traits: VlmTraits
    media: MediaReader
    settings: Settings = field(default_factory=dict)
    max_length: int = 2**20
    max_completion_length: int | None = None
    fit: Literal["shrink", "drop", "error"] = "shrink"
    system_prompt: str | None = None
    views: tuple[View, ...] = ()
    spoilt: SpoiltMedia = field(default_factory=SpoiltMedia)
    record: frozenset[str] = frozenset()

    @cached_property
    def seam(self) -> Seam:
        """What stands between a prompt and an answer."""
        if own := self.traits.seam():
            return own
        tokenizer = self.traits.tokenizer
        eos = tokenizer.eos_token
        # Every special token of the vocabulary may end a turn; sorting makes the search repeatable.
        specials = sorted({eos, *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} - {None})
        return find_seam(self.traits.processor, specials=specials, end_of_text=eos)

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        """Texts that stand for media in what the tokenizer reads."""
        tokenizer, traits = self.traits.tokenizer, self.traits
        expanded = [tokenizer.convert_ids_to_tokens(token) for token in traits.media_ids.values()]
        return tuple(dict.fromkeys([*map(traits.placeholder, traits.sees), *expanded]))

    # --- a row ----------------------------------------------------------------------------------------------

    def __call__(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """`prompts` and `answers` of a row, which answers stand `aside`, and `counts` of what had to be done.

        Args:
            row: one record.
            key: decides every random choice.

        Raises:
            RowError: media that cannot be read or do not match their places (`image_count`), no answer
                (`no_answer_tokens`), or a row that does not fit (`too_long`).
            ConfigError: it does not fit, and `fit` says that this is an error.
        """
        row = completed(row, views=self.views, record=self.record)
        shown = self._shown(row, key)
        settings, counts = self.settings, {"shrunk_images": 0, "cut_answers": 0, "merged_seams": 0}
        while True:
            prompts, answers, merged = self._encoded(row, shown, settings)
            excess = longest_dialogue(prompts, answers) - self.max_length
            if excess <= 0 or not any(prompt.media for prompt in prompts) or self.fit != "shrink":
                break
            visual = max(sum(medium.num_tokens for medium in prompt.media) for prompt in prompts)
            largest = max(medium.num_tokens for prompt in prompts for medium in prompt.media)
            smaller = self.traits.smaller(settings, max(1.0 - excess / visual, 0.05), largest)
            if smaller is None:
                break
            settings, counts["shrunk_images"] = smaller, 1
        answers = fit_answers(row, prompts, answers, max_length=self.max_length, fit=self.fit)
        counts["cut_answers"] = sum(answer.was_cut for answer in answers)
        counts["merged_seams"] = int(merged)
        return {"prompts": prompts, "answers": answers, "counts": counts, "aside": self._aside(len(answers))}

    def _aside(self, num_answers: int) -> tuple[int, ...]:
        """Answers through which nothing flows back: the model's own words, and what guides."""
        if self.spoilt.further:  # one of several versions, taken later, of a view that is a candidate
            return ()
        first = num_answers - len(self.views)
        return tuple(first + n for n, view in enumerate(self.views) if view.becomes != "candidate")

    def prompt(self, row: PreferenceRow) -> PromptTokens:
        """The prompt of a row alone, for writing an answer to it.

        Raises:
            RowError: as when called.
        """
        shown = self._shown_one(row, Candidate(), 0, self.opened(row, Candidate()))
        text, media = self._prompt_text(row, shown, self.settings)
        ids = self._tokens(text).ids
        return self._prompt(row, ids, media)

    # --- candidates and media -------------------------------------------------------------------------------

    def _shown(self, row: PreferenceRow, key: int) -> list[Shown]:
        """Candidates of the row, and of the method's views."""
        opened = [self.opened(row, candidate) for candidate in row.candidates]
        shown = [
            self._shown_one(row, candidate, number, opened[number])
            for number, candidate in enumerate(row.candidates)
        ]
        for view in self.views:
            for version in range(self.spoilt.num_versions(view)):
                media = self.spoilt(row, opened[view.answer], view, key, version=version)
                shown.append(self._shown_one(row, row.candidates[view.answer], view.answer, media))
        return shown

    def opened(self, row: PreferenceRow, candidate: Candidate) -> dict[MediaKind, list[Picture | Clip]]:
        """The media a candidate is seen beside, decoded, in the order of the row.

        Raises:
            RowError: they cannot be read, or the model sees no such media.
        """
        where = row.source or row.id
        images = row.images if candidate.images is None else candidate.images
        videos: tuple[Media, ...] = row.videos if candidate.videos is None else candidate.videos
        if (videos and "video" not in self.traits.sees) or (images and "image" not in self.traits.sees):
            message = explain(
                f"{where}: media",
                got=f"[{len(images)} images and {len(videos)} videos]",
                expected=f"what the model sees: {' and '.join(self.traits.sees) or 'nothing'}",
            )
            raise FieldError(message, reason="media_kind", field_name="videos" if videos else "images")
        return {
            "image": [self.media.picture(item, where=f"{where} image {n}") for n, item in enumerate(images)],
            "video": [self.media.clip(item, where=f"{where} video {n}") for n, item in enumerate(videos)],
        }

    def _shown_one(
        self,
        row: PreferenceRow,
        candidate: Candidate,
        number: int,
        opened: Opened,
    ) -> Shown:
        messages = messages_of(
            row,
            candidate,
            counts=(len(opened["image"]), len(opened["video"])),
            system_prompt=self.system_prompt,
            placeholders=self.placeholders,
        )
        queues = {kind: iter(items) for kind, items in opened.items()}
        return Shown(candidate, number, tuple(next(queues[kind]) for kind in media_in(messages)), messages)

    # --- tokens ---------------------------------------------------------------------------------------------

    def _encoded(
        self, row: PreferenceRow, shown: Sequence[Shown], settings: Settings
    ) -> tuple[tuple[PromptTokens, ...], tuple[AnswerTokens, ...], bool]:
        """Prompts that candidates share, answers in the order of the candidates, and whether seams merged."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, item in enumerate(shown):
            groups.setdefault(item.key, []).append(place)
        prompts: list[PromptTokens] = []
        answers: dict[int, AnswerTokens] = {}
        merged = False
        for members in groups.values():
            text, media = self._prompt_text(row, shown[members[0]], settings)
            ids = self._tokens(text).ids
            wholes = {place: self._whole(row, text, ids, shown[place]) for place in members}
            start = split_answer(ids, [encoding.ids for encoding, _ in wholes.values()])
            merged = merged or start < len(ids)
            prompts.append(self._prompt(row, ids[:start], media))
            for place, (encoding, begin) in wholes.items():
                answers[place] = self._answer(row, shown[place], encoding, start, begin, len(prompts) - 1)
        return tuple(prompts), tuple(answers[place] for place in range(len(shown))), merged

    def _tokens(self, text: str) -> Encoding:
        return tokenise(self.traits.tokenizer, text, begin=self.traits.adds_beginning)

    def _prompt_text(self, row: PreferenceRow, shown: Shown, settings: Settings) -> tuple[str, list[Medium]]:
        """The prompt with every placeholder expanded."""
        media = process(self.traits, shown.media, settings)
        text = self.traits.render(shown.messages) or render(self.traits.processor, shown.messages)
        pieces, last, number = [], 0, 0
        while number < len(media):
            kind = "image" if isinstance(shown.media[number], Picture) else "video"
            token = self.traits.placeholder(kind)  # type: ignore[arg-type]
            place = text.find(token, last)
            if place < 0:
                message = explain(
                    f"{row.source or row.id}: prompt",
                    got=f"[{number} places for media in the rendered prompt]",
                    expected=f"{len(media)}",
                    do="The chat template leaves media out: does it know lists of contents?",
                )
                raise FieldError(message, reason="image_count", field_name="images")
            pieces += [text[last:place], media[number].text]
            last, number = place + len(token), number + 1
        return "".join([*pieces, text[last:]]), media

    def _whole(self, row: PreferenceRow, text: str, ids: Sequence[int], shown: Shown) -> tuple[Encoding, int]:
        """Prompt and answer as tokens, and the character at which the answer's own text begins."""
        answer = shown.candidate.text
        if not answer:
            message = explain(
                f"{row.source or row.id}: candidate {shown.number}", got="[no text]", expected="an answer"
            )
            raise FieldError(message, reason="no_answer_tokens", field_name="text")
        require_no_placeholder(row, answer, self.placeholders)
        tokenizer, seam = self.traits.tokenizer, self.seam
        if self.traits.one_text:
            return self._tokens(text + seam.lead + answer + seam.end), len(text) + len(seam.lead)
        fast = bool(getattr(tokenizer, "is_fast", False))
        found = tokenizer(answer + seam.end, add_special_tokens=False, return_offsets_mapping=fast)
        own = tuple(tuple(pair) for pair in found["offset_mapping"]) if fast else ()
        return Encoding((*ids, *found["input_ids"]), (*((0, 0),) * len(ids), *own) if fast else ()), 0

    def _prompt(self, row: PreferenceRow, ids: Sequence[int], media: Sequence[Medium]) -> PromptTokens:
        """The prompt's tokens, its placeholders counted against its media.

        Raises:
            FieldError: `image_count`, they differ; `double_bos`.
        """
        tokens = as_ids(ids)
        kinds = self.traits.kinds(tokens)
        for number, kind in ((1, "image"), (2, "video")):
            expected = sum(medium.num_tokens for medium in media if medium.kind == kind)
            found = int((kinds == number).sum())
            if found != expected:
                message = explain(
                    f"{row.source or row.id}: visual tokens",
                    got=f"[{found} placeholders of {kind}s]",
                    expected=f"{expected}, for {len(media)} media",
                    do="Do config and processor belong to one model?",
                )
                raise FieldError(message, reason="image_count", field_name="images")
        bos = self.traits.tokenizer.bos_token_id
        if bos is not None and tokens[:2].tolist() == [bos, bos]:
            message = explain(
                f"{row.source or row.id}: prompt",
                got="[the token of the beginning twice]",
                expected="it once",
                do="Take it out of the text, or out of the chat template.",
            )
            raise FieldError(message, reason="double_bos", field_name="prompt")
        positions, following = self.traits.positions(tokens, kinds, media)
        return PromptTokens(
            tokens, kinds, positions, following, self.traits.blocks(tokens, kinds), tuple(media)
        )

    def _answer(
        self, row: PreferenceRow, shown: Shown, encoding: Encoding, start: int, begin: int, prompt: int
    ) -> AnswerTokens:
        """An answer's tokens and numbers, its right end cut where it is too long."""
        ids, limit = encoding.ids[start:], self.max_completion_length
        if not ids:
            message = explain(
                f"{row.source or row.id}: candidate {shown.number}",
                got="[no tokens]",
                expected="at least one",
            )
            raise FieldError(message, reason="no_answer_tokens", field_name="text")
        offsets = [(first - begin, last - begin) for first, last in encoding.offsets[start:]]
        per_answer, spans = numbers_of(row, shown.number, self.record)
        text = shown.candidate.text or ""
        if spans and not offsets:
            message = explain(
                "recorded spans", got="[a tokenizer without offsets]", expected="a fast tokenizer"
            )
            raise ConfigError(message)
        per_token = {
            name: span_weights(text, stretches, offsets, default=default)
            for name, (stretches, default) in spans.items()
        }
        answer = AnswerTokens(prompt, as_ids(ids), False, per_answer, per_token)
        return answer if limit is None else cut(answer, limit)
