"""Work that is written down as it is done, so that a run that was killed goes on where it stopped.

Rows are worked on in blocks of fixed size and place. A block is done as a whole, with a seed of its own, so a
run that was interrupted ends with the records of one that was not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmalign.errors import ConfigError, explain
from mmalign.files import append_json_line, fingerprint, read_json_lines
from mmalign.seeding import derive_seed

__all__ = ["Stages", "read_given"]

Item = TypeVar("Item")
Record = dict[str, Any]


@dataclass(frozen=True)
class Stages:
    """A folder of stages, one JSONL file each.

    Args:
        folder: where; made when the first record is written.
        settings: everything that the records of all stages depend on.
        seed: of the run.
        block_size: items that are worked on together.
        report: told (stage, done, total) after every block.
    """

    folder: Path
    settings: Mapping[str, Any]
    seed: int = 0
    block_size: int = 8
    report: Callable[[str, int, int], None] | None = None

    def run(
        self,
        name: str,
        items: Sequence[Item],
        work: Callable[[Sequence[Item], int], Sequence[Record]],
        *,
        key: Callable[[Item], str],
        settings: Mapping[str, Any] | None = None,
        depends: Callable[[Item], Any] | None = None,
    ) -> list[Record]:
        """One record per item, in their order; those that are written already are not made again.

        Args:
            name: of the stage, and its file.
            items: what is worked on.
            work: (block, seed) to a record per item.
            key: names an item; records carry it as `key`.
            settings: what else the records depend on. Records of other settings stay in the file, unread.
            depends: what the record of an item depends on besides, as a JSON value.

        Raises:
            ConfigError: two items of one name, or work that gives another number of records.
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
        for start in range(0, len(items), self.block_size):
            block = range(start, min(start + self.block_size, len(items)))
            # The place and the names of a block decide its draws: other rows around it change nothing.
            names = [keys[number] for number in block]
            tag = fingerprint(names, [depends(items[number]) for number in block] if depends else [])
            if any(known.get(one, {}).get("block") != tag for one in names):
                made = work([items[number] for number in block], derive_seed(self.seed, name, tag))
                if len(made) != len(block):
                    message = explain(f"stage {name}", got=f"[{len(made)} records]", expected=str(len(block)))
                    raise ConfigError(message)
                for one, record in zip(names, made, strict=True):
                    known[one] = {"key": one, "with": made_with, "block": tag, **record}
                    append_json_line(path, known[one])
            if self.report is not None:
                self.report(name, block.stop, len(items))
        return [known[one] for one in keys]

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
