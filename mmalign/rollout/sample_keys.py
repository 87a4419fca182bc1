"""Keys of the samples of a prompt: as many independent streams as there are samples."""

from jaxtyping import Int
from torch import Tensor

from mmalign.seeding import keys_under

__all__ = ["sample_keys"]


def sample_keys(keys: Int[Tensor, " prompt"], count: int) -> Int[Tensor, "prompt sample"]:
    """`count` 63-bit keys per prompt, decided by the prompt's key; sample i is the same for every count."""
    return keys_under(keys, count, purpose="rollout_samples")
