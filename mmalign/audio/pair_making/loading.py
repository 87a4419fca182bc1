"""What makes and scores clips: an audio model or a function of the user's own; registered rewards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mmalign import registry
from mmalign.audio.pair_making.making import ClipMaker, Made
from mmalign.audio.pair_making.plan import AudioPairPlan
from mmalign.data.audio_media import DecodedAudio
from mmalign.data.pair_making.makers import FunctionMaker
from mmalign.data.pair_making.weights import weights_digest
from mmalign.diffusion.adapter_files import LORA_FILE
from mmalign.errors import ConfigError, explain
from mmalign.files import fingerprint
from mmalign.rewards.base import Reward
from mmalign.rewards.chosen import chosen_reward
from mmalign.train.audio_sections import AudioConfig

if TYPE_CHECKING:
    from mmalign.audio.family import AudioModel

__all__ = ["ModelMaker", "Tools"]


def _as_sound(made: Any) -> Made:
    """What a function made: (samples, sampling rate), encoded bytes, a file or None."""
    return DecodedAudio(*made) if isinstance(made, tuple) else made


@dataclass
class ModelMaker:
    """An audio model as a maker of clips; loaded when it is asked for the first time.

    Args:
        plan: with the model and its sampler.
        device: where it runs.
    """

    plan: AudioPairPlan
    device: torch.device
    _loaded: "AudioModel | None" = field(default=None, init=False, repr=False)

    def identity(self) -> Mapping[str, Any]:
        """Model, weights and sampler; the batch size moves no more than roundings."""
        aside = {"batch_size", "num_samples", "num_steps"}
        sampler = self.plan.sampling.model_dump(mode="json", exclude=aside)
        model = self._model()
        weights = fingerprint(asdict(model.cache_identity()), weights_digest(model.bare_network))
        name = f"{model.family}:{model.settings.source}@{weights}"
        return {"model": name, "dtype": self.plan.dtype, **sampler}

    def __call__(
        self, prompts: Sequence[str], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Made]:
        """A clip per prompt; equal keys start from equal noise."""
        settings = self.plan.sampling
        return self._model().sample(
            prompts,
            keys=list(keys),
            seed=seed,
            num_steps=num_steps,
            guidance_scale=settings.guidance_scale,
            scheduler=settings.scheduler,
            batch_size=settings.batch_size,
            duration=settings.duration,
        )

    def _model(self) -> "AudioModel":
        if self._loaded is None:
            config = self.plan.model
            if config is None:
                raise ConfigError(explain("model", got=None, expected="a model"))
            family = registry.find("families", config.family)
            # Families that are told the duration make shorter clips in the window that they know.
            told = family.model.told_duration
            audio = AudioConfig(duration=None if told else self.plan.sampling.duration)
            self._loaded = family.load(
                config, audio, device=self.device, dtype=getattr(torch, self.plan.dtype)
            )
            if self.plan.adapter is not None:
                _put_on(self._loaded, self.plan.adapter)
        return self._loaded


def _put_on(model: "AudioModel", adapter: str) -> None:
    """Load an adapter that training saved.

    Raises:
        ConfigError: the folder holds none that fits.
    """
    from peft import PeftModel

    try:
        if hasattr(model.bare_network, "load_lora_adapter"):
            model.bare_network.load_lora_adapter(
                adapter, prefix=model.network_part, weight_name=LORA_FILE, use_safetensors=True
            )
        else:  # Stable Audio's network reads none by itself
            PeftModel.from_pretrained(model.bare_network, adapter)
    except (OSError, ValueError) as error:
        do = f"({str(error).splitlines()[0]})"
        expected = f"a folder with {LORA_FILE} of this network"
        raise ConfigError(explain("adapter", got=adapter, expected=expected, do=do)) from error


def _model_maker(plan: AudioPairPlan, device: torch.device) -> ClipMaker:
    if plan.model is not None and registry.modality(plan.model.family) != "audio":
        message = explain("model.family", got=plan.model.family, expected="a family of audio models")
        raise ConfigError(message)
    return ModelMaker(plan, device)


@dataclass(frozen=True)
class Tools:
    """Loaders that a recipe calls when it needs what they load; give others to stand in for them.

    Args:
        model: an audio model as a maker of clips.
        reward: by its settings.
    """

    model: Callable[[AudioPairPlan, torch.device], ClipMaker] = _model_maker
    reward: Callable[..., Reward] = chosen_reward

    def maker(self, plan: AudioPairPlan, device: torch.device) -> ClipMaker:
        """The maker of a plan: a function by its name, else a model.

        Raises:
            ConfigError: it is not there.
        """
        return self.model(plan, device) if plan.maker is None else FunctionMaker.load(plan.maker, _as_sound)
