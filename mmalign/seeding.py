"""Generators derived from (seed, purpose, counters): the reason why resuming needs no saved random state.

Every draw of a step comes from its own generator, keyed by what it is for and where it happens. Two ranks,
two micro-steps or two purposes never share a stream, and step 1000 draws the same numbers whether the run
reached it in one go or after ten interruptions. The global generators are never used.

What a row draws (noise, timestep, VAE sample, caption dropout) comes from a counter-based generator keyed by
the row itself, so that one process and eight, or accumulation 1 x 8 and 8 x 1, train on the same numbers.
"""

import hashlib
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["derive_seed", "generator_for", "philox", "row_normal", "row_uniform", "stream_of"]


def derive_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """A 63-bit seed that depends on all arguments, equal on every machine.

    Args:
        seed: the run's seed.
        purpose: what is drawn: "noise", "timestep", "augmentation", "caption_dropout", "vae", "order", ...
        counters: step, micro-step, rank, row id; order matters.
    """
    key = "\x1f".join([str(seed), purpose, *(str(counter) for counter in counters)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(
    seed: int, purpose: str, *counters: int | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on `device`, seeded by `derive_seed(seed, purpose, *counters)`.

    Streams differ between device types; runs are reproducible on one kind of device.
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(seed, purpose, *counters))
    return generator


_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Philox 4x32, Salmon et al. 2011, table 2
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def stream_of(purpose: str) -> int:
    """The 32-bit stream number of a purpose; each purpose draws from its own stream of a row's key."""
    return derive_seed(0, purpose) & _MASK


def philox(key: Int[Tensor, " row"], num_blocks: int, stream: int) -> Int[Tensor, "row block word"]:
    """Philox 4x32-10 words in [0, 2**32) of counters `(0 .. num_blocks-1, 0, stream, 0)` under each key.

    A counter-based generator: word i of row r depends on (key[r], stream, i) and on nothing else, so a row
    draws the same numbers whatever micro-batch, rank or device count it lands on, and all rows are computed
    at once.

    Args:
        key: one 63-bit number per row.
        num_blocks: blocks of four words per row.
        stream: 32-bit number of the purpose.

    Source: J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    rounds = torch.arange(_ROUNDS, device=key.device).view(-1, 1, 1)
    low_keys = ((key & _MASK).unsqueeze(1) + rounds * _WEYL[0]) & _MASK
    high_keys = (((key >> 32) & _MASK).unsqueeze(1) + rounds * _WEYL[1]) & _MASK
    # Words 0 and 2 are multiplied side by side and swapped by a round: the others and the keys lie crosswise.
    keys = torch.stack([high_keys, low_keys], dim=1)
    keys[1::2] = keys[1::2].flip(1)
    multiplied = torch.empty(2, key.shape[0], num_blocks, dtype=torch.int64, device=key.device)
    others, products = torch.zeros_like(multiplied), torch.empty_like(multiplied)
    (c0, c2), (c3, c1), parts = multiplied.unbind(), others.unbind(), products.unbind()
    c0.copy_(torch.arange(num_blocks, device=key.device))
    c2.fill_(stream)
    # In place, on views made once: a step draws few numbers, and what counts is how many kernels that takes.
    for number, round_keys in enumerate(keys.unbind()):
        first, second = _MULTIPLIERS if number % 2 == 0 else _MULTIPLIERS[::-1]
        # int64 products wrap modulo 2**64, so both halves of the unsigned 32 x 32 product survive.
        torch.mul(c0, first, out=parts[0])
        torch.mul(c2, second, out=parts[1])
        torch.bitwise_right_shift(products, 32, out=multiplied)
        multiplied.bitwise_and_(_MASK).bitwise_xor_(others).bitwise_xor_(round_keys)
        torch.bitwise_and(parts[0], _MASK, out=c1)
        torch.bitwise_and(parts[1], _MASK, out=c3)
    return torch.stack([c0, c1, c2, c3], dim=-1)


def keys_under(key: Int[Tensor, " row"], num: int, *, purpose: str) -> Int[Tensor, "row num"]:
    """`num` 63-bit keys per row, decided by (key, purpose); key i is the same for every `num`."""
    words = philox(key, -(-2 * num // 4), stream_of(purpose)).flatten(1)[:, : 2 * num]
    return ((words[:, ::2] & 0x7FFFFFFF) << 32) | words[:, 1::2]


def row_uniform(key: Int[Tensor, " row"], num: int, *, purpose: str) -> Float[Tensor, "row num"]:
    """`num` float32 numbers in [0, 1) per row, decided by (key, purpose)."""
    words = philox(key, -(-num // 4), stream_of(purpose)).flatten(1)[:, :num]
    return (words >> 8).to(torch.float32) * 2.0**-24


def row_normal(
    key: Int[Tensor, " row"], shape: tuple[int, ...], *, purpose: str
) -> Float[Tensor, " row *event"]:
    """Standard normal float32 numbers of `shape` per row, decided by (key, purpose), by Box and Muller."""
    num = math.prod(shape)
    words = philox(key, -(-num // 4), stream_of(purpose))
    # (0, 1]: the logarithm never sees 0.
    radius = torch.sqrt(-2.0 * torch.log(((words[..., :2] >> 8) + 1).to(torch.float32) * 2.0**-24))
    angle = (words[..., 2:] >> 8).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pairs.flatten(1)[:, :num].reshape(key.shape[0], *shape)
