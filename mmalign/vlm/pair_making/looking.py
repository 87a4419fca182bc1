"""What a loaded model looks at while it answers: attention of one layer on visual tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.errors import ConfigError, explain
from mmalign.vlm.network import bare
from mmalign.vlm.pair_making.multi_image import Attended
from mmalign.vlm.pair_making.requests import Request, Sampling
from mmalign.vlm.pair_making.writing import VlmWriter, begin, model_inputs

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["VlmLooker"]


@dataclass(frozen=True)
class VlmLooker:
    """Answers greedily and says what was looked at.

    Args:
        model: of a family whose images are square grids of tokens.
        layer: whose attention counts, from 0; 16 in MIA-DPO's release, of 32.
        max_new_tokens: of an answer.
        batch_size: answers written together; attention is read row by row.
    """

    model: "VlmModel"
    layer: int = 16
    max_new_tokens: int = 256
    batch_size: int = 8

    def __call__(self, rows: Sequence[PreferenceRow], seed: int) -> list[Attended]:
        """Answer, attention and certainty of every row.

        Raises:
            ConfigError: the model has no such layer.
            RowError: a prompt cannot be read.
        """
        sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=0.0)
        texts = VlmWriter(self.model, self.batch_size)([Request(row) for row in rows], sampling, seed)
        return [self._looked(row, text) for row, text in zip(rows, texts, strict=True)]

    @torch.no_grad()
    def _looked(self, row: PreferenceRow, text: str) -> Attended:
        """The answer once more, all of its tokens at once."""
        begun = begin(self.model, Request(row, prefix=text))
        inputs = model_inputs(self.model, [begun])
        network = bare(self.model.network).model
        with self._kept(network) as kept:
            logits = network(**inputs, use_cache=False).logits[0]
        written = begun.num_begun
        if not written:
            return Attended(text, (), ())
        # The state at the last prompt token writes the first token of the answer, and so on.
        asking = slice(-written - 1, -1)
        weights = kept[-1][0, :, asking].float().mean(dim=(0, 1)).cpu()
        on_images = weights[torch.nonzero(begun.kinds > 0).flatten()].numpy()
        ends = np.cumsum([medium.num_tokens for medium in begun.prompt.media])
        certainty = logits[asking].float().softmax(dim=-1).max(dim=-1).values.tolist()
        return Attended(text, tuple(np.split(on_images, ends[:-1])), tuple(certainty))

    @contextmanager
    def _kept(self, network: Any) -> Iterator[list[Tensor]]:
        """Attention weights of the layer; only eager attention has them."""
        layers = self.model.traits.decoder(network).layers
        if not 0 <= self.layer < len(layers):
            message = explain("attention layer", got=self.layer, expected=f"0 to {len(layers) - 1}")
            raise ConfigError(message)
        kept: list[Tensor] = []
        before = network.config._attn_implementation
        handle = layers[self.layer].self_attn.register_forward_hook(
            lambda _, __, output: kept.append(output[1])
        )
        network.set_attn_implementation("eager")
        try:
            yield kept
        finally:
            network.set_attn_implementation(before)
            handle.remove()
