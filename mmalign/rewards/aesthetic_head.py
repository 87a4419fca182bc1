"""Heads of the LAION aesthetic predictors, on normalised CLIP image embeddings."""

import re
from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.errors import CheckpointError

__all__ = ["AestheticHead", "unit_rows"]

_WITHOUT_ACTIVATION = (0, 2, 4, 6, 7)
_WITH_RELU = (0, 3, 6, 9, 11)


def unit_rows(embeddings: Float[Tensor, "sample feature"]) -> Float[Tensor, "sample feature"]:
    """Rows divided by their length; a zero row stays as it is.

    Source: christophschuhmann/improved-aesthetic-predictor `simple_inference.py`.
    """
    lengths = embeddings.norm(dim=-1, keepdim=True)
    return embeddings / torch.where(lengths == 0, torch.ones_like(lengths), lengths)


class AestheticHead(nn.Module):
    """Linear layers one after another, with or without ReLU between them; normalises its input.

    Args:
        sizes: features of the input and of each layer's output.
        relu: activation after each layer but the last (`ava+logos-l14-reluMSE.pth`); the others have none.
    """

    def __init__(self, sizes: tuple[int, ...], *, relu: bool = False) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.relu = relu

    def forward(self, embeddings: Float[Tensor, "sample feature"]) -> Float[Tensor, " sample"]:
        """Scores of embeddings as the tower gives them, of any length."""
        return self.layers(embeddings)[-1].squeeze(-1)

    def layers(self, embeddings: Float[Tensor, "sample feature"]) -> list[Tensor]:
        """What each linear layer gives, before any activation; the last one is the score."""
        hidden = unit_rows(embeddings)
        found: list[Tensor] = []
        for layer in self.linear:
            if found and self.relu:
                hidden = hidden.relu()
            hidden = layer(hidden)
            found.append(hidden)
        return found

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, where: str) -> "AestheticHead":
        """The head of a published state dict, in its dtype: `layers.N.*` (v2) or `weight`, `bias` (v1).

        Keys say which modules stood between the linear layers: 0, 2, 4, 6, 7 leaves room for dropout alone,
        0, 3, 6, 9, 11 for dropout and ReLU.

        Raises:
            CheckpointError: other keys, or layers that do not fit one another.
        """
        if set(state) == {"weight", "bias"}:
            state = {f"layers.0.{name}": value for name, value in state.items()}
        places = sorted({int(found[1]) for key in state if (found := re.match(r"layers\.(\d+)\.", key))})
        known = (_WITHOUT_ACTIVATION, _WITH_RELU, (0,))
        expected = {f"layers.{place}.{part}" for place in places for part in ("weight", "bias")}
        if tuple(places) not in known or set(state) != expected:
            message = (
                f"{where}: got the keys {', '.join(sorted(state)) or 'none'}, expected weight and bias of "
                "layers.{0,2,4,6,7}, of layers.{0,3,6,9,11} (with ReLU), or of one linear layer."
            )
            raise CheckpointError(message)
        weights = [state[f"layers.{place}.weight"] for place in places]
        fits = all(before.shape[0] == after.shape[1] for before, after in pairwise(weights))
        if not fits or weights[-1].shape[0] != 1:
            shapes = ", ".join(str(list(weight.shape)) for weight in weights)
            message = f"{where}: got layers of {shapes}, expected each to take what comes before, down to 1."
            raise CheckpointError(message)
        sizes = (weights[0].shape[1], *(weight.shape[0] for weight in weights))
        with torch.device("meta"):  # draws no random weights that would be overwritten
            head = cls(sizes, relu=tuple(places) == _WITH_RELU)
        renamed = {
            f"linear.{number}.{part}": state[f"layers.{place}.{part}"]
            for number, place in enumerate(places)
            for part in ("weight", "bias")
        }
        head.load_state_dict(renamed, assign=True)
        return head
