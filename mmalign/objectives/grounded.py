"""The catalogue for images and clips as context: several conditions per pair, anchors, row weights."""

__all__: list[str] = []
