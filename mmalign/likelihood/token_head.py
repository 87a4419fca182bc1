"""The last layer of a language model, from hidden states to log-probabilities, without keeping its logits.

    logits = cap(scale * (hidden @ weight.T + bias)),    cap(x) = softcap * tanh(x / softcap), or x

Logits of a thousand tokens fill 0.6 GB at a vocabulary of 152k. Here they exist for one tile of rows at a
time, in float32 (float64). A frozen head, that of LoRA, gets no gradient at all, and its logits are made
once: the derivative of a log-probability by its hidden state, one row of features, is computed beside it and
kept; the backward pass multiplies. Where the head trains, the backward pass makes the logits anew from the
hidden states, the head and one number per row.

Products of half-precision operands are summed and kept in float32. A model's own head would round every logit
to half precision first, which costs two digits of a log-probability.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.likelihood.head_tiles import (
    Gradients,
    Layer,
    compute_dtype,
    no_autocast,
    operand,
    require_chunk,
    tiles,
)

__all__ = ["TokenHead", "TokenStates", "head_log_probs", "token_head"]


@dataclass(frozen=True)
class TokenHead:
    """The last linear layer of a language model.

    Args:
        weight: of the layer; a tied embedding serves as well.
        bias: of the layer.
        softcap: logits are bent into (-softcap, softcap) by `softcap * tanh(x / softcap)` (Gemma 2).
        scale: factor of the logits, before the cap (Cohere, Granite: 1 / `logits_scaling`).

    Raises:
        ConfigError: a cap that is not positive, or a scale of 0.
        ShapeError: the bias does not fit the weight.
    """

    weight: Float[Tensor, "vocabulary feature"]
    bias: Float[Tensor, " vocabulary"] | None = None
    softcap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Numbers that would make every log-probability meaningless are refused here."""
        if self.softcap is not None and not self.softcap > 0:
            raise ConfigError(
                explain("TokenHead softcap", got=self.softcap, expected="a number > 0, or None")
            )
        if self.scale == 0:
            raise ConfigError(explain("TokenHead scale", got=self.scale, expected="a number that is not 0"))
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            message = explain(
                "TokenHead bias",
                got=list(self.bias.shape),
                expected=f"[{self.weight.shape[0]}], one per token",
            )
            raise ShapeError(message)

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return self.weight.shape[0]


@dataclass(frozen=True)
class TokenStates:
    """What a language model knows at the positions that score tokens.

    Args:
        hidden: the state before each scored token, after the last norm.
        head: turns it into log-probabilities.

    Raises:
        ShapeError: the states do not fit the head.
    """

    hidden: Float[Tensor, "scored feature"]
    head: TokenHead

    def __post_init__(self) -> None:
        """A hidden size that differs is found here and not in a matrix product."""
        if self.hidden.ndim != 2 or self.hidden.shape[1] != self.head.weight.shape[1]:
            message = explain(
                "TokenStates hidden",
                got=list(self.hidden.shape),
                expected=f"[scored, {self.head.weight.shape[1]}], the features of the head",
            )
            raise ShapeError(message)


def token_head(module: nn.Module, *, softcap: float | None = None, scale: float = 1.0) -> TokenHead:
    """The head of a model's output layer, sharing its weights.

    Args:
        module: `model.get_output_embeddings()`.
        softcap: as in `TokenHead`.
        scale: as in `TokenHead`.

    Raises:
        ConfigError: the layer is not a plain linear one: adapted, quantised, replaced or offloaded.
    """
    weight = getattr(module, "weight", None)
    problem = ""
    if hasattr(module, "base_layer") or hasattr(module, "modules_to_save"):
        problem = "a layer with an adapter"
    elif not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        problem = f"a layer of type {type(module).__name__}"
    elif not isinstance(weight, Tensor) or not weight.is_floating_point():
        problem = "a quantised layer"
    elif weight.is_meta:
        problem = "a layer without its weights (offloaded, or not loaded)"
    if problem:
        message = explain(
            "output layer of the language model",
            got=problem,
            expected="a plain torch.nn.Linear: its weights are read here without calling it",
            do="Leave lm_head out of the adapter's targets, of quantisation and of offloading.",
        )
        raise ConfigError(message)
    layer = cast(nn.Linear, module)
    return TokenHead(layer.weight, layer.bias, softcap, scale)


class _Selected(torch.autograd.Function):
    """Log-probability of one token per hidden state; keeps nothing of the size of the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        softcap: float | None,
        scale: float,
        chunk: int | None,
    ) -> Tensor:
        compute = compute_dtype(hidden, weight)
        ctx.settings, ctx.chunk, ctx.given_dtype = (softcap, scale, compute), chunk, hidden.dtype
        ctx.is_frozen = not any(ctx.needs_input_grad[1:3])
        with no_autocast(hidden.device):
            layer = Layer.of(weight, bias, softcap, scale, compute)
            operands = operand(hidden, compute)
            values = torch.empty(hidden.shape[0], dtype=layer.wide_dtype, device=hidden.device)
            normaliser = torch.empty_like(values)
            wanted = ctx.is_frozen and ctx.needs_input_grad[0]
            slopes = Gradients((wanted, False, False), operands, layer)
            for start, stop in tiles(hidden.shape[0], weight.shape[0], chunk):
                logits, taken = layer.logits(operands[start:stop]), tokens[start:stop].unsqueeze(1)
                capped = logits.clone() if wanted and softcap is not None else logits
                largest = logits.amax(1, keepdim=True)
                # In the place of the logits: a tile is never held twice. Less the largest before anything
                # else, or a likely token among large logits would lose its last digits.
                logits -= largest
                chosen = logits.gather(1, taken)
                total = logits.exp_().sum(1, keepdim=True)
                values[start:stop] = (chosen - total.log()).squeeze(1)
                normaliser[start:stop] = (total.log() + largest).squeeze(1)
                if wanted:
                    slope = logits.div_(-total).scatter_add_(1, taken, torch.ones_like(chosen))
                    slopes.add(start, stop, layer.before_cap(slope, capped))
        if wanted:
            ctx.save_for_backward(slopes.hidden)
        elif not ctx.is_frozen:
            ctx.save_for_backward(hidden, weight, bias, tokens, normaliser)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        if ctx.is_frozen:
            (slopes,) = ctx.saved_tensors
            return (given.unsqueeze(1) * slopes).to(ctx.given_dtype), *[None] * 6
        hidden, weight, bias, tokens, normaliser = ctx.saved_tensors
        with no_autocast(hidden.device):
            layer = Layer.of(weight, bias, *ctx.settings)
            operands = operand(hidden, ctx.settings[2])
            collected = Gradients(ctx.needs_input_grad[:3], operands, layer)
            for start, stop in tiles(hidden.shape[0], weight.shape[0], ctx.chunk):
                logits = layer.logits(operands[start:stop])
                share = given[start:stop].to(logits.dtype).unsqueeze(1)
                capped = logits.clone() if layer.softcap is not None else logits
                slope = logits.sub_(normaliser[start:stop].unsqueeze(1)).exp_().mul_(-share)
                slope.scatter_add_(1, tokens[start:stop].unsqueeze(1), share)
                collected.add(start, stop, layer.before_cap(slope, capped))
        return *collected.as_given(hidden, weight, bias), None, None, None, None


def head_log_probs(
    hidden: Float[Tensor, "scored feature"],
    head: TokenHead,
    tokens: Int[Tensor, " scored"],
    *,
    chunk: int | None = None,
) -> Float[Tensor, " scored"]:
    """Log-probability of one token after each hidden state.

    log_probs[i] = log softmax(cap(scale * (hidden[i] @ weight.T + bias)))[tokens[i]]

    Inside autocast states and head are rounded as the model's own head would round them; products, softmax
    and result stay float32. Outside, operands of two dtypes are multiplied in the wider.

    Args:
        hidden: the state before each token, after the last norm.
        head: the output layer. Its weight and bias get gradients only if they require them.
        tokens: ids in [0, vocabulary), on the device of the states.
        chunk: states looked at together; None chooses about 128 MiB of float32 logits.

    Returns:
        Nats <= 0, float32 (float64 from float64 states or weights), also for half-precision states.

    Raises:
        ShapeError: another number of tokens than states, or features than the head's.
        ConfigError: a chunk below 1.
    """
    require_chunk("head_log_probs", chunk)
    states = TokenStates(hidden, head)
    if tokens.shape != hidden.shape[:1]:
        message = explain(
            "head_log_probs tokens",
            got=list(tokens.shape),
            expected=f"[{hidden.shape[0]}], one per hidden state",
        )
        raise ShapeError(message)
    if tokens.device.type == "cpu" and tokens.numel():  # elsewhere the look would wait for the device
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= head.num_tokens:
            message = explain(
                "head_log_probs tokens",
                got=low if low < 0 else high,
                expected=f"ids from 0 to {head.num_tokens - 1}",
                do="Does the tokenizer belong to this model?",
            )
            raise ShapeError(message)
    values: Tensor = _Selected.apply(
        states.hidden, head.weight, head.bias, tokens, head.softcap, head.scale, chunk
    )
    return values
