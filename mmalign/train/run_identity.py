"""What must agree for a run to go on from a checkpoint, and where it goes on from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from mmalign.errors import CheckpointError, explain
from mmalign.files import fingerprint
from mmalign.train.checkpoint import Checkpoint, find_latest
from mmalign.train.config import ResolvedRun
from mmalign.train.loader import Layout
from mmalign.train.loop import CHECKPOINTS
from mmalign.train.rollouts import is_online
from mmalign.train.sections import NO_BITS, LikelihoodConfig
from mmalign.train.token_sections import tokens_of

__all__ = ["identity_of", "require_agreement", "require_same_run", "start_of"]


_ROUNDING = {"head_chunk", "packing", "share_vision"}
"""Ways of computing the same log-probabilities, which differ in the last bits alone: as `model.attention`."""


def _without_defaults(likelihood: LikelihoodConfig) -> set[str]:
    """Settings that came later: runs without them keep the identity they had before."""
    left_out = set() if likelihood.snr_gamma else {"snr_gamma", "snr_form"}
    return left_out if likelihood.draws > 1 else left_out | {"draws", "antithetic"}


_OF_STREAMS = {"streaming", "shuffle_buffer", "stream_lanes"}


def identity_of(run: ResolvedRun, layout: Layout, kind: str, rows: int | str) -> dict[str, Any]:
    """What must agree for a checkpoint to continue a run: everything that changes the numbers.

    Args:
        run: with its steps decided.
        layout: rows per device.
        kind: of the reference.
        rows: how many there are; of a stream, which shards.
    """
    # Runs over local rows keep the identity they had before there were streams.
    left_out = {"max_bad_share", *(() if run.config.data.streaming else _OF_STREAMS)}
    config, tokens = run.config, tokens_of(run.config)
    train = config.train.model_dump(
        include={
            "seed",
            "learning_rate",
            "optimizer",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "weight_decay",
            "schedule",
            "warmup_steps",
            "max_grad_norm",
            "mixed_precision",
            "ema_decay",
        }
    )
    if config.train.schedule != "constant":
        train["steps"] = config.train.steps
    return {
        "method": config.method,
        "objective": {name: run.objective_arguments[name] for name in sorted(run.objective_arguments)},
        "model": config.model.model_dump(mode="json", exclude=set(NO_BITS)),
        "adapter": config.adapter.model_dump(mode="json"),
        "reference": {
            "ema": f"ema, decay {config.reference.decay}",
            "synced": f"synced, every {config.reference.sync_every}, mixing {config.reference.mixing}",
            "stored": f"stored, {config.reference.draws_per_row} draws",
        }.get(kind, kind),
        "likelihood": config.likelihood.model_dump(mode="json", exclude=_without_defaults(config.likelihood)),
        "safeguard": config.safeguard.model_dump(mode="json"),
        "rollout": config.rollout.model_dump(mode="json") if is_online(run) else None,
        # Every process has samples of its own waiting.
        "processes": layout.world_size if is_online(run) else None,
        config.media_name: None if tokens else config.media.model_dump(mode="json", exclude={"cache"}),
        "tokens": tokens.model_dump(mode="json", exclude=_ROUNDING) if tokens else None,
        "effective_batch": layout.effective_batch,
        # Statistics over the batch (KTO's zero point) see one micro-step of all devices.
        "rows_together": layout.batch_size * layout.world_size if run.method.couples_rows else None,
        "rows": rows,
        "data": fingerprint(config.data.model_dump(mode="json", exclude=left_out)),
        "train": train,
    }


def require_same_run(checkpoint: Checkpoint, identity: Mapping[str, Any], folder: Path) -> None:
    """Refuse to continue from a checkpoint of another run.

    Raises:
        CheckpointError: it belongs to another run; the message lists what differs.
    """
    saved = checkpoint.state["identity"]
    different = [name for name, value in identity.items() if saved.get(name) != value]
    if different:
        listing = "; ".join(
            f"{name}: checkpoint {saved.get(name)!r}, this run {identity[name]!r}" for name in different
        )
        message = (
            f"train.resume: the checkpoint in {folder} was made by another run ({listing}). "
            "Use another train.output, or undo the change; train.resume=none refuses to overwrite, too."
        )
        raise CheckpointError(message)


def require_agreement(start_step: int, identity: Mapping[str, Any]) -> None:
    """Refuse to start when the ranks would start from different places or settings.

    Raises:
        CheckpointError: they differ; usually the machines do not share the run folder.
    """
    states = gather_object([(start_step, fingerprint(dict(identity)))])
    if len(set(states)) > 1:
        steps = sorted({step for step, _ in states})
        message = (
            f"train.output: the processes disagree: they would start from steps {steps} (or with different "
            "settings). All machines need one shared run folder and the same configuration."
        )
        raise CheckpointError(message)


def start_of(folder: Path, run: ResolvedRun) -> Path | None:
    """The checkpoint to continue from, or None for a fresh run.

    Raises:
        CheckpointError: starting anew would overwrite a run, or the named checkpoint does not exist.
    """
    resume = run.config.train.resume
    latest = find_latest(folder / CHECKPOINTS)
    if resume == "auto":
        return latest
    if resume == "none":
        if latest is not None:
            message = (
                f"train.resume=none: {folder} already holds a run ({latest.name}). Nothing is overwritten: "
                "choose another train.output, remove the folder yourself, or continue it with "
                "train.resume=auto."
            )
            raise CheckpointError(message)
        return None
    path = Path(resume)
    if not path.is_dir():
        message = explain(
            "train.resume", got=resume, expected="auto, none, or a checkpoint folder that exists"
        )
        raise CheckpointError(message)
    return find_latest(path / CHECKPOINTS) or path
