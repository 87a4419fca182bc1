"""Runs of tiny models on the CPU, launched as our files for accelerate describe it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mmalign.testing.processes import launch_variables, on_processes, train_config


@pytest.fixture(scope="session")
def launched_with() -> Callable[[str], dict[str, str]]:
    """`launched_with("fsdp2")`: the variables that `accelerate launch` sets for this file."""
    return launch_variables


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """`launch("fsdp2", config)`: train a file on two processes, or on as many as are named."""

    def train(name: str, config: Path, processes: int = 2) -> None:
        on_processes(processes, train_config, str(config), environment=launch_variables(name))

    return train
