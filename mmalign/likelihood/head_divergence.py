"""How differently two readings predict the next token: Jensen-Shannon divergence, without kept logits."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ShapeError, explain
from mmalign.likelihood.head_tiles import Layer, compute_dtype, no_autocast, operand, require_chunk, tiles
from mmalign.likelihood.token_head import TokenStates

__all__ = ["head_jensen_shannon"]


@torch.no_grad()
def head_jensen_shannon(
    first: TokenStates, second: TokenStates, *, chunk: int | None = None
) -> Float[Tensor, " scored"]:
    """Jensen-Shannon divergence of the next token at every position, in nats, 0 to log 2; no gradient.

    m = (p + q) / 2, p and q the probabilities of either side
    divergence = (KL(p || m) + KL(q || m)) / 2

    Args:
        first: states and head of one reading.
        second: of the other, at the same positions.
        chunk: states looked at together; None chooses about 128 MiB of float32 logits per side.

    Raises:
        ConfigError: a chunk below 1.
        ShapeError: other positions or another vocabulary.
    """
    require_chunk("head_jensen_shannon", chunk)
    shapes = [(states.hidden.shape[0], states.head.num_tokens) for states in (first, second)]
    if shapes[0] != shapes[1]:
        message = explain(
            "head_jensen_shannon second",
            got=f"{shapes[1][0]} positions over {shapes[1][1]} tokens",
            expected=f"{shapes[0][0]} over {shapes[0][1]}, those of the first",
        )
        raise ShapeError(message)
    number, vocabulary = shapes[0]
    with no_autocast(first.hidden.device):
        sides = []
        for states in (first, second):
            head, compute = states.head, compute_dtype(states.hidden, states.head.weight)
            layer = Layer.of(head.weight, head.bias, head.softcap, head.scale, compute)
            sides.append((operand(states.hidden, compute), layer))
        found = torch.empty(number, dtype=sides[0][1].wide_dtype, device=first.hidden.device)
        for start, stop in tiles(number, vocabulary, chunk):
            one, other = (layer.logits(hidden[start:stop]).log_softmax(1) for hidden, layer in sides)
            # The mean of the two in logarithms: a token that one of them excludes stays finite.
            mean = torch.logaddexp(one, other) - torch.log(one.new_tensor(2.0))
            found[start:stop] = (_divergence(one, mean) + _divergence(other, mean)) / 2
    return found.clamp(min=0.0)


def _divergence(log_share: Tensor, log_mean: Tensor) -> Tensor:
    """KL(p || m) per row of log-softmaxes; a token that p excludes adds nothing."""
    share = log_share.exp()
    return torch.where(share > 0, share * (log_share - log_mean), 0.0).sum(1)
