"""CLIP-FlanT5, the model of the VQAScore paper: T5 reads CLIP's patches through two linear layers.

Its score is sqrt(P(Yes) P(</s> | Yes)): the tokenizer closes the answer, and the mean runs over both tokens.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from mmalign.errors import CheckpointError, ConfigError, RowError, explain
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.checkpoints import fill, read_state
from mmalign.rewards.published_texts import text_sha256
from mmalign.rewards.sample import Sample, to_image
from mmalign.rewards.vision_language import without_special_tokens
from mmalign.rewards.vqa import answer_probability, filled
from mmalign.rewards.weights import hashes, resolve

__all__ = ["QUESTION", "SYSTEM", "ClipFlanT5", "build", "square", "text_chunks"]

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
"""What CLIP-FlanT5 was trained to answer; `{}` is the prompt."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The sentence before the question: the Vicuna v1 conversation."""

LIMIT = 2048
"""Tokens of the question that are read, the picture counting as one."""


def square(image: Image.Image, colour: Sequence[int]) -> Image.Image:
    """The picture centred on a square of this colour; an odd pixel goes right or bottom."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    padded = Image.new("RGB", (side, side), tuple(colour))
    padded.paste(image, ((side - width) // 2, (side - height) // 2))
    return padded


def text_chunks(tokenizer: Any, question: str) -> tuple[list[int], list[int]]:
    """Token ids before and after the picture; either chunk is closed by `</s>`, as in training."""
    before = f"{SYSTEM} USER: "
    after = f"\n{question} ASSISTANT: "
    return tokenizer(before)["input_ids"], tokenizer(after)["input_ids"]


class ClipFlanT5(ModelReward):
    """VQAScore by CLIP-FlanT5.

    Args:
        card: what it is.
        folder: the model: config.json and its weights, .safetensors or .bin, in one file or several.
        tokenizer: Flan-T5's tokenizer.
        vision: CLIP ViT-L/14 at 336 pixels: config.json, preprocessor_config.json, and weights where the
            model's own file has none.
        question: with one `{}` for the prompt.
        device: where the network stands.
        dtype: of the network.

    Raises:
        CheckpointError: a key is missing or left over.
        ConfigError: `Yes` is not one token and `</s>`; a projector or layer this code does not know.
    """

    def __init__(
        self,
        card: Card,
        *,
        folder: Path,
        tokenizer: Path,
        vision: Path,
        question: str = QUESTION,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil

        super().__init__(card, device=device, dtype=dtype)
        filled(question, "", what=f"reward {card.name} question")
        self.folders = {"model": folder, "tokenizer": tokenizer, "vision": vision}
        self.question = question
        self.tokenizer = AutoTokenizer.from_pretrained(str(tokenizer))
        self.answer = list(self.tokenizer("Yes")["input_ids"])
        if len(self.answer) != 2 or self.answer[1] != self.tokenizer.eos_token_id:
            got = f"[{self.tokenizer.convert_ids_to_tokens(self.answer)}]"
            raise ConfigError(explain(f"{tokenizer} tokens of 'Yes'", got=got, expected="one token and </s>"))
        self.processor = CLIPImageProcessorPil.from_pretrained(str(vision))
        self.layer = -2
        self._build(folder, vision)

    def _build(self, folder: Path, vision: Path) -> None:
        from accelerate import init_empty_weights
        from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

        given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _check_configuration(given, folder)
        self.layer = int(given.get("mm_vision_select_layer", -2))
        state, self.files = _weights(folder, self.dtype)
        own_tower = {
            name.removeprefix(_TOWER): value for name, value in state.items() if name.startswith(_TOWER)
        }
        if own_tower:
            tower_state, self.tower_files = own_tower, tuple[str, ...]()
        else:
            tower_state, self.tower_files = _weights(vision, self.dtype)
        tower_config = CLIPVisionConfig.from_pretrained(str(vision))
        with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
            self.language = T5ForConditionalGeneration(T5Config.from_dict(given))
            self.tower = CLIPVisionModel(tower_config)
        width = int(given["d_model"])
        with torch.device("meta"):  # no random numbers are drawn, all come from the files
            self.projector = nn.Sequential(
                nn.Linear(tower_config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
            )
        where = str(folder)
        _fill_tower(self.tower, tower_state, where=str(folder if own_tower else vision))
        prefix = "mm_projector."
        projector = {
            name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
        }
        fill(self.projector, projector, where=f"{where} mm_projector", assign=True)
        text = {n: v for n, v in state.items() if not n.startswith((prefix, _TOWER))}
        _fill_language(self.language, text, where=where)
        for part in (self.language, self.tower, self.projector):
            part.to(self.device).eval().requires_grad_(False)

    def prepare(self, sample: Sample) -> Prepared:
        """The picture, squared with the mean colour; the question's two chunks.

        Raises:
            RowError: no picture (`missing_media`), or one that cannot be read.
        """
        if sample.image is None:
            raise RowError(explain("Sample.image", got=None, expected="a picture"), reason="missing_media")
        image = square(to_image(sample.image), [int(255 * mean) for mean in self.processor.image_mean])
        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
        prompt = without_special_tokens(sample.prompt, self.tokenizer)
        before, after = text_chunks(self.tokenizer, filled(self.question, prompt, what="question"))
        kept = LIMIT - len(before) - 1
        ids = {"before": torch.tensor(before), "after": torch.tensor(after[:kept]), "pixels": pixels}
        return Prepared(ids, truncated=len(after) > kept)

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """sqrt(P(Yes) P(</s> | Yes))."""
        pixels = torch.cat([sample.inputs["pixels"] for sample in batch]).to(self.device, self.dtype)
        states = self.tower(pixels, output_hidden_states=True).hidden_states[self.layer]
        patches = self.projector(states[:, 1:])  # without the class token
        table = self.language.get_input_embeddings()
        rows = [
            torch.cat(
                [
                    table(sample.inputs["before"].to(self.device)),
                    shown,
                    table(sample.inputs["after"].to(self.device)),
                ]
            )
            for sample, shown in zip(batch, patches, strict=True)
        ]
        embedded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(embedded.shape[1], device=self.device) < lengths.unsqueeze(1)).long()
        start = self.language.config.decoder_start_token_id
        given = torch.tensor([[start, self.answer[0]]], device=self.device).expand(len(rows), -1)
        logits = self.language(
            inputs_embeds=embedded, attention_mask=mask, decoder_input_ids=given, use_cache=False
        ).logits
        return answer_probability(logits.float(), self.answer).unsqueeze(1)

    def settings(self) -> Mapping[str, Any]:
        """Hashes of weights and tokenizer; question and preprocessing."""
        weights = dict(hashes(self.folders["model"], (*self.files, "config.json")))
        tower = (*self.tower_files, "config.json", "preprocessor_config.json")
        tokenizer = ("*.json", "spiece.model")
        return {
            "weights": weights,
            "vision": dict(hashes(self.folders["vision"], tower)),
            "tokenizer": dict(hashes(self.folders["tokenizer"], tokenizer)),
            "templates": [text_sha256(SYSTEM), text_sha256(self.question)],
            "preprocessing": {"square": "mean colour", "resize": "bicubic (PIL)", "layer": self.layer},
        }


_TOWER = "vision_tower.vision_tower."


def _check_configuration(given: Mapping[str, Any], folder: Path) -> None:
    known = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch"}
    for name, expected in known.items():
        if given.get(name, expected) != expected:
            raise ConfigError(explain(f"{folder}/config.json {name}", got=given[name], expected=expected))


def _weights(folder: Path, dtype: torch.dtype) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """All tensors of a folder in `dtype`, and the files they are in; safetensors where there are some.

    Raises:
        CheckpointError: it holds none.
    """
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            state: dict[str, Tensor] = {}
            for file in files:
                state.update({name: value.to(dtype) for name, value in read_state(file).items()})
            return state, tuple(file.name for file in files)
    raise CheckpointError(
        explain(str(folder), got="[no weights]", expected="*.safetensors or pytorch_model*.bin")
    )


def _fill_tower(tower: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """The vision half of a CLIP checkpoint; its text half and projections are left."""

    def rename(name: str) -> str | None:
        return name.removeprefix("vision_model.") if name.startswith("vision_model.") else None

    ignored = ("*.position_ids", "text_model.*", "text_projection.*", "visual_projection.*", "logit_scale")
    fill(tower, state, where=where, ignored=ignored, rename=rename, assign=True)


def _fill_language(language: Any, state: Mapping[str, Tensor], *, where: str) -> None:
    """T5, whose shared embedding stands under up to four names in files."""
    shared = state.get("shared.weight")
    if shared is None:
        message = f"{where}: no shared.weight, so it is no T5; its keys start with {sorted(state)[:3]}."
        raise CheckpointError(message)
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    full = {name: value for name, value in state.items() if name not in ("embed_tokens.weight", *names)}
    full.update(dict.fromkeys(names, shared))
    if language.config.tie_word_embeddings:
        full["lm_head.weight"] = shared
    if len(shared) != language.config.vocab_size:  # the tokenizer's size, as it was resized in training
        language.config.vocab_size = len(shared)
        language.set_input_embeddings(nn.Embedding(len(shared), shared.shape[1], device="meta"))
        language.lm_head = nn.Linear(shared.shape[1], len(shared), bias=False, device="meta")
    fill(language, full, where=where, assign=True)
    language.tie_weights()


def build(
    card: Card,
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    question: str = QUESTION,
    size: str = "xxl",
) -> ClipFlanT5:
    """CLIP-FlanT5 from a folder or the hub.

    Raises:
        ConfigError: a size that is not published.
    """
    if size not in ("xxl", "xl"):
        raise ConfigError(explain(f"reward {card.name} size", got=size, expected="xxl or xl"))
    model, tokenizer, vision = (
        resolve(
            dataclasses.replace(described, repository=described.repository.replace("xxl", size)),
            folder=weights,
            reward=card.name,
        )
        for described in card.weights
    )
    return ClipFlanT5(
        card,
        folder=model,
        tokenizer=tokenizer,
        vision=vision,
        question=question,
        device=device,
        dtype=dtype,
    )
