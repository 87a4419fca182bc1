"""The catalogue of margins, temperatures and weights: how clear a pair is decides how hard it pulls."""

__all__: list[str] = []
