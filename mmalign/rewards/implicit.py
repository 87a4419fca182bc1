"""The implicit reward of a tuned model: what preference training made likelier.

    reward = beta * (log p_tuned(answer | prompt) - log p_reference(answer | prompt))

Up to a term of the prompt alone this is the reward whose optimum under a KL penalty beta the tuned model is.
It ranks the answers of one prompt; values of different prompts do not compare. Source: 2305.18290, equation
5. For diffusion models a denoising error stands in for the log-probability (2311.12908).
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmalign.errors import ConfigError, RowError, ShapeError, explain
from mmalign.likelihood import adapter_toggle, token_log_probs
from mmalign.likelihood.token_statistics import IGNORED
from mmalign.rewards.base import ModelReward, Prepared, Scored
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample

__all__ = ["LogRatioReward", "TokenLogRatio", "implicit_card"]

LogProbs = Callable[[Sequence[Sample]], Sequence[float] | Tensor]
"""Takes samples, returns one number each: a log-probability, or a denoising error."""

_OUTPUTS = ("score", "tuned_log_prob", "reference_log_prob")


def implicit_card(
    *, name: str = "implicit", modality: Literal["image", "video", "audio", "text"] = "text"
) -> Card:
    """The card of an implicit reward."""
    return Card(
        name=name,
        title="what preference training made likelier: beta * (log p_tuned - log p_reference)",
        modality=modality,
        outputs=_OUTPUTS,
        scale="nats times beta, around 0; ranks candidates of one prompt, does not compare prompts",
        paper="2305.18290",
        licence="that of the models",
        departures=(
            "the term of the prompt alone (log of the partition function) is left out: all candidates of a "
            "prompt share it",
        ),
    )


class TokenLogRatio(ModelReward):
    """The implicit reward of a tuned language model on text answers.

    Outputs: `score` = beta * (log-ratio of the answer's tokens, summed; the mean with `average`), and the two
    log-probabilities in nats in the same reduction.

    A sample's `prompt` and `text` are rendered by the tokenizer's chat template, where it has one: the
    answer's part is what the template adds behind the generation prompt, end-of-turn tokens included. Without
    a template it is the text and the end token. `extras["messages"]` (a list of role and content) stands in
    for the prompt of a conversation.

    Args:
        tuned: causal language model after preference training; both are put in evaluation mode.
        reference: the model before it; None switches the peft adapters of `tuned` off.
        tokenizer: of both.
        beta: of the training; only the unit depends on it.
        average: mean over tokens instead of sum, for models trained with length-normalised losses.
        max_length: tokens that are read; longer prompts lose their start and are flagged, longer answers
            fail.
        identity: JSON types that name the weights (file name to hash), for the fingerprint.
        name: what it is called in tables.
        device: where both models stand.
        dtype: of both models.

    Raises:
        ConfigError: beta is not above 0; max_length is below 2; no reference and no adapters to switch off; a
            tokenizer with neither an end token nor a template.
    """

    def __init__(
        self,
        tuned: nn.Module,
        reference: nn.Module | None,
        tokenizer: Any,
        *,
        identity: Mapping[str, Any],
        beta: float = 0.1,
        average: bool = False,
        max_length: int = 4096,
        name: str = "implicit",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(implicit_card(name=name), device=device, dtype=dtype)
        _check_beta(beta)
        if max_length < 2:
            raise ConfigError(explain("implicit reward max_length", got=max_length, expected="at least 2"))
        self._templated = bool(getattr(tokenizer, "chat_template", None))
        if tokenizer.eos_token_id is None and not self._templated:
            expected = "an end token or a chat template: an answer has to end"
            raise ConfigError(explain("implicit reward tokenizer", got="[neither]", expected=expected))
        longest_first = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.tokenizer, self.identity = tokenizer, dict(identity)
        self.beta, self.average, self.max_length = float(beta), average, max_length
        self.tuned = tuned.to(self.device, dtype).eval()
        self._adapters_off = contextlib.nullcontext if reference is not None else adapter_toggle(tuned)
        self.reference = self.tuned if reference is None else reference.to(self.device, dtype).eval()

    def prepare(self, sample: Sample) -> Prepared:
        """Token ids of prompt and answer.

        Raises:
            RowError: no answer, an answer that is longer than `max_length`, messages that are none.
        """
        if sample.text is None:
            message = explain("Sample.text", got=None, expected="the answer that is scored")
            raise RowError(message, reason="no_answer")
        before, behind = self._rendered(sample)
        prompt, answer = self._ids(before), self._ids(behind)
        if not self._templated:
            start = self.tokenizer.bos_token_id
            prompt = prompt if start is None else [start, *prompt]
            answer = [*answer, self.tokenizer.eos_token_id]
        room = self.max_length - len(answer)
        if room < 1:
            message = explain(
                "Sample.text",
                got=f"[an answer of {len(answer)} tokens]",
                expected=f"at most {self.max_length - 1}: a cut answer has another probability",
                do="Raise max_length.",
            )
            raise RowError(message, reason="too_long")
        if not prompt:
            message = explain(
                "Sample.prompt", got=sample.prompt, expected="at least one token before the answer"
            )
            raise RowError(message, reason="no_prompt")
        kept = prompt[-room:]
        ids = torch.tensor([*kept, *answer])
        labels = torch.tensor([IGNORED] * len(kept) + answer)
        return Prepared({"ids": ids, "labels": labels}, truncated=len(kept) < len(prompt))

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _plain(self, text: str) -> str:
        """The text with names of special tokens broken: `<|im_end|>` in an answer does not end it.

        Only this tokenizer's: a model's own `<think>` is a part of its answer.
        """
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def _rendered(self, sample: Sample) -> tuple[str, str]:
        """What stands before the answer, and the answer with what ends it."""
        answer = self._plain(sample.text or "")
        messages = [
            {"role": one["role"], "content": self._plain(one["content"])} for one in _messages(sample)
        ]
        if not self._templated:
            if len(messages) > 1 or messages[0]["role"] != "user":
                message = explain(
                    "Sample.extras['messages']",
                    got=f"[{len(messages)} messages]",
                    expected="one of the user: this tokenizer has no chat template to join more",
                )
                raise RowError(message, reason="no_template")
            return messages[0]["content"], answer
        render = self.tokenizer.apply_chat_template
        before: str = render(messages, tokenize=False, add_generation_prompt=True)
        whole: str = render([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        if not whole.startswith(before) or answer.strip() not in whole[len(before) :]:
            message = explain(
                "implicit reward chat template",
                got="[a conversation that does not begin with its own generation prompt]",
                expected="a template that appends the answer, unchanged, to the generation prompt",
                do="Give the tokenizer the template the model was tuned with.",
            )
            raise RowError(message, reason="template")
        return before, whole[len(before) :]

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """Scores and log-probabilities; with gradients where they are switched on."""
        ids, labels = _padded(batch)
        ids, labels = ids.to(self.device), labels.to(self.device)
        lengths = torch.tensor([len(one.inputs["ids"]) for one in batch], device=self.device)
        mask = torch.arange(ids.shape[1], device=self.device) < lengths.unsqueeze(1)
        found = []
        for network, context in ((self.tuned, contextlib.nullcontext), (self.reference, self._adapters_off)):
            found.append(self._log_prob(network, context(), ids, labels, mask.long()))
        return torch.stack([self.beta * (found[0] - found[1]), *found], dim=1)

    def _log_prob(
        self,
        network: nn.Module,
        context: AbstractContextManager[Any],
        ids: Int[Tensor, "sample position"],
        labels: Int[Tensor, "sample position"],
        mask: Int[Tensor, "sample position"],
    ) -> Float[Tensor, " sample"]:
        with context:
            logits = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        values, counted = token_log_probs(logits, labels)
        # A thousand tokens sum to some -6000: in float32 the ratio of two such sums would be off by 1e-3.
        total = values.cpu().double().sum(dim=1)
        return total / counted.sum(dim=1).cpu() if self.average else total

    def settings(self) -> Mapping[str, Any]:
        """Weights, template and options."""
        template = str(self.tokenizer.chat_template) if self._templated else ""
        return {
            "weights": self.identity,
            "template": hashlib.sha256(template.encode()).hexdigest(),
            "beta": self.beta,
            "average": self.average,
            "max_length": self.max_length,
            "reference": "adapters_off" if self.reference is self.tuned else "model",
        }


def _messages(sample: Sample) -> list[dict[str, str]]:
    """The conversation before the answer."""
    given = sample.extras.get("messages")
    if given is None:
        return [{"role": "user", "content": sample.prompt}]
    plain = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
    if not plain or not all(isinstance(one, Mapping) and {"role", "content"} <= set(one) for one in given):
        expected = "a list of {'role': ..., 'content': ...}"
        message = explain("Sample.extras['messages']", got=given, expected=expected)
        raise RowError(message, reason="bad_messages")
    return [{"role": str(one["role"]), "content": str(one["content"])} for one in given]


def _padded(
    batch: Sequence[Prepared],
) -> tuple[Int[Tensor, "sample position"], Int[Tensor, "sample position"]]:
    """Token ids and labels, padded on the right; the padding is masked and has no labels."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad([one.inputs["ids"] for one in batch], batch_first=True, padding_value=0)
    labels = pad([one.inputs["labels"] for one in batch], batch_first=True, padding_value=IGNORED)
    return ids, labels


class LogRatioReward:
    """The implicit reward of any model, from two functions that rate samples.

    With log-probabilities: reward = beta * (tuned - reference).
    With denoising errors: reward = -beta / 2 * (tuned - reference), the unit of `mmalign.likelihood`, where a
    score is -error / 2; the two functions must use the same noise and timesteps for a sample, drawn from the
    sample (its id or content) and not from its place in the call.

    Outputs: `score`, and what the two functions returned as (pseudo-)log-probabilities.

    Args:
        tuned: of the tuned model.
        reference: of the reference.
        kind: what the functions return: "log_prob" or "error".
        beta: only the unit depends on it; 2000 to 5000 for errors that are means over latents.
        identity: JSON types that name the models, the noise and the timesteps: the fingerprint is made of it.
        name: what it is called in tables.
        modality: of the samples.

    Raises:
        ConfigError: beta is not above 0, another kind, or an empty identity.
    """

    def __init__(
        self,
        tuned: LogProbs,
        reference: LogProbs,
        *,
        identity: Mapping[str, Any],
        kind: Literal["log_prob", "error"] = "log_prob",
        beta: float = 0.1,
        name: str = "implicit",
        modality: Literal["image", "video", "audio", "text"] = "image",
    ) -> None:
        _check_beta(beta)
        if kind not in ("log_prob", "error"):
            raise ConfigError(explain("implicit reward kind", got=kind, expected="'log_prob' or 'error'"))
        if not identity:
            expected = "what names the models, for example {'tuned': hash, 'reference': hash}"
            raise ConfigError(explain("implicit reward identity", got="[nothing]", expected=expected))
        self.tuned, self.reference, self.kind, self.beta = tuned, reference, kind, float(beta)
        self.identity = dict(identity)
        self._card = implicit_card(name=name, modality=modality)

    @property
    def card(self) -> Card:
        """What it is."""
        return self._card

    def provenance(self) -> Mapping[str, Any]:
        """Identity, kind and beta."""
        return {
            "name": self.card.name,
            "code": 1,
            "kind": self.kind,
            "beta": self.beta,
            "identity": self.identity,
        }

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of `provenance`."""
        text = json.dumps(self.provenance(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @torch.inference_mode()
    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        """Values of the samples; NaN where a function returned no finite number.

        Raises:
            ShapeError: a function returned another number of values.
        """
        rows = []
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            tuned, reference = (
                self._rated(name, function, batch)
                for name, function in (("tuned", self.tuned), ("reference", self.reference))
            )
            rows.append(torch.stack([self.beta * (tuned - reference), tuned, reference], dim=1))
        values = torch.cat(rows) if rows else torch.zeros(0, len(_OUTPUTS), dtype=torch.float64)
        message = f"{self.card.name}: the value is not finite"
        errors = tuple(None if all(map(math.isfinite, row)) else message for row in values.tolist())
        return Scored(values, _OUTPUTS, errors, (False,) * len(samples), (None,) * len(samples))

    def _rated(self, name: str, function: LogProbs, batch: Sequence[Sample]) -> Float[Tensor, " sample"]:
        returned = function(batch)
        found = torch.as_tensor(returned).detach().to("cpu", torch.float64)
        if tuple(found.shape) != (len(batch),):
            expected = f"[{len(batch)}], one number per sample"
            message = explain(f"{self.card.name} {name}", got=f"{list(found.shape)}", expected=expected)
            raise ShapeError(message)
        return found if self.kind == "log_prob" else -0.5 * found


def _check_beta(beta: float) -> None:
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(explain("implicit reward beta", got=beta, expected="a number above 0"))
