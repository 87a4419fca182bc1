"""Objectives on raw predictions of denoisers: what a score per candidate cannot express."""

__all__: list[str] = []
