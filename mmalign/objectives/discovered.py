"""The catalogue of losses found by search (DiscoPOP): mixtures and gates of simple links."""

__all__: list[str] = []
