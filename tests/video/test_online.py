"""Online methods on models of video: no pictures to go on from, no judges of pictures."""

import pytest

from mmalign.errors import ConfigError
from mmalign.train.config import load_run
from mmalign.train.run import train

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")


def test_a_model_that_goes_on_from_pictures_does_not_sample_from_prompts_alone(write_run) -> None:
    path = write_run(variant="i2v", method="seppo")
    with pytest.raises(ConfigError, match="seppo, which samples from prompts alone"):
        train(load_run(path))


def test_one_of_two_experts_does_not_sample_alone(write_run) -> None:
    path = write_run(variant="a14b", method="seppo")
    with pytest.raises(ConfigError, match=r"seppo, which samples at all noise levels .* two experts"):
        train(load_run(path))


def test_rewards_of_pictures_do_not_see_sampled_clips(write_run) -> None:
    path = write_run(method="online_diffusion_dpo", rollout={"reward": "brightness"})
    with pytest.raises(ConfigError, match=r"a reward of samples of wan, which are clips"):
        train(load_run(path))
