"""Rows of methods for vision-language models: objectives on token log-probabilities, with released numbers.

Objectives that know no modality (dpo, simpo, kto, ...) run on tokens as they are, from the `PRESET`; a row
stands here where a method needs more than its formula (candidates under other images, numbers of the data)
or where settings were released for such models. What a row leaves open it takes from the row of its
objective.

One file per idea; a file may come beside the others by a line in `ROWS`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from mmalign.methods.row import Default, Method
from mmalign.methods.vlm import answers, data, online, other_media
from mmalign.methods.vlm.parts import ours

__all__ = ["PRESET", "ROWS"]

_BETWEEN = "between the released scripts, which train LoRA of rank 64 to 256 at 1e-6 to 5e-5"

PRESET: Mapping[str, Default] = MappingProxyType(
    {
        "learning_rate": Default(1e-5, "ours", _BETWEEN),
        "rank": Default(64, "ours", _BETWEEN),
        "lora_alpha": Default(128, "ours", _BETWEEN),
        "effective_batch": Default(32, "ours", _BETWEEN),
        "schedule": Default("cosine", "ours", "as most released scripts"),
        "warmup_ratio": Default(0.1, "ours", "as most released scripts"),
        "epochs": Default(1, "ours", "as most released scripts"),
    }
)
"""Settings of a language model's run where a method's row has none."""

_DPO = Method(
    name="dpo",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    paper="2305.18290",
    year=2023,
    objective="dpo",
    defaults={"language": ours("the value of every released script for such models", beta=0.1)},
)

ROWS: tuple[Method, ...] = (_DPO, *other_media.ROWS, *answers.ROWS, *online.ROWS, *data.ROWS)
