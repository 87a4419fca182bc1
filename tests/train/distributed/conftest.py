"""Launches as accelerate's files describe them, on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from mmalign.train.launch import launch_file


@pytest.fixture(scope="session")
def launched_with() -> Callable[[str], dict[str, str]]:
    """`launched_with("fsdp2")`: the variables that `accelerate launch` sets for this file."""

    def variables(name: str) -> dict[str, str]:
        content: dict[str, Any] = yaml.safe_load(launch_file(name).read_text())
        settings = content.get("fsdp_config", {})
        shared = {"ACCELERATE_USE_FSDP": "true"} if settings else {}
        chosen = {key: value for key, value in settings.items() if "policy" not in key}
        return shared | {key.upper(): str(value).lower() for key, value in chosen.items()}

    return variables
