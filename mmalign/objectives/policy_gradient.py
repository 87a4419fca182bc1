"""Score-function losses: the gradient multiplies detached statistics by log-probabilities."""

__all__: list[str] = []
