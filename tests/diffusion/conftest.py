"""Tiny pipeline folders, built once per session."""

from pathlib import Path

import pytest

from mmalign.testing import tiny


@pytest.fixture(scope="session")
def tiny_sd15_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_sd15(tmp_path_factory.mktemp("tiny") / "sd15")


@pytest.fixture(scope="session")
def tiny_sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_sd15(tmp_path_factory.mktemp("tiny") / "sd2", prediction="v_prediction")


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def tiny_turbo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_sdxl(tmp_path_factory.mktemp("tiny") / "turbo", variant="turbo")


@pytest.fixture(scope="session")
def tiny_refiner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_sdxl(tmp_path_factory.mktemp("tiny") / "refiner", variant="refiner")
