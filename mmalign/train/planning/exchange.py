"""What the processes of a run send each other in a step: its weights and passes, put into the model of it."""

from mmalign.train.config import ResolvedRun
from mmalign.train.planning.communication import Passes, Sizes, Traffic, traffic_of
from mmalign.train.planning.counted import Counted
from mmalign.train.planning.counting import num_passes
from mmalign.train.planning.launches import Launch
from mmalign.train.planning.spreading import Spread, spread_of

__all__ = ["exchanged"]


def exchanged(run: ResolvedRun, counted: Counted, launch: Launch, *, references: float) -> Traffic:
    """What a step sends.

    Args:
        run: resolved.
        counted: on shapes.
        launch: of the run.
        references: forward passes of the reference over a micro-batch; 0 where none runs.
    """
    spread, micro = spread_of(run, counted, launch), run.config.train.accumulation
    passes = num_passes(run, counted)
    every_time = launch.name in ("zero2", "zero3") or (launch.is_fsdp2 and not spread.keeps_gradients)
    found = Passes(
        gathered=_gathered(spread, passes, references * passes),
        reduced=micro * passes if every_time else 1,
        micro_steps=micro,
    )
    return traffic_of(_sizes(counted, spread), launch.name, found)


def _gathered(spread: Spread, passes: int, references: float) -> float:
    """Times that a block is gathered in a micro-step; a split pass goes forward once more but for one part.

    What is kept is gathered again when a backward pass has given it back.
    """
    if spread.launch.name == "fsdp2_keep":
        return passes + (references if spread.compares == "copy" else 0.0)
    return references + passes + (passes - 1) + passes


def _sizes(counted: Counted, spread: Spread) -> Sizes:
    network = counted.trainables.network
    cut = spread.policy
    return Sizes(
        units=0 if cut is None else cut.all_units,
        root=0 if cut is None else cut.root,
        trained=counted.trained_bytes,
        num_units=0 if cut is None else len(cut.units),
        layers=sum(value.numel() * value.element_size() for value in network.parameters()),
        num_layers=sum(bool([*module.parameters(recurse=False)]) for module in network.modules()),
    )
