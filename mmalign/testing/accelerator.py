"""Accelerate's state, of which there is one per process: tests that train forget it before and after."""

__all__ = ["forget_accelerator"]


def forget_accelerator() -> None:
    """Let the next run of this process have its own device and precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
