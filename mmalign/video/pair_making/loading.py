"""What makes, corrupts and scores clips: a model of video or a function of the user's own; rewards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmalign import registry
from mmalign.batch import PreferenceRow
from mmalign.data.config import ImageLimits
from mmalign.data.media import decode_image, read_media
from mmalign.data.pair_making.makers import FunctionMaker
from mmalign.data.pair_making.weights import weights_digest
from mmalign.data.video_writers import as_frames
from mmalign.diffusion.adapter_files import LORA_FILE
from mmalign.diffusion.sampling import evaluating, initial_noise
from mmalign.errors import ConfigError, RowError, explain
from mmalign.files import fingerprint
from mmalign.rewards.base import Reward
from mmalign.rewards.chosen import chosen_reward
from mmalign.seeding import derive_seed, generator_for
from mmalign.video.clips import Clip
from mmalign.video.from_level import renoised_latents
from mmalign.video.pair_making.making import ClipMaker, Made
from mmalign.video.pair_making.plan import VideoPairPlan
from mmalign.video.pair_making.real import Corrupter
from mmalign.video.saving import put_adapter_on

if TYPE_CHECKING:
    from mmalign.video.family import VideoModel

__all__ = ["ModelMaker", "Tools"]


def _as_clip(made: Any) -> Made:
    """What a function made: (frames, frames per second), encoded bytes, a file or None."""
    return Clip(as_frames(made[0]), float(made[1])) if isinstance(made, tuple) else made


@dataclass
class ModelMaker:
    """A model of video as a maker and a corrupter of clips; loaded when it is asked for the first time.

    Args:
        plan: with the model and its sampler.
        device: where it runs.
    """

    plan: VideoPairPlan
    device: torch.device
    _loaded: "VideoModel | None" = field(default=None, init=False, repr=False)

    def identity(self) -> Mapping[str, Any]:
        """Model, weights, clips and sampler; the batch size moves no more than roundings."""
        aside = {"batch_size", "num_samples"}
        sampler = self.plan.sampling.model_dump(mode="json", exclude=aside)
        model = self.model
        weights = fingerprint(asdict(model.cache_identity()), weights_digest(model.bare_network))
        name = f"{model.family}:{model.settings.source}@{weights}"
        clips = [model.num_frames, *model.size, model.fps, self.plan.video.start]
        return {"model": name, "dtype": self.plan.dtype, "clips": clips, **sampler}

    @contextmanager
    def session(self) -> Iterator[None]:
        """What sampling alone needs is loaded once meanwhile, not for every block."""
        with self.model.sampling():
            yield

    @property
    def goes_on_from_pictures(self) -> bool:
        """Whether its clips begin with a picture."""
        return self.model.conditioned

    def __call__(
        self, prompts: Sequence[str], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Made]:
        """A clip per prompt; equal keys start from equal noise."""
        return self._sample(prompts, keys, seed, num_steps)

    def going_on(
        self, rows: Sequence[PreferenceRow], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Made]:
        """A clip per row, going on from the row's picture; None where it has none that can be read."""
        pictures = [_picture(row) for row in rows]
        places = [place for place, picture in enumerate(pictures) if picture is not None]
        found: list[Made] = [None] * len(rows)
        if places:
            made = self._sample(
                [rows[place].prompt for place in places],
                [keys[place] for place in places],
                seed,
                num_steps,
                images=[pictures[place] for place in places],
            )
            for place, clip in zip(places, made, strict=True):
                found[place] = clip
        return found

    def _sample(
        self, prompts: Sequence[str], keys: Sequence[str], seed: int, num_steps: int, **options: Any
    ) -> Sequence[Clip]:
        settings = self.plan.sampling
        return self.model.sample(
            prompts,
            keys=list(keys),
            seed=seed,
            num_steps=num_steps,
            guidance_scale=settings.guidance_scale,
            scheduler=settings.scheduler,
            batch_size=settings.batch_size,
            **options,
        )

    @torch.no_grad()
    def corrupt(
        self, row: PreferenceRow, level: float, keys: Sequence[str], seed: int
    ) -> tuple[Clip, list[Clip]]:
        """The row's clip as the model sees it, and one per key: noised to a level and denoised again.

        Latents are the mean of the VAE's posterior; key and seed decide the noise.

        Args:
            row: with one clip.
            level: share of noise.
            keys: of the members.
            seed: of the run.

        Raises:
            RowError: the clip cannot be read.
        """
        model, settings = self.model, self.plan.sampling
        inputs = model.clips.load(row, key=derive_seed(seed, "start", row.id)).inputs
        clean = model.latents_of(model.cache_moments(inputs).mean)
        pictures = model.cache_more(inputs)
        members: list[Clip] = []
        half = model.dtype in (torch.float16, torch.bfloat16)
        with evaluating(model.bare_network), model.sampling():
            for first in range(0, len(keys), settings.batch_size):
                part = keys[first : first + settings.batch_size]
                count = len(part)
                shown = {name: value.repeat_interleave(count, dim=0) for name, value in pictures.items()}
                begun = clean.repeat_interleave(count, dim=0)
                begun = model.begun(begun, shown) if shown else begun
                texts = [row.prompt] * count
                contrast = None
                if settings.guidance_scale > 1 and not model.embeds_guidance:
                    contrast = {**model.contrast_conditioning(texts, None).rows(1), **shown}
                noise = torch.stack(
                    [initial_noise(model.latent_shape, seed=seed, prompt=key) for key in part]
                )
                with torch.autocast(model.device.type, dtype=model.dtype, enabled=half):
                    latents = renoised_latents(
                        model,
                        begun,
                        noise.to(begun),
                        {**model.prompt_conditioning(texts).rows(1), **shown},
                        contrast,
                        level=level,
                        num_steps=settings.num_steps,
                        guidance_scale=settings.guidance_scale,
                        generators=[generator_for(seed, "corrupt_path", key) for key in part],
                    )
                latents = model.begun(latents, shown) if shown else latents
                members += [Clip.of(pixels, model.fps) for pixels in model.decode_clips(latents)]
        frames = inputs[0, 1:] if model.conditioned else inputs[0]
        return Clip(frames, model.fps), members

    @property
    def model(self) -> "VideoModel":
        """The loaded model."""
        if self._loaded is None:
            config = self.plan.model
            if config is None:
                raise ConfigError(explain("model", got=None, expected="a model"))
            family = registry.find("families", config.family)
            model = family.load(
                config, self.plan.video, device=self.device, dtype=getattr(torch, self.plan.dtype)
            )
            model.limit_video(self.plan.data.video)
            if self.plan.adapter is not None:
                _put_on(model, self.plan.adapter)
            self._loaded = model
        return self._loaded


def _picture(row: PreferenceRow) -> Any:
    """The row's picture; None where it has none that can be read."""
    if not row.images:
        return None
    where = f"{row.source or row.id} image"
    try:
        data = read_media(row.images[0], where=where, max_bytes=ImageLimits().max_bytes)
        return decode_image(data, where=where, limits=ImageLimits()).image
    except RowError:
        return None


def _put_on(model: "VideoModel", adapter: str) -> None:
    """Load an adapter that training saved.

    Raises:
        ConfigError: the folder holds none that fits.
    """
    expected = f"a folder with {LORA_FILE} of this network"
    if not (Path(adapter) / LORA_FILE).is_file():
        raise ConfigError(explain("adapter", got=adapter, expected=expected))
    try:
        put_adapter_on(model, model.bare_network, Path(adapter), LORA_FILE)
    except ValueError as error:
        do = f"({str(error).splitlines()[0]})"
        raise ConfigError(explain("adapter", got=adapter, expected=expected, do=do)) from error


def _model_maker(plan: VideoPairPlan, device: torch.device) -> ModelMaker:
    if plan.model is not None and registry.modality(plan.model.family) != "video":
        message = explain("model.family", got=plan.model.family, expected="a family of video models")
        raise ConfigError(message)
    return ModelMaker(plan, device)


@dataclass(frozen=True)
class Tools:
    """Loaders that a recipe calls when it needs what they load; give others to stand in for them.

    Args:
        model: a model of video as a maker of clips.
        corrupter: the same as what noises and denoises.
        reward: by its settings.
    """

    model: Callable[[VideoPairPlan, torch.device], ClipMaker] = _model_maker
    corrupter: Callable[[VideoPairPlan, torch.device], Corrupter] = _model_maker
    reward: Callable[..., Reward] = chosen_reward

    def maker(self, plan: VideoPairPlan, device: torch.device) -> ClipMaker:
        """The maker of a plan: a function by its name, else a model.

        Raises:
            ConfigError: it is not there.
        """
        return self.model(plan, device) if plan.maker is None else FunctionMaker.load(plan.maker, _as_clip)
