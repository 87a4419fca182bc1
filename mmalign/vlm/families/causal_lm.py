"""Language models that see nothing: Llama, Qwen, Mistral, Gemma and whatever else predicts the next token."""

from typing import Any, ClassVar

from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import MediaKind
from mmalign.vlm.traits import VlmTraits, softcap_of

__all__ = ["FAMILY", "CausalLMTraits"]


class CausalLMTraits(VlmTraits):
    """Any decoder of transformers; what its head does to logits is read from its config."""

    sees: ClassVar[tuple[MediaKind, ...]] = ()
    language_part: ClassVar[str] = "model"

    def decoder(self, model: Any) -> Any:
        """The model without its head."""
        return self.base(model)

    def base(self, model: Any) -> Any:
        """The model without its head, whatever the family calls it."""
        return model.get_decoder()

    @property
    def softcap(self) -> float | None:
        """Of Gemma 2 and its kin."""
        return softcap_of(self.text_config)

    @property
    def scale(self) -> float:
        """Cohere multiplies logits, Granite divides them."""
        divisor = getattr(self.text_config, "logits_scaling", None) or 1.0
        return float(getattr(self.text_config, "logit_scale", None) or 1.0) / float(divisor)


FAMILY = VlmFamily("causal_lm", CausalLMTraits)
