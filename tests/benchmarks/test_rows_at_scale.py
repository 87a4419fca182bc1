"""The benchmark of the cache at scale: its counts are those of the formulas, and it runs at a small size."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "rows_at_scale.py"


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("rows_at_scale", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["rows_at_scale"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["rows_at_scale"]


def test_bytes_of_a_pair_are_those_of_its_latents_and_its_text(scale):
    # SDXL at 1024 pixels: two latents of 4 x 128 x 128, mean and standard deviation, two bytes a number.
    assert scale.bytes_per_pair("SDXL, 1024") == {
        "latents": 2 * 2 * 4 * 128 * 128 * 2,
        "text": (77 * 2048 + 1280) * 2,
    }


def test_a_cache_holds_the_bytes_that_are_counted(scale, tmp_path):
    """The formula against files of the real writer."""
    import torch

    from mmalign.data.cache import CacheIdentity, CacheWriter

    latent, text = scale.FAMILIES["SD 1.5, 512"]
    writer = CacheWriter(tmp_path, CacheIdentity(vae="v", text="t"))
    for candidate in range(2):
        values = torch.zeros(latent)
        writer.add_moments(f"{candidate:032}", values, values, torch.ones(6, dtype=torch.int64))
    writer.add_text("a prompt", {str(n): torch.zeros(shape).half() for n, shape in enumerate(text)})
    writer.flush()
    counted = scale.bytes_per_pair("SD 1.5, 512")
    for kind, name in (("moments", "latents"), ("text", "text")):
        (file,) = tmp_path.glob(f"{kind}-*.safetensors")
        assert 0 <= file.stat().st_size - counted[name] < 1000  # geometry, names and the header


def test_an_exponent_is_the_slope_on_logarithms(scale):
    sizes = [10, 100, 1000]
    assert scale.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert scale.exponent(sizes, [7.0] * 3) == pytest.approx(0.0, abs=1e-9)


def test_costs_of_a_small_size_are_measured_through_the_real_cache(scale, tmp_path):
    found = scale._one_size(300, tmp_path)
    assert found["rows"] == 300
    assert found["encoded"] == 600
    assert found["index_bytes_per_entry"] == 33 + 8  # as the table on paper has it
    assert found["disk_bytes_per_row"] > 2 * (2 * 16 * 2 + 48)
    assert np.isfinite(list(found.values())).all()
    page = scale.block(
        {
            "points": [found],
            "exponents": dict.fromkeys(("time", "disk", "read", "peak memory"), 1.0),
            "killed": {
                "rows": 300,
                "kills": 3,
                "entries": 600,
                "expected": 600,
                "twice": 0,
                "entries_after_last_kill": 64,
                "encoded_after_last_kill": 536,
            },
        }
    )
    assert "| 300 |" in page
    assert "600 of 600 entries, 0 of them twice" in page
