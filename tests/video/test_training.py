"""Runs of a model of video: what its sections say, what it leaves behind, the cache, interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmalign.cli.encoding import encode_run
from mmalign.cli.main import main
from mmalign.data.config import VideoLimits
from mmalign.data.video_media import describe_clip
from mmalign.errors import ConfigError, RowError
from mmalign.train.config import load_run
from mmalign.train.run import train
from mmalign.train.sample_clips import clip_page, write_clips
from mmalign.train.video_sections import VideoRunConfig
from mmalign.video.clips import Clip
from mmalign.video.trained import load_trained, recognise

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LOG_2 = pytest.approx(0.693147, abs=1e-5)


def records(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


# ------------------------------------------------------------------------------------------------- sections


def test_a_run_of_video_has_a_video_section(write_run) -> None:
    config = load_run(write_run()).config
    assert isinstance(config, VideoRunConfig)
    assert config.media is config.video
    assert (config.media_name, config.data.all_sources[0].media) == ("video", "video")


def test_a_section_of_another_medium_is_refused(write_run) -> None:
    with pytest.raises(ConfigError, match="got the section image for a model of video"):
        load_run(write_run(image={"resolution": 512}))


def test_a_random_part_is_not_cached(write_run) -> None:
    with pytest.raises(ConfigError, match=r"video.start random takes another part at every visit"):
        load_run(write_run(video={"start": "random", "cache": "somewhere"}))


def test_a_picture_per_prompt_or_none(write_run) -> None:
    with pytest.raises(ConfigError, match=r"samples.images has 1 for 2 prompts: one per prompt"):
        load_run(write_run(samples={"prompts": ["a", "b"], "images": ["one.png"]}))


def test_pictures_of_samples_are_looked_at_before_the_first_step(write_run, tmp_path: Path) -> None:
    """Without a picture a run of clips that go on from one would end at its first samples."""
    lacking = write_run("lacking", variant="i2v", samples={"prompts": ["a"]})
    with pytest.raises(ConfigError, match=r"samples.images: got '0 for 1 prompts', expected one per prompt"):
        train(load_run(lacking))
    picture = {"prompts": ["a"], "images": [str(tmp_path / "none.png")]}
    with pytest.raises(RowError, match=r"samples.images .*none.png"):
        train(load_run(write_run("lost", variant="i2v", samples=picture)))
    with pytest.raises(ConfigError, match=r"expected none: this run's model goes by text alone"):
        train(load_run(write_run("given", samples=picture)))
    assert not list(tmp_path.glob("*/checkpoint*"))


# ---------------------------------------------------------------------------------------------------- a run


def test_a_run_starts_at_log_2_and_leaves_clips_to_see_beside_the_base(write_run) -> None:
    path = write_run(samples={"prompts": ["waves", "slow <waves>"], "num_steps": 2, "every": 2})
    result = train(load_run(path))
    assert records(result.folder)[0]["loss"] == LOG_2
    samples = result.folder / "samples"
    assert sorted(path.name for path in samples.iterdir()) == [
        *("base", "step-00000002", "step-00000002.html", "step-00000003", "step-00000003.html")
    ]
    page = (samples / "step-00000003.html").read_text()
    for link in ("base/00.mp4", "base/00.png", "base/01.mp4", "step-00000003/01.mp4"):
        assert f'src="{link}"' in page
        assert (samples / link).stat().st_size > 100
    assert "slow &lt;waves&gt;" in page
    shown = describe_clip(str(samples / "base/00.mp4"), where="sample", limits=VideoLimits())
    assert (shown.num_frames, shown.fps, shown.height, shown.width) == (9, 8.0, 32, 48)
    with Image.open(samples / "base/00.png") as strip:
        assert strip.size == (5 * 48 + 4 * 4, 32)
    assert (samples / "base/00.mp4").read_bytes() != (samples / "step-00000003/00.mp4").read_bytes()


@pytest.mark.parametrize(
    ("variant", "video"),
    [
        ("a14b", {"expert": "low"}),
        pytest.param("i2v", {}, marks=pytest.mark.slow),
        pytest.param("ti2v", {"conditioning": "image", "height": 64, "width": 96}, marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_wan_trains_and_samples(
    write_run, tmp_path: Path, variant: str, video: dict[str, object]
) -> None:
    picture = tmp_path / "start.png"
    Image.new("RGB", (96, 64), "teal").save(picture)
    samples: dict[str, object] = {"prompts": ["waves"], "num_steps": 2}
    if variant != "a14b":
        samples["images"] = [str(picture)]
    run = load_run(write_run(variant=variant, video=video, samples=samples, train={"steps": 2}))
    result = train(run)
    losses = [record["loss"] for record in records(result.folder)]
    assert losses[0] == LOG_2
    assert losses[1] != losses[0]
    assert (result.folder / "samples/step-00000002/00.mp4").is_file()


def test_full_fine_tuning_leaves_a_whole_model(write_run, capsys) -> None:
    result = train(load_run(write_run(adapter={"kind": "none"}, train={"steps": 2, "learning_rate": 1e-5})))
    assert records(result.folder)[0]["loss"] == LOG_2
    assert (result.folder / "model" / "model_index.json").is_file()
    assert main(["export", str(result.folder), "--to", "diffusers"]) == 0
    assert (result.folder / "export/diffusers/transformer/config.json").is_file()
    capsys.readouterr()
    assert main(["export", str(result.folder), "--to", "comfyui"]) != 0
    assert "got 'a fully trained network'" in capsys.readouterr().err


def test_a_run_is_shown_and_exported_from_the_command_line(write_run, tmp_path: Path, capsys) -> None:
    result = train(load_run(write_run(train={"steps": 2})))
    output = tmp_path / "shown"
    words = ["sample", "--run", str(result.folder), "--prompt", "waves", "--steps", "2", "--num-images", "2"]
    assert main([*words, "--output", str(output), "--device", "cpu"]) == 0
    assert sorted(path.name for path in (output / "tuned").iterdir()) == [
        *("00.mp4", "00.png", "01.mp4", "01.png")
    ]
    assert 'src="tuned/01.mp4"' in (output / "comparison.html").read_text()
    for to, name in (
        ("diffusers", "pytorch_lora_weights.safetensors"),
        ("comfyui", "run.safetensors"),
        ("merged", "model_index.json"),
    ):
        assert main(["export", str(result.folder), "--to", to, "--output", str(tmp_path / to)]) == 0
        assert (tmp_path / to / name).is_file()
    keys = load_file(tmp_path / "comfyui" / "run.safetensors").keys()
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in keys
    assert "diffusion_model.blocks.1.ffn.2.lora_B.weight" in keys
    capsys.readouterr()
    assert main(["export", str(result.folder), "--to", "peft"]) == 2
    assert "expected of video models: diffusers, comfyui, merged, official" in capsys.readouterr().err
    assert main(["export", str(result.folder), "--to", "official"]) == 2
    assert "got 'a run of wan', expected a family with a layout of its own" in capsys.readouterr().err
    words = ["sample", "--model", str(tmp_path / "merged"), "--prompt", "x", "--image", "x.png"]
    assert main([*words, "--steps", "1", "--output", str(output), "--device", "cpu"]) == 2
    assert "no such file: x.png" in capsys.readouterr().err


def test_a_plan_says_what_a_run_of_video_needs(write_run, capsys) -> None:
    assert main(["train", str(write_run()), "--dry-run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "none with video.cache" in out
    assert f"elements per sample: {4 * 3 * 4 * 6}" in out


def test_clips_are_animated_pictures_where_no_video_can_be_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    clip = Clip(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), 8.0)
    (path,) = write_clips(tmp_path / "clips", [clip])
    assert path == tmp_path / "clips/00.webp"
    page = clip_page("a", ["b"], {"policy": [path]}, tmp_path)
    assert '<img alt="clip" src="clips/00.webp">' in page
    assert "<video" not in page


# ------------------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize("variant", ["t2v", pytest.param("i2v", marks=pytest.mark.slow)])
def test_a_cached_run_equals_one_that_encodes(write_run, tmp_path: Path, variant: str) -> None:
    shared = {"variant": variant, "video": {"prompt_dropout": 0.3}}
    folder = tmp_path / "latents"
    encode_run(write_run("cache", **shared), output=str(folder), dtype="float32")
    live = train(load_run(write_run("live", **shared)))
    shared["video"] = {"prompt_dropout": 0.3, "cache": str(folder)}
    found = train(load_run(write_run("cached", **shared)))
    for one, two in zip(records(live.folder), records(found.folder), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-4)
    moved = 0.0
    for name, value in live.trainables.parameters.items():
        torch.testing.assert_close(found.trainables.parameters[name], value, rtol=0, atol=2e-4)
        moved = max(moved, float(value.detach().abs().max()) if "lora_B" in name else 0.0)
    assert moved > 1e-3


def test_caches_keep_means_alone_and_texts_at_their_length(write_run, load_wan, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    encode_run(write_run(), output=str(folder), dtype="bfloat16")
    (moments,) = (load_file(path) for path in folder.glob("moments-*"))
    assert moments["mean"].shape == (14, 4, 3, 4, 6)
    assert moments["mean"].dtype == torch.bfloat16
    assert moments["std"].shape == (14, 1, 1, 1, 1)
    lengths = {load_file(path)["text"].shape[1] for path in folder.glob("text-*")}
    assert max(lengths) < 30
    live, cached = load_wan(), load_wan(cache=str(folder))
    prompts = ["waves 0", "", "not cached"]
    one, two = (model.prompt_conditioning(prompts).shared for model in (live, cached))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"this cache was made for something else .*video"):
        load_wan(cache=str(folder), num_frames=5)


# ------------------------------------------------------------------------------------------- going on, ending


def test_a_trained_model_is_loaded_with_its_adapter(write_run) -> None:
    result = train(load_run(write_run(train={"steps": 2})))
    loaded = load_trained(result.folder)
    settings = {"seed": 1, "num_steps": 2, "guidance_scale": 2.0}
    (tuned,) = loaded.model.sample(["waves"], **settings)
    with loaded.base_weights():
        (base,) = loaded.model.sample(["waves"], **settings)
    assert loaded.step == 2
    assert not torch.equal(tuned.frames, base.frames)
    with pytest.raises(ConfigError, match=r"expected .*WanPipeline"):
        recognise(str(result.folder))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(write_run) -> None:
    parts = {"video": {"prompt_dropout": 0.3, "start": "random"}}
    settings = {"checkpoint_every": 1, "warmup_steps": 0}
    train(load_run(write_run("two", **parts, train={"steps": 2, **settings})))
    found = train(load_run(write_run("two", **parts, train={"steps": 4, **settings})))
    whole = train(load_run(write_run("whole", **parts, train={"steps": 4, **settings})))
    assert [r["loss"] for r in records(found.folder)] == [r["loss"] for r in records(whole.folder)]
    for name, value in whole.trainables.parameters.items():
        assert torch.equal(found.trainables.parameters[name], value), name


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(max((folder / "checkpoints").glob("step-*")) / "weights.safetensors")


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(write_run, tmp_path: Path) -> None:
    sections = {
        "video": {"prompt_dropout": 0.3, "start": "random"},
        "train": {"steps": 14, "accumulation": 2, "ema_decay": 0.9, "checkpoint_every": 3},
    }
    killed = write_run("killed", **sections)
    command = [sys.executable, "-m", "mmalign", "train", str(killed)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        log, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 300
        while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") >= 5):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = train(load_run(write_run("whole", **sections)))
    one, two = weights_of(tmp_path / "killed"), weights_of(whole.folder)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert [r["loss"] for r in records(tmp_path / "killed")] == [r["loss"] for r in records(whole.folder)]
