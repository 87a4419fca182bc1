"""What every benchmark must do, as a test class: derive from it and give a benchmark and an example.

    class TestMine(BenchmarkConformance):
        @pytest.fixture(scope="class")
        def benchmark(self) -> Benchmark: ...

        @pytest.fixture(scope="class")
        def example(self) -> BenchmarkExample: ...

The benchmarks of this package are tested by `tests/evals/benchmarks/test_conformance.py`.
"""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmalign.errors import ConfigError
from mmalign.evals.base import Answer, Benchmark, Item, Metric, Outcome
from mmalign.evals.benchmark_statistics import is_mean_of_items
from mmalign.evals.benchmarking import sort_options
from mmalign.testing.benchmark_examples import BenchmarkExample

__all__ = ["BenchmarkConformance"]


def _named(outcome: Outcome) -> dict[str, Metric]:
    return {metric.name: metric for metric in outcome.metrics}


def _near(found: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    """Equal up to the rounding of sums in another order."""
    return found == pytest.approx(dict(expected), rel=1e-9, abs=1e-12, nan_ok=True)


class BenchmarkConformance:
    """Tests of one benchmark on an example in miniature."""

    @pytest.fixture(scope="class")
    @classmethod
    def benchmark(cls) -> Benchmark:
        """The benchmark that is tested."""
        pytest.fail(f"{cls.__name__}: define the fixture `benchmark`, which returns the Benchmark to test")

    @pytest.fixture(scope="class")
    @classmethod
    def example(cls) -> BenchmarkExample:
        """Its example."""
        pytest.fail(f"{cls.__name__}: define the fixture `example`, which returns its BenchmarkExample")

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, example: BenchmarkExample, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The example's official files."""
        folder = tmp_path_factory.mktemp("official")
        example.write(folder)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def items(cls, benchmark: Benchmark, example: BenchmarkExample, folder: Path) -> Sequence[Item]:
        """The example's items."""
        return benchmark.items(folder, **example.reading(folder))

    @pytest.fixture(scope="class")
    @classmethod
    def answers(cls, example: BenchmarkExample, items: Sequence[Item]) -> list[Answer]:
        """The example's answers."""
        return example.answers(items)

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, example: BenchmarkExample, folder: Path) -> Mapping[str, Any]:
        """Tools and options of scoring."""
        return example.scoring(folder)

    @pytest.fixture(scope="class")
    @classmethod
    def outcome(cls, benchmark: Benchmark, answers: list[Answer], options: Mapping[str, Any]) -> Outcome:
        """The example's outcome, which every other way of scoring it must equal."""
        return benchmark.score(answers, **options)

    def test_the_card_says_what_is_measured_and_where_it_comes_from(self, benchmark: Benchmark) -> None:
        """Title, files with sources, protocol, source, licence."""
        assert benchmark.title
        assert benchmark.produces in ("text", "image", "video", "audio")
        assert benchmark.files, "which official files are read"
        assert all(benchmark.files.values()), "where each file comes from"
        assert benchmark.protocol, "what makes two numbers comparable"
        assert benchmark.paper or benchmark.official_code
        assert benchmark.licence
        assert all(text.endswith(".") for text in benchmark.departures), "one sentence each"

    def test_every_option_and_tool_of_the_card_is_taken(self, benchmark: Benchmark) -> None:
        """By reading or by scoring."""
        scoring = inspect.signature(benchmark.score).parameters
        further = any(one.kind is one.VAR_KEYWORD for one in scoring.values())
        assert all(benchmark.options.values()), "what each option does"
        for name in benchmark.options:
            of_reading, of_scoring = sort_options(benchmark, {name: "x"})
            assert of_reading or (of_scoring and (name in scoring or further)), name
        assert set(benchmark.tools) <= set(scoring)

    def test_a_folder_without_the_official_files_is_refused_with_their_names(
        self, benchmark: Benchmark, tmp_path: Path
    ) -> None:
        """And with what to do."""
        with pytest.raises(ConfigError, match=r"expected .*official files") as refused:
            benchmark.items(tmp_path / "nowhere")
        assert str(tmp_path / "nowhere") in str(refused.value)

    def test_items_are_unique_stable_and_can_be_stored(
        self, benchmark: Benchmark, example: BenchmarkExample, folder: Path, items: Sequence[Item]
    ) -> None:
        """Ids decide seeds and pairing."""
        assert len(items) >= 2
        assert len({item.id for item in items}) == len(items)
        assert all(item.prompt for item in items)
        again = benchmark.items(folder, **example.reading(folder))
        assert [(item.id, item.prompt) for item in again] == [(item.id, item.prompt) for item in items]
        assert json.loads(json.dumps([dict(item.expected) for item in items]))

    def test_every_metric_is_a_number_with_a_unit_and_a_name_of_its_own(self, outcome: Outcome) -> None:
        """The first leads."""
        assert outcome.metrics
        assert len(_named(outcome)) == len(outcome.metrics)
        for metric in outcome.metrics:
            assert math.isfinite(metric.value), metric.name
            assert metric.unit, metric.name
        assert outcome.metrics[0].higher_is_better is not None, "the headline is better or worse"

    def test_what_must_stand_beside_a_metric_is_there(self, outcome: Outcome) -> None:
        """By its name, and is not the metric itself."""
        found = _named(outcome)
        for metric in outcome.metrics:
            assert set(metric.beside) <= set(found), metric.name

    def test_parts_by_item_average_to_the_metric_unless_the_example_says_otherwise(
        self, outcome: Outcome, example: BenchmarkExample
    ) -> None:
        """Which intervals and paired statistics rest on."""
        named = {metric.name for metric in outcome.metrics if metric.per_item}
        assert example.not_means <= named
        assert {name for name in named if not is_mean_of_items(_named(outcome)[name])} <= example.not_means

    def test_parts_by_item_are_named_by_items_or_pairs(self, outcome: Outcome, items: Sequence[Item]) -> None:
        """Two models can be paired by them."""
        known = {item.id for item in items} | {item.expected.get("pair") for item in items}
        for metric in outcome.metrics:
            assert set(metric.per_item) <= known, metric.name

    def test_counts_add_up_to_the_answers(
        self, outcome: Outcome, example: BenchmarkExample, answers: list[Answer]
    ) -> None:
        """Nothing leaves silently."""
        assert all(isinstance(count, int) and count >= 0 for count in outcome.counts.values())
        if example.total:
            total = sum(outcome.counts[name] for name in example.total)
            assert total * example.answers_per_part == len(answers)
            assert outcome.counts[example.lost[0]] == 0

    def test_the_order_of_answers_changes_nothing(
        self, benchmark: Benchmark, outcome: Outcome, answers: list[Answer], options: Mapping[str, Any]
    ) -> None:
        """Neither a metric nor its parts."""
        turned = benchmark.score(list(reversed(answers)), **options)
        assert turned.counts == outcome.counts
        found, expected = _named(turned), _named(outcome)
        assert set(found) == set(expected)
        for name, metric in expected.items():
            assert found[name].value == pytest.approx(metric.value, rel=1e-9), name
            assert _near(found[name].per_item, metric.per_item), name

    def test_scoring_twice_gives_the_same(
        self, benchmark: Benchmark, outcome: Outcome, answers: list[Answer], options: Mapping[str, Any]
    ) -> None:
        """Nothing is kept, nothing is drawn."""
        again = benchmark.score(answers, **options)
        assert {name: metric.value for name, metric in _named(again).items()} == {
            name: metric.value for name, metric in _named(outcome).items()
        }
        assert again.counts == outcome.counts

    def test_a_missing_answer_is_counted_and_not_taken_for_a_wrong_one(
        self,
        benchmark: Benchmark,
        example: BenchmarkExample,
        outcome: Outcome,
        answers: list[Answer],
        options: Mapping[str, Any],
    ) -> None:
        """Its part is missing, not zero."""
        fewer, given = example.lacking(answers, options)
        found = benchmark.score(fewer, **given)
        name, change = example.lost
        assert found.counts[name] == outcome.counts[name] + change
        gone = answers[-1].item
        named = {gone.id, gone.expected.get("pair")}
        for metric in found.metrics:
            for part, value in metric.per_item.items():
                if part in named and example.copies == 1 and fewer is not answers:
                    assert math.isnan(value), metric.name
