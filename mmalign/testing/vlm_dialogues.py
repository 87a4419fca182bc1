"""Dialogues about noise, tiny models to score them with, and what plain transformers says of them."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmalign import registry
from mmalign.batch import Batch, Candidate, Conditioning, Labels, PreferenceRow, RowKeys
from mmalign.likelihood.tokens import Tokens
from mmalign.train.adapters import Trainables, attach
from mmalign.train.config import AdapterConfig, ModelConfig
from mmalign.train.token_sections import TokensConfig
from mmalign.vlm.family import VlmModel
from mmalign.vlm.prompts import messages_of, render

__all__ = [
    "ANSWERS",
    "assert_same_gradient",
    "batch_of",
    "dialogue",
    "load_vlm",
    "own_sums",
    "photo",
    "shared_vlm",
    "token_log_probs",
    "with_adapter",
]

ANSWERS = ("Yes, a red circle.", "No. There are two blue squares in it, no circle.")


def load_vlm(
    family: str,
    folder: Path,
    *,
    model: Mapping[str, Any] | None = None,
    tokens: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> VlmModel:
    """A tiny model on the CPU, with settings of the run's `model` and `tokens` sections."""
    loaded: VlmModel = registry.find("families", family).load(
        ModelConfig(family=family, source=str(folder), **(model or {})),
        TokensConfig(**(tokens or {})),
        device="cpu",
        dtype=dtype,
        **options,
    )
    return loaded


shared_vlm = lru_cache(maxsize=None)(load_vlm)
"""Models that no test changes."""


def photo(seed: int, *, size: tuple[int, int] = (60, 50)) -> bytes:
    """A PNG of noise, (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def dialogue(
    number: int,
    *,
    images: int = 1,
    videos: int = 0,
    prompt: str = "What is there? Say it.",
    other: bool = False,
    answers: Sequence[str] = ANSWERS,
) -> PreferenceRow:
    """A pair of answers to a question about noise; `other` adds the first answer beside other pictures."""
    candidates = [Candidate(text=text) for text in answers]
    if other:
        replaced = tuple(photo(100 + number + place) for place in range(images))
        candidates.append(Candidate(text=answers[0], images=replaced))
    return PreferenceRow(
        prompt=prompt,
        candidates=tuple(candidates),
        images=tuple(photo(10 * number + place, size=(60 + 24 * place, 50)) for place in range(images)),
        videos=tuple(tuple(photo(50 * number + frame) for frame in range(4)) for _ in range(videos)),
        source=f"test:{number}",
        id=str(number),
    )


def batch_of(model: VlmModel, rows: Sequence[PreferenceRow]) -> Batch:
    """A micro-batch of rows, encoded."""
    collated = model.collate([model.example(row, key=7 + number) for number, row in enumerate(rows)])
    numbers = torch.arange(len(rows))
    keys = RowKeys(key=numbers, stratum=torch.zeros(len(rows)), num_strata=len(rows))
    encoded = model.encode(collated, keys)
    return Batch(
        clean=encoded.clean,
        conditioning=Conditioning(),
        labels=Labels.pairs(len(rows)),
        weight=torch.ones(len(rows)),
        valid=torch.ones(len(rows), dtype=torch.bool),
        keys=keys,
        element_mask=encoded.element_mask,
        recorded=encoded.recorded,
        context=encoded.context,
    )


def token_log_probs(model: VlmModel, rows: Sequence[PreferenceRow]) -> Tensor:
    """Log-probabilities `[prompt, candidate, token]` by the engine."""
    batch, likelihood = batch_of(model, rows), Tokens()
    evaluation = likelihood.evaluate(model.policy(model.network), batch, likelihood.draw(batch))
    assert evaluation.inner is not None
    return evaluation.inner


def with_adapter(model: VlmModel, *, seed: int = 0) -> Trainables:
    """LoRA on the default layers, moved away from its start."""
    config = AdapterConfig(rank=2)
    trainables = attach(model.network, config, default_targets=model.adapter_targets, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainables.parameters.values():
            parameter.data = parameter.data.to(model.bare_network.dtype)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trainables


def assert_same_gradient(found: Tensor | None, expected: Tensor | None) -> None:
    """Equal up to rounding; norms of transformers are in float32 whatever the model is in."""
    assert found is not None
    assert expected is not None
    assert float(expected.abs().max()) > 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def own_sums(model: VlmModel, hf_model: Any, row: PreferenceRow) -> list[float]:
    """Summed log-probability of each answer by a model's own loss, on its own processor's whole dialogue."""
    answers, sums = model.example(row, key=0)["answers"], []
    for candidate, answer in zip(row.candidates, answers, strict=True):
        length = answer.ids.shape[0]
        inputs = {
            name: value.to(hf_model.dtype) if value.is_floating_point() else value
            for name, value in _own_inputs(model, row, candidate).items()
            if name != "labels"
        }
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[:, -length:] = inputs["input_ids"][:, -length:]
        with torch.no_grad():
            sums.append(-float(hf_model(**inputs, labels=labels).loss) * length)
    return sums


def _own_inputs(model: VlmModel, row: PreferenceRow, candidate: Candidate) -> Mapping[str, Tensor]:
    """What the model's processor makes of prompt, pictures and answer in one call."""
    reader, processor = model.reader, model.traits.processor
    raw = row.images if candidate.images is None else candidate.images
    images = [Image.open(BytesIO(data)) for data in raw if isinstance(data, bytes)]
    seen = {"images": [images]} if images else {}
    found: Mapping[str, Tensor]
    if not model.traits.one_text:
        tags = model.traits.placeholder("image") * len(images)
        found = processor(text=[tags + row.prompt], suffix=[candidate.text], return_tensors="pt", **seen)
        return found
    messages = messages_of(
        row,
        candidate,
        counts=(len(images), 0),
        system_prompt=None,
        placeholders=reader.placeholders,
    )
    text = render(processor, messages) + reader.seam.lead + str(candidate.text) + reader.seam.end
    bos = model.traits.tokenizer.bos_token
    begins = bool(bos) and text.startswith(bos)
    found = processor(text=[text], return_tensors="pt", add_special_tokens=not begins, **seen)
    return found
