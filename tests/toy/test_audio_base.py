"""The command that rebuilds the base model of the toy world of sound, from nothing to an official folder."""

import json
from pathlib import Path

import pytest
import torch

from mmalign.audio.checkpoint import MAIN_FILE
from mmalign.toy import audio_model
from mmalign.toy.audio_model import main
from mmalign.toy.audio_pipeline import load_base, sample
from mmalign.toy.audio_scenes import NUM_SAMPLES

TINY = [
    *("--vae-steps", "2", "--vocoder-steps", "2", "--text-steps", "2", "--steps", "3"),
    *("--num-clips", "5", "--num-played", "3", "--num-scenes", "7", "--num-evaluated", "2"),
]


@pytest.mark.slow
def test_a_stopped_rebuild_goes_on_after_its_last_stage_and_ends_in_a_folder_that_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(tmp_path / "base"), *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(audio_model, "train_denoiser", _stop)
        with pytest.raises(KeyboardInterrupt):
            main(words)
    assert not (tmp_path / "base").exists()
    monkeypatch.setattr(audio_model, "train_vae", None)  # what is there is not trained again
    monkeypatch.setattr(audio_model, "train_vocoder", None)
    capsys.readouterr()
    main(words)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert told[-1]["stage"] == "held out"
    assert told[-1]["step"] == 3
    assert 0 <= told[-1]["order"] <= told[-1]["presence"] <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["base"]  # what was kept on the way is gone
    assert (tmp_path / "base" / MAIN_FILE).is_file()
    (clip,) = sample(load_base(tmp_path / "base"), ["noise, then clicks"], seed=1, num_steps=2)
    assert clip.shape == (NUM_SAMPLES,)
    assert torch.isfinite(clip).all()


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
