"""VBench's measures as rewards by name: the same numbers as the watchers', of files and of frames."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from mmalign import rewards
from mmalign.data.pair_making.sections import RewardChoice
from mmalign.data.video_writers import write_clip
from mmalign.errors import CheckpointError
from mmalign.evals.video.footage import Footage
from mmalign.evals.video.pixels import PixelWatcher
from mmalign.evals.video.scorers import (
    vbench_aesthetic_quality,
    vbench_background_consistency,
    vbench_dynamic_degree,
)
from mmalign.evals.video.watching import Watching
from mmalign.rewards.chosen import chosen_reward
from mmalign.rewards.sample import Sample
from mmalign.testing.benchmark_examples.filmed import sliding

NAMES = {
    "vbench_aesthetic_quality",
    "vbench_background_consistency",
    "vbench_dynamic_degree",
    "vbench_subject_consistency",
    "vbench_temporal_flickering",
    "visionreward_video",
}


def test_measures_of_clips_are_rewards_by_name():
    assert set(rewards.names()) >= NAMES
    cards = [rewards.card(name) for name in sorted(NAMES)]
    assert [card.name for card in cards] == sorted(NAMES)
    assert {card.modality for card in cards} == {"video"}
    assert all(card.scale and card.title and card.paper for card in cards)


def test_flickering_of_a_file_and_of_its_frames_is_the_watchers(tmp_path):
    path = write_clip(tmp_path / "a.mkv", sliding(1, frames=7), 5.0)
    reward = chosen_reward(RewardChoice(name="vbench_temporal_flickering"), device=torch.device("cpu"))
    frames = list(sliding(1, frames=7))
    found = reward.score([Sample("x", video=path), Sample("x", frames=frames), Sample("x", image=frames[0])])
    seen = PixelWatcher().watch(Footage(sliding(1, frames=7), 5.0))
    assert found.values[0].tolist() == found.values[1].tolist() == [seen["flickering"], seen["difference"]]
    assert found.errors[:2] == (None, None)
    assert "expected a clip" in found.errors[2]
    still = reward.score([Sample("x", frames=frames[:1])])
    assert bool(still.values.isnan().all())
    assert "expected two frames or more" in still.errors[0]


class Told(Watching):
    """Sees what it is told to see, and writes down the rates of clips."""

    name = "told"

    def __init__(self, seen):
        self.seen, self.rates = seen, []

    def provenance(self):
        return {"name": "told"}

    def watch(self, clip):
        self.rates.append(clip.fps)
        return self.seen


@pytest.fixture
def built(monkeypatch):
    """`built(module, loader, seen)`: the reward of a module on a watcher that is told what to see."""

    def build(module, loader, seen):
        watcher, asked = Told(seen), {}

        def load(**options):
            asked.update(options)
            return watcher

        monkeypatch.setattr(module, loader, load)
        given = {"weights": "some/folder", "device": torch.device("cpu"), "dtype": torch.bfloat16}
        reward = module.build(**given)
        assert asked == given
        return reward, watcher

    return build


def test_flow_has_three_numbers_and_frames_a_rate(built, tmp_path):
    seen = {"dynamic": True, "mean": 2.0, "top": 5.0, "moving": 3, "needed": 4, "pairs": 7}
    reward, watcher = built(vbench_dynamic_degree, "load_flow", seen)
    frames = list(sliding(1))
    path = write_clip(tmp_path / "a.mkv", sliding(1), 5.0)
    found = reward.score(
        [Sample(frames=frames, extras={"fps": 24.0}), Sample(frames=frames), Sample(video=path)]
    )
    assert watcher.rates == [24.0, 8.0, pytest.approx(5.0)]
    assert found.outputs == ("score", "mean_flow", "top_flow")
    assert found.values.tolist() == [[1.0, 2.0, 5.0]] * 3
    assert len(reward.fingerprint()) == 64
    watcher.seen = {**seen, "dynamic": False}
    assert reward.score([Sample(frames=frames)]).values.tolist() == [[0.0, 2.0, 5.0]]


def test_backgrounds_are_the_mean_of_frames_beside_that_of_neighbours(built):
    seen = {"consistency": [0.5, 0.25, 0.75, 0.9], "neighbours": 0.875}
    reward, _ = built(vbench_background_consistency, "load_background", seen)
    found = reward.score([Sample(frames=list(sliding(1)))])
    assert found.outputs == ("score", "neighbours")
    assert found.values[0].tolist() == pytest.approx([0.6, 0.875])


def test_aesthetic_quality_is_what_the_predictor_saw(built):
    reward, _ = built(vbench_aesthetic_quality, "load_aesthetic", {"aesthetic": 0.53})
    found = reward.score([Sample(frames=list(sliding(1)))])
    assert found.outputs == ("score",)
    assert found.values.tolist() == [[0.53]]


def test_consistency_is_loaded_from_a_folder_and_still_clips_score_one(tmp_path):
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        image_size=32,
        patch_size=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "dino")
    reward = rewards.load("vbench_subject_consistency", weights=tmp_path / "dino")
    still, moving = (list(sliding(3, frames=4, step=step)) for step in (0, 5))
    values = reward.score([Sample(frames=still), Sample(frames=moving)]).values
    assert values[0].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert bool((values[1] < values[0]).all())
    with pytest.raises(CheckpointError, match="visionreward_video: got"):
        rewards.load("visionreward_video")
