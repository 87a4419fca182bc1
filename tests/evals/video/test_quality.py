"""Rewards as measures of clips: frames averaged, VideoReward and VisionReward's rule, what is missing."""

import json
from types import SimpleNamespace

import pytest
import torch

from mmalign.data.video_writers import write_clip
from mmalign.errors import CheckpointError, ConfigError, ShapeError, UnknownNameError
from mmalign.evals.benchmark_tool_store import ToolStore
from mmalign.evals.video import quality
from mmalign.evals.video.aesthetic import load_aesthetic
from mmalign.evals.video.consistency import vbench_pixels
from mmalign.evals.video.footage import Footage, read_footage
from mmalign.evals.video.quality import ClipRewards, load_clip_rewards, outputs_of
from mmalign.evals.video.vision_reward import (
    CAVEAT,
    QUESTIONS,
    WEIGHTS,
    VisionRewardVideo,
    checklist_score,
    frame_per_second,
    load_vision_reward,
)
from mmalign.rewards import loading
from mmalign.rewards.published_texts import text_sha256
from mmalign.rewards.sample import Sample
from mmalign.rewards.vision_language import ChatModel
from mmalign.testing.benchmark_examples.filmed import BrightClips, sliding
from mmalign.testing.reward_checkpoints.clip import write_aesthetic_v1
from mmalign.testing.reward_checkpoints.qwen_heads import VIDEO_TEXT, write_videoreward

BRIGHT = "mmalign.testing.benchmark_examples.filmed:brightness"


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "a.mkv", sliding(1, frames=7), 5.0)


def test_rewards_of_pictures_are_the_mean_over_as_many_frames_as_their_names_say(clip):
    rewards = load_clip_rewards(weights=f"{BRIGHT}@3")
    assert list(rewards.rewards) == ["brightness, mean over 3 frames"]
    (reward,) = rewards.rewards.values()
    frames = read_footage(clip).frames[[0, 3, 6]].float() / 255
    assert float(reward.score([Sample("x", video=clip)]).first()) == pytest.approx(float(frames.mean()), 1e-5)
    assert list(load_clip_rewards(weights=BRIGHT).rewards) == ["brightness, mean over 8 frames"]
    whole = load_clip_rewards(weights="mmalign.evals.video.pixels:frame_difference@0")
    assert list(whole.rewards) == ["frame_difference"]


def test_what_cannot_be_a_reward_of_clips_is_refused_and_what_is_missing_is_said():
    with pytest.raises(CheckpointError, match=r"videoscore.*`mantis`, not in transformers"):
        load_clip_rewards(weights="videoscore")
    with pytest.raises(CheckpointError, match=r"visionreward_video: got \[no folder\].*weight\.json"):
        load_clip_rewards(weights="visionreward_video")
    with pytest.raises(ConfigError, match=r"@many.*hpsv21@16"):
        load_clip_rewards(weights="pickscore_v1@many")
    with pytest.raises(ConfigError, match="twice"):
        load_clip_rewards(weights=f"{BRIGHT}, {BRIGHT}")
    with pytest.raises(UnknownNameError):
        load_clip_rewards(weights="nobodys_reward")


def test_a_reward_of_sounds_is_no_measure_of_clips(monkeypatch):
    from mmalign.testing.benchmark_examples.sounded import LoudnessReward

    monkeypatch.setattr(quality, "_load", lambda *_, **__: LoudnessReward())
    with pytest.raises(ConfigError, match="got 'a reward of audio'"):
        load_clip_rewards(weights="clap")


def test_videoreward_scores_stored_clips_by_all_its_dimensions(tmp_path):
    folder = write_videoreward(tmp_path / "weights", 3)
    reward = loading.load("videoreward", weights=folder, template_sha256=text_sha256(VIDEO_TEXT))
    path = write_clip(tmp_path / "a.mp4", sliding(1, frames=9), 4.0)
    rewards = ClipRewards({"videoreward": reward})
    titles = [title for title, *_ in outputs_of(rewards)]
    assert titles == ["videoreward", "videoreward: VQ", "videoreward: MQ", "videoreward: TA"]
    direct = reward.score([Sample("a fox", video=path)])
    assert direct.errors == (None,)
    with ToolStore(tmp_path / "store") as store:
        kept = rewards.stored("rewards", store).rewards["videoreward"]
        assert torch.allclose(kept.score([Sample("a fox", video=path)]).values, direct.values)
    with ToolStore(tmp_path / "store", ask=False) as store:
        again = rewards.stored("rewards", store).rewards["videoreward"]
        assert torch.allclose(again.score([Sample("a fox", video=path)]).values, direct.values)
        with pytest.raises(CheckpointError, match="1 samples are not scored yet"):
            again.score([Sample("a dog", video=path)])


def test_aesthetic_quality_is_a_tenth_of_the_heads_mean_over_frames(tmp_path):
    folder = write_aesthetic_v1(tmp_path / "v1")
    watcher = load_aesthetic(weights=folder)
    reward = loading.load("aesthetic_v1", weights=folder)
    frames = sliding(4, frames=3)
    rule = reward.encoder.preprocessing
    pixels = vbench_pixels(frames, rule.size, crop=True, mean=rule.mean, std=rule.std)
    with torch.no_grad():
        expected = reward.head(reward.encoder.image_features(pixels)).mean() / 10
    assert watcher.watch(Footage(frames, 8.0))["aesthetic"] == pytest.approx(float(expected), rel=1e-5)
    assert "not antialiased" in watcher.provenance()["preprocessing"]


def test_visionrewards_score_is_the_mean_of_signed_weights():
    assert checklist_score(["yes", "no", "Yes"], [0.5, 0.25, 2.0]) == pytest.approx((0.5 - 0.25 - 2.0) / 3)
    with pytest.raises(ShapeError, match="one per weight"):
        checklist_score(["yes"], [1.0, 2.0])


def test_visionreward_reads_the_frame_nearest_to_each_second():
    clip = Footage(torch.zeros(11, 3, 8, 8, dtype=torch.uint8), 4.0)
    assert frame_per_second(clip) == [0, 4, 8]  # the last frame is at 2.5 s, which rounds to 2
    odd = Footage(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 2.0)
    assert frame_per_second(odd) == [0, 2, 3]  # the last is at 1.5 s, which rounds to 2
    assert len(frame_per_second(Footage(torch.zeros(90, 3, 2, 2, dtype=torch.uint8), 1.0))) == 24


class Says(ChatModel):
    """A chat model that says yes to questions with the word it knows."""

    def __init__(self):
        self.device, self.network = torch.device("cpu"), SimpleNamespace(dtype=torch.float32)
        self.tokenizer = SimpleNamespace(decode=lambda ids: ["no", "yes"][ids[0]])

    def settings(self):
        return {"weights": {}}

    def safe(self, text):
        return text

    def shown(self, media, *, where):
        return ("video", media)

    def question(self, text, shown=()):
        assert len(shown[0][1]) == 2  # of 1.4 s: second 0 and second 1
        return {"fox": torch.tensor("fox" in text)}

    def logits(self, rows, answer=(0,)):
        return torch.tensor([[[0.0, 1.0 if row["fox"] else -1.0]] for row in rows])


def test_the_checklist_is_asked_about_the_clip_with_its_prompt(clip):
    questions = ["Is there [[prompt]]?", "Is it sharp?"]
    files = {QUESTIONS: "1", WEIGHTS: "2"}
    reward = VisionRewardVideo(Says(), questions, [0.75, 0.5], files=files)
    scored = reward.score([Sample("a fox", video=clip), Sample("a dog", video=clip), Sample("a dog")])
    assert scored.first()[:2].tolist() == pytest.approx([(0.75 - 0.5) / 2, (-0.75 - 0.5) / 2])
    assert "without video" in scored.errors[2]
    assert ClipRewards({"v": reward}).notes == (CAVEAT,)
    assert ClipRewards({"v": BrightClips()}).notes == ()
    with pytest.raises(CheckpointError, match="one weight per question"):
        VisionRewardVideo(Says(), questions, [1.0], files=files)


def test_a_network_that_needs_its_own_code_is_refused(tmp_path):
    (tmp_path / QUESTIONS).write_text("Is it sharp?\n")
    with pytest.raises(CheckpointError, match=r"without weight\.json, config\.json"):
        load_vision_reward(tmp_path)
    (tmp_path / WEIGHTS).write_text("[0.5]")
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Model"}}))
    with pytest.raises(CheckpointError, match=r"code of its own \(auto_map\)"):
        load_vision_reward(tmp_path)
