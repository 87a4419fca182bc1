"""The built-in benchmarks: one file per name, each with a `BENCHMARK`. Names with `_` in front are shared parts."""
