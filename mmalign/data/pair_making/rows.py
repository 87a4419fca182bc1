"""The rows that a pair maker starts from, and when there are too many unusable ones."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from mmalign.batch import DataKind, PreferenceRow
from mmalign.data.config import DataConfig, SourceConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError, RowError, explain

__all__ = ["normalised_prompt", "require_few_bad", "rows_to_work_on", "without_held_out"]


def rows_to_work_on(
    data: DataConfig, *, kind: DataKind | None, limit: int | None, counts: Counter[str]
) -> list[PreferenceRow]:
    """Rows of a data set, at most `limit`; those that cannot be read are counted by reason.

    Raises:
        ConfigError: nothing there, or rows of one id.
    """
    table = open_rows(data, kind=kind)
    number = len(table) if limit is None else min(limit, len(table))
    rows = []
    for place in range(number):
        try:
            rows.append(table[place])
        except RowError as error:
            counts[error.reason] += 1
    repeated = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if repeated:
        message = explain(f"{data.all_sources[0].path} id", got=repeated[0], expected="an id per row")
        raise ConfigError(message)
    return rows


def without_held_out(
    rows: Sequence[PreferenceRow], held_out: Sequence[str], counts: Counter[str]
) -> list[PreferenceRow]:
    """Rows whose prompt is none of the prompts of some files; those left out are counted as `held_out`.

    Prompts are compared by `normalised_prompt`.

    Args:
        rows: with prompts.
        held_out: paths or hub ids of data sets, in any layout that has prompts.
        counts: gets the number left out.

    Raises:
        ConfigError: a data set is not there, or has no prompts.
    """
    known: set[str] = set()
    for path in held_out:
        table = open_rows(DataConfig(source=SourceConfig(path=path)), kind="prompts")
        known.update(normalised_prompt(prompt) for prompt in table.prompts())
    kept = [row for row in rows if normalised_prompt(row.prompt) not in known]
    counts["held_out"] += len(rows) - len(kept)
    return kept


_NO_WORD = re.compile(r"[\W_]+")


def normalised_prompt(text: str) -> str:
    """A prompt without what does not tell prompts apart: case, punctuation, spacing, forms of characters.

    Texts of nothing but signs keep them.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NO_WORD.sub(" ", folded).strip() or folded.strip()


def require_few_bad(bad: Counter[str], total: int, data: DataConfig) -> None:
    """Raise where more rows are unusable than the data section allows.

    Args:
        bad: unusable rows by reason.
        total: rows that were looked at.
        data: with `max_bad_share`.

    Raises:
        ConfigError: too many; with the counts.
    """
    if total and bad.total() > data.max_bad_share * total:
        listed = ", ".join(f"{count} {reason}" for reason, count in bad.items())
        message = explain(
            "rows",
            got=f"[{bad.total()} of {total} unusable: {listed}]",
            expected=f"at most a share of {data.max_bad_share}",
            do="Mend them, or raise data.max_bad_share.",
        )
        raise ConfigError(message)
