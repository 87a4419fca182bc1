"""Data sets as tables of `PreferenceRow`s: opened in seconds, read row by row, cheap to send to workers.

`open_rows(config)` recognises each source, applies the tie policy on label columns alone, and returns a
`RowTable`. Media stay encoded: rows carry bytes or paths (see `media` for decoding).
"""

from collections.abc import Sequence

from mmalign.batch import DataKind
from mmalign.data.config import DataConfig, SourceConfig
from mmalign.data.dialogues.formats import format_named
from mmalign.data.dialogues.matching import match_dialogues
from mmalign.data.dialogues.table import open_dialogues
from mmalign.data.kinds import recognised_media, taken_apart
from mmalign.data.layouts import detect
from mmalign.data.records import Records
from mmalign.data.row_table import RowTable
from mmalign.data.selection import Selection, select
from mmalign.data.source_table import SourceTable
from mmalign.data.sources import open_records
from mmalign.data.video_records import with_common_columns
from mmalign.errors import ConfigError

__all__ = ["RowTable", "SourceTable", "joined", "open_rows", "open_source"]


def open_rows(config: DataConfig, *, kind: DataKind | None = None) -> RowTable:
    """The rows of all sources; label columns are read, media are not.

    Args:
        config: the data settings.
        kind: what the method needs. Pairs become unpaired or chosen rows when it needs those, unpaired rows
            chosen ones; prompts are taken from any data set. None takes what is there.

    Raises:
        ConfigError: nothing there, unknown layout, sources of different kinds, no rows left, or another kind
            than the method needs.
    """
    if config.streaming:
        from mmalign.data.streaming import open_stream

        return open_stream(config, kind=kind)
    parts = [open_source(open_records(source), source, config, kind=kind) for source in config.all_sources]
    table = joined(parts, config, kind=kind)
    if len(table) == 0:
        first = next((messages[0] for messages in table.report.examples.values()), "")
        message = f"data: no rows are left. {table.report.summary()}.\n{table.describe()}\n{first}".rstrip()
        raise ConfigError(message)
    return table


def open_source(
    records: Records, source: SourceConfig, config: DataConfig, *, kind: DataKind | None
) -> SourceTable:
    """The rows of one source's records.

    Args:
        records: raw records.
        source: their settings.
        config: the data settings.
        kind: what the method needs.

    Raises:
        ConfigError: unknown layout.
    """
    dialogues = _dialogues(records, source, config, kind)
    if dialogues is not None:
        return dialogues
    records = with_common_columns(taken_apart(records))
    match = detect(
        records,
        format="prompts" if kind == "prompts" else source.format,
        columns=source.columns,
        where=source.path,
        examples=kind in (None, "chosen"),
    )
    media = recognised_media(records, match, source)
    if media != source.media:
        source = source.model_copy(update={"media": media})
    return SourceTable(source, config, records, match, select(records, match, source, config))


def joined(parts: Sequence[SourceTable], config: DataConfig, *, kind: DataKind | None) -> RowTable:
    """The rows of several sources as one table, converted to the kind that the method needs.

    Args:
        parts: the sources.
        config: the data settings.
        kind: what the method needs; None takes what is there.

    Raises:
        ConfigError: sources of different kinds, or another kind than the method needs.
    """
    kinds = {part.selection.kind for part in parts}
    if len(kinds) > 1:
        listed = ", ".join(f"{part.source.path} ({part.selection.kind})" for part in parts)
        message = (
            f"data.sources: got rows of several kinds, expected one: {listed}. lists: pairs makes pairs of "
            "rankings."
        )
        raise ConfigError(message)
    found = kinds.pop()
    if kind is not None and kind != found and (kind, found) not in _CONVERTED:
        hint = (
            " Set lists: pairs (or best_worst) on the source." if (kind, found) == ("pairs", "lists") else ""
        )
        message = (
            f"data: got {found} rows ({parts[0].match.describe()}), expected {kind} for this method.{hint}"
        )
        raise ConfigError(message)
    as_unpaired = kind == "unpaired" and found == "pairs"
    for part in parts:
        if as_unpaired or kind == "chosen":
            _without_ties(part.selection)
        if kind == "chosen":
            _liked_only(part.selection)
    return RowTable(tuple(parts), config, as_unpaired=as_unpaired, as_chosen=kind == "chosen")


def _dialogues(
    records: Records, source: SourceConfig, config: DataConfig, kind: DataKind | None
) -> SourceTable | None:
    """The source as dialogues about images or videos, if that is what its columns say."""
    forced = source.media == "dialogue"
    if not forced and source.media != "image" and format_named(source.format) is None:
        return None
    matched = match_dialogues(
        records, format=source.format, columns=source.columns, where=source.path, forced=forced
    )
    if matched is None:
        return None
    return open_dialogues(records, *matched, source, config, kind=kind)


_CONVERTED = frozenset({("unpaired", "pairs"), ("chosen", "pairs"), ("chosen", "unpaired")})
"""(What a method needs, what the data are) where one is made of the other."""


def _liked_only(selection: Selection) -> None:
    """A disliked candidate is no example to follow."""
    if selection.desirable is not None and not selection.desirable.all():
        selection.report.dropped["disliked"] += int((~selection.desirable).sum())
        selection.keep(selection.desirable)
        selection.report.kept = len(selection)


def _without_ties(selection: Selection) -> None:
    """A tie likes neither candidate: it has no place among unpaired rows."""
    if selection.preference is not None:
        tied = selection.preference == 0.5
        if tied.any():
            selection.report.dropped["tie"] += int(tied.sum())
            selection.keep(~tied)
            selection.report.kept = len(selection)
