"""What every test shares: no network, one thread, generators. Tiny models live beside their tests."""

import ast
import gc
import os
import time

# Before any library reads them: nothing is fetched, nothing is reported, and two test runs on one machine do
# not fight.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import torch
from jaxtyping import _import_hook, config

if TYPE_CHECKING:
    from mmalign.likelihood import VPSchedule


_HOOK = "jaxtypingOutermost"
"""In the names of compiled modules with checks: those of jaxtyping's own hook hold other checks."""

_visit_function = _import_hook.JaxtypingTransformer.visit_FunctionDef


def _check_outermost(self: Any, node: ast.FunctionDef) -> Any:
    """Check functions and methods, not the functions inside them.

    Those are made anew at every call, and the code that checks them was written anew each time: two fifths of
    the time of the objectives' tests.
    """
    inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
    return node if inside else _visit_function(self, node)


def _run_checked_module(self: Any, module: ModuleType) -> None:
    """Run a module of ours with its annotations checked.

    jaxtyping's own way looks for compiled files under a name of its own as long as the module runs, so also
    for everything that it imports: thousands of files of other packages were compiled anew at every start.
    """

    def own_name(path: str, debug_override: bool | None = None) -> str:
        return cache_from_source(path, debug_override, optimization=f"{_HOOK}{self._typechecker.get_hash()}")

    with patch("importlib._bootstrap_external.cache_from_source", own_name):
        code = self.get_code(module.__name__)
    exec(code, module.__dict__)


_import_hook.JaxtypingTransformer.visit_FunctionDef = _check_outermost
_import_hook._JaxtypingLoader.exec_module = _run_checked_module


_LONG_COLLECTION = 0.1
"""Seconds of a garbage collection that looks at too much."""

_collection = {"began": 0.0, "longest": 0.0}


def _note_collection(phase: str, info: dict[str, int]) -> None:
    now = time.perf_counter()
    if phase == "start":
        _collection["began"] = now
    else:
        _collection["longest"] = max(_collection["longest"], now - _collection["began"])


def _forget_what_stays() -> None:
    """Take all that is there now out of the garbage collector's sight.

    The libraries and some 19 000 tests are millions of objects that live to the end. Tests whose code
    collects garbage between models spent most of their time looking at them.
    """
    gc.collect()
    gc.freeze()
    _collection["longest"] = 0.0


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """After everything is imported."""
    _forget_what_stays()
    gc.callbacks.append(_note_collection)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish() -> None:
    """Between tests, when what libraries loaded meanwhile has grown."""
    if _collection["longest"] > _LONG_COLLECTION:
        _forget_what_stays()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Let the interpreter clear up at its end as it would have: some libraries count what is left."""
    if _note_collection in gc.callbacks:
        gc.callbacks.remove(_note_collection)
    gc.unfreeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--parity-dir DIR` runs the parity adapters over another folder of cases with the same names."""
    parser.addoption(
        "--parity-dir", default=None, help="folder with golden cases (default: tests/parity/cases)"
    )


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Sums in one order: results do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _fresh_accelerator() -> Iterator[None]:
    """A test that trains leaves nothing of accelerate's one state per process, and finds nothing."""
    from mmalign.testing.accelerator import forget_accelerator

    forget_accelerator()
    yield
    forget_accelerator()


@pytest.fixture
def make_generator() -> Callable[[int], torch.Generator]:
    """`make_generator(seed)`: a new CPU generator."""

    def make(seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    return make


@pytest.fixture
def generator(make_generator: Callable[[int], torch.Generator]) -> torch.Generator:
    """A CPU generator with seed 0."""
    return make_generator(0)


@pytest.fixture
def draw(generator: torch.Generator) -> Callable[..., torch.Tensor]:
    """`draw(2, 3, dtype=...)`: standard normal numbers from the test's generator, float64 by default."""

    def normal(*shape: int, dtype: torch.dtype = torch.float64, requires_grad: bool = False) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(requires_grad)

    return normal


@pytest.fixture
def stable_diffusion() -> dict[str, str | float]:
    """The scheduler config of Stable Diffusion 1.5 and XL."""
    return {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
    }


@pytest.fixture
def vp(stable_diffusion: dict[str, str | float]) -> "VPSchedule":
    """The noise schedule of Stable Diffusion."""
    # Not at the top: this file is read before the type hook looks at imports.
    from mmalign.likelihood import VPSchedule

    return VPSchedule.from_scheduler_config(stable_diffusion)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_vlm_folder("llava")`: the folder of a family's tiny model. Read it, do not write into it."""
    from mmalign.testing.tiny_vlm import tiny_vlm

    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = tiny_vlm(name, tmp_path_factory.mktemp("tiny_vlm") / name)
        return written[name]

    return folder


@pytest.fixture
def untyped() -> AbstractContextManager[None]:
    """A context without the type hook: what a user's script meets, whose annotations nobody checks."""

    @contextmanager
    def without() -> Iterator[None]:
        before = config.jaxtyping_disable
        config.update("jaxtyping_disable", True)
        try:
            yield
        finally:
            config.update("jaxtyping_disable", before)

    return without()
