"""What demos share whose models make media of the same held-out captions from the same noise.

A world says how its pairs are made and encoded, how a model makes its media, and who judges them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from mmalign.toy.demo import Clock, Demo, Judged

if TYPE_CHECKING:
    from mmalign.toy.comparison import Interval
    from mmalign.train.config import ResolvedRun
    from mmalign.train.run import RunResult

__all__ = ["PairedDemo"]


@runtime_checkable
class Scored(Judged, Protocol):
    """Base and aligned, judged caption by caption."""

    def means(self, axis: str) -> tuple[float, float]: ...

    def gain(self, axis: str) -> "Interval": ...

    def numbers(self, axes: Sequence[str]) -> dict[str, Any]: ...


ScoredT = TypeVar("ScoredT", bound=Scored)


class PairedDemo(Demo[ScoredT]):
    """What such a world brings to its demo.

    Attributes:
        things: what the models make, in one word.
        pairing: what is done to make pairs.
        making: what the models do.
        real: the model that the toy stands for.
    """

    things: ClassVar[str]
    pairing: ClassVar[str]
    making: ClassVar[str]
    real: ClassVar[str]

    @abstractmethod
    def write_pairs(self, path: Path, seed: int) -> None:
        """Make preference pairs and write their file."""

    @abstractmethod
    def encode(self, model: Any, table: Any, folder: Path) -> None:
        """Encode the rows of a table once, into a cache."""

    @abstractmethod
    def held_out(self, seed: int) -> Sequence[str]:
        """Captions that neither base nor pairs have named."""

    @abstractmethod
    def made(self, model: Any, prompts: Sequence[str], seed: int) -> Sequence[Any]:
        """What a model makes of captions, one each, from noise of the seed."""

    @abstractmethod
    def judged(self, prompts: Sequence[str], base: Sequence[Any], aligned: Sequence[Any]) -> ScoredT:
        """Both, scored."""

    @abstractmethod
    def axes(self) -> Sequence[tuple[str, str]]:
        """Names and titles of the numbers of a score."""

    def align(self, run: "ResolvedRun", home: Path, seed: int, clock: Clock) -> "RunResult":
        """Make pairs, encode them once, train."""
        import torch

        from mmalign.data.readers import open_rows
        from mmalign.train.parts import load_model
        from mmalign.train.run import train

        with clock.stage(f"{self.pairing} pairs", f"{self.pairing} preference pairs"):
            self.write_pairs(home / "pairs.parquet", seed)
        with clock.stage("encoding pairs", f"encoding {self.things} and captions once"):
            table = open_rows(run.config.data, kind=run.method.data)
            model = load_model(run, torch.device("cpu"))
            self.encode(model, table, home / "cache")
        with clock.stage("training"):
            return train(run, model=model, table=table)

    def compare(self, result: "RunResult", seed: int, clock: Clock) -> ScoredT:
        """What both models make of held-out captions, scored."""
        prompts = self.held_out(seed)

        def made(name: str) -> Sequence[Any]:
            with clock.stage(f"{self.making}, {name}", f"{self.making} for held-out captions, {name}"):
                return self.made(result.model, prompts, seed)

        aligned = made("aligned")
        with result.trainables.disabled():
            base = made("base")
        with clock.stage("scoring"):
            return self.judged(prompts, base, aligned)

    def results(self, comparison: ScoredT) -> Sequence[tuple[str, tuple[float, float], "Interval | None"]]:
        """The exact reward and its parts."""
        return [(title, comparison.means(axis), comparison.gain(axis)) for axis, title in self.axes()]

    def numbers(self, comparison: ScoredT) -> dict[str, Any]:
        """The report's numbers for programs; the same seed gives the same file on one machine."""
        return comparison.numbers([axis for axis, _ in self.axes()])

    def next_step(self) -> tuple[str, str]:
        """The plan of the real model: the second of `commands`."""
        explanation, command = self.commands()[1]
        return f"Real {self.real}. {explanation}", command
