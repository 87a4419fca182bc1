"""Text-to-video-ms (ModelScope, zeroscope): Stable Diffusion's UNet with convolution and attention over time.

One CLIP text encoder, a VAE of pictures, noise predictions on a schedule of diffusion. diffusers has retired
the pipeline and keeps it; its network takes no adapter files of the library, so that they are peft's here,
and it has no checkpointed blocks.

Source: diffusers pipelines/deprecated/text_to_video_synthesis; 2308.06571.
"""

from typing import ClassVar

from mmalign.diffusion.pipeline_parts import pipeline_opener
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
