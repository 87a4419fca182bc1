"""How alike two sentences are: the cosine of their embeddings by a sentence-transformers checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, explain

__all__ = ["SentenceSimilarity"]


@dataclass(frozen=True)
class SentenceSimilarity:
    """Embeds by the mean over tokens of an encoder's last states, as all-mpnet-base-v2 does.

    Args:
        tokenizer: of the encoder.
        encoder: of transformers, in evaluation mode.
        batch_size: sentences together.
    """

    tokenizer: Any
    encoder: Any
    batch_size: int = 64

    @classmethod
    def load(cls, source: str, *, device: torch.device | str = "cpu") -> "SentenceSimilarity":
        """An encoder from a folder or hub id, for example `sentence-transformers/all-mpnet-base-v2`.

        Raises:
            ConfigError: nothing is there that transformers can open.
        """
        from transformers import AutoModel, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            encoder = AutoModel.from_pretrained(source, use_safetensors=True)
        except (OSError, ValueError) as error:
            message = explain(
                "similarity model",
                got=source,
                expected="a folder or hub id of a sentence encoder",
                do=f"({type(error).__name__}: {str(error).splitlines()[0][:200]})",
            )
            raise ConfigError(message) from error
        return cls(tokenizer, encoder.to(device).eval())

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "text feature"]:
        """Embeddings of length 1."""
        device = next(self.encoder.parameters()).device
        made = []
        for start in range(0, len(texts), self.batch_size):
            part = list(texts[start : start + self.batch_size])
            inputs = self.tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(device)
            states = self.encoder(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)
            made.append(F.normalize(mean, dim=-1).cpu())
        return torch.cat(made)

    def __call__(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Cosine of every two texts."""
        if not first:
            return []
        cosines: list[float] = (self.embed(first) * self.embed(second)).sum(dim=-1).tolist()
        return cosines
