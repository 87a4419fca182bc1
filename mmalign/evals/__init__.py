"""The evaluation harness: suites, generation, scores, statistics, reports. `mmalign eval` runs it."""
