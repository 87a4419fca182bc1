"""The trained network of a run: from rows of tokens and media to hidden states at the scored positions.

Logits are never made here. A frozen copy, the network without its adapters and the network wrapped for many
devices are all called the same way.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.likelihood.token_head import TokenHead, token_head
from mmalign.vlm.attention import share_prompts, shares_prompts, shorten_last_layer
from mmalign.vlm.inputs import VlmInputs
from mmalign.vlm.touching import touching
from mmalign.vlm.traits import VlmTraits
from mmalign.vlm.vision import deep_rows, encode_media, shown

__all__ = ["LanguageNetwork", "bare"]


class LanguageNetwork(nn.Module):
    """A loaded model, called with `VlmInputs`.

    Args:
        model: of transformers, with its head.
        traits: of its family.
        uses_blocks: packed rows go through FlexAttention, which leaves out what no answer sees.
    """

    def __init__(self, model: nn.Module, traits: VlmTraits, *, uses_blocks: bool = False) -> None:
        super().__init__()
        self.uses_blocks = uses_blocks
        self.model: Any = model
        self.traits = traits
        if share_prompts(traits.decoder(model)):
            shorten_last_layer(traits.decoder(model))

    @property
    def attention(self) -> str:
        """What attention runs on, for a run's opening lines."""
        implementation = self.traits.decoder(self.model).config._attn_implementation
        if not shares_prompts(self.traits.decoder(self.model)):
            return f"{implementation} of transformers"
        answers = "packed rows by FlexAttention" if self.uses_blocks else "packed answers with a mask"
        return f"torch scaled_dot_product_attention, prompts without a mask; {answers}"

    @property
    def head(self) -> TokenHead:
        """The output layer.

        Raises:
            ConfigError: it is adapted or quantised.
        """
        module = self.model.get_output_embeddings()
        return token_head(module, softcap=self.traits.softcap, scale=self.traits.scale)

    def forward(self, inputs: VlmInputs) -> Float[Tensor, "scored feature"]:
        """The state before every scored token, after the last norm, in the order of `inputs.place`."""
        states = self._states(inputs)
        if inputs.aside is None or inputs.order is None:
            return states
        with torch.no_grad():
            aside = self._states(inputs.aside)
        return torch.cat([states, aside]).index_select(0, inputs.order)

    def _states(self, inputs: VlmInputs) -> Float[Tensor, "scored feature"]:
        hidden = self._native(inputs) if inputs.native else self._laid_out(inputs)
        return touching(hidden.flatten(0, 1).index_select(0, inputs.source), self._seeing())

    def _seeing(self) -> Iterator[nn.Parameter]:
        """Trained weights of tower and projector, which some rows have no use for."""
        return (
            parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and self.traits.part_of(name) != "language"
        )

    def _native(self, inputs: VlmInputs) -> Float[Tensor, "row position feature"]:
        """By the model's own forward: its own masks, positions and vision, for every row anew."""
        outputs = self.traits.base(self.model)(**self._own_arguments(inputs))
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    def own_logits(self, inputs: VlmInputs) -> Float[Tensor, "scored vocabulary"]:
        """Logits of the scored tokens as the model computes them, of rows laid out for its own forward."""
        length = inputs.ids.shape[1]
        kept = (inputs.source % length).unique()
        logits: Tensor = self.model(**self._own_arguments(inputs), logits_to_keep=kept).logits
        place = torch.searchsorted(kept, inputs.source % length)
        return logits[inputs.source // length, place]

    def _own_arguments(self, inputs: VlmInputs) -> dict[str, Any]:
        media = {
            name: value
            for groups in inputs.media.values()
            for group in groups
            for name, value in group.items()
        }
        return {
            "input_ids": inputs.ids,
            "attention_mask": inputs.is_real.to(inputs.ids.dtype),
            "use_cache": False,
            **self.traits.native_arguments(inputs),
            **media,
        }

    def _laid_out(self, inputs: VlmInputs) -> Float[Tensor, "row position feature"]:
        traits, base = self.traits, self.traits.base(self.model)
        features = inputs.features
        if features is None and inputs.media:
            features = encode_media(traits, base, inputs)
        # A placeholder's id may lie outside the vocabulary; its embedding is replaced anyway.
        ids = inputs.ids.masked_fill(inputs.kinds > 0, 0)
        embedded = self.model.get_input_embeddings()(ids)
        deep: tuple[Tensor, ...] = ()
        if features:
            embedded = shown(embedded, inputs, features)
            place = torch.cat([visual.place for visual in inputs.visual.values()]).sort().values
            deep = deep_rows(inputs, features, place)
        outputs = traits.decoder(self.model)(
            inputs_embeds=embedded,
            attention_mask=self._mask(inputs, embedded.dtype),
            position_ids=self._positions(inputs),
            use_cache=False,
            **traits.decoder_arguments(inputs, deep),
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    def _positions(self, inputs: VlmInputs) -> Tensor | None:
        """Position ids; None where every row is counted from 0, which needs no telling."""
        if inputs.positions is None:
            return inputs.step if inputs.is_packed or self.traits.needs_mask(inputs) else None
        return inputs.positions[0] if inputs.positions.shape[0] == 1 else inputs.positions

    def masks(self, inputs: VlmInputs) -> Any:
        """What the decoder is told about who sees whom: True where seen; None where its own way is right."""
        if not self.traits.needs_mask(inputs):
            return None
        if self.uses_blocks and inputs.is_packed:
            return self.traits.masks(inputs, blocks=True)
        return self.traits.masks(inputs, narrow=shares_prompts(self.traits.decoder(self.model)))

    def _mask(self, inputs: VlmInputs, dtype: torch.dtype) -> Any:
        masks = self.masks(inputs)
        if masks is None or self.traits.decoder(self.model).config._attn_implementation != "eager":
            return masks
        # Eager attention adds its mask to the scores, a boolean one too.
        if isinstance(masks, dict):
            return {name: _additive(mask, dtype) for name, mask in masks.items()}
        return _additive(masks, dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where True and the lowest number where False."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, lowest)


def bare(network: nn.Module) -> LanguageNetwork:
    """The network itself, however it has been wrapped for devices or compiled."""
    inner: Any = network
    while not isinstance(inner, LanguageNetwork):
        inner = inner.module if hasattr(inner, "module") else inner._orig_mod
    return inner
