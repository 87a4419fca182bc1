"""VideoCrafter2: ModelScope's UNet told the frame rate, OpenCLIP's text, a clean sample that fades.

Official checkpoints (`model.ckpt`) load as they are, and are written back for the official code. The network
is told one frame rate, `model.told_fps`, which is no more than a bias then. The clean sample is multiplied by
a factor before it is noised (`use_scale`), from 1 down to 0.7 over the first 400 timesteps: the sampler is
one of its own.
VideoCrafter1 and image-to-video checkpoints have parts that diffusers' network has not.

Source: AILab-CVC/VideoCrafter; 2401.09047.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mmalign.diffusion.loading import PartSource
from mmalign.errors import ConfigError, explain
from mmalign.likelihood.scaled_schedule import ScaledVPSchedule
from mmalign.likelihood.schedules import Schedule
from mmalign.video.fading_sampler import FadingDdim
from mmalign.video.families.text_to_video import TextToVideo
from mmalign.video.family import VideoFamily
from mmalign.video.videocrafter_source import TOLD_FPS, VideoCrafterSource, open_source

if TYPE_CHECKING:
    from mmalign.train.sections import ModelConfig
    from mmalign.train.video_sections import VideoConfig

__all__ = ["FAMILY", "VideoCrafter"]


class VideoCrafter(TextToVideo):
    """A loaded VideoCrafter2."""

    family: ClassVar[str] = "videocrafter"
    default_size: ClassVar[tuple[int, int]] = (320, 512)
    default_fps: ClassVar[float] = 10.0

    source: VideoCrafterSource

    def __init__(
        self,
        source: PartSource,
        settings: "ModelConfig",
        video: "VideoConfig",
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        network_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(source, VideoCrafterSource):
            expected = "a checkpoint of VideoCrafter2"
            raise ConfigError(explain("model.source", got=type(source).__name__, expected=expected))
        source.told_fps = TOLD_FPS if settings.told_fps is None else settings.told_fps
        super().__init__(source, settings, video, device=device, dtype=dtype, network_dtype=network_dtype)
        self.notes.append(f"frame rate: the network is told {source.told_fps:g} (model.told_fps)")

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As the official script."""
        return 50, 12.0

    def _make_schedule(self) -> Schedule:
        if self.source.fading is None:
            return super()._make_schedule()
        end, over = self.source.fading
        return ScaledVPSchedule.of(self.scheduler_config, end=end, over=over)

    def sampler(self, name: str | None) -> Any:
        """DDIM that draws noise on the way, as the official script; it knows of the fading.

        Raises:
            ConfigError: another is asked for, and the clean sample fades.
        """
        schedule = self.schedule
        if not isinstance(schedule, ScaledVPSchedule):
            return super().sampler(name)
        if name is not None:
            expected = "none: others know nothing of a clean sample that fades"
            raise ConfigError(explain("sampler", got=f"{name} for VideoCrafter2", expected=expected))
        return FadingDdim(super().sampler(None), schedule.scale)

    def save_model(self, folder: str | Path) -> Path:
        """Write a checkpoint of safetensors with its settings and tokenizer, adapters merged in."""
        from mmalign.video.videocrafter_saving import save_checkpoint

        return save_checkpoint(self, folder)

    def saved_network(self, folder: Path) -> Any:
        """The network of a folder that `save_model` wrote, float32."""
        source = open_source(str(folder))
        source.told_fps = self.source.told_fps
        return source.part("unet", dtype=torch.float32)

    def save_official(self, folder: str | Path) -> Path:
        """Write `model.ckpt` and its YAML file for the official code, adapters merged in."""
        from mmalign.video.videocrafter_saving import save_checkpoint

        return save_checkpoint(self, folder, official=True)


FAMILY = VideoFamily(name="videocrafter", model=VideoCrafter, open_source=open_source)
