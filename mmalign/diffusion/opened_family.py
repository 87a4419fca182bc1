"""What the registry finds under the name of a family whose checkpoints a function of its own opens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from mmalign.diffusion.encoding import MediaSection
from mmalign.diffusion.loading import PartSource
from mmalign.diffusion.model import DiffusionModel

if TYPE_CHECKING:
    from mmalign.train.sections import ModelConfig

__all__ = ["OpenSource", "OpenedFamily"]

OpenSource = Callable[..., PartSource]
"""`open_source(source, *, revision, variant, config_source)`: the parts of a checkpoint."""

Model = TypeVar("Model", bound=DiffusionModel)


@dataclass(frozen=True)
class OpenedFamily(Generic[Model]):
    """A family of sound or video; those of pictures read pipelines alone and have `ImageFamily`.

    Args:
        name: as in configs.
        model: the class of its loaded models.
        open_source: finds the parts of a checkpoint.
        pipelines: pipeline classes of folders it reads.
    """

    name: str
    model: type[Model]
    open_source: OpenSource
    pipelines: tuple[str, ...] = ()

    def load(
        self,
        settings: "ModelConfig",
        media: MediaSection,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        network_dtype: torch.dtype | None = None,
    ) -> Model:
        """A model ready to train: frozen, in evaluation mode, on the device.

        Args:
            settings: the run's `model` section.
            media: the run's section of what it makes.
            device: where it runs.
            dtype: of the frozen parts; VAE and vocoder stay in float32.
            network_dtype: of the network; pass float32 for full fine-tuning, so that no bit of the checkpoint
                is lost on the way. Default `dtype`.

        Raises:
            ConfigError: nothing is there, it is another family's, or a part cannot be loaded.
        """
        source = self.open_source(
            settings.source,
            revision=settings.revision,
            variant=settings.variant,
            config_source=settings.config_source,
        )
        make: Any = self.model
        loaded: Model = make(source, settings, media, device=device, dtype=dtype, network_dtype=network_dtype)
        return loaded
