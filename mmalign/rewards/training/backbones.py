"""What heads read: frozen features of CLIP, of ImageReward's BLIP, of a chat model that sees, or of pixels.

A backbone turns the picture (or clip) of a sample into an item's features and texts into theirs. Where it
reads picture and prompt together (BLIP, chat models) the item's features hold both and there are none of the
prompt.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.errors import ConfigError, RowError, explain, unknown_name
from mmalign.rewards.base import Prepared
from mmalign.rewards.blip_models import ImageRewardNetwork, load_image_reward
from mmalign.rewards.clip_backbones import load_backbone
from mmalign.rewards.clip_models import DualEncoder
from mmalign.rewards.pixels import Preprocessing
from mmalign.rewards.prompt_tokens import PromptTokens
from mmalign.rewards.sample import Sample, to_image
from mmalign.rewards.training.pixel_features import PixelFeatures
from mmalign.rewards.vision_language import ChatModel, load_chat_model, sample_media
from mmalign.rewards.weights import hashes, resolve

__all__ = [
    "KINDS",
    "Backbone",
    "BlipFeatures",
    "ChatFeatures",
    "ClipFeatures",
    "PixelBackbone",
    "make_backbone",
]


class Backbone(ABC):
    """A frozen network that gives features.

    Attributes:
        item_width: of an item's features.
        prompt_width: of a prompt's; 0 where the item's features have read the prompt.
        context_width: of a context's; 0 where texts alone cannot be read.
        text_limit: tokens of a text that are read; None = all.
        differentiable: pictures as tensors keep their graph.
    """

    item_width: int
    prompt_width: int = 0
    context_width: int = 0
    text_limit: int | None = None
    differentiable: bool = False

    @property
    def network(self) -> nn.Module | None:
        """What an adapter may be put into; None where there is no network."""
        return None

    @abstractmethod
    def prepare(self, sample: Sample) -> Prepared:
        """Decode, resize, tokenise what makes the item's features: deterministic, on the CPU.

        Raises:
            RowError: the sample cannot be used.
        """

    @abstractmethod
    def items(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample item"]:
        """Features of prepared items, float32; none depends on its batch mates."""

    def prepare_text(self, text: str) -> Prepared:  # noqa: ARG002 - read by those that can
        """Tokens of a prompt or a context.

        Raises:
            ConfigError: this backbone does not read texts alone.
        """
        raise self._refusal("[a text alone]", "a backbone that reads texts alone (clip, chat, pixels)")

    def texts(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample text"]:
        """Features of prepared texts, float32.

        Raises:
            ConfigError: this backbone does not read texts alone.
        """
        got = f"[{len(batch)} texts alone]"
        raise self._refusal(got, "a backbone that reads texts alone (clip, chat, pixels)")

    def pixel_items(
        self, pixels: Float[Tensor, "sample 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "sample item"]:
        """Features of pictures as tensors in [0, 1], with their graph, where `differentiable`.

        Raises:
            ConfigError: this backbone reads files only.
        """
        got = f"[{len(prompts)} pictures as tensors of {tuple(pixels.shape)}]"
        raise self._refusal(
            got,
            "a backbone that keeps their graph (clip, blip, pixels)",
        )

    def _refusal(self, got: str, expected: str) -> ConfigError:
        return ConfigError(explain(f"backbone {type(self).__name__}", got=got, expected=expected))

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What can change features, as JSON types: weight hashes, preprocessing, templates."""


def _picture(sample: Sample) -> Any:
    if sample.image is None:
        message = explain("backbone", got="[a sample without image]", expected="Sample.image")
        raise RowError(message, reason="missing_image")
    return to_image(sample.image)


class ClipFeatures(Backbone):
    """Projected embeddings of CLIP or SigLIP, of any length: picture and texts in one space.

    Args:
        encoder: of pictures and prompts.
    """

    differentiable = True

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        self.item_width = self.prompt_width = self.context_width = encoder.feature_size
        self.text_limit = encoder.text_limit

    @property
    def network(self) -> nn.Module | None:
        """Both towers."""
        found: nn.Module | None = getattr(self.encoder, "network", None)
        return found

    def prepare(self, sample: Sample) -> Prepared:
        """The preprocessed picture."""
        return Prepared({"pixels": self.encoder.preprocessing(_picture(sample))})

    def items(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample item"]:
        """Embeddings of pictures."""
        return self.encoder.image_features(torch.stack([prepared.inputs["pixels"] for prepared in batch]))

    def prepare_text(self, text: str) -> Prepared:
        """Tokens; the end token is kept where they are cut."""
        ids, cut = self.encoder.tokens(text)
        return Prepared({"ids": ids}, cut)

    def texts(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample text"]:
        """Embeddings of texts."""
        return self.encoder.text_features(torch.stack([prepared.inputs["ids"] for prepared in batch]))

    def pixel_items(
        self,
        pixels: Float[Tensor, "sample 3 height width"],
        prompts: Sequence[str],  # noqa: ARG002 - other backbones read picture and prompt together
    ) -> Float[Tensor, "sample item"]:
        """Embeddings of pictures as tensors, with their graph."""
        return self.encoder.image_features(self.encoder.preprocessing.tensor(pixels))

    def settings(self) -> Mapping[str, Any]:
        """Weights, preprocessing and text limit."""
        return {"kind": "clip", **self.encoder.settings()}


class BlipFeatures(Backbone):
    """ImageReward's BLIP: the prompt's [CLS] state after cross-attention to the picture, before the head.

    Args:
        network: loaded.
        tokens: of prompts.
        preprocessing: of pictures.
        weights: file name to hash.
        device: where the network stands.
        dtype: of the towers.
    """

    differentiable = True

    def __init__(
        self,
        network: ImageRewardNetwork,
        *,
        tokens: PromptTokens,
        preprocessing: Preprocessing,
        weights: Mapping[str, str],
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.blip = network.to(self.device).eval().requires_grad_(False)
        self.tokens, self.preprocessing, self.weights = tokens, preprocessing, dict(weights)
        self.item_width = int(network.text.config.hidden_size)
        self.text_limit = tokens.length

    @property
    def network(self) -> nn.Module | None:
        """Both towers, and the published head, which nobody asks."""
        return self.blip

    def prepare(self, sample: Sample) -> Prepared:
        """The preprocessed picture and the prompt's tokens."""
        row = self.tokens.encode(sample.prompt)
        pixels = self.preprocessing(_picture(sample))
        return Prepared({"pixels": pixels, "ids": row.ids, "mask": row.mask}, row.truncated)

    def items(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample item"]:
        """[CLS] states of pictures and prompts."""
        pixels, ids, mask = (
            torch.stack([prepared.inputs[name] for prepared in batch]) for name in ("pixels", "ids", "mask")
        )
        return self._states(pixels, ids, mask)

    def pixel_items(
        self, pixels: Float[Tensor, "sample 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "sample item"]:
        """[CLS] states of pictures as tensors, with their graph."""
        ids, mask = self.tokens.encode_all(prompts)
        return self._states(self.preprocessing.tensor(pixels), ids, mask)

    def _states(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        image = self.blip.vision(pixel_values=pixels.to(self.device, self.dtype)).last_hidden_state
        found: Tensor = self.blip.text(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=self.device),
            is_decoder=False,
        ).last_hidden_state[:, 0]
        return found.float()

    def settings(self) -> Mapping[str, Any]:
        """Weights, preprocessing and length of prompts."""
        return {
            "kind": "blip",
            "weights": self.weights,
            "preprocessing": self.preprocessing.settings(),
            "text_length": self.tokens.length,
        }


QUESTION = "Text: {prompt}\nHow well does it follow the text, and how good is it?"
"""What a chat model is asked by default; `{prompt}` is the sample's."""


class ChatFeatures(Backbone):
    """The last hidden state of a chat model behind a question about a picture or clip, before any answer.

    Args:
        chat: the model.
        question: with `{prompt}`.

    Raises:
        ConfigError: the question has no place for the prompt.
    """

    def __init__(self, chat: ChatModel, *, question: str = QUESTION) -> None:
        if "{prompt}" not in question:
            expected = "a text with {prompt}"
            raise ConfigError(explain("backbone chat question", got=question, expected=expected))
        self.chat, self.question = chat, question
        config = chat.network.config
        self.item_width = int(getattr(config, "text_config", config).hidden_size)
        self.context_width = self.item_width

    @property
    def network(self) -> nn.Module | None:
        """The whole model."""
        found: nn.Module = self.chat.network
        return found

    def prepare(self, sample: Sample) -> Prepared:
        """The question as tensors, with what it is about."""
        shown = self.chat.shown(sample_media(sample), where="backbone chat")
        text = self.question.replace("{prompt}", self.chat.safe(sample.prompt))
        return Prepared({"row": self.chat.question(text, [shown])})

    def items(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample item"]:
        """States behind the questions."""
        return self._states([prepared.inputs["row"] for prepared in batch])

    def prepare_text(self, text: str) -> Prepared:
        """A text alone, as a question."""
        return Prepared({"row": self.chat.question(self.chat.safe(text))})

    def texts(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample text"]:
        """States behind texts."""
        return self._states([prepared.inputs["row"] for prepared in batch])

    def _states(self, rows: Sequence[Mapping[str, Tensor]]) -> Tensor:
        # Only rows of one shape share a call: nothing is padded, so nothing depends on batch mates.
        groups: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            shape = tuple((name, tuple(value.shape)) for name, value in sorted(row.items()))
            groups.setdefault(shape, []).append(place)
        found: dict[int, Tensor] = {}
        for places in groups.values():
            given = {name: torch.cat([rows[place][name] for place in places]) for name in rows[places[0]]}
            given = {name: self._moved(value) for name, value in given.items()}
            states = self.chat.network.model(**given, use_cache=False).last_hidden_state[:, -1]
            found |= dict(zip(places, states.float(), strict=True))
        return torch.stack([found[place] for place in range(len(rows))])

    def _moved(self, value: Tensor) -> Tensor:
        dtype = self.chat.network.dtype if value.is_floating_point() else value.dtype
        return value.to(self.chat.device, dtype)

    def settings(self) -> Mapping[str, Any]:
        """The model, and the question."""
        return {"kind": "chat", **self.chat.settings(), "question": self.question, "state": "last token"}


class PixelBackbone(Backbone):
    """Pixels and words without a network: for small worlds, and the bar that a real backbone must clear."""

    differentiable = True

    def __init__(self, features: PixelFeatures, *, device: str | torch.device = "cpu") -> None:
        self.features, self.device = features, torch.device(device)
        self.item_width = features.item_width
        self.prompt_width = self.context_width = features.words

    def prepare(self, sample: Sample) -> Prepared:
        """The picture's features."""
        return Prepared({"features": self.features.of_image(_picture(sample))})

    def items(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample item"]:
        """Features of pictures."""
        return torch.stack([prepared.inputs["features"] for prepared in batch]).to(self.device)

    def prepare_text(self, text: str) -> Prepared:
        """Counts of words."""
        return Prepared({"features": self.features.of_text(text)})

    def texts(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample text"]:
        """Counts of words."""
        return self.items(batch)

    def pixel_items(
        self,
        pixels: Float[Tensor, "sample 3 height width"],
        prompts: Sequence[str],  # noqa: ARG002 - other backbones read picture and prompt together
    ) -> Float[Tensor, "sample item"]:
        """Features of pictures as tensors, with their graph."""
        return self.features.of_tensor(pixels.to(self.device))

    def settings(self) -> Mapping[str, Any]:
        """Sizes."""
        return {"kind": "pixels", **self.features.settings()}


# ---------------------------------------------------------------------------------------------- loading


def _clip(*, name: str, weights: str | Path | None, device: Any, dtype: Any, **_: Any) -> Backbone:
    found = load_backbone(
        name or "vit-h-14", weights=weights, reward="backbone clip", device=device, dtype=dtype
    )
    return ClipFeatures(found)


def _blip(*, weights: str | Path | None, device: Any, dtype: Any, **_: Any) -> Backbone:
    from mmalign.rewards.loading import card

    known = card("imagereward")
    model, tokenizer = known.weights
    folder = resolve(model, folder=weights, reward="backbone blip")
    words = resolve(tokenizer, folder=weights, reward="backbone blip")
    network = load_image_reward(folder / "ImageReward.pt", folder / "med_config.json", dtype=dtype)
    vocabulary = int(network.text.config.vocab_size)
    return BlipFeatures(
        network,
        tokens=PromptTokens.blip(words, length=known.text_limit or 35, vocabulary=vocabulary),
        preprocessing=Preprocessing(size=network.image_size),
        weights={**hashes(folder, model.files), **hashes(words, tokenizer.files)},
        device=device,
        dtype=dtype,
    )


def _chat(
    *, name: str, weights: str | Path | None, device: Any, dtype: Any, question: str = "", **options: Any
) -> Backbone:
    found = load_chat_model(
        weights=weights,
        model=name or None,
        reward="backbone chat",
        device=device,
        dtype=dtype,
        max_pixels=options.get("max_pixels"),
    )
    return ChatFeatures(found, question=question or QUESTION)


def _pixels(*, device: Any, size: int = 16, colours: int = 4, words: int = 64, **_: Any) -> Backbone:
    return PixelBackbone(PixelFeatures(size=size, colours=colours, words=words), device=device)


KINDS: dict[str, Callable[..., Backbone]] = {"clip": _clip, "blip": _blip, "chat": _chat, "pixels": _pixels}
"""Kind of backbone to what loads it."""


def make_backbone(
    kind: str,
    *,
    name: str = "",
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Backbone:
    """A backbone by its kind.

    Args:
        kind: "clip", "blip", "chat" or "pixels".
        name: which one: a short name or hub id.
        weights: folder with its files; None = the hub's cache, or the hub.
        device: where it stands.
        dtype: of its weights.
        options: `question` and `max_pixels` (chat), `size`, `colours` and `words` (pixels).

    Raises:
        UnknownNameError: no such kind or name.
        CheckpointError: files are missing or do not fit.
    """
    if kind not in KINDS:
        raise unknown_name("backbone", kind, KINDS)
    return KINDS[kind](name=name, weights=weights, device=device, dtype=dtype, **options)
