"""What a run says and lists before its first step."""

import json
from typing import Any

import torch

from mmalign.data.readers import RowTable
from mmalign.files import atomic_write, read_json_lines
from mmalign.train.adapters import Trainables
from mmalign.train.config import ResolvedRun
from mmalign.train.loader import Layout
from mmalign.train.loop import quarantine_path
from mmalign.train.model import TrainedModel, denoising
from mmalign.train.plan import derived_values
from mmalign.train.rollouts import opening_lines as rollout_lines
from mmalign.train.token_sections import tokens_of

__all__ = ["open_quarantine", "opening_lines"]


def open_quarantine(run: ResolvedRun, table: RowTable, *, start_step: int) -> None:
    """List the rows that were unusable on opening; forget those of steps that will be repeated."""
    path = quarantine_path(run)
    found = read_json_lines(path) if path.exists() and start_step > 0 else []
    listed = [record for record in found if 0 < record.get("step", 0) <= start_step]
    opening: list[dict[str, Any]] = [
        {
            "step": 0,
            "index": None,
            "source": f"{issue.file}:{issue.row}",
            "reason": issue.reason,
            "message": issue.message,
        }
        for issue in table.issues
    ]
    if listed or opening or path.exists():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in [*opening, *listed])
        atomic_write(path, "".join(lines))


def opening_lines(
    run: ResolvedRun, layout: Layout, model: TrainedModel, trainables: Trainables, kind: str
) -> list[str]:
    """What the run's numbers are, what follows from them, and where it differs from its method's row.

    Args:
        run: with its steps decided.
        layout: rows per device.
        model: as loaded.
        trainables: what is trained.
        kind: of the reference.
    """
    found: list[str] = []
    num_elements = None if tokens_of(run.config) else torch.Size(denoising(model).latent_shape).numel()
    found += [f"{name}: {value}" for name, value in derived_values(run, layout, num_elements).items()]
    found.append(f"trained weights: {trainables.count:,}; reference: {kind}")
    if run.method.couples_rows:
        together = layout.batch_size * layout.world_size
        found.append(
            f"rows of one micro-step ({together} over all devices) share a statistic of {run.method.name}; "
            f"accumulation does not widen it{': raise train.batch_size' if together < 8 else ''}"
        )
    found += rollout_lines(run)
    suggested = getattr(model, "suggested_timesteps", None)
    used = run.config.likelihood.model_dump(mode="json")
    if suggested and any(used[key] != value for key, value in suggested.items()):
        found.append(
            f"this model is usually trained with likelihood {suggested}; the run uses other timesteps"
        )
    found += getattr(model, "notes", [])
    found += [
        f"differs from the row ({item.mark}): {item.setting} = {item.value}, row {item.row_value}"
        for item in run.differences
    ]
    return found
