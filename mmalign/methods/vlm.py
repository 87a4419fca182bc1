"""Rows of methods for vision-language models: objectives on token log-probabilities, with released numbers.

Objectives that know no modality (dpo, simpo, kto, ...) run on tokens as they are; a row stands here where a
method needs more than its formula: candidates under other images, or settings that were released for such
models. What a row leaves open it takes from the row of its objective.
"""

from mmalign.methods.row import Default, Mark, Method, View

__all__ = ["ROWS"]


def _of(mark: Mark, **values: float | int | str | bool) -> dict[str, Default]:
    """Settings of one source."""
    return {name: Default(value, mark) for name, value in values.items()}


_PRESET: dict[str, float | int | str | bool] = {
    "learning_rate": 1e-5,
    "rank": 64,
    "lora_alpha": 128,
    "effective_batch": 32,
    "schedule": "cosine",
    "warmup_ratio": 0.1,
    "epochs": 1,
}
_OURS = {
    name: Default(value, "ours", "between the released scripts: LoRA rates of 5e-6 to 1e-5 at rank 64 to 128")
    for name, value in _PRESET.items()
}

_CORRUPTED = (View(0),)
"""Candidate 2: the chosen answer beside the corrupted image."""

_DPO = Method(
    name="dpo",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    paper="2305.18290",
    year=2023,
    objective="dpo",
    defaults={"language": {**_OURS, "beta": Default(0.1, "ours", "the value of every released script")}},
)

_MDPO = Method(
    name="mdpo",
    title="mDPO: Conditional Preference Optimization for Multimodal Large Language Models",
    paper="2406.11839",
    year=2024,
    objective="mdpo",
    likelihood="tokens",
    views=_CORRUPTED,
    defaults={
        "language": {
            **_of(
                "code",
                beta=0.1,
                learning_rate=1e-5,
                rank=64,
                lora_alpha=128,
                effective_batch=32,
                schedule="cosine",
                warmup_ratio=0.1,
                epochs=3,
                weight_decay=0.05,
                adam_beta2=0.98,
                corruption="crop",
            )
        }
    },
)

ROWS = (_DPO, _MDPO)
