"""Runs of LTX-Video and CogVideoX: trained live and from a cache, sampled, exported."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmalign.cli.encoding import encode_run
from mmalign.cli.main import main
from mmalign.testing.tiny_video.cogvideox import write_tiny_cogvideox
from mmalign.testing.tiny_video.ltx import write_tiny_ltx
from mmalign.train.config import load_run
from mmalign.train.run import train

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")


def losses_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def ltx_of_pictures(place):
    source = write_tiny_ltx(place / "model", version="0.9.5")
    video = {"height": 64, "width": 96, "conditioning": "image"}
    return {"method": "flow_dpo", "model": {"family": "ltx", "source": str(source)}, "video": video}


def cogvideox_of_pictures(place):
    source = write_tiny_cogvideox(place / "model", version="1.5", from_image=True)
    model = {"family": "cogvideox", "source": str(source), "gradient_checkpointing": True}
    # Without draws, of which a cache has none for the picture.
    return {"method": "diffusion_dpo", "model": model, "video": {"posterior": "mean"}}


MADE = [ltx_of_pictures, pytest.param(cogvideox_of_pictures, marks=pytest.mark.slow)]


@pytest.mark.parametrize("made", MADE)
def test_a_cached_run_equals_one_that_encodes(write_run, tmp_path, made):
    sections = made(tmp_path)
    picture = tmp_path / "start.png"
    Image.new("RGB", (96, 64), "teal").save(picture)
    sections["video"]["prompt_dropout"] = 0.3
    folder = tmp_path / "latents"
    encode_run(write_run("cache", **sections), output=str(folder), dtype="float32")
    samples = {"prompts": ["waves"], "num_steps": 2, "images": [str(picture)]}
    live = train(load_run(write_run("live", **sections, samples=samples)))
    sections["video"]["cache"] = str(folder)
    cached = train(load_run(write_run("cached", **sections)))
    found = losses_of(live.folder)
    assert found[0] == pytest.approx(0.693147, abs=1e-5)
    assert found == pytest.approx(losses_of(cached.folder), abs=2e-4)
    moved = 0.0
    for name, value in live.trainables.parameters.items():
        torch.testing.assert_close(cached.trainables.parameters[name], value, rtol=0, atol=2e-4)
        moved = max(moved, float(value.detach().abs().max()) if "lora_B" in name else 0.0)
    assert moved > 1e-3
    assert (live.folder / "samples/step-00000003/00.mp4").is_file()


@pytest.mark.parametrize("made", MADE)
def test_a_plan_counts_what_a_run_needs(write_run, tmp_path, made, capsys):
    path = write_run(**made(tmp_path))
    capsys.readouterr()
    assert main(["train", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    elements = 8 * 2 * 2 * 3 if made is ltx_of_pictures else 4 * 4 * 4 * 6
    assert f"elements per sample: {elements}" in out
    assert "going on from a picture" in out


def test_adapters_of_ltx_get_the_names_that_comfyui_knows(write_run, tmp_path, capsys):
    sections = {**ltx_of_pictures(tmp_path), "train": {"steps": 1}}
    adapter = {"targets": ["to_q", "ff.net.0.proj"]}
    result = train(load_run(write_run(**sections, adapter=adapter)))
    assert main(["export", str(result.folder), "--to", "comfyui", "--output", str(tmp_path / "out")]) == 0
    names = {name.rsplit(".lora_", 1)[0] for name in load_file(tmp_path / "out" / "run.safetensors")}
    assert names == {
        f"diffusion_model.transformer_blocks.{block}.{layer}"
        for block in (0, 1)
        for layer in ("attn1.to_q", "attn2.to_q", "ff.net.0.proj")
    }
    other = train(load_run(write_run("other", **sections, adapter={"targets": ["to_q", "proj_in"]})))
    capsys.readouterr()
    assert main(["export", str(other.folder), "--to", "comfyui", "--output", str(tmp_path / "no")]) == 2
    assert "got 'an adapter on proj_in'" in capsys.readouterr().err
