"""Models of video as they are named on the command line: which family reads what; official checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmalign.cli.main import main
from mmalign.errors import ConfigError
from mmalign.rewards.checkpoints import read_state
from mmalign.testing.tiny_video.videocrafter import write_tiny_videocrafter
from mmalign.train.config import load_run
from mmalign.train.run import train
from mmalign.video.trained import recognise
from mmalign.video.videocrafter_source import TEXT_PREFIX, is_checkpoint

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

VIDEO = {"num_frames": 3, "height": 16, "width": 32}


@pytest.fixture(scope="module")
def videocrafter(tmp_path_factory) -> Path:
    return write_tiny_videocrafter(tmp_path_factory.mktemp("videocrafter") / "model")


def test_checkpoints_of_videocrafter_are_told_by_their_tensors(videocrafter, tmp_path: Path) -> None:
    for source in (videocrafter, videocrafter / "model.ckpt"):
        assert recognise(str(source)).name == "videocrafter"
    painter = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}
    painter |= {f"{TEXT_PREFIX}transformer.resblocks.0.weight": torch.zeros(1)}
    save_file(painter, tmp_path / "model.safetensors")
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    for other in (tmp_path, tmp_path / "model.safetensors", tmp_path / "broken.ckpt", tmp_path / "none"):
        assert not is_checkpoint(str(other))
    save_file(
        {**painter, "model.diffusion_model.input_blocks.1.0.temopral_conv.a": torch.zeros(1)},
        tmp_path / "v.safetensors",
    )
    assert is_checkpoint(str(tmp_path / "v.safetensors"))


def test_what_no_family_of_video_reads_is_refused_with_what_they_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"\[no model of video\].*WanPipeline.*or a checkpoint of VideoCraf"
    ):
        recognise(str(tmp_path))


def test_a_checkpoint_of_videocrafter_is_sampled_by_its_name(videocrafter, tmp_path: Path, capsys) -> None:
    words = ["sample", "--model", str(videocrafter / "model.ckpt"), "--prompt", "waves", "--steps", "2"]
    sizes = ["--num-frames", "3", "--height", "16", "--width", "32", "--fps", "5"]
    assert main([*words, *sizes, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "base" / "00.png").is_file()
    capsys.readouterr()
    guided = ["--guide", str(tmp_path), "--guide-weight", "1", "--output", str(tmp_path / "no")]
    assert main([*words, *sizes, *guided]) == 2
    assert "got 'family videocrafter, which predicts epsilon', expected a model of" in capsys.readouterr().err


def test_a_run_of_videocrafter_is_exported_for_the_official_code(
    write_run, videocrafter, tmp_path: Path, capsys
) -> None:
    model = {"family": "videocrafter", "source": str(videocrafter)}
    sections = {"method": "diffusion_dpo", "model": model, "video": VIDEO, "train": {"steps": 1}}
    run = train(load_run(write_run(**sections))).folder
    out = tmp_path / "official"
    assert main(["export", str(run), "--to", "official", "--output", str(out)]) == 0
    assert "loaded back" in capsys.readouterr().out
    before, after = read_state(videocrafter / "model.ckpt"), read_state(out / "model.ckpt")
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.startswith("model.diffusion_model.") for name in changed)
