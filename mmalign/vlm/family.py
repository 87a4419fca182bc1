"""A family of vision-language models: how its checkpoints become a loaded model, how rows are read for it.

What differs between families is in their traits; the model itself is `mmalign.vlm.model`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmalign.data.config import ImageLimits
from mmalign.errors import ConfigError, explain
from mmalign.methods.row import View
from mmalign.train.quantization import report_of
from mmalign.vlm.loading import load_config, load_model, load_processor
from mmalign.vlm.media import FrameChoice, MediaReader
from mmalign.vlm.model import VlmModel, VlmPolicy
from mmalign.vlm.network import LanguageNetwork
from mmalign.vlm.reader import DialogueReader
from mmalign.vlm.spoilt_media import SpoiltMedia
from mmalign.vlm.traits import VlmTraits

if TYPE_CHECKING:
    from mmalign.train.config import ModelConfig
    from mmalign.train.token_sections import TokensConfig
    from mmalign.vlm.outline import ModelOutline

__all__ = ["VlmFamily", "VlmModel", "VlmPolicy"]


@dataclass(frozen=True)
class VlmFamily:
    """What the registry finds under a family's name.

    Args:
        name: as in configs.
        traits: what differs from other families.
    """

    name: str
    traits: type[VlmTraits]
    modality: str = "language"

    def load(
        self,
        settings: "ModelConfig",
        tokens: "TokensConfig",
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        network_dtype: torch.dtype | None = None,
        views: tuple[View, ...] = (),
        record: frozenset[str] = frozenset(),
        corrupt: Callable[[Any, int], Any] | None = None,
    ) -> VlmModel:
        """A model ready to train: frozen, in evaluation mode, on the device.

        Args:
            settings: the run's `model` section.
            tokens: the run's `tokens` section.
            device: where it runs.
            dtype: of frozen weights.
            network_dtype: of the network; float32 for full fine-tuning. Default `dtype`.
            views: candidates that every example gets besides the row's own.
            record: numbers of the data that every example carries.
            corrupt: spoils a picture, (image, seed) to image; default: what `tokens.corruption` says.

        Raises:
            ConfigError: nothing is there, it is another family's, or it cannot run as asked.
        """
        config = load_config(settings, self.name, self.traits.model_types)
        processor = load_processor(settings, sees=bool(self.traits.sees))
        model = load_model(
            settings, config, dtype=network_dtype or dtype, device=device, sees=bool(self.traits.sees)
        )
        reader = self._reader(self.traits(model.config, processor), tokens, views, record, corrupt)
        uses_blocks = settings.attention == "flex"
        network = LanguageNetwork(model, reader.traits, uses_blocks=uses_blocks).requires_grad_(False)
        made = VlmModel(self.name, network, reader, settings, tokens, device=device)
        made.notes.append(f"attention: {network.attention}")
        if settings.quantization is not None:
            made.notes.append(str(report_of(model)))
        return made

    def outline(
        self,
        settings: "ModelConfig",
        tokens: "TokensConfig",
        *,
        dtype: torch.dtype,
        views: tuple[View, ...] = (),
        record: frozenset[str] = frozenset(),
    ) -> "ModelOutline":
        """The model's shapes without its weights, for plans; arguments and errors as `load`."""
        from mmalign.vlm.outline import ModelOutline, outline_network

        config = load_config(settings, self.name, self.traits.model_types)
        processor = load_processor(settings, sees=bool(self.traits.sees))
        network = outline_network(settings, config, self.traits, processor, dtype=dtype)
        reader = self._reader(network.traits, tokens, views, record, None)
        return ModelOutline(network, reader, settings, tokens)

    def _reader(
        self,
        traits: VlmTraits,
        tokens: "TokensConfig",
        views: tuple[View, ...],
        record: frozenset[str],
        corrupt: Callable[[Any, int], Any] | None,
    ) -> DialogueReader:
        further: list[Callable[[Any, int], Any]] = []
        if corrupt is None and any(view.images == "corrupted" for view in views):
            corrupt, *further = _corruptions(tokens)
            if further and not (len(views) == 1 and views[0].becomes == "candidate"):
                message = explain(
                    "tokens.corruption.versions",
                    got=1 + len(further),
                    expected="1: several are for methods that add one answer beside spoilt media",
                    do="Those are vdpo_video and mdpo.",
                )
                raise ConfigError(message)
        return DialogueReader(
            traits=traits,
            media=MediaReader(ImageLimits(), _frame_choice(traits, tokens)),
            settings=traits.image_settings(min_pixels=tokens.min_pixels, max_pixels=tokens.max_pixels),
            max_length=tokens.max_length or _longest(traits),
            max_completion_length=tokens.max_completion_length,
            fit=tokens.fit,
            system_prompt=tokens.system_prompt,
            views=views,
            spoilt=SpoiltMedia(corrupt, tuple(further)),
            record=record,
        )


def _frame_choice(traits: VlmTraits, tokens: "TokensConfig") -> FrameChoice:
    number = tokens.num_frames or (traits.num_frames if tokens.fps is None else None)
    return FrameChoice(number, tokens.fps or traits.fps, tokens.max_frames)


def _longest(traits: VlmTraits) -> int:
    """Tokens the language model takes; no limit where its config says none."""
    return int(getattr(traits.text_config, "max_position_embeddings", None) or 2**20)


def _corruptions(tokens: "TokensConfig") -> list[Callable[[Any, int], Any]]:
    """The corruptions that the run asks for, one per version: functions of an image and a seed."""
    from mmalign.vlm.corruptions import corruption

    asked = tokens.corruption
    number = asked.versions or 1
    kinds = asked.kinds if number > 1 and asked.kinds else (asked.kind or "crop",)
    return [
        corruption(kinds[version % len(kinds)], asked.strength, others_follow=True)
        for version in range(number)
    ]
