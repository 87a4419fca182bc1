"""What families of sound do differently when they sample: the grid, guidance, what it contrasts with.

A family file overrides what differs from Tango's habits; `mmalign.audio.sampling` asks here and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor

from mmalign.batch import Conditioning
from mmalign.diffusion.model import DiffusionModel
from mmalign.diffusion.sampling import scheduler_for

__all__ = ["AudioTraits", "Guide", "plain_guide"]

Guide = Callable[[Tensor, Tensor], Tensor]
"""`guide(prompted, without)`: what the sampler is given in the place of the two predictions."""


def plain_guide(scale: float) -> Guide:
    """Classifier-free guidance: `without + scale (prompted - without)`."""

    def guided(prompted: Tensor, without: Tensor) -> Tensor:
        return without + scale * (prompted - without)

    return guided


class AudioTraits(DiffusionModel):
    """How a family of sound samples."""

    told_duration: ClassVar[bool] = False
    """Whether the network is told how long a clip is: clips of any length are then made in one window."""

    def sampler(self, name: str | None) -> Any:
        """A scheduler with the model's noise schedule; None takes the model's own kind.

        Raises:
            UnknownNameError: no such sampler.
            ConfigError: a sampler that does not suit the model.
        """
        return scheduler_for(self, name)

    def set_steps(self, scheduler: Any, num_steps: int) -> None:
        """Lay the grid of noise levels of so many steps into a scheduler."""
        scheduler.set_timesteps(num_steps, device=self.device)

    def guide(self, scale: float) -> Guide:
        """How the predictions with and without the prompt are joined; made anew for every batch of clips."""
        return plain_guide(scale)

    def contrast_conditioning(self, prompts: Sequence[str], negatives: Sequence[str] | None) -> Conditioning:
        """What guidance contrasts with, one row per prompt.

        Args:
            prompts: what the clips are made of.
            negatives: the user's own contrast, one per prompt; None takes the empty prompt.
        """
        return self.prompt_conditioning([""] * len(prompts) if negatives is None else negatives)

    @contextmanager
    def asked_for(self, seconds: float) -> Iterator[None]:
        """Make clips of so many seconds meanwhile; families that are told their duration tell it."""
        del seconds
        yield
