"""The catalogue of methods that train from the base in one stage, without a reference: CPO and its kin."""

__all__: list[str] = []
