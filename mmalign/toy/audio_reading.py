"""Training of the toy world's text encoder: to say of every word which event it belongs to, and when."""

import random
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mmalign.toy.audio_pipeline import new_text_encoder, write_tokenizer
from mmalign.toy.audio_scenes import EVENTS, draw_facts, events_of
from mmalign.toy.base_training import Trained, log_line

__all__ = ["labelled", "tokenizer_of_the_world", "train_text_encoder"]


def labelled(caption: str) -> tuple[list[int], list[int]]:
    """For every token of a caption, its event's kind and place in time; -100 where it belongs to none."""
    words = re.findall(r"\w+|,", caption)
    kinds, places = [-100] * (len(words) + 1), [-100] * (len(words) + 1)  # the last one is the end
    for place, event in enumerate(events_of(caption)):
        parts = event.split()
        first = next(at for at in range(len(words)) if words[at : at + len(parts)] == parts)
        for at in range(first, first + len(parts)):
            kinds[at], places[at] = EVENTS.index(event), place
    return kinds, places


def train_text_encoder(*, seed: int, steps: int, batch_size: int = 64) -> Any:
    """A text encoder whose states say of every word which event it belongs to, and when that sounds.

    FLAN-T5, which stands there in Tango, can read too before any sound is trained; as there, it is frozen
    afterwards. The two linear heads of this task are thrown away.
    """
    tokenizer, vocabulary = tokenizer_of_the_world()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = new_text_encoder(vocabulary)
        heads = nn.ModuleList(nn.Linear(encoder.config.d_model, size) for size in (len(EVENTS), 3))
    trained = Trained([encoder, heads], learning_rate=3e-3, decay=0.98, warmup=20)
    rng, running = random.Random(f"reading {seed}"), 0.0
    for step in range(1, steps + 1):
        captions = [draw_facts(rng, held_out=False).caption() for _ in range(batch_size)]
        encoded = tokenizer(captions, padding="longest", return_tensors="pt")
        states = encoder(encoded["input_ids"], attention_mask=encoded["attention_mask"])[0]
        labels = torch.full((2, *encoded["input_ids"].shape), -100)
        for row, caption in enumerate(captions):
            for side, values in enumerate(labelled(caption)):
                labels[side, row, : len(values)] = torch.tensor(values)
        loss = sum(
            (
                F.cross_entropy(head(states).flatten(0, 1), side.flatten())
                for head, side in zip(heads, labels, strict=True)
            ),
            torch.zeros(()),
        )
        trained.update(loss, step=step, steps=steps)
        running = loss.item() if step == 1 else 0.9 * running + 0.1 * loss.item()
        if step % 50 == 0:
            log_line("text encoder", step=step, loss=running)
    torch._foreach_copy_(trained.values, trained.shadow)
    return encoder.eval().requires_grad_(False)


def tokenizer_of_the_world() -> tuple[Any, int]:
    """The world's tokenizer and the size of its vocabulary."""
    from transformers import T5Tokenizer

    with TemporaryDirectory() as folder:
        size = write_tokenizer(Path(folder))
        return T5Tokenizer.from_pretrained(folder), size
