"""PaliGemma: pictures and question see each other both ways, the answer is causal; there are no turns."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from mmalign.batch import Message
from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import VlmInputs
from mmalign.vlm.prompts import Seam
from mmalign.vlm.traits import VlmTraits, softcap_of

__all__ = ["FAMILY", "PaliGemmaTraits"]


class PaliGemmaTraits(VlmTraits):
    """The text is all pictures, the beginning, the words and a line break; the answer is encoded apart."""

    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    first_position: ClassVar[int] = 1
    one_text: ClassVar[bool] = False

    def render(self, messages: Sequence[Message]) -> str | None:
        """Pictures first, wherever the dialogue shows them."""
        items = [item for message in messages for item in message.content]
        images = self.placeholder("image") * sum(item.type == "image" for item in items)
        words = "".join(item.text for item in items)
        return f"{images}{self.tokenizer.bos_token}{words}\n"

    def seam(self) -> Seam | None:
        """An answer ends with the text."""
        return Seam("", str(self.tokenizer.eos_token))

    @property
    def adds_beginning(self) -> bool:
        """The text has it, in its middle."""
        return False

    def blocks(
        self, ids: Int[Tensor, " position"], kinds: Int[Tensor, " position"]
    ) -> Int[Tensor, " position"] | None:
        """The whole prompt is one."""
        del kinds
        return torch.zeros_like(ids)

    def native_arguments(self, inputs: VlmInputs) -> dict[str, Tensor]:
        """0 in the prompt, 1 in the answer and behind it."""
        return {"token_type_ids": (inputs.segment != 0).to(inputs.ids.dtype)}

    @property
    def softcap(self) -> float | None:
        """Of Gemma 2."""
        return softcap_of(self.text_config)

    def generation_arguments(self, kinds: Int[Tensor, "row position"]) -> dict[str, Tensor]:
        """0: all of it is prompt."""
        return {"token_type_ids": torch.zeros_like(kinds)}


FAMILY = VlmFamily("paligemma", PaliGemmaTraits)
