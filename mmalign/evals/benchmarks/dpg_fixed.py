"""DPG-Bench with the released script's defects removed; `dpg` keeps them."""

from collections.abc import Sequence
from functools import partial

from mmalign.evals.base import Answer, Benchmark, Outcome
from mmalign.evals.benchmarks import dpg

__all__ = ["BENCHMARK"]


def _score(answers: Sequence[Answer], *, vqa: dpg.PictureQuestions, resolution: int | None = None) -> Outcome:
    result = dpg.score_pictures(answers, vqa, released=False, resolution=resolution)
    return dpg.outcome_of(result, (f"Questions answered by {getattr(vqa, 'name', 'a model of the user')}.",))


BENCHMARK = Benchmark(
    name="dpg_fixed",
    title="Dense prompts, checked by yes-or-no questions; every question, picture and category counted",
    produces="image",
    read=partial(dpg.read_items, released=False),
    score=_score,
    files=dpg.FILES,
    tools=("vqa",),
    options=dpg.OPTIONS,
    protocol=dpg.PROTOCOL,
    paper="2403.05135",
    official_code="TencentQQGYLab/ELLA",
    licence="Apache-2.0",
    departures=(
        "The first question of the table is asked; the released script skips it.",
        "A prompt whose picture failed keeps its other pictures; the released script drops it.",
        "Categories are means over every picture after parents were followed; the released script reads the "
        "last picture before.",
        "Parents are followed wherever they stand; the released script passes once, in order.",
        "Yes is recognised in any case and before a full stop; the released script compares with 'yes'.",
    ),
)
