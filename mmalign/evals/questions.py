"""Questions about a picture, answered by BLIP: T2I-CompBench's tool, and one for DPG-Bench."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.errors import CheckpointError, explain
from mmalign.rewards.card import Weights
from mmalign.rewards.clip_models import check_keys
from mmalign.rewards.pixels import Preprocessing
from mmalign.rewards.weights import hashes, resolve

__all__ = ["BLIP_VQA", "BlipQuestions", "load_questions", "yes_or_no"]

BLIP_VQA = "Salesforce/blip-vqa-capfilt-large"
"""The weights of the released script, as transformers publishes them."""

_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
_MAX_TOKENS = 35
_MAX_WORDS = 50

Found = TypeVar("Found")


class BlipQuestions:
    """Answers questions about one picture, all of them in one pass.

    Pictures are squashed to the network's square (bicubic); questions are put in lower case, lose their
    punctuation but for the question mark, start with BLIP's [ENC] token and keep 35 tokens. No answer depends
    on the other questions.

    Args:
        model: `BlipForQuestionAnswering`.
        tokenizer: BERT's, as BLIP uses it.
        name: what reports call it.
        weights: file name to SHA-256, for provenance.

    Raises:
        CheckpointError: the vocabulary has no single token for yes or no.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str = "blip", weights: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._weights = dict(weights or {})
        self._preprocessing = Preprocessing(size=int(model.config.vision_config.image_size), fit="squash")
        self._start = int(model.decoder_start_token_id)
        words = {word: int(tokenizer.convert_tokens_to_ids(word)) for word in ("yes", "no")}
        unknown = [word for word, number in words.items() if number == tokenizer.unk_token_id]
        if unknown:
            message = explain(f"{name} tokenizer", got=unknown, expected="single tokens for yes and no")
            raise CheckpointError(message)
        self._yes, self._no = words["yes"], words["no"]

    def provenance(self) -> Mapping[str, Any]:
        """Name, hashes, preprocessing and how questions are written; JSON types."""
        return {
            "name": self.name,
            "weights": self._weights,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "preprocessing": self._preprocessing.settings(),
            "question_tokens": _MAX_TOKENS,
        }

    def probabilities(self, picture: Image.Image, questions: Sequence[str]) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of the first token of each answer.

        Source: Karine-Huang/T2I-CompBench, BLIPvqa_eval/models/blip_vqa.py, vqa_prob.
        """
        return self._each(picture, questions, self._chances)

    def answers(self, picture: Image.Image, questions: Sequence[str]) -> list[str]:
        """What the model says to each question: beam search with three beams, at most ten tokens."""
        return self._each(picture, questions, self._said)

    __call__ = answers

    @torch.inference_mode()
    def _each(
        self, picture: Image.Image, questions: Sequence[str], read: Callable[[Tensor], list[Found]]
    ) -> list[Found]:
        """What `read` finds for each question in the encoder's states.

        Questions of equal length share a pass and none is padded: the cross-attention of transformers' BLIP
        takes no notice of its mask, so that the decoder would read padding.
        """
        if not questions:
            return []
        texts = [written(question) for question in questions]
        ids = self._tokenizer(texts, truncation=True, max_length=_MAX_TOKENS)["input_ids"]
        by_length: dict[int, list[int]] = {}
        for place, row in enumerate(ids):
            by_length.setdefault(len(row), []).append(place)
        model = self._model
        pixels = self._preprocessing(picture.convert("RGB"))[None].to(model.device, model.dtype)
        seen = model.vision_model(pixel_values=pixels).last_hidden_state
        found: dict[int, Found] = {}
        for places in by_length.values():
            tokens = torch.tensor([ids[place] for place in places], device=model.device)
            # [DEC] and [ENC] were added in this order behind BERT's vocabulary.
            tokens[:, 0] = self._start + 1
            states = model.text_encoder(
                input_ids=tokens, encoder_hidden_states=seen.expand(len(places), -1, -1)
            ).last_hidden_state
            found.update(zip(places, read(states), strict=True))
        return [found[place] for place in range(len(questions))]

    def _chances(self, states: Float[Tensor, "question token feature"]) -> list[float]:
        start = torch.full((len(states), 1), self._start, device=states.device)
        logits = self._model.text_decoder(input_ids=start, encoder_hidden_states=states).logits[:, 0]
        # The softmax over the vocabulary cancels in the ratio.
        chances: list[float] = logits[:, [self._yes, self._no]].double().softmax(dim=-1)[:, 0].tolist()
        return chances

    def _said(self, states: Float[Tensor, "question token feature"]) -> list[str]:
        ids = self._model.text_decoder.generate(
            input_ids=torch.full((len(states), 1), self._start, device=states.device),
            encoder_hidden_states=states,
            num_beams=3,
            do_sample=False,
            max_length=10,
            min_length=1,
            eos_token_id=self._tokenizer.sep_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        texts = self._tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
        return [str(text).strip() for text in texts]


def written(question: str) -> str:
    """A question as BLIP was taught to read it.

    >>> written('A "Green" bench?')
    'a green bench?'
    """
    kept = re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ")
    return " ".join(kept.split(" ")[:_MAX_WORDS])


def yes_or_no(
    probabilities: Callable[[Image.Image, Sequence[str]], Sequence[float]],
    *,
    name: str = "yes above one half",
) -> Callable[[Image.Image, Sequence[str]], list[str]]:
    """A tool that says yes where P(yes) is above one half and no elsewhere, from one that gives P(yes).

    DPG-Bench can so be run with any model whose probabilities are at hand. The result carries `name`.
    """

    def said(picture: Image.Image, questions: Sequence[str]) -> list[str]:
        return ["yes" if value > 0.5 else "no" for value in probabilities(picture, questions)]

    said.name = name  # type: ignore[attr-defined]
    return said


def load_questions(
    weights: str | Path = BLIP_VQA,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> BlipQuestions:
    """BLIP for questions, from a folder or from the hub.

    Args:
        weights: folder in the layout of transformers, or hub id.
        device: where it runs.
        dtype: of the network.
        revision: commit on the hub; None is its main branch.

    Raises:
        CheckpointError: the weights are nowhere, or do not fill the network.
        ConfigError: a folder that lacks a file.
    """
    from transformers import AutoTokenizer, BlipForQuestionAnswering

    local = Path(weights)
    name = local.name if local.is_dir() else str(weights)
    wanted = Weights(name, _FILES, revision=revision)
    folder = resolve(wanted, folder=local if local.is_dir() else None, reward="questions")
    model, report = BlipForQuestionAnswering.from_pretrained(
        str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    ignored = ("*.embeddings.position_ids",)
    check_keys(report["missing_keys"], report["unexpected_keys"], where=str(folder), ignored=ignored)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return BlipQuestions(model.to(device), tokenizer, name=name, weights=hashes(folder, _FILES))
