"""The small language model of the toy world of tokens: a real `LlamaForCausalLM`, and its samples.

    python -m mmalign.toy.token_model --output mmalign/toy/assets/tokens

rebuilds the shipped weights from the seed (80 s on one core).
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.files import load_tensors, save_tensors, write_json
from mmalign.seeding import generator_for
from mmalign.toy.token_world import (
    ANSWER_WORDS,
    BASE_WRITER,
    PROMPT_WORDS,
    VOCABULARY,
    Answer,
    Prompt,
    decode,
    encode_answer,
    encode_prompt,
    prompts,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

__all__ = ["ASSETS", "answer_mask", "build", "load_base", "sample", "token_logits", "train_base"]

ASSETS = Path(__file__).resolve().parent / "assets" / "tokens"


def build(seed: int = 0) -> "LlamaForCausalLM":
    """An untrained model: 3 layers of width 64, 0.1 million weights, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=PROMPT_WORDS + ANSWER_WORDS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load_base() -> "LlamaForCausalLM":
    """The shipped base."""
    model = build()
    model.load_state_dict(load_tensors(ASSETS / "model.safetensors"), strict=False)
    model.tie_weights()
    return model


def token_logits(
    model: torch.nn.Module, prompt: Int[Tensor, "row word"], answer: Int[Tensor, "row word_2"]
) -> Float[Tensor, "row word_2 vocabulary"]:
    """What the model says before each word of the answer."""
    tokens = torch.cat([prompt, answer[:, :-1]], dim=1)
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits[:, prompt.shape[1] - 1 :]


def answer_mask(answer: Int[Tensor, "*row word"]) -> Float[Tensor, "*row word"]:
    """1 for the words and the first end, 0 behind it."""
    ended = (answer == 0).cumsum(-1)
    return ((ended == 0) | ((ended == 1) & (answer == 0))).to(torch.float32)


@torch.no_grad()
def sample(
    model: "LlamaForCausalLM", asked: Sequence[Prompt], *, seed: int, per_prompt: int = 1
) -> list[list[Answer]]:
    """Answers at temperature 1, `per_prompt` of each prompt.

    Every word is the maximum of logits plus Gumbel noise that depends on the seed, the row and the place
    only: two models answer with the same luck, and equal models give equal answers.
    """
    from transformers import DynamicCache

    given = torch.tensor([encode_prompt(prompt) for prompt in asked]).repeat_interleave(per_prompt, dim=0)
    uniform = torch.rand(
        (ANSWER_WORDS, len(given), len(VOCABULARY)), generator=generator_for(seed, "token_sample")
    )
    luck = -torch.log(-torch.log(uniform.clamp(1e-20, 1.0 - 1e-7)))
    cache = DynamicCache()
    step, words = given, []
    for place in range(ANSWER_WORDS):
        logits = model(input_ids=step, past_key_values=cache, use_cache=True).logits[:, -1]
        step = (logits + luck[place]).argmax(-1, keepdim=True)
        words.append(step)
    answers = [decode(row) for row in torch.cat(words, dim=1).tolist()]
    return [answers[start : start + per_prompt] for start in range(0, len(answers), per_prompt)]


def _corpus(num: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = generator_for(seed, "token_corpus")
    split = prompts()
    every = (*split.train, *split.validation, *split.test)
    drawn = [every[index] for index in torch.randint(len(every), (num,), generator=generator).tolist()]
    answers = [BASE_WRITER.answer(prompt, generator) for prompt in drawn]
    return (
        torch.tensor([encode_prompt(prompt) for prompt in drawn]),
        torch.tensor([encode_answer(answer) for answer in answers]),
    )


def train_base(
    seed: int = 0,
    *,
    steps: int = 1200,
    batch_size: int = 96,
    num_texts: int = 24000,
    learning_rate: float = 4e-3,
) -> "LlamaForCausalLM":
    """The base, from nothing: next-word prediction on the base author's answers.

    All prompts of the language are in its corpus, so that held-out prompts are new to alignment and not to
    the base.
    """
    model = build(seed)
    prompt, answer = _corpus(num_texts, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    generator = generator_for(seed, "token_corpus_order")
    for _ in range(steps):
        rows = torch.randint(num_texts, (batch_size,), generator=generator)
        logits = token_logits(model, prompt[rows], answer[rows])
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), answer[rows].flatten(), reduction="none"
        )
        mask = answer_mask(answer[rows]).flatten()
        optimizer.zero_grad(set_to_none=True)
        ((losses * mask).sum() / mask.sum()).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the base and write it as safetensors with its config. Returns 0."""
    parser = argparse.ArgumentParser(description="Rebuild the base of the toy world of tokens.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = train_base(given.seed)
    tied = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_tensors(given.output / "model.safetensors", tied, {"format": "pt"})
    write_json(given.output / "config.json", cast("dict[str, object]", model.config.to_diff_dict()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
