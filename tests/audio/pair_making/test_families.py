"""Pairs made with models that are told how long a clip is."""

import torch

from mmalign.audio.pair_making.loading import ModelMaker
from mmalign.audio.pair_making.plan import AudioPairPlan
from mmalign.testing.network_conformance import trained_by
from mmalign.testing.tiny_audio import write_tiny_stable_audio
from mmalign.train.config import AdapterConfig


def maker(folder, **settings):
    plan = AudioPairPlan(
        recipe="seeds",
        model={"family": "stable_audio", "source": str(folder)},
        data={"source": {"path": "prompts.txt"}},
        sampling={"num_samples": 2, "num_steps": 2, "guidance_scale": 2.0, "duration": 0.1},
        scorers=[{"name": "clap"}],
        dtype="float32",
        **settings,
    )
    return ModelMaker(plan, torch.device("cpu"))


def test_short_clips_are_made_in_the_window_the_network_knows_with_the_adapter_of_a_run(tmp_path):
    folder = write_tiny_stable_audio(tmp_path / "model")
    plain = maker(folder)
    (clip,) = plain(["a"], ["one"], 0, 2)
    assert clip.samples.shape == (2, 800)
    model = plain._model()
    assert model.duration > 0.2
    trained_by(model, AdapterConfig(rank=2, alpha=8.0))
    model.save_adapter(tmp_path / "adapter")
    (wanted,) = plain(["a"], ["one"], 0, 2)
    (found,) = maker(folder, adapter=str(tmp_path / "adapter"))(["a"], ["one"], 0, 2)
    torch.testing.assert_close(found.samples, wanted.samples, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(clip.samples, wanted.samples, atol=1e-3)
