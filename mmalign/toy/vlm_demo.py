"""`mmalign demo vlm`: align the toy world of dialogues by DPO.

TRL rows in parquet, the recipe `vlm/configs/toy/dpo.yaml`, and both models' answers about held-out pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmalign.toy.demo import Clock, Demo, run_demo

if TYPE_CHECKING:
    from mmalign.toy.comparison import Interval
    from mmalign.toy.dialogue_exam import Answers, Axis, ExamComparison
    from mmalign.toy.report import Report
    from mmalign.train.config import ResolvedRun
    from mmalign.train.run import RunResult
    from mmalign.vlm.family import VlmModel

__all__ = ["VLM_RECIPE", "VlmDemo", "main"]

VLM_RECIPE = "vlm/configs/toy/dpo.yaml"

_ROWS: tuple[tuple["Axis", str], ...] = (
    ("hallucinated", "answers that hallucinate"),
    ("recall", "recall of what is there"),
    ("words", "words per answer"),
)


@dataclass(frozen=True)
class VlmDemo(Demo["ExamComparison"]):
    """The demo of dialogues, and how much work it does.

    Args:
        num_pairs: preference pairs that are painted.
        num_pictures: held-out pictures that both models describe.
        overrides: `section.key=value` over the recipe.
        recipe: name of its file.
    """

    num_pairs: int = 1536
    num_pictures: int = 200
    overrides: tuple[str, ...] = ()
    recipe: str = VLM_RECIPE

    command = "mmalign demo vlm"
    promise = "teach a small model of LLaVA's structure to say only what it sees"
    duration = "About a minute on one CPU core. No download, no GPU."
    num_threads = 1  # the network is so small that two threads mostly wait for each other
    libraries = ("mmalign.toy.dialogue_exam", "mmalign.train.run")
    packages = ("transformers", "peft")

    def stages(self, report: Path) -> Sequence[str]:
        """What will be done, a line each."""
        return (
            f"paint {self.num_pairs} preference pairs into a parquet file of TRL rows: the chosen answer "
            "is true of its picture",
            f"train LoRA weights on the language model with the recipe {self.recipe}",
            f"let base and aligned describe {self.num_pictures} held-out pictures, and ask both what is "
            "there",
            f"judge every answer exactly and write {report}",
        )

    def base(self) -> Path:
        """Folder of the base model."""
        from mmalign.toy.dialogue_parts import ASSETS

        return ASSETS

    def align(self, run: "ResolvedRun", home: Path, seed: int, clock: Clock) -> "RunResult":
        """Paint pairs, train."""
        import torch

        from mmalign.toy.dialogue_pairs import dialogue_pairs, write_trl
        from mmalign.train.parts import load_model
        from mmalign.train.run import train

        with clock.stage("painting pairs", "painting preference pairs"):
            write_trl(dialogue_pairs(self.num_pairs, seed=seed), home / "pairs.parquet")
        with clock.stage("loading the base"):
            model = load_model(run, torch.device("cpu"))
        with clock.stage("training"):
            return train(run, model=model)

    def compare(self, result: "RunResult", seed: int, clock: Clock) -> "ExamComparison":
        """Both models' answers about held-out pictures, judged."""
        from mmalign.toy.dialogue_exam import ExamComparison, draw_exam, take_exam

        exam = draw_exam(self.num_pictures, seed=seed)
        model = cast("VlmModel", result.model)

        def answers(name: str) -> "Answers":
            with clock.stage(f"answering, {name}", f"answering about held-out pictures, {name}"):
                return take_exam(model, exam)

        aligned = answers("aligned")
        with result.trainables.disabled():
            base = answers("base")
        return ExamComparison(exam, base, aligned)

    def settings(self) -> Mapping[str, str]:
        """How answers are written."""
        return {"decoding": "greedy"}

    def results(
        self, comparison: "ExamComparison"
    ) -> Sequence[tuple[str, tuple[float, float], "Interval | None"]]:
        """Rates of the descriptions with their changes, then the questions."""
        rows: list[tuple[str, tuple[float, float], Interval | None]] = [
            (title, comparison.means(axis), comparison.gain(axis)) for axis, title in _ROWS
        ]
        base, aligned = comparison.exists()
        for split in base:
            accuracies = base[split].accuracy, aligned[split].accuracy
            several = base[split].num > 2  # two questions per picture; one picture shows no spread
            change = comparison.exists_gain(split) if several else None
            rows.append((f"yes or no, {split}: accuracy", accuracies, change))
        return rows

    def numbers(self, comparison: "ExamComparison") -> dict[str, Any]:
        """The report's numbers for programs; the same seed gives the same file on one machine."""
        from mmalign.toy.dialogue_exam import AXES

        rate = comparison.win_rate()
        won, tied, lost = comparison.outcomes()
        rates = dict(zip(("base", "aligned"), comparison.rates(), strict=True))
        polls = dict(zip(("base", "aligned"), comparison.exists(), strict=True))
        gains = {axis: comparison.gain(axis) for axis in AXES}
        return {
            "pictures": len(comparison.exam.pictures),
            "descriptions": {name: found.as_numbers() for name, found in rates.items()},
            "change": {axis: {"value": g.value, "low": g.low, "high": g.high} for axis, g in gains.items()},
            "questions": {
                name: {
                    split: {"accuracy": found.accuracy, "yes_share": found.yes_share, "number": found.num}
                    for split, found in splits.items()
                }
                for name, splits in polls.items()
            },
            "win_rate": {"value": rate.value, "low": rate.low, "high": rate.high},
            "won": won,
            "tied": tied,
            "lost": lost,
        }

    def render(self, report: "Report[ExamComparison]") -> str:
        """The page as HTML text."""
        from mmalign.toy.vlm_demo_report import render_dialogue_report

        return render_dialogue_report(report)

    def commands(self) -> Sequence[tuple[str, str]]:
        """From one's own pairs to LLaVA."""
        return (
            (
                "Look at your own preference data first: layout, unreadable images, lengths, a preview.",
                "mmalign data check PAIRS --html pairs.html",
            ),
            (
                "See the plan for LLaVA 1.5: resolved settings, trained weights, memory.",
                "mmalign train vlm/configs/toy/dpo.yaml model.source=llava-hf/llava-1.5-7b-hf "
                "data.source=PAIRS "
                "--dry-run",
            ),
            (
                "Where answers can be told apart without looking, compare images as well.",
                "mmalign train vlm/configs/toy/mdpo.yaml",
            ),
        )

    def next_step(self) -> tuple[str, str]:
        """One's own pairs."""
        return self.commands()[0]


def main(output: Path = Path("runs/demo"), seed: int = 0, *, demo: VlmDemo | None = None) -> int:
    """Run the demo and print what came of it. Returns 0.

    Args:
        output: folder to write; where it holds something already, the next free name is taken.
        seed: of the pairs, the adapter, the order.
        demo: how much work.

    Raises:
        ConfigError: the recipe is not installed, or `output` is a file.
    """
    return run_demo(demo or VlmDemo(), output, seed)
