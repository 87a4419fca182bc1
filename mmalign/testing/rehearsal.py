"""A run's first steps on a CUDA device that is not there: do its tensors meet, and does the host wait?

    with fake_cuda() as device:
        rehearsal = rehearse(run, device)

The run is prepared, makes updates, records and saves with the code that trains; its model is loaded from its
folder, its rows are read and encoded. Numbers are zeros: losses and gradients mean nothing. Rehearse in a
process of its own: transformers loads models wrongly in one that has seen the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mmalign.testing.fake_cuda import FakeDevice, Wait
from mmalign.train.config import ResolvedRun
from mmalign.train.loop import Loop
from mmalign.train.micro_batch import MicroBatch
from mmalign.train.online import RunReward
from mmalign.train.run import prepare

__all__ = ["Rehearsal", "on_cuda", "rehearse"]


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsed run did.

    Args:
        loop: after its steps.
        waits: of the host for the device, in an update whose panel is computed.
        peak_bytes: of the device's tensors in that update.
    """

    loop: Loop
    waits: tuple[Wait, ...]
    peak_bytes: int


def on_cuda(run: ResolvedRun, precision: str = "bf16") -> ResolvedRun:
    """A run that takes the best device there is, in another precision."""
    train = run.config.train.model_copy(update={"device": "auto", "mixed_precision": precision})
    return replace(run, config=run.config.model_copy(update={"train": train}))


def rehearse(run: ResolvedRun, device: FakeDevice, *, reward: RunReward | None = None) -> Rehearsal:
    """Prepare a run, update twice, record and save.

    Args:
        run: of two steps or more, on the best device there is.
        device: of the context that this is called in.
        reward: scores the samples of an online run.
    """
    loop, loader = prepare(run, reward=reward)
    assert loop.accelerator.device.type == "cuda", "the run was not told to take the best device"
    batches = loop._batches(_pinned(iter(loader)))
    loop._update(batches, is_record=False)  # makes what is made once: optimiser states, caches, tables
    loop.progress.step += 1
    device.waits.clear()
    device.reset_peak()
    loop._update(batches, is_record=True)  # the panel of a record must not be read before the record is
    loop.progress.step += 1
    found = Rehearsal(loop, tuple(device.waits), device.peak)
    loop._record(1.0)
    loop.save()
    return found


def _pinned(micro_batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
    """As torch's loader pins them where there is a driver."""
    return (micro.pin_memory() for micro in micro_batches)
