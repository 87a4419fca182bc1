"""Training of the base model of the toy world of dialogues, and the command that rebuilds it.

    python -m mmalign.toy.dialogue_model --output DIR

made the shipped weights in 14 minutes of one core: it trains tower, projector and language model together on
the corpus, from random weights, and writes a folder that `AutoModelForImageTextToText` and `AutoProcessor`
load. They are many steps because a base that sees less well loses recall when it is aligned.
"""

import argparse
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mmalign.seeding import derive_seed, generator_for
from mmalign.toy.dialogue_answers import DESCRIBE
from mmalign.toy.dialogue_corpus import Turn, corpus_turn
from mmalign.toy.dialogue_parts import IMAGE_TOKENS, load_base, new_model, new_processor, save_base
from mmalign.toy.dialogue_results import describe_rates, exists_polls, exists_rates
from mmalign.toy.dialogue_scenes import Picture, draw_pictures

__all__ = ["answer", "evaluate", "main", "to_pixels", "tokenise_turns", "train_base"]

_IGNORED = -100


def to_pixels(pictures: Sequence[Picture]) -> UInt8[Tensor, "picture 3 height width"]:
    """Pictures as bytes."""
    arrays = np.stack([picture.array() for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def _normalise(pixels: UInt8[Tensor, "picture 3 height width"]) -> Float[Tensor, "picture 3 height width"]:
    """What the image processor makes of them: from -1 to 1."""
    return pixels.float() / 127.5 - 1.0


def _prompt(question: str) -> str:
    """What the processor makes of a question about one picture."""
    return f"USER: {'<image>' * IMAGE_TOKENS}\n{question} ASSISTANT:"


@dataclass(frozen=True)
class _Texts:
    """Rows of token ids, padded behind; labels are ids where the answer is and -100 elsewhere."""

    ids: Int[Tensor, "row token"]
    labels: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]


def tokenise_turns(processor: Any, turns: Sequence[Turn]) -> _Texts:
    """Questions and answers as the model reads them; answers end with the end of text."""
    tokenizer = processor.tokenizer
    prompts = tokenizer([_prompt(turn.question) for turn in turns])["input_ids"]
    answers = tokenizer([f" {turn.answer}</s>" for turn in turns], add_special_tokens=False)["input_ids"]
    length = max(len(one) + len(other) for one, other in zip(prompts, answers, strict=True))
    ids = torch.full((len(turns), length), int(tokenizer.pad_token_id))
    labels, mask = torch.full_like(ids, _IGNORED), torch.zeros_like(ids)
    for row, (prompt, own) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(own)
        ids[row, :end] = torch.tensor([*prompt, *own])
        labels[row, len(prompt) : end] = torch.tensor(own)
        mask[row, :end] = 1
    return _Texts(ids, labels, mask)


# --- judging ------------------------------------------------------------------------------------------------


@torch.no_grad()
def answer(
    model: Any,
    processor: Any,
    pictures: Sequence[Picture],
    questions: Sequence[str],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 100,
) -> list[str]:
    """The likeliest answer to each question about its picture, token by token."""
    tokenizer = processor.tokenizer
    written: list[str] = []
    for start in range(0, len(questions), batch_size):
        asked = slice(start, start + batch_size)
        inputs = tokenizer([_prompt(text) for text in questions[asked]], padding=True, return_tensors="pt")
        tokens = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=_normalise(to_pixels(pictures[asked])),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        answers = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        written += [text.strip() for text in answers]
    return written


def evaluate(model: Any, processor: Any, *, num: int = 200, seed: int = 0) -> dict[str, float]:
    """Rates on held-out pictures: of descriptions, and of yes-no questions per split."""
    pictures = draw_pictures(num, seed=seed, held_out=True)
    rates, _ = describe_rates(answer(model, processor, pictures, [DESCRIBE[0]] * num), pictures)
    polls = exists_polls(pictures, seed=seed)
    said = answer(
        model, processor, [pictures[poll.picture] for poll in polls], [poll.question for poll in polls]
    )
    found = dict(rates.as_numbers())
    for split, asked in exists_rates(said, polls).items():
        found |= {f"{split}_accuracy": asked.accuracy, f"{split}_yes": asked.yes_share}
    return found


# --- training -----------------------------------------------------------------------------------------------


def _rate(step: int, steps: int, *, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _loss(model: Any, pixels: Tensor, texts: _Texts) -> Float[Tensor, ""]:
    """Cross-entropy per token, mean over each answer, then over the batch.

    So a yes or no weighs as much as a description of twenty words; by tokens it would hardly be learnt.
    """
    output = model(input_ids=texts.ids, attention_mask=texts.mask, pixel_values=_normalise(pixels))
    labels = texts.labels[:, 1:]
    losses = nn.functional.cross_entropy(
        output.logits[:, :-1].transpose(1, 2), labels, ignore_index=_IGNORED, reduction="none"
    )
    loss: Tensor = (losses.sum(dim=1) / labels.ne(_IGNORED).sum(dim=1)).mean()
    return loss


def train_base(
    output: Path,
    *,
    start: Path | None = None,
    seed: int = 0,
    steps: int = 6000,
    num_pictures: int = 12_000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    num_evaluated: int = 200,
    every: int = 250,
) -> tuple[Any, Any]:
    """Train on the corpus and write to `output` in float16. Returns model and processor.

    Args:
        output: folder to write.
        start: folder of a base that trains on; default: random weights.
        seed: of weights, pictures, questions, order.
        steps: of the optimiser; the rate falls to zero over them.
        num_pictures: different ones.
        batch_size: pictures with one question each per step.
        learning_rate: at its peak.
        num_evaluated: held-out pictures of the printed rates.
        every: steps between two evaluations.
    """
    model, processor = (None, new_processor()) if start is None else load_base(start)
    model = (new_model(processor, seed=seed) if model is None else model).train()
    pictures = draw_pictures(num_pictures, seed=derive_seed(seed, "base pictures"), held_out=False)
    pixels = to_pixels(pictures)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started, running = time.time(), 0.0
    for step in range(steps):
        rows = torch.randint(
            num_pictures, (batch_size,), generator=generator_for(seed, "dialogue rows", step)
        )
        rng = random.Random(derive_seed(seed, "dialogue turns", step))
        texts = tokenise_turns(processor, [corpus_turn(pictures[row], rng) for row in rows.tolist()])
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps, peak=learning_rate)
        loss = _loss(model, pixels[rows], texts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            _log("step", step=step + 1, loss=running, seconds=time.time() - started)
        if (step + 1) % every == 0 and step + 1 < steps:
            model.eval()
            _log("held out", step=step + 1, **evaluate(model, processor, num=num_evaluated))
            model.train()
    model.eval()
    save_base(model, processor, output)
    _log("held out", step=steps, **evaluate(model, processor, num=num_evaluated))
    return model, processor


def _log(name: str, **values: float) -> None:
    print(name, " ".join(f"{key} {value:.4g}" for key, value in values.items()), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: rebuild the base."""
    parser = argparse.ArgumentParser(
        prog="python -m mmalign.toy.dialogue_model",
        description="Train a base model of the toy world of dialogues.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the new model")
    parser.add_argument("--start", type=Path, help="folder of a base that trains on; default: random weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--num-pictures", type=int, default=12_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    train_base(
        options.output,
        start=options.start,
        seed=options.seed,
        steps=options.steps,
        num_pictures=options.num_pictures,
        learning_rate=options.learning_rate,
    )


if __name__ == "__main__":
    main()
