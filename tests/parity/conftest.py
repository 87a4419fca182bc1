"""`--parity-dir DIR` runs the same adapters over another folder of cases."""

import contextlib
from pathlib import Path


def pytest_addoption(parser):
    # Also declared for runs that do not name this folder; the first declaration wins.
    with contextlib.suppress(ValueError):
        parser.addoption(
            "--parity-dir", default=None, help="folder with golden cases (default: tests/parity/cases)"
        )


def pytest_generate_tests(metafunc):
    """Parametrise over the cases of the folder that is in use."""
    if "case_name" in metafunc.fixturenames:
        metafunc.parametrize(
            "case_name", sorted(path.stem for path in folder_of(metafunc.config).glob("*.json"))
        )


def folder_of(config) -> Path:
    given = config.getoption("parity_dir", default=None)
    return Path(given) if given else Path(__file__).parent / "cases"
