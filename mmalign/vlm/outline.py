"""A language model without its weights: what a dry run counts, from configs and the processor alone.

Everything lies on the meta device, where tensors have shapes and no numbers: the plan of a model of 72
billion weights needs neither a card nor its weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image, ImageOps
from torch import nn

from mmalign.batch import Candidate, PreferenceRow
from mmalign.errors import RowError
from mmalign.likelihood.head_tiles import tiles
from mmalign.train.quantization import PER_WEIGHT
from mmalign.train.recomputing import recompute_layers
from mmalign.vlm.inputs import Features, VlmInputs
from mmalign.vlm.network import LanguageNetwork
from mmalign.vlm.packing import inputs_of, lay_out
from mmalign.vlm.reader import DialogueReader
from mmalign.vlm.traits import VlmTraits

if TYPE_CHECKING:
    from mmalign.train.config import ModelConfig
    from mmalign.train.token_sections import TokensConfig

__all__ = ["ModelOutline", "OutlinedBatch", "outline_network"]

_PICTURE = (1280, 960)
_ANSWER = "There is a red car in front of a white house, and two people walk past it. " * 9
"""What is counted where the data are not at hand: a photograph, and answers of about 180 tokens."""


@dataclass(frozen=True, eq=False)
class OutlinedBatch:
    """A micro-batch as shapes.

    Args:
        inputs: on the meta device, features in place of media.
        lengths: tokens of each row, filled up to the longest.
        visual: tokens of the rows that stand for images and videos.
        answers: tokens of every answer.
    """

    inputs: VlmInputs
    lengths: tuple[int, ...]
    visual: int
    answers: tuple[int, ...]

    def __str__(self) -> str:
        """In words, for the plan."""
        rows = f"{len(self.lengths)} rows of {min(self.lengths)} to {max(self.lengths)} tokens"
        media = f"{self.visual} of all tokens are images or videos"
        return f"{rows}; {media}; answers of {min(self.answers)} to {max(self.answers)} tokens"


@dataclass(frozen=True, eq=False)
class ModelOutline:
    """A model's shapes with its processor.

    Args:
        network: on the meta device, frozen.
        reader: rows to tokens.
        settings: the run's `model` section.
        tokens: the run's `tokens` section.
        notes: what the plan assumes.
    """

    network: LanguageNetwork
    reader: DialogueReader
    settings: "ModelConfig"
    tokens: "TokensConfig"
    notes: list[str] = field(default_factory=list)

    @property
    def traits(self) -> VlmTraits:
        """What is particular to the family."""
        return self.reader.traits

    @property
    def adapter_targets(self) -> str:
        """A regular expression for the layers that LoRA goes on by default."""
        return self.traits.adapter_targets(
            self.network.model, vision=self.tokens.train_vision, projector=self.tokens.train_projector
        )

    def trains(self, name: str) -> bool:
        """Whether a parameter trains under full fine-tuning, by its name."""
        wanted = {"vision": self.tokens.train_vision, "projector": self.tokens.train_projector}
        return wanted.get(self.traits.part_of(name), True)

    def frozen_bytes(self) -> int:
        """Bytes of the model's weights as it is loaded, quantised where the run asks for it."""
        per_weight = PER_WEIGHT.get(self.settings.quantization or "")
        head = self.network.model.get_output_embeddings()
        narrow = {
            id(module.weight)
            for name, module in self.network.model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
            if per_weight is not None and self.traits.part_of(name) == "language"
        }
        total = 0.0
        for parameter in self.network.parameters():
            own = parameter.element_size()
            total += parameter.numel() * (cast("float", per_weight) if id(parameter) in narrow else own)
        return round(total)

    def example_row(self) -> PreferenceRow:
        """A pair of answers to a question about a photograph, or about a clip where frames are set."""
        frames = self.tokens.num_frames or (self.tokens.max_frames if self.tokens.fps is not None else None)
        sees = self.traits.sees
        picture = _picture()
        clips = ((picture,) * frames,) if frames is not None and "video" in sees else ()
        return PreferenceRow(
            prompt="What is in the picture? Describe it in detail.",
            candidates=(Candidate(text=_ANSWER), Candidate(text=f"I see this. {_ANSWER}")),
            images=() if clips or "image" not in sees else (picture,),
            videos=clips,
            source="a made-up dialogue",
            id="example",
        )

    def answered(self, row: PreferenceRow, num_tokens: int) -> PreferenceRow:
        """The row with two made-up answers of so many tokens in place of those that training will write."""
        word = " a"
        per_word = max(
            len(self.traits.tokenizer(word * 64, add_special_tokens=False)["input_ids"]) / 64, 1e-3
        )
        text = (word * max(round(num_tokens / per_word), 1)).strip()
        return replace(row, kind="pairs", candidates=(Candidate(text=text), Candidate(text=f"{text} b")))

    def batch(self, rows: Sequence[PreferenceRow], size: int, *, made_up: bool) -> OutlinedBatch:
        """A micro-batch of the longest of the rows that can be read.

        Args:
            rows: of the data, or made up.
            size: rows of the micro-batch; repeated where there are fewer.
            made_up: whether rows carry no numbers of the data.

        Raises:
            RowError: none can be read; the first one's reason.
        """
        # Of several spoilt versions one is trained on; another row's picture is as large as the row's own.
        spoilt = replace(self.reader.spoilt, further=())
        if getattr(spoilt.corrupt, "needs_other", False):
            spoilt = replace(spoilt, corrupt=_inverted)
        record = frozenset[str]() if made_up else self.reader.record
        reader = replace(self.reader, spoilt=spoilt, record=record)
        examples: list[dict[str, Any]] = []
        errors: list[RowError] = []
        for number, row in enumerate(rows):
            try:
                examples.append(reader(row, key=number))
            except RowError as error:
                errors.append(error)
        if not examples:
            raise errors[0]
        if errors:
            self.notes.append(
                f"{len(errors)} of {len(rows)} rows looked at cannot be used; first: {errors[0]}"
            )
        examples.sort(key=_length, reverse=True)
        chosen = [examples[number % len(examples)] for number in range(size)]
        laid = lay_out(chosen, self.traits.join, packed=self.packed, native=False)
        return self._outlined(inputs_of(laid), tuple(int(value) for value in laid["mask"].sum(-1).flatten()))

    @property
    def packed(self) -> bool:
        """Whether the plan takes answers to share the row of their prompt; a run tests it."""
        return self.tokens.packing != "plain" and self.settings.attention != "flash"

    def _outlined(self, inputs: VlmInputs, answers: tuple[int, ...]) -> OutlinedBatch:
        width = int(self.traits.text_config.hidden_size)
        dtype = self.network.model.get_input_embeddings().weight.dtype
        features = {
            kind: Features(torch.empty(int(visual.source.max()) + 1, width, dtype=dtype))
            for kind, visual in inputs.visual.items()
        }
        lengths = tuple(int(row) for row in inputs.is_real.sum(1))
        visual = int((inputs.kinds > 0).sum())
        # Rows aside are read without gradient: nothing of them is kept.
        kept = replace(inputs, features=features or None, media={}, aside=None, order=None)
        shapes = kept.to("meta")
        return OutlinedBatch(shapes, lengths, visual, answers)

    def mask_bytes(self, batch: OutlinedBatch) -> int:
        """Bytes of the attention masks that a forward pass holds: one per layer in the dtype of the products.

        The fused kernels turn a mask of booleans into numbers at every layer; recomputed layers hold one.
        """
        masks = self.network.masks(batch.inputs)
        if masks is None:
            return 0
        largest = max(mask.numel() for mask in (masks.values() if isinstance(masks, dict) else (masks,)))
        count = int(self.traits.text_config.num_hidden_layers)
        layers = 1 if self.settings.gradient_checkpointing else count
        half = int(self.network.model.get_input_embeddings().weight.element_size())
        return int(largest) * (1 + half * layers)

    def tile_bytes(self, batch: OutlinedBatch) -> int:
        """Bytes of logits and their derivative that exist together: one tile, however long answers are."""
        scored = int(batch.inputs.place.shape[0])
        vocabulary = int(self.network.model.get_output_embeddings().weight.shape[0])
        spans = tiles(scored, vocabulary, self.tokens.head_chunk)
        rows: int = max((stop - start for start, stop in spans), default=0)
        return 2 * rows * vocabulary * 4


def outline_network(
    settings: "ModelConfig", config: Any, traits: type[VlmTraits], processor: Any, *, dtype: torch.dtype
) -> LanguageNetwork:
    """The network of a config on the meta device: frozen, in evaluation mode.

    Args:
        settings: of the run's `model` section; `source` is not read again.
        config: of transformers.
        traits: of the family.
        processor: the model's.
        dtype: of the weights.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    maker: Any = AutoModelForImageTextToText if traits.sees else AutoModelForCausalLM
    with torch.device("meta"):
        model = maker.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    if settings.gradient_checkpointing:
        recompute_layers(model, settings.gradient_checkpointing)
    return LanguageNetwork(model, traits(model.config, processor)).requires_grad_(False)


def _length(example: dict[str, Any]) -> int:
    prompts = sum(prompt.ids.shape[0] for prompt in example["prompts"])
    return int(prompts + sum(answer.ids.shape[0] for answer in example["answers"]))


def _inverted(image: Image.Image, seed: int) -> Image.Image:
    del seed
    return ImageOps.invert(image)


def _picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", _PICTURE, "white").save(buffer, format="PNG")
    return buffer.getvalue()
