"""Answers to fixed prompts while training, the base model's beside the policy's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from mmalign.batch import PreferenceRow
from mmalign.files import atomic_write
from mmalign.train.adapters import Trainables
from mmalign.train.model import TrainedModel
from mmalign.train.token_sections import AnswersConfig

__all__ = ["SampleAnswers"]


class _Writer(Protocol):
    def generate(
        self, rows: list[PreferenceRow], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[str]: ...


class SampleAnswers:
    """Writes `samples/step-NNNNNNNN.json` of a run: `[{prompt, images, videos, base, policy}]`.

    Args:
        model: writes the answers.
        trainables: switches the adapters off for the base model's answers.
        config: prompts, seed, length, temperature.
        folder: where the files go.
    """

    def __init__(
        self, model: TrainedModel, trainables: Trainables, config: AnswersConfig, folder: Path
    ) -> None:
        self.model, self.trainables, self.config, self.folder = model, trainables, config, folder
        self.base: list[str] | None = None
        self.rows = [
            PreferenceRow(
                prompt=sample.prompt,
                candidates=(),
                kind="prompts",
                images=sample.images,
                videos=sample.videos,
                id=f"answers.prompts {number}",
                source=f"answers.prompts {number}",
            )
            for number, sample in enumerate(config.prompts)
        ]

    def _written(self) -> list[str]:
        writer = cast("_Writer", self.model)
        return writer.generate(
            self.rows,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=self.config.seed,
        )

    def write(self, step: int) -> Path:
        """Write the policy's answers (and, once, the base model's if adapters can be switched off)."""
        if self.base is None and self.trainables.layers:
            with self.trainables.disabled():
                self.base = self._written()
        base: Sequence[str | None] = self.base or [None] * len(self.rows)
        records = [
            {
                "prompt": row.prompt,
                "images": list(row.images),
                "videos": list(row.videos),
                "base": before,
                "policy": after,
            }
            for row, before, after in zip(self.rows, base, self._written(), strict=True)
        ]
        text = json.dumps(records, ensure_ascii=False, indent=2) + "\n"
        return atomic_write(self.folder / f"step-{step:08d}.json", text)
