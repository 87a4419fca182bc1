"""Every registered benchmark, on an example in miniature."""

import pytest

from mmalign import registry
from mmalign.evals.base import Benchmark
from mmalign.testing.benchmark_examples import EXAMPLES, BenchmarkExample
from mmalign.testing.benchmarks import BenchmarkConformance


class TestEveryBenchmark(BenchmarkConformance):
    """A benchmark without an example fails here."""

    @pytest.fixture(scope="class", params=registry.names("benchmarks"))
    @classmethod
    def name(cls, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def benchmark(cls, name: str) -> Benchmark:
        found: Benchmark = registry.find("benchmarks", name)
        assert found.name == name
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def example(cls, name: str) -> BenchmarkExample:
        return EXAMPLES[name]


def test_no_example_is_of_a_benchmark_that_is_gone():
    assert set(EXAMPLES) <= set(registry.names("benchmarks"))
