"""AnimateDiff: a Stable Diffusion 1.x whose frames look at each other through motion modules.

`model.source` is a whole `AnimateDiffPipeline` folder, or any Stable Diffusion 1.x (folder, hub id, single
file) with `model.motion_adapter` beside it. Motion modules are what is trained: whole (`adapter.kind: none`)
or by a motion LoRA, which diffusers' pipeline puts on by `load_lora_weights`. Every frame is a picture to the
VAE. Motion modules were trained on a schedule of linear betas, which takes the place of the picture model's.

Source: diffusers pipelines/animatediff; guoyww/AnimateDiff configs/training; 2307.04725.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mmalign.diffusion.loading import PartSource, PipelineSource, kind_of_source, told_as_settings
from mmalign.diffusion.pipeline_parts import SettingsSource, write_pipeline_folder
from mmalign.errors import ConfigError, explain
from mmalign.video.family import VideoFamily
from mmalign.video.motion_lora import from_official, to_official
from mmalign.video.picture_model import PictureModel

if TYPE_CHECKING:
    from mmalign.train.sections import ModelConfig
    from mmalign.train.video_sections import VideoConfig

__all__ = ["FAMILY", "AnimateDiff", "MotionSource"]

_PICTURES, _VIDEO = "StableDiffusionPipeline", "AnimateDiffPipeline"
_MOTION = "motion_modules."

_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "linspace",
    "prediction_type": "epsilon",
}
"""Source: guoyww/AnimateDiff configs/inference/inference-v2.yaml; an example of diffusers' documentation."""

_PARTS = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


class MotionSource:
    """A model of pictures and motion modules, as the parts of one pipeline of video.

    Args:
        pictures: parts of a Stable Diffusion 1.x.
        adapter: hub id, folder or .safetensors file of the motion modules.

    Attributes:
        source: of the model of pictures.
        index: classes of the parts.
        written_index: the same, with what a written pipeline folder needs.
        pipeline_class: of the pipeline of video.
    """

    pipeline_class = _VIDEO

    def __init__(self, pictures: PipelineSource, adapter: str) -> None:
        self.pictures, self.adapter, self.source = pictures, adapter, pictures.source
        found = {name: pictures.index.get(name) or entry for name, entry in _PARTS.items()}
        self.index: dict[str, Any] = {
            **found,
            "unet": ["diffusers", "UNetMotionModel"],
            "motion_adapter": ["diffusers", "MotionAdapter"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        }
        self.written_index = {"_class_name": _VIDEO, **self.index}

    def has(self, name: str) -> bool:
        """Whether there is a part of this name."""
        return name in self.index

    def part(self, name: str, *, dtype: torch.dtype | None = None) -> Any:
        """One loaded part: a frozen network in evaluation mode on the CPU, a tokenizer, or a scheduler.

        Raises:
            ConfigError: it cannot be loaded, or the motion modules are of another model.
        """
        if name == "scheduler":
            from diffusers import DDIMScheduler

            return DDIMScheduler(**_SCHEDULE)
        if name == "motion_adapter":
            return self._modules(dtype)
        if name == "unet":
            return self._network(dtype)
        return self.pictures.part(name, dtype=dtype)

    def _modules(self, dtype: torch.dtype | None) -> Any:
        from diffusers import MotionAdapter

        setting = "model.motion_adapter"
        kind = kind_of_source(self.adapter, setting)
        advice = "It must be the hub id, folder or .safetensors file of a MotionAdapter of diffusers."
        with told_as_settings(f"{setting} {self.adapter}", advice):
            if kind == "file":
                modules = MotionAdapter.from_single_file(self.adapter, dtype=dtype)
            else:
                modules = MotionAdapter.from_pretrained(self.adapter, dtype=dtype, use_safetensors=True)
        return modules.requires_grad_(False).eval()

    def _network(self, dtype: torch.dtype | None) -> Any:
        from diffusers import UNetMotionModel

        pictures, modules = self.pictures.part("unet", dtype=dtype), self._modules(dtype)
        advice = "Motion modules fit the kind of model that they were trained with: Stable Diffusion 1.x."
        try:
            network = UNetMotionModel.from_unet2d(pictures, modules)
        except (
            RuntimeError,
            ValueError,
        ) as error:  # what diffusers says of other numbers of blocks and channels
            # Tensors that do not fit are named one per line, behind a line that says so.
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
            message = f"model.motion_adapter {self.adapter}: does not fit {self.source} ({reason}) {advice}"
            raise ConfigError(message) from error
        return network.requires_grad_(False).eval()


class AnimateDiff(PictureModel):
    """A loaded AnimateDiff."""

    family: ClassVar[str] = "animatediff"
    network_class: ClassVar[str] = "UNetMotionModel"
    default_num_frames: ClassVar[int] = 16
    default_size: ClassVar[tuple[int, int]] = (512, 512)
    default_fps: ClassVar[float] = 8.0
    adapter_targets: str = r".*motion_modules\.\d+\..*\.(to_q|to_k|to_v|to_out\.0)"

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
        source = self._with_motion(source, settings)
        super().__init__(source, settings, video, device=device, dtype=dtype, network_dtype=network_dtype)

    @staticmethod
    def _with_motion(source: PartSource, settings: "ModelConfig") -> PartSource:
        """Parts of a pipeline of video, joined from two sources where there are two.

        Raises:
            ConfigError: there is one too few, or one too many.
        """
        if isinstance(source, PipelineSource) and source.pipeline_class == _PICTURES:
            if settings.motion_adapter is None:
                message = explain(
                    "model.motion_adapter",
                    got=None,
                    expected=f"motion modules for {settings.source}, which makes pictures",
                    do="For example guoyww/animatediff-motion-adapter-v1-5-2.",
                )
                raise ConfigError(message)
            return MotionSource(source, settings.motion_adapter)
        if settings.motion_adapter is not None:
            message = explain(
                "model.motion_adapter",
                got=settings.motion_adapter,
                expected=f"nothing: {settings.source} has motion modules of its own",
            )
            raise ConfigError(message)
        return source

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As the pipeline."""
        return 50, 7.5

    @property
    def adapter_pipeline(self) -> str | None:
        """What users put adapters on."""
        return _VIDEO

    def trains(self, name: str) -> bool:
        """Whether a parameter trains in full fine-tuning: those of motion modules."""
        return _MOTION in name

    def check_network(self, network: Any) -> None:
        """As every UNet of this kind, with positions for the run's frames.

        Raises:
            ConfigError: it takes other latents, or fewer frames.
        """
        super().check_network(network)
        longest = int(network.config.motion_max_seq_length)
        if self.num_frames > longest:
            message = explain(
                "video.num_frames",
                got=self.num_frames,
                expected=f"at most {longest}, for which these motion modules have positions",
            )
            raise ConfigError(message)

    def network_arguments(self, conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
        """Text states, once per frame."""
        return {"encoder_hidden_states": conditioning["text"].repeat_interleave(self.num_frames, dim=0)}

    def joined_layers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """A motion LoRA under official names."""
        return to_official(tensors)

    def split_layers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """An official motion LoRA under diffusers' names."""
        return from_official(tensors)

    def save_model(self, folder: str | Path) -> Path:
        """Write an `AnimateDiffPipeline` folder, adapters merged in; `motion_adapter/` is new, too."""
        written: dict[str, tuple[Any, Path]] = {}

        def after(name: str, part: Any, place: Path) -> None:
            written[name] = part, place
            if name in ("unet", "motion_adapter") and {"unet", "motion_adapter"} <= set(written):
                whole = written["unet"][0].state_dict()
                modules, where = written["motion_adapter"]
                modules.load_state_dict({key: value for key, value in whole.items() if _MOTION in key})
                modules.save_pretrained(str(where))

        return write_pipeline_folder(self, folder, after=after)


def open_source(
    source: str, *, revision: str | None = None, variant: str | None = None, config_source: str | None = None
) -> PartSource:
    """Parts of a Stable Diffusion 1.x, or of a whole pipeline of video."""
    return SettingsSource(
        source,
        pipelines=(_PICTURES, _VIDEO),
        family="animatediff",
        network=("unet", "UNet2DConditionModel"),
        revision=revision,
        variant=variant,
        config_source=config_source,
    )


FAMILY = VideoFamily(name="animatediff", model=AnimateDiff, open_source=open_source, pipelines=(_VIDEO,))
