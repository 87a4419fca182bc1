"""Text-to-video-ms (ModelScope, zeroscope): Stable Diffusion's UNet with convolution and attention over time.

One CLIP text encoder, a VAE of pictures, noise predictions on a schedule of diffusion. diffusers has retired
the pipeline and keeps it. Its loader of adapters knows no network of this kind: adapters are peft's here.

Source: diffusers pipelines/deprecated/text_to_video_synthesis; 2308.06571.
"""

from typing import Any, ClassVar

from torch import nn

from mmalign.diffusion.pipeline_parts import pipeline_opener
from mmalign.video.block_checkpointing import recompute_blocks
from mmalign.video.family import VideoFamily
from mmalign.video.picture_model import PictureModel

__all__ = ["FAMILY", "TextToVideo"]


class TextToVideo(PictureModel):
    """A loaded text-to-video-ms."""

    family: ClassVar[str] = "text_to_video"
    network_class: ClassVar[str] = "UNet3DConditionModel"
    default_num_frames: ClassVar[int] = 16
    default_size: ClassVar[tuple[int, int]] = (256, 256)
    default_fps: ClassVar[float] = 8.0

    def check_network(self, network: Any) -> None:
        """As every UNet of this kind; its dropout is switched off, by which it would not be its reference.

        Raises:
            ConfigError: it takes other latents.
        """
        super().check_network(network)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def recompute(self, network: Any) -> int:
        """Its blocks, which diffusers does not prepare for this."""
        blocks = [*network.down_blocks, network.mid_block, *network.up_blocks]
        return recompute_blocks(blocks, self.settings.gradient_checkpointing)

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As the pipeline."""
        return 50, 9.0


PIPELINES = ("TextToVideoSDPipeline",)

FAMILY = VideoFamily(
    name="text_to_video",
    model=TextToVideo,
    open_source=pipeline_opener(
        "text_to_video", PIPELINES, (TextToVideo.network_part, TextToVideo.network_class)
    ),
    pipelines=PIPELINES,
)
