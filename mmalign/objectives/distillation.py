"""Losses on whole next-token distributions of teacher and student, and between several scorings."""

__all__: list[str] = []
