"""Work that is written down as it is done, so that a run that was killed goes on where it stopped.

Rows are worked on in blocks of fixed size and place. A block is done as a whole, with a seed of its own, so a
run that was interrupted ends with the records of one that was not.

What could not be reached this time (a server, a file) is told from what was refused: a refusal is written
down, the other is counted and asked again by the next run.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmalign.errors import ConfigError, explain
from mmalign.files import append_json_line, fingerprint, read_json_lines
from mmalign.seeding import derive_seed

__all__ = ["AGAIN", "Stages", "each_if_reached", "if_reached", "read_given"]

AGAIN = "again"
"""In a record: why it holds nothing yet. Such a record is not written."""

_PATIENCE = 8
"""Items in a row that could not be reached, after which a run ends."""

Item = TypeVar("Item")
Record = dict[str, Any]


def if_reached(work: Callable[[], Record], otherwise: Record) -> Record:
    """What `work` makes; `otherwise`, to be made again by the next run, where something could not be reached.

    Args:
        work: raises OSError (a timeout, a lost connection, no access) where another time may do better.
        otherwise: what stands for the record meanwhile.
    """
    try:
        return work()
    except OSError as error:
        return {**otherwise, AGAIN: f"{type(error).__name__}: {error}"}


def each_if_reached(
    work: Callable[[Sequence[Item]], Sequence[Record]],
    items: Sequence[Item],
    otherwise: Callable[[Item], Record],
) -> list[Record]:
    """What `work` makes of all items together; where something could not be reached, of each one alone.

    Args:
        work: as in `if_reached`; one call with many items costs less than many with one.
        items: of a block, whose records do not depend on each other.
        otherwise: what stands for the record of an item that could not be reached.
    """
    try:
        return list(work(items))
    except OSError:  # whose fault it is, each item's own turn says
        return [if_reached(lambda item=item: work([item])[0], otherwise(item)) for item in items]  # type: ignore[misc]


@dataclass(frozen=True)
class Stages:
    """A folder of stages, one JSONL file each.

    Args:
        folder: where; made when the first record is written.
        settings: everything that the records of all stages depend on.
        seed: of the run.
        block_size: items that are worked on together.
        report: told (stage, done, total) after every block.
        unanswered: gets how many records of a stage are to be made again, by "stage: why".
    """

    folder: Path
    settings: Mapping[str, Any]
    seed: int = 0
    block_size: int = 8
    report: Callable[[str, int, int], None] | None = None
    unanswered: Counter[str] = field(default_factory=Counter, compare=False)

    def run(
        self,
        name: str,
        items: Sequence[Item],
        work: Callable[[Sequence[Item], int], Sequence[Record]],
        *,
        key: Callable[[Item], str],
        settings: Mapping[str, Any] | None = None,
        depends: Callable[[Item], Any] | None = None,
        alone: bool = False,
    ) -> list[Record]:
        """One record per item, in their order; those that are written already are not made again.

        A record with `AGAIN` is not written: the next run makes it anew.

        Args:
            name: of the stage, and its file.
            items: what is worked on.
            work: (block, seed) to a record per item.
            key: names an item; records carry it as `key`.
            settings: what else the records depend on. Records of other settings stay in the file, unread.
            depends: what the record of an item depends on besides, as a JSON value.
            alone: no record depends on the items around it: of a block only what is missing is worked on.

        Raises:
            ConfigError: two items of one name, work that gives another number of records, or eight items in
                a row that could not be reached.
            CheckpointError: the file holds lines that are not JSON.
        """
        keys = [key(item) for item in items]
        if len(set(keys)) < len(keys):
            twice = next(one for one in keys if keys.count(one) > 1)
            message = explain(f"stage {name}", got=twice, expected="rows of different ids")
            raise ConfigError(message)
        made_with = fingerprint(dict(self.settings), dict(settings or {}), self.seed, self.block_size)
        path = self.folder / f"{name}.jsonl"
        known = {record["key"]: record for record in self._read(path) if record.get("with") == made_with}
        failed = 0
        for start in range(0, len(items), self.block_size):
            block = range(start, min(start + self.block_size, len(items)))
            # The place and the names of a block decide its draws: other rows around it change nothing.
            names = [keys[number] for number in block]
            tag = fingerprint(names, [depends(items[number]) for number in block] if depends else [])
            missing = [number for number in block if known.get(keys[number], {}).get("block") != tag]
            if missing:
                asked = missing if alone else block
                made = work([items[number] for number in asked], derive_seed(self.seed, name, tag))
                if len(made) != len(asked):
                    message = explain(f"stage {name}", got=f"[{len(made)} records]", expected=str(len(asked)))
                    raise ConfigError(message)
                for number, record in zip(asked, made, strict=True):
                    known[keys[number]] = {"key": keys[number], "with": made_with, "block": tag, **record}
                    failed = failed + 1 if AGAIN in record else 0
                    self._keep(path, name, known[keys[number]], failed)
            if self.report is not None:
                self.report(name, block.stop, len(items))
        return [known[one] for one in keys]

    def _keep(self, path: Path, name: str, record: Record, failed: int) -> None:
        """Write a record, or count it as one to be made again.

        Raises:
            ConfigError: too many in a row were not reached.
        """
        why = record.get(AGAIN)
        if why is None:
            append_json_line(path, record)
            return
        self.unanswered[f"{name}: {why}"] += 1
        if failed >= _PATIENCE:
            message = explain(
                f"stage {name}",
                got=f"[no answer {failed} times in a row: {why}]",
                expected="answers",
                do="Mend the cause and run the same command again: what was done is kept.",
            )
            raise ConfigError(message)

    @staticmethod
    def _read(path: Path) -> list[Record]:
        return read_json_lines(path) if path.is_file() else []


def read_given(path: str | Path, *, needs: Sequence[str]) -> list[Record]:
    """Records of a JSONL file that a person or another program wrote.

    Args:
        path: the file.
        needs: names every record must have.

    Raises:
        ConfigError: no such file, or a record without one of the names; says which line.
        CheckpointError: a line is not JSON.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(explain(str(path), got="[no such file]", expected="a JSONL file"))
    records = read_json_lines(path)
    for number, record in enumerate(records, start=1):
        missing = [name for name in needs if name not in record]
        if missing:
            where = f"{path}:{number}"
            raise ConfigError(explain(where, got=f"[no {missing[0]}]", expected=f"{', '.join(needs)}"))
    return records
