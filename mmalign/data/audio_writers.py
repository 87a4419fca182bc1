"""Pairs of sounds as one parquet file in the layout of Audio-Alpaca, as `datasets` reads and decodes it."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.audio_codecs import audio_ending
from mmalign.errors import CheckpointError

__all__ = ["write_audio_alpaca"]

_GROUP_BYTES = 4 * 2**20
"""Size of a row group: reading one random row reads this much."""

_AUDIO = ("chosen", "rejected")
_NUMBERS = ("preference", "chosen_score", "rejected_score", "weight")


def _schema() -> Any:
    """Columns of the file, with the note in which `datasets` looks for what they hold."""
    import pyarrow as pa

    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("id", pa.string()), ("prompt", pa.string()), *((name, audio) for name in _AUDIO)]
    fields += [(name, pa.float64()) for name in _NUMBERS] + [("strategy", pa.string())]
    features: dict[str, Any] = {name: {"_type": "Audio"} for name in _AUDIO}
    features |= {name: {"dtype": "float64", "_type": "Value"} for name in _NUMBERS}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in ("id", "prompt", "strategy")}
    ordered = {name: features[name] for name, _ in fields}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": ordered}})})


def write_audio_alpaca(path: str | Path, rows: Iterable[PreferenceRow]) -> Path:
    """Write pairs of sounds with the files inside. Returns the path.

    Args:
        path: file to write; it appears when it is complete.
        rows: pairs whose candidates hold encoded bytes.

    Raises:
        CheckpointError: the disk refused.

    Source: declare-lab/audio-alpaca (prompt, chosen, rejected, strategy); the other columns are ours.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    schema = _schema()
    try:
        with pq.ParquetWriter(name, schema) as writer:
            held: list[dict[str, Any]] = []
            size = 0
            for number, row in enumerate(rows):
                held.append(_record(row, number))
                size += sum(len(held[-1][side]["bytes"]) for side in _AUDIO)
                if size >= _GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(held, schema=schema))
                    held, size = [], 0
            if held:
                writer.write_table(pa.Table.from_pylist(held, schema=schema))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        message = f"{path}: could not be written ({error.strerror or error}). Free some space."
        raise CheckpointError(message) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def _record(row: PreferenceRow, number: int) -> dict[str, Any]:
    chosen, rejected = row.candidates
    strategy = row.extras.get("strategy")
    return {
        "id": row.id,
        "prompt": row.prompt,
        "chosen": _file(chosen, f"{number:07d}_0"),
        "rejected": _file(rejected, f"{number:07d}_1"),
        "preference": row.preference,
        "chosen_score": chosen.reward,
        "rejected_score": rejected.reward,
        "weight": row.weight,
        "strategy": None if strategy is None else str(strategy),
    }


def _file(candidate: Candidate, name: str) -> dict[str, Any]:
    data = candidate.audio if isinstance(candidate.audio, bytes) else b""
    return {"bytes": data, "path": f"{name}{audio_ending(data)}"}
