"""Imitation of answers in the trainer of preferences: the baseline of methods that learn from pairs."""

from mmalign.methods.row import Default, Method

__all__ = ["ROWS"]

_SFT = Method(
    name="sft",
    title="Supervised fine-tuning on the chosen candidates (no paper)",
    paper="",
    year=2022,
    objective="sft",
    likelihood="tokens",
    reference="none",
    data="chosen",
    defaults={
        "language": {
            "normaliser": Default("sequence_mean", "ours", "every answer counts alike, however long"),
            "learning_rate": Default(1e-4, "ours", "usual for LoRA; full fine-tuning takes a tenth"),
        }
    },
    formula="loss = mean over the answer's tokens of -log p of the policy",
)

ROWS: tuple[Method, ...] = (_SFT,)
"""Data: rows of one answer each, or pairs, of which the chosen one is read. Rejection sampling and
conditioned answers are such rows (`mmalign pairs make`, `rows: best` and `rows: conditioned`)."""
