"""Numbers about preference data and runs: displacement, separability, information, calibration."""

__all__: list[str] = []
