"""`mmalign data cache CONFIG` with a real pipeline folder: training from the cache sees the same inputs."""

import pytest
import torch
import yaml

from mmalign import registry
from mmalign.cli.main import main
from mmalign.data import RowOrder, open_rows
from mmalign.errors import ConfigError
from mmalign.testing.tiny import RESOLUTION, write_tiny_sdxl
from mmalign.train.config import load_run


@pytest.fixture
def config_file(tmp_path, pickapic_records, write_parquet):
    """A run of a tiny SDXL on four pairs."""
    write_tiny_sdxl(tmp_path / "model")
    run = {
        "method": "diffusion_dpo",
        "model": {"family": "sdxl", "source": str(tmp_path / "model")},
        "image": {
            "resolution": RESOLUTION,
            "flip": True,
            "prompt_dropout": 0.5,
            "micro_conditioning": "true",
        },
        "data": {"source": str(write_parquet(pickapic_records([1.0, 0.0, 1.0, 0.0])))},
        "train": {"output": str(tmp_path / "run"), "steps": 1, "learning_rate": 1.0e-5},
    }
    run["image"]["micro_conditioning"] = "true"
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def inputs(config_file, *overrides):
    """Latents and conditioning of the first eight positions."""
    config = load_run(config_file, overrides).config
    table = open_rows(config.data)
    order = RowOrder.for_table(table, seed=0)
    model = registry.find("families", config.model.family).load(
        config.model, config.image, device="cpu", dtype=torch.float32
    )
    examples = [model.example(table[order.at(p)[0]], key=order.key(p)) for p in range(8)]
    clean, conditioning = model.encode(model.collate(examples), order.keys(range(8), rows_per_step=8))
    return {"clean": clean, **conditioning.shared, **conditioning.per_candidate}


def test_training_from_the_cache_sees_the_same_inputs(config_file, tmp_path, capsys):
    cache = tmp_path / "cache"
    assert main(["data", "cache", str(config_file), "--output", str(cache), "--dtype", "float32"]) == 0
    assert "4 rows read; 4 kept" in capsys.readouterr().out
    plain, cached = inputs(config_file), inputs(config_file, f"image.cache={cache}")
    assert plain.keys() == cached.keys()
    for name, value in plain.items():
        # The batch the VAE saw differs, and with it the last bits of float32.
        assert torch.allclose(value, cached[name], atol=1e-5, rtol=1e-5), name
    assert plain["clean"].shape[:2] == (8, 2)


def test_half_precision_moments_change_latents_by_less_than_a_thousandth(config_file, tmp_path):
    cache = tmp_path / "cache"
    main(["data", "cache", str(config_file), "--output", str(cache)])
    plain, cached = inputs(config_file), inputs(config_file, f"image.cache={cache}")
    error = (plain["clean"] - cached["clean"]).abs().max() / plain["clean"].abs().max()
    assert 0 < error < 1e-3


def test_a_config_without_a_cache_folder_is_refused(config_file, capsys):
    assert main(["data", "cache", str(config_file)]) == 2
    assert "neither image.cache nor --output names a folder" in capsys.readouterr().err


def test_another_resolution_does_not_fit_the_cache(config_file, tmp_path):
    main(["data", "cache", str(config_file), "--output", str(tmp_path / "cache")])
    with pytest.raises(ConfigError, match=r"resolution: cache 32, this run 16"):
        inputs(config_file, f"image.cache={tmp_path / 'cache'}", "image.resolution=16")
