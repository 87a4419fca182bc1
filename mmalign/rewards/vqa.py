"""VQAScore: the probability that a model answers Yes when asked whether the picture shows the prompt.

Two numbers share the idea and are kept apart by name: P(Yes) over the whole vocabulary (VQAScore), and
P(Yes) / (P(Yes) + P(No)), which is larger and hides that the model was about to say something else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.published_texts import text_sha256
from mmalign.rewards.sample import Sample
from mmalign.rewards.vision_language import ChatModel, sample_media

__all__ = ["QUESTION", "VqaScore", "answer_probability", "filled", "yes_share"]

QUESTION = 'Does this figure show "{}"? Please answer Yes or No.'
"""What a chat model is asked; `{}` is the prompt."""


def answer_probability(
    logits: Float[Tensor, "row step vocabulary"], answer: Sequence[int], *, temperature: float = 1.0
) -> Float[Tensor, " row"]:
    """Geometric mean of the probabilities of an answer's tokens, each given those before it.

    (prod_t softmax(logits_t / temperature)[answer_t]) ** (1 / T)

    With the answer `Yes` and the end token of T5 this is CLIP-FlanT5's score, exp(-mean cross-entropy); with
    one token it is P(Yes).

    Args:
        logits: at the positions that predict the answer.
        answer: token ids, as many as steps.
        temperature: > 0.

    Raises:
        ConfigError: another number of steps, or no positive temperature.

    Source: linzhiqiu/t2v_metrics (t2v-metrics 3.0), clip_t5_model.py and qwen2vl_model.py. arXiv 2404.01291.
    """
    if logits.shape[1] != len(answer):
        expected = f"{len(answer)} steps, one per token of the answer"
        raise ConfigError(explain("answer_probability logits", got=logits.shape[1], expected=expected))
    if not temperature > 0.0:
        raise ConfigError(explain("temperature", got=temperature, expected="a number above 0"))
    steps = (logits / temperature).log_softmax(dim=2)
    chosen = [steps[:, place, token] for place, token in enumerate(answer)]
    return torch.stack(chosen, dim=1).mean(dim=1).exp()


def yes_share(
    logits: Float[Tensor, "row vocabulary"], yes: int, no: int, *, temperature: float = 1.0
) -> Float[Tensor, " row"]:
    """P(Yes) / (P(Yes) + P(No)) = sigmoid((l_yes - l_no) / temperature); not VQAScore."""
    return torch.sigmoid((logits[:, yes] - logits[:, no]) / temperature)


def filled(template: str, text: str, *, what: str) -> str:
    """The template with its one `{}` replaced; nothing else in it or in the text is a format.

    Raises:
        ConfigError: there is not exactly one `{}`.
    """
    if template.count("{}") != 1:
        raise ConfigError(explain(what, got=template[:80], expected="a text with one {} for the prompt"))
    before, after = template.split("{}")
    return before + text + after


class VqaScore(ModelReward):
    """P(Yes) of any chat model that sees pictures, teacher-forced and in batches.

    Args:
        card: what it is.
        model: who is asked.
        question: with one `{}` for the prompt.
        answer: the word that must be answered, one token.
        opposite: the other answer, for `answer_mass` and for the share.
        share: P(Yes) / (P(Yes) + P(No)) instead of P(Yes).
        temperature: > 0, divides the logits.

    Raises:
        ConfigError: an answer is several tokens, or the question has no place for the prompt.
    """

    def __init__(
        self,
        card: Card,
        model: ChatModel,
        *,
        question: str = QUESTION,
        answer: str = "Yes",
        opposite: str = "No",
        share: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(card, device=model.device, dtype=model.network.dtype)
        filled(question, "", what=f"reward {card.name} question")
        if not temperature > 0.0:
            raise ConfigError(explain("temperature", got=temperature, expected="a number above 0"))
        self.model, self.question, self.share, self.temperature = model, question, share, temperature
        self.words = (answer, opposite)
        self.yes, self.no = (model.token(word) for word in self.words)

    def prepare(self, sample: Sample) -> Prepared:
        """The question about a picture, or about the pictures of a clip.

        Raises:
            RowError: nothing is shown (`missing_media`), or it cannot be read.
        """
        shown = [self.model.shown(sample_media(sample), where="Sample.image")]
        text = filled(self.question, self.model.safe(sample.prompt), what="question")
        return Prepared(self.model.question(text, shown))

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """(P(Yes) or its share, P(Yes) + P(No))."""
        logits = self.model.logits([sample.inputs for sample in batch], [self.yes])
        both = (logits[:, 0] / self.temperature).softmax(dim=1)[:, [self.yes, self.no]]
        if self.share:
            score = yes_share(logits[:, 0], self.yes, self.no, temperature=self.temperature)
        else:
            score = answer_probability(logits, [self.yes], temperature=self.temperature)
        return torch.stack([score, both.sum(dim=1)], dim=1)

    def settings(self) -> Mapping[str, Any]:
        """The model's hashes, the question and what counts as its answer."""
        return {
            **self.model.settings(),
            "templates": [text_sha256(self.question)],
            "answers": list(self.words),
            "share": self.share,
            "temperature": self.temperature,
        }
