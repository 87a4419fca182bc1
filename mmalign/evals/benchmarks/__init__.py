"""The built-in benchmarks: one file per name, each with a `BENCHMARK`; names with `_` in front are parts."""
