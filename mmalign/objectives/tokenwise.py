"""The catalogue of methods that look inside a response: tokens, segments, tails, masks, divergences."""

__all__: list[str] = []
