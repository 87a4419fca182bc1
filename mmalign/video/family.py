"""The video family contract: everything that text-to-video models share, whatever their networks.

A family file supplies what differs: sizes, how its text becomes conditioning, what its network is given.
Clips, prompt dropout, caches, pictures that clips go on from, sampling and saving are here, once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from mmalign.batch import Conditioning, RowKeys
from mmalign.data.cache import CacheIdentity
from mmalign.data.config import VideoLimits
from mmalign.diffusion.autoencoder import Moments
from mmalign.diffusion.clip_reader import padded
from mmalign.diffusion.loading import PartSource
from mmalign.diffusion.opened_family import OpenedFamily
from mmalign.diffusion.pipeline_parts import write_pipeline_folder
from mmalign.errors import ConfigError, explain
from mmalign.seeding import row_uniform
from mmalign.shapes import flatten_candidates, unflatten_candidates
from mmalign.video.clips import IMAGE, Clip, ClipLoader, VideoReader
from mmalign.video.codec import VideoCodec
from mmalign.video.run_sizes import check_clip_size, goes_on_from_pictures
from mmalign.video.traits import PICTURED, VideoTraits, pictured

if TYPE_CHECKING:
    from mmalign.train.sections import ModelConfig
    from mmalign.train.video_sections import VideoConfig

__all__ = ["VideoFamily", "VideoModel"]


class VideoModel(VideoTraits):
    """A loaded text-to-video model; what the training loop, the samplers and the exporters work with.

    Args:
        source: where the parts come from.
        settings: the run's `model` section.
        video: the run's `video` section.
        device: where everything runs.
        dtype: of frozen parts.
        network_dtype: of the trained network (float32 for full fine-tuning); default `dtype`.

    Attributes:
        conditioned: whether clips go on from a picture in this run.
        temporal_ratio: frames per latent frame, the first apart.
        spatial_ratio: pixels per latent, along one side.
        codec: clips to latents and back (also `autoencoder`).
    """

    autoencoder: VideoCodec
    reader: VideoReader
    conditioned: bool
    temporal_ratio: int
    spatial_ratio: int

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
        self.video = video
        posterior = self.default_posterior if video.posterior == "family" else video.posterior
        self.at_mean = posterior == "mean"
        super().__init__(source, settings, device=device, dtype=dtype, network_dtype=network_dtype)

    @property
    def media(self) -> "VideoConfig":
        """The run's `video` section."""
        return self.video

    @property
    def codec(self) -> VideoCodec:
        """Clips to latents and back."""
        return self.autoencoder

    # --- sizes ----------------------------------------------------------------------------------------------

    def _load_codec(self) -> None:
        self._set_shift()
        self.conditioned = goes_on_from_pictures(self.video, self.takes_images, self.settings.source)
        self.autoencoder = self._make_codec()
        self.notes.append(self.autoencoder.note)
        config = self.autoencoder.config
        self.temporal_ratio, self.spatial_ratio = self.ratios(config)
        video = self.video
        frames, size, fps = self.default_clip
        self.num_frames = frames if video.num_frames is None else video.num_frames
        self.size = (video.height or size[0], video.width or size[1])
        self.fps = fps if video.fps is None else video.fps
        self._check_size()
        self.latent_shape = (
            self.latent_channels(config),
            (self.num_frames - 1) // self.temporal_ratio + 1,
            self.size[0] // self.spatial_ratio,
            self.size[1] // self.spatial_ratio,
        )
        begin = ", going on from a picture" if self.conditioned else ""
        self.notes.append(
            f"clips: {self.num_frames} frames of {self.size[1]}x{self.size[0]} at {self.fps:g} fps{begin}; "
            f"latents {'x'.join(str(axis) for axis in self.latent_shape)}"
        )

    def _make_codec(self) -> VideoCodec:
        """What turns clips into latents; families with another kind of VAE make another one.

        Raises:
            ConfigError: `model.vae` is set.
        """
        if self.settings.vae is not None:
            message = explain("model.vae", got=self.settings.vae, expected="nothing: the model's own VAE")
            raise ConfigError(message)

        def load(dtype: torch.dtype) -> Any:
            return self.source.part("vae", dtype=dtype)

        return self.codec_class(
            load,
            device=self.device,
            home=self._home,
            dtype=self.dtype,
            tiling=self.video.vae_tiling,
            at_mean=self.at_mean,
        )

    codec_class: ClassVar[type[VideoCodec]] = VideoCodec

    def _set_shift(self) -> None:
        """The run's shift in the place of the checkpoint's, for training and sampling alike."""
        shift = self.video.flow_shift
        if shift is None:
            return
        if self.prediction != "flow" or self.scheduler_config.get("use_dynamic_shifting"):
            expected = f"nothing: {self.scheduler_class} of {self.prediction} has no shift of its own"
            raise ConfigError(explain("video.flow_shift", got=shift, expected=expected))
        self.scheduler_config = {**self.scheduler_config, self._shift_name: shift}

    @property
    def _shift_name(self) -> str:
        """What the scheduler calls its shift."""
        return "flow_shift" if "flow_shift" in self.scheduler_config else "shift"

    def _check_size(self) -> None:
        multiple = self.spatial_ratio * self.patch
        check_clip_size(self.num_frames, self.size, step=self.temporal_ratio, multiple=multiple)

    @property
    def duration(self) -> float:
        """Seconds of its clips."""
        return self.num_frames / self.fps

    @property
    def frame_grid(self) -> tuple[range, ...]:
        """The pixel frames that each latent frame holds: causal, latent 0 holds frame 0 alone.

        Latent k >= 1 holds frames `r (k - 1) + 1` to `r k`; with r = 1 each holds its own.
        """
        step = self.temporal_ratio
        later = (range(step * (k - 1) + 1, step * k + 1) for k in range(1, self.latent_shape[1]))
        return (range(1), *later)

    # --- data -----------------------------------------------------------------------------------------------

    def _make_reader(self) -> VideoReader:
        clips = ClipLoader(
            num_frames=self.num_frames,
            fps=self.fps,
            size=self.size,
            start=self.video.start,
            with_image=self.conditioned,
        )
        return VideoReader(
            **self._text_reading(),
            padding="max_length",
            clips=clips,
            cleaned=self.cleans_prompts,
            text_room=self.text_length if self.fills_texts else 0,
        )

    @property
    def clips(self) -> ClipLoader:
        """What reads the clips of rows; `mmalign data cache` names entries by it."""
        return self.reader.clips

    def limit_video(self, limits: VideoLimits) -> None:
        """Refuse clips beyond other sizes than the usual ones."""
        self.reader = replace(self.reader, clips=replace(self.reader.clips, limits=limits))

    # --- encoding -------------------------------------------------------------------------------------------

    def moments(self, clips: Shaped[Tensor, "row frame 3 height width"]) -> Moments:
        """Mean and standard deviation of the unscaled latents of clips in [-1, 1] (or bytes), float32."""
        return self.autoencoder.moments(clips)

    def latents_of(
        self, mean: Float[Tensor, "row channel frame height width"]
    ) -> Float[Tensor, "row channel time height width"]:
        """Scaled latents of the VAE's means, as many latent frames as the network takes."""
        return self.autoencoder.scale(mean)

    def cache_moments(self, inputs: UInt8[Tensor, "row frame 3 height width"]) -> Moments:
        """`moments` of clips as the reader gives them: behind the picture that they go on from, if any."""
        return self.moments(inputs[:, 1:] if self.conditioned else inputs)

    @torch.no_grad()
    def cache_more(self, inputs: UInt8[Tensor, "row frame 3 height width"]) -> dict[str, Tensor]:
        """What else a cache keeps of each clip: the conditioning of its picture."""
        return self.image_states(inputs[:, 0]) if self.conditioned else {}

    @property
    def numbers_per_entry(self) -> int:
        """The mean alone where nobody samples; more of models that go on from a picture."""
        latents = math.prod(self.latent_shape) * (1 if self.at_mean else 2)
        shapes = self.image_state_shapes().values() if self.conditioned else ()
        return latents + sum(math.prod(shape) for shape in shapes)

    def cache_text(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Text states `[...]` of each prompt, cut to its true length where the rest is zero or masked."""
        found = []
        for states in super().cache_text(prompts):
            kept = states.get("text_mask") if self.fills_texts else None
            if kept is not None:
                whole = kept.bool()  # an integer mask would pick rows
                states = {**states, **{name: states[name][whole] for name in ("text", "text_mask")}}
            found.append(states)
        return found

    def _of_media(
        self, collated: Mapping[str, Any], keys: RowKeys, clean: Float[Tensor, "prompt candidate ..."]
    ) -> tuple[Float[Tensor, "prompt candidate ..."], Conditioning]:
        """Latents that begin as the pictures of the clips say, and what the network is told of these."""
        images = self._images_of(collated)
        if images:
            images = {**images, **self._kept_pictures(keys, clean.shape[1])}
            flat = {name: flatten_candidates(value) for name, value in images.items()}
            begun = self.begun(flatten_candidates(clean), flat)
            clean = unflatten_candidates(pictured(flat, begun, flatten_candidates(clean)), clean.shape[1])
        return clean, Conditioning(shared=self._whole_media(clean.shape[0]), per_candidate=images)

    def _images_of(self, collated: Mapping[str, Any]) -> dict[str, Tensor]:
        """Conditioning `[prompt, candidate, ...]` of the pictures, from the cache's or of the clips."""
        if not self.conditioned:
            return {}
        cached = {
            name.removeprefix(IMAGE): value for name, value in collated.items() if name.startswith(IMAGE)
        }
        if cached:
            return self._placed(cached)
        clips = collated["clips"]
        found = self.image_states(flatten_candidates(clips[:, :, 0]))
        return {name: unflatten_candidates(value, clips.shape[1]) for name, value in found.items()}

    def _kept_pictures(self, keys: RowKeys, count: int) -> dict[str, Tensor]:
        """Whether each row is told of its picture, the same of all candidates; nothing without dropout."""
        share = self.video.image_dropout
        if share == 0:
            return {}
        chance = row_uniform(keys.key, 1, purpose="image_dropout")
        return {PICTURED: (chance >= share).expand(-1, count)}

    def _joined(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Text states of several prompts, filled up."""
        return padded(rows, least=self.reader.text_room)

    def _empty_states(self) -> dict[str, Tensor]:
        """Text states of the empty prompt, filled up: a cache keeps their true length alone."""
        if self._empty_text is None:
            self._empty_text = padded([super()._empty_states()], least=self.reader.text_room)
        return self._empty_text

    def _meta_conditioning(self) -> Conditioning:
        """Conditioning of one prompt and candidate, for its shapes."""
        shapes = self.image_state_shapes() if self.conditioned else {}
        images = {name: torch.zeros(1, 1, *shape, dtype=self.dtype) for name, shape in shapes.items()}
        if shapes and self.video.image_dropout > 0:
            images[PICTURED] = torch.ones(1, 1, dtype=torch.bool)
        return Conditioning(shared={**self._empty_states(), **self._whole_media(1)}, per_candidate=images)

    # --- clips ----------------------------------------------------------------------------------------------

    def decode_clips(
        self, latents: Float[Tensor, "row channel frame height width"]
    ) -> Float[Tensor, "row time 3 picture_height picture_width"]:
        """Clips in [0, 1] of scaled latents, float32, on the device; gradients flow where they are on."""
        return self.autoencoder.decode(latents)

    def sample(
        self, prompts: Sequence[str], *, seed: int, num_steps: int, guidance_scale: float, **options: Any
    ) -> list[Clip]:
        """Clips of prompts; the noise of prompt i depends on (seed, i) only. See `sampling.generate`."""
        from mmalign.video.sampling import generate

        return generate(
            self, prompts, seed=seed, num_steps=num_steps, guidance_scale=guidance_scale, **options
        )

    # --- saving, identity -----------------------------------------------------------------------------------

    def save_model(self, folder: str | Path) -> Path:
        """Write a whole pipeline folder of diffusers, adapters merged in. Returns the folder.

        Its scheduler has the run's `video.flow_shift`, if that was set: the folder samples as the run did.
        """

        def after(name: str, part: Any, place: Path) -> None:
            if name == "scheduler" and self.video.flow_shift is not None:
                moved = {**part.config, self._shift_name: self.video.flow_shift}
                type(part).from_config(moved).save_pretrained(str(place))

        return write_pipeline_folder(self, folder, after=after)

    def saved_network(self, folder: Path) -> Any:
        """The network of a folder that `save_model` wrote, float32, by the library alone."""
        import diffusers

        network_class = getattr(diffusers, self.network_class)
        return network_class.from_pretrained(
            str(folder / self.trained_part), use_safetensors=True, dtype=torch.float32
        )

    def cache_identity(self) -> CacheIdentity:
        """What a cache of encoded inputs must have been made with to serve this model."""
        return CacheIdentity(
            vae=self.vae_fingerprint(), text=self.text_fingerprint(), video=self.reader.clips.rule
        )


@dataclass(frozen=True)
class VideoFamily(OpenedFamily[VideoModel]):
    """What the registry finds under a video family's name."""

    modality: ClassVar[str] = "video"
