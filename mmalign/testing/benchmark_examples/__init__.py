"""Every benchmark in miniature: what `mmalign.testing.benchmarks` tests it on."""

from collections.abc import Mapping

from mmalign.testing.benchmark_examples.answered import ANSWERED
from mmalign.testing.benchmark_examples.example import BenchmarkExample
from mmalign.testing.benchmark_examples.filmed import FILMED
from mmalign.testing.benchmark_examples.painted import PAINTED
from mmalign.testing.benchmark_examples.sounded import SOUNDED

__all__ = ["EXAMPLES", "BenchmarkExample"]

EXAMPLES: Mapping[str, BenchmarkExample] = {**ANSWERED, **FILMED, **PAINTED, **SOUNDED}
"""Name of a benchmark to its example."""
