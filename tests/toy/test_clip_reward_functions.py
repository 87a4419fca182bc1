"""The exact reward of moving shapes as functions of clips' files, and the suite that uses them."""

import math
import random
from pathlib import Path

import pytest

from mmalign.data.video_writers import write_clip
from mmalign.errors import ConfigError
from mmalign.evals.benchmark_suite import BenchmarkSuite, read_any_suite
from mmalign.evals.video.quality import load_clip_rewards
from mmalign.rewards.sample import Sample
from mmalign.toy.clip_reward_functions import motion_direction, motion_identity, motion_reward
from mmalign.toy.video_scenes import FPS, draw_scene, every_held_out, facts_of, render, tensor_of

SUITE = Path(__file__).parents[2] / "evals/suites/toy_video.yaml"
CAPTION = "a red ball moves slowly right, then down"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = tensor_of(render(draw_scene(facts_of(CAPTION), random.Random(3)))).float() / 255.0
    write_clip(tmp_path / "clip.mkv", frames, FPS)
    return tmp_path / "clip.mkv"


def test_a_true_clip_scores_about_one_and_another_caption_less(clip: Path) -> None:
    samples = [Sample(CAPTION, video=clip), Sample("a red ball moves slowly left, then up", video=clip)]
    assert motion_reward(samples) == pytest.approx([0.99, 0.59], abs=0.03)
    assert motion_direction(samples) == pytest.approx([1.0, 0.0], abs=0.02)
    assert motion_identity(samples) == [1.0, 1.0]


def test_what_has_no_clip_is_failed_and_other_captions_are_refused(clip: Path) -> None:
    assert math.isnan(motion_reward([Sample(CAPTION)])[0])
    with pytest.raises(ConfigError, match="caption of the toy world of video: got 'a dog runs'"):
        motion_reward([Sample("a dog runs", video=clip)])


def test_the_suite_asks_for_these_rewards_of_held_out_captions(clip: Path) -> None:
    suite = read_any_suite(SUITE)
    assert isinstance(suite, BenchmarkSuite)
    prompts = (SUITE.parents[1] / "prompts/toy_video/prompts.txt").read_text().splitlines()
    assert len(prompts) == len(set(prompts)) == 24
    assert set(prompts) <= set(every_held_out(seed=0))
    rewards = load_clip_rewards(weights=suite.tools["rewards"]).rewards
    scored = rewards["motion_reward"].score([Sample(CAPTION, video=clip)])
    assert scored.errors == (None,)
    assert float(scored.values[0, 0]) > 0.95
