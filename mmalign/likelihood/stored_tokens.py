"""Log-probabilities of a frozen reference as data: computed once, read back by every later run and epoch.

An answer under a frozen language model has one log-likelihood: 4 bytes per answer replace a forward pass with
vision tower, and 4 bytes per token serve methods that look inside. Entries are keyed by content, per answer:
`Batch.recorded["content_key"]`, int64 `[prompt, candidate]`, a digest of everything the network reads for it
(prompt tokens, media, answer tokens; see `content_key`). Rows that share an answer share its entry, a row
that moved in its file keeps it, and one whose picture, template or text changed no longer finds it.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from mmalign.batch import Batch
from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.likelihood.base import AnyDraw, Evaluation, Likelihood, Reference
from mmalign.likelihood.stored import require_same_facts
from mmalign.likelihood.token_table import TokenTable

__all__ = ["CONTENT_KEY", "StoredTokenReference", "precompute_log_probs", "uncovered"]

CONTENT_KEY = "content_key"
"""Name of the keys in `Batch.recorded`."""

_KINDS = ("adapters_off", "frozen")


def _keys_and_mask(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and mask of a batch, and which of its answers count: of readable rows, with tokens."""
    key, mask = batch.recorded.get(CONTENT_KEY), batch.element_mask
    if key is None or mask is None or key.shape != batch.clean.shape[:2] or key.dtype != torch.int64:
        got = "nothing" if key is None else f"{key.dtype} of shape {list(key.shape)}"
        message = explain(
            f"Batch.recorded[{CONTENT_KEY!r}], needed by stored references",
            got=got if mask is not None else f"{got}, no element_mask",
            expected=f"int64 {list(batch.clean.shape[:2])} and a mask of the answers' tokens",
        )
        raise ConfigError(message)
    return key, mask, batch.valid.unsqueeze(1) & (mask != 0).any(-1)


def uncovered(table: TokenTable | None, batch: Batch) -> Bool[Tensor, "prompt candidate"]:
    """Which answers of readable rows a table does not hold; all of them without a table.

    Raises:
        ConfigError: the batch has no content keys.
    """
    key, mask, counts = _keys_and_mask(batch)
    return counts if table is None else counts & ~table.find(key, mask).found


class StoredTokenReference:
    """Log-likelihoods from a table: no forward, no vision tower, no second network.

    Args:
        table: the numbers.
        likelihood: the run's likelihood; must describe itself as the one that made the table.
        facts: what else this run's numbers depend on (model, adapter, precision).
        per_token: whether the objective looks inside answers; a table of sums is then refused.

    Raises:
        CheckpointError: the table was made under other facts, or lacks numbers per token.
    """

    kind = "stored"

    def __init__(
        self, table: TokenTable, likelihood: Likelihood, facts: Mapping[str, str], *, per_token: bool = False
    ) -> None:
        wanted = {**likelihood.describe(), **facts}
        require_same_facts("reference stored", table.facts, wanted, what="log-probabilities")
        if per_token and table.token is None:
            message = (
                "reference stored: got sums per answer, expected log-probabilities per token, which this "
                "method compares. Precompute them with per_token=True."
            )
            raise CheckpointError(message)
        self.table = table

    def evaluate(
        self, likelihood: Likelihood, batch: Batch, draw: AnyDraw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Stored numbers of the batch's answers; hidden states are not stored.

        An answer without an entry gives NaN, which the training loop drops and counts; on the CPU it raises.

        Raises:
            CheckpointError: on the CPU, an answer of a readable row has no entry.
            ConfigError: the batch has no content keys.
        """
        del likelihood, draw, keep_prediction
        key, mask, counts = _keys_and_mask(batch)
        stored = self.table.find(key, mask)
        missing = counts & ~stored.found
        if missing.device.type == "cpu" and bool(missing.any()):
            self._refuse(missing, batch.ids)
        # Unreadable rows and padding count nowhere; NaN would still poison their masked loss.
        total = torch.where(counts, stored.total, stored.total.nan_to_num(0.0))
        inner = stored.inner
        if inner is not None:
            inner = torch.where(counts.unsqueeze(-1), inner, inner.nan_to_num(0.0))
        return Evaluation(score=total, error=-total, inner=inner, mask=None if inner is None else mask)

    def update(self, step: int) -> None:
        """Nothing moves."""
        del step

    def _refuse(self, missing: Tensor, ids: tuple[str, ...]) -> None:
        rows = missing.any(1).nonzero().flatten().tolist()
        named = [ids[row] if row < len(ids) else f"row {row} of the batch" for row in rows[:3]]
        message = (
            f"reference stored: no stored log-probabilities for {int(missing.sum())} answers of this batch, "
            f"first rows: {', '.join(named)} ({len(self.table)} entries). Precompute them for every row, "
            "with the prompts, media settings and corruptions of this run."
        )
        raise CheckpointError(message)


def precompute_log_probs(
    reference: Reference,
    likelihood: Likelihood,
    batches: Iterable[Batch],
    *,
    facts: Mapping[str, str],
    per_token: bool = False,
    done: TokenTable | None = None,
) -> TokenTable:
    """Log-likelihoods of a frozen reference for every answer of every readable row of `batches`.

    Args:
        reference: adapters_off or frozen.
        likelihood: the run's likelihood; its description joins the facts.
        batches: every row once (once per draw, where media are corrupted at random), in any order and batch
            size; each rank passes its own and merges.
        facts: what else the numbers depend on (model, adapter, precision); prompts, media and answers are in
            the keys.
        per_token: keep every token's number, for methods that look inside answers.
        done: an earlier, interrupted result: batches it covers are not computed again.

    Returns:
        A table of all answers, those of `done` included.

    Raises:
        ConfigError: the reference moves or is none, the likelihood gives no numbers per token, there are no
            batches, or they have no content keys.
        CheckpointError: `done` was computed under other facts, or keeps sums where tokens are wanted.
    """
    if reference.kind not in _KINDS:
        message = explain(
            "precompute_log_probs",
            got=f"reference {reference.kind}",
            expected="adapters_off or frozen, which never move",
        )
        raise ConfigError(message)
    described = {**likelihood.describe(), **facts}
    if done is not None:
        require_same_facts(
            "continuing stored log-probabilities", done.facts, described, what="log-probabilities"
        )
        if per_token != (done.token is not None):
            message = (
                "continuing stored log-probabilities: got sums alone or numbers per token, expected what "
                f"was asked for now (per_token={per_token}). Start anew, or ask for the same."
            )
            raise CheckpointError(message)
    parts = [
        _entries(reference, likelihood, batch, described, per_token=per_token)
        for batch in batches
        if bool(uncovered(done, batch).any())
    ]
    if not parts:
        if done is None:
            raise ConfigError(explain("precompute_log_probs", got="no answers", expected="at least one"))
        return done
    return _joined(parts if done is None else [done, *parts])


def _entries(
    reference: Reference,
    likelihood: Likelihood,
    batch: Batch,
    facts: Mapping[str, str],
    *,
    per_token: bool,
) -> TokenTable:
    """The answers of one batch."""
    key, mask, counts = _keys_and_mask(batch)
    found = reference.evaluate(likelihood, batch, likelihood.draw(batch))
    if found is None or found.inner is None:
        message = explain(
            "precompute_log_probs",
            got=f"likelihood {likelihood.kind}, which gives no numbers per token",
            expected="tokens",
        )
        raise ConfigError(message)
    marked = (mask != 0) & counts.unsqueeze(-1)
    return TokenTable(
        key[counts],
        found.score[counts],
        marked.sum(-1)[counts],
        facts,
        found.inner[marked] if per_token else None,
    )


def _joined(parts: list[TokenTable]) -> TokenTable:
    """All entries, put together at once: pair by pair would sort the first ones again and again."""
    token = [part.token for part in parts if part.token is not None]
    return TokenTable(
        torch.cat([part.key for part in parts]),
        torch.cat([part.total for part in parts]),
        torch.cat([part.length for part in parts]),
        parts[0].facts,
        torch.cat(token) if token else None,
    )
