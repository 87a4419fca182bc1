"""The catalogue of sums: a comparison plus supervised, anchor, exploration or rationale terms."""

__all__: list[str] = []
