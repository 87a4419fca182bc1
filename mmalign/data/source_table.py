"""Rows of one source: a record's columns become a `PreferenceRow`, whatever the layout is called.

Media stay encoded: rows carry bytes or paths (see `media` for decoding).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data import labels
from mmalign.data.audio_codecs import encode_audio
from mmalign.data.config import DataConfig, SourceConfig
from mmalign.data.layouts import Match
from mmalign.data.media import safe_path
from mmalign.data.records import Records
from mmalign.data.rows import FieldError, check_prompt, check_row
from mmalign.data.segment_labels import LABELS, SECONDS, stretches, turned
from mmalign.data.segments import COLUMN
from mmalign.data.selection import Selection, picture_column
from mmalign.errors import explain

__all__ = ["SourceTable"]


@dataclass
class SourceTable:
    """The rows of one source.

    Args:
        source: its settings.
        config: the data settings.
        records: raw records.
        match: layout and columns.
        selection: which records are rows.
    """

    source: SourceConfig
    config: DataConfig
    records: Records
    match: Match
    selection: Selection

    def __post_init__(self) -> None:
        heavy = self.records.heavy()
        mapped = set(self.match.columns.values())
        self._picture = picture_column(self.records, self.match, self.source)
        mapped |= {LABELS, SECONDS} | ({self._picture} if self._picture is not None else set())
        # Extra columns travel along unless they hold media nobody asked for.
        self._read = tuple(name for name in self.records.columns if name in mapped or name not in heavy)
        self._extra = tuple(name for name in self._read if name not in mapped)

    def __len__(self) -> int:
        return len(self.selection)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that a row is made of."""
        return self._read

    def where(self, number: int) -> str:
        """`file:row` of a row."""
        return self.records.where(int(self.selection.record[number]))

    def row(self, number: int, index: int) -> PreferenceRow:
        """One row; `index` is its number in the whole table."""
        record = int(self.selection.record[number])
        where = self.records.where(record)
        values = self.records.read(record, self._read)
        prompt = self._prompt(values, where)
        common: dict[str, Any] = {
            "prompt": prompt,
            "weight": self._number(values, "weight", where, default=1.0),
            "index": index,
            "id": str(self._value(values, "id") or where),
            "source": where,
            "extras": {name: values[name] for name in self._extra},
        }
        if self._picture is not None and values[self._picture] is not None:
            common["images"] = (self._file(values[self._picture], f"{where} {self._picture}", "image"),)
        structure = self.match.layout.structure
        if structure == "prompts":
            return check_row(PreferenceRow(candidates=(), kind="prompts", **common))
        if structure == "captioned":
            reward = self._number(values, "score", where, default=None)
            single = self._candidate(values, "candidate", where, reward=reward)
            return check_row(PreferenceRow(candidates=(single,), kind="chosen", desirable=True, **common))
        if structure == "unpaired":
            liked = bool(self.selection.desirable[number]) if self.selection.desirable is not None else None
            reward = self._number(values, "score", where, default=None)
            single = self._candidate(values, "candidate", where, reward=reward)
            return check_row(PreferenceRow(candidates=(single,), kind="unpaired", desirable=liked, **common))
        if structure in ("ranking", "ranked_items"):
            return self._list_row(number, values, where, common)
        return self._pair_row(number, values, where, common)

    def _pair_row(
        self, number: int, values: Mapping[str, Any], where: str, common: dict[str, Any]
    ) -> PreferenceRow:
        if self.match.layout.structure == "chosen_rejected":
            roles = (("chosen", "score_chosen", "", ""), ("rejected", "score_rejected", "", ""))
        else:
            roles = (("a", "score_a", "id_a", "model_a"), ("b", "score_b", "id_b", "model_b"))
        first, second = (
            self._candidate(
                values,
                role,
                where,
                reward=self._number(values, score, where, default=None),
                id=_text(self._value(values, identity)),
                model=_text(self._value(values, model)),
            )
            for role, score, identity, model in roles
        )
        preferences = self.selection.preference
        probability = float(preferences[number]) if preferences is not None else 1.0
        first, second = (
            replace(candidate, prompt=self._own_prompt(values, f"prompt_{role}", where))
            for candidate, (role, *_) in zip((first, second), roles, strict=True)
        )
        common["extras"] |= self._segments(values, where, swapped=probability < 0.5)
        return self._finished_pair(first, second, probability, where, common)

    def _segments(self, values: Mapping[str, Any], where: str, *, swapped: bool) -> dict[str, Any]:
        """Labels of stretches, about the candidates in the order in which the row will have them."""
        given = values.get(COLUMN)
        if given is not None and given != "":
            # Where columns are called chosen and rejected, so are the sides of the stretches.
            by_name = swapped and self.match.layout.structure == "chosen_rejected"
            return {COLUMN: turned(given)} if by_name else {}
        found = stretches(values.get(LABELS), values.get(SECONDS), where=where, swapped=swapped)
        return {COLUMN: found, SECONDS: found[0]["end"]} if found else {}

    def _own_prompt(self, values: Mapping[str, Any], role: str, where: str) -> str | None:
        """The prompt of one candidate alone, where the data have a column for it and it is filled."""
        found = self._value(values, role)
        if found is None:
            return None
        where = f"{where} {self.match.columns[role]}"
        return check_prompt(found, where=where, allow_empty=self.config.allow_empty_prompt)

    def _finished_pair(
        self, first: Candidate, second: Candidate, probability: float, where: str, common: dict[str, Any]
    ) -> PreferenceRow:
        if probability < 0.5:
            first, second, probability = second, first, 1.0 - probability
        media = self.source.media
        same = getattr(first, media) == getattr(second, media) and first.prompt == second.prompt
        if self.config.identical == "drop" and same:
            message = (
                f"{where}: both candidates are the same {media}; such a pair teaches nothing. "
                "data.identical: keep accepts it."
            )
            raise FieldError(message, "identical_candidates")
        return check_row(PreferenceRow(candidates=(first, second), preference=probability, **common))

    def _list_row(
        self, number: int, values: Mapping[str, Any], where: str, common: dict[str, Any]
    ) -> PreferenceRow:
        if self.match.layout.structure == "ranking":
            candidates, relevance = self._listed(values, where)
        else:
            candidates, relevance = self._grouped(number)
        selection = self.selection
        if selection.first is None or selection.second is None or selection.preference is None:
            return check_row(
                PreferenceRow(
                    candidates=tuple(candidates), kind="lists", relevance=tuple(relevance), **common
                )
            )
        i, j = int(selection.first[number]), int(selection.second[number])
        common["id"] = f"{common['id']}/{i}-{j}"
        return self._finished_pair(
            candidates[i], candidates[j], float(selection.preference[number]), where, common
        )

    def _listed(self, values: Mapping[str, Any], where: str) -> tuple[list[Candidate], list[float]]:
        """Candidates and relevance of a record that holds a list."""
        column = self.match.columns["candidates"]
        ranks = "ranks" in self.match.columns
        given = values[self.match.columns["ranks" if ranks else "scores"]]
        media = values[column]
        if not isinstance(media, list) or len(media) != len(given):
            count = len(media) if isinstance(media, list) else 0
            message = explain(
                f"{where} {column}",
                got=f"{count} candidates and {len(given)} labels",
                expected="one label per candidate",
            )
            raise FieldError(message, "wrong_count", column)
        relevance = [float(value) * (-1.0 if ranks else 1.0) for value in given]
        candidates = [
            self._media(value, f"{where} {column}[{place}]", reward=None if ranks else relevance[place])
            for place, value in enumerate(media)
        ]
        return candidates, relevance

    def _grouped(self, number: int) -> tuple[list[Candidate], list[float]]:
        """Candidates and relevance of a group of records."""
        selection, columns = self.selection, self.match.columns
        if selection.group is None or selection.group_starts is None or selection.members is None:
            message = "a selection of ranked items has groups"
            raise AssertionError(message)
        group = int(selection.group[number])
        start, stop = int(selection.group_starts[group]), int(selection.group_starts[group + 1])
        ranks = "rank" in columns
        candidates, relevance = [], []
        for record in selection.members[start:stop]:
            where = self.records.where(int(record))
            values = self.records.read(int(record), self._read)
            value = float(values[columns["rank" if ranks else "score"]])
            relevance.append(-value if ranks else value)
            candidates.append(self._candidate(values, "candidate", where, reward=None if ranks else value))
        return candidates, relevance

    def _value(self, values: Mapping[str, Any], role: str) -> Any:
        column = self.match.columns.get(role)
        return values.get(column) if column is not None else None

    def _prompt(self, values: Mapping[str, Any], where: str) -> str:
        column = self.match.columns["prompt"]
        return check_prompt(
            values.get(column), where=f"{where} {column}", allow_empty=self.config.allow_empty_prompt
        )

    def _number(self, values: Mapping[str, Any], role: str, where: str, *, default: Any) -> Any:
        value = self._value(values, role)
        if value is None:
            return default
        number = labels.numbers(np.array([value], dtype=object))[0]
        if np.isnan(number):
            column = self.match.columns[role]
            raise FieldError(
                explain(f"{where} {column}", got=value, expected="a number"), "bad_number", column
            )
        return float(number)

    def _candidate(
        self,
        values: Mapping[str, Any],
        role: str,
        where: str,
        *,
        reward: float | None,
        id: str | None = None,
        model: str | None = None,
    ) -> Candidate:
        column = self.match.columns[role]
        found = self._media(values.get(column), f"{where} {column}", reward=reward)
        return replace(found, id=id, model=model)

    def _media(self, value: Any, where: str, *, reward: float | None) -> Candidate:
        """A candidate of the source's kind of media; paths are resolved and kept inside the root."""
        media, column = self.source.media, where.rpartition(" ")[2]
        if isinstance(value, dict) and media == "audio" and value.get("array") is not None:
            value = _written(value, where)
        if isinstance(value, dict):  # the stored form of a `datasets` Image, Audio or Video
            value = value.get("bytes") or value.get("path")
        if value is None:
            message = explain(where, got=None, expected=f"{'an' if media[0] in 'aeiou' else 'a'} {media}")
            raise FieldError(message, f"missing_{media}", column)
        if media == "text":
            return Candidate(text=check_prompt(value, where=where), reward=reward)
        found: dict[str, Any] = {media: self._file(value, where, media)}
        return Candidate(**found, reward=reward)

    def _file(self, value: Any, where: str, media: str) -> bytes | str:
        """Encoded bytes, or a path that was resolved and stays inside the root."""
        column = where.rpartition(" ")[2]
        if isinstance(value, dict):  # the stored form of a `datasets` Image, Audio or Video
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes | bytearray | memoryview):
            if not len(value):
                message = explain(where, got="0 bytes", expected=f"an encoded {media}")
                raise FieldError(message, "empty_file", column)
            return bytes(value)
        if isinstance(value, str):
            root = self.records.root
            return safe_path(value, root=root, where=where, allow_outside=self.source.allow_outside)
        message = explain(where, got=type(value).__name__, expected="encoded bytes or a path")
        raise FieldError(message, "bad_media", column)


def _written(value: Mapping[str, Any], where: str) -> bytes:
    """The file of a decoded sound, {array, sampling_rate}: [sample] or [channel, sample], numbers in [-1, 1].

    Raises:
        RowError: reason `bad_media`; no numbers, or no rate.
    """
    column = where.rpartition(" ")[2]
    try:
        samples = torch.tensor(value["array"], dtype=torch.float32)
    except (TypeError, ValueError):
        samples = torch.empty(0, 0, 0)
    rate = value.get("sampling_rate")
    if samples.ndim not in (1, 2) or not isinstance(rate, int) or rate < 1:
        message = explain(
            where,
            got=f"[an array of {samples.ndim} axes at {rate} samples per second]",
            expected="{array: numbers, sampling_rate: samples per second}",
        )
        raise FieldError(message, "bad_media", column)
    return encode_audio(torch.atleast_2d(samples), rate, container="wav", coding="FLOAT")


def _text(value: object) -> str | None:
    return None if value is None else str(value)
