"""PAL heads as rewards: users, stored embeddings, a CLIP behind them."""

import re

import pytest
import torch

from mmalign import rewards
from mmalign.errors import CheckpointError, ConfigError, ShapeError, UnknownNameError
from mmalign.rewards import Sample
from mmalign.rewards.clip_models import HuggingFaceClip
from mmalign.rewards.ideal_point_models import PalHead
from mmalign.testing.reward_checkpoints.pal import CHECKPOINTS, USERS

WIDTH = 24


@pytest.fixture(scope="module", params=["a", "b"])
def form(request):
    return request.param


@pytest.fixture(scope="module")
def folder(form, tmp_path_factory):
    return CHECKPOINTS[f"pal_{form}"](tmp_path_factory.mktemp(f"pal_{form}"), 3)


@pytest.fixture(scope="module")
def reward(form, folder):
    return rewards.load(f"pal_{form}", weights=folder)


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, 33, 41, generator=torch.Generator().manual_seed(0))


def test_a_score_is_the_heads_reward_of_clips_embeddings(form, folder, reward, image):
    clip = HuggingFaceClip(folder, device="cpu", dtype=torch.float32, crop="floor")
    head = PalHead.load(folder)
    with torch.no_grad():
        from mmalign.rewards.sample import to_image

        picture = clip.image_features(clip.preprocessing(to_image(image))[None])
        prompt = clip.text_features(clip.tokens("a painting")[0][None])
        expected = head(picture, head.mixture("grace.h")[None], prompt if form == "b" else None)
    found = reward.score([Sample("a painting", image=image, extras={"user": "grace.h"})])
    torch.testing.assert_close(found.first().float(), expected)


def test_users_differ_and_each_sample_has_its_own(reward, image):
    samples = [Sample("a painting", image=image, extras={"user": user}) for user in USERS]
    together = reward.score(samples).first()
    assert together.unique().numel() == len(USERS)
    alone = torch.cat([reward.score([sample]).first() for sample in samples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_stored_embeddings_need_neither_picture_nor_backbone(form, folder, reward, image):
    sample = Sample("a painting", image=image, extras={"user": "ada"})
    backbone = reward.backbone
    with torch.no_grad():
        picture = backbone.image_features(reward.prepare(sample).inputs["pixels"][None])[0]
        prompt = backbone.text_features(backbone.tokens("a painting")[0][None])[0]
    stored = Sample(
        extras={"user": "ada", "image_embedding": picture.tolist(), "prompt_embedding": prompt.tolist()}
    )
    bare = rewards.load(f"pal_{form}", weights=folder, backbone="none")
    expected = reward.score([sample]).first()
    torch.testing.assert_close(reward.score([stored]).first(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bare.score([stored]).first(), expected, rtol=1e-5, atol=1e-6)
    failed = bare.score([sample])
    assert "[no image embedding]" in failed.errors[0]


def test_a_mixture_is_the_weights_themselves(reward, image):
    head = reward.head
    mixture = head.mixture("ada")
    by_name = reward.score([Sample("a", image=image, extras={"user": "ada"})]).first()
    by_mixture = reward.score([Sample("a", image=image, extras={"mixture": mixture.tolist()})]).first()
    torch.testing.assert_close(by_name, by_mixture, rtol=1e-5, atol=1e-6)


def test_a_default_serves_samples_that_name_nobody(form, folder, reward, image):
    plain, named = Sample("a", image=image), Sample("a", image=image, extras={"user": "42"})
    fixed = rewards.load(f"pal_{form}", weights=folder, user="42")
    torch.testing.assert_close(fixed.score([plain]).first(), reward.score([named]).first())
    other = Sample("a", image=image, extras={"user": "ada"})
    torch.testing.assert_close(fixed.score([other]).first(), reward.score([other]).first())
    even = rewards.load(f"pal_{form}", weights=folder, mixture=[0.25, 0.25, 0.5])
    assert even.fingerprint() != fixed.fingerprint() != reward.fingerprint()


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({}, r"got \[neither user nor mixture\]"),
        ({"user": "nobody"}, "unknown user of this head 'nobody'"),
        ({"user": "ada", "mixture": [1.0, 0.0, 0.0]}, r"got \[a user and a mixture\]"),
        ({"mixture": [0.5, 0.5]}, "expected 3 numbers that sum to 1"),
        ({"mixture": [0.5, 0.5, 0.5]}, "expected 3 numbers that sum to 1"),
        ({"mixture": [1.5, -0.5, 0.0]}, "expected 3 numbers that sum to 1"),
        ({"user": "ada", "image_embedding": [1.0, 2.0]}, rf"\[shape \[2\]\], expected {WIDTH} finite"),
        ({"user": "ada", "image_embedding": [float("nan")] * WIDTH}, f"expected {WIDTH} finite numbers"),
    ],
)
def test_bad_samples_fail_alone(reward, image, extras, message):
    good = Sample("a", image=image, extras={"user": "ada"})
    found = reward.score([good, Sample("a", image=image, extras=extras)])
    assert found.errors[0] is None
    assert found.values[0, 0] == reward.score([good]).values[0, 0]
    assert torch.isnan(found.values[1, 0])
    assert re.search(message, found.errors[1])


class TestTensors:
    def test_they_carry_a_gradient_and_match_pictures(self, reward, image):
        exact = (image[:, :28, :28] * 255).round() / 255
        pixels = exact[None].clone().requires_grad_()
        found = reward.score_tensor(pixels, ["a"], users=["ada"])
        found.sum().backward()
        assert pixels.grad.abs().max() > 0
        expected = reward.score([Sample("a", image=exact, extras={"user": "ada"})]).first()
        torch.testing.assert_close(found.detach().double(), expected, rtol=1e-4, atol=1e-5)

    def test_a_mixture_may_stand_for_a_name(self, reward, image):
        mixture = reward.head.mixture("ada").tolist()
        found = [reward.score_tensor(image[None], ["a"], users=[user]) for user in ("ada", mixture)]
        torch.testing.assert_close(*found)

    def test_the_default_serves_them_too(self, form, folder, image):
        fixed = rewards.load(f"pal_{form}", weights=folder, user="ada")
        pixels = image[None].expand(2, -1, -1, -1)
        found = fixed.score_tensor(pixels, ["a", "a"])
        torch.testing.assert_close(found, fixed.score_tensor(pixels, ["a", "a"], users=["ada", "ada"]))

    def test_they_need_users_a_backbone_and_as_many_of_each(self, form, folder, reward, image):
        with pytest.raises(ConfigError, match=r"got \[no users\]"):
            reward.score_tensor(image[None], ["a"])
        with pytest.raises(ShapeError, match=r"got \[2 users\], expected 1"):
            reward.score_tensor(image[None], ["a"], users=["ada", "ada"])
        bare = rewards.load(f"pal_{form}", weights=folder, backbone="none")
        with pytest.raises(ConfigError, match=r"got \[backbone 'none'\], expected a backbone"):
            bare.score_tensor(image[None], ["a"], users=["ada"])


class TestLoading:
    def test_without_weights_it_says_that_none_are_published(self, form):
        with pytest.raises(ConfigError, match="none for pictures is published"):
            rewards.load(f"pal_{form}")

    def test_a_head_of_the_other_form_is_refused(self, form, folder):
        other = {"a": "b", "b": "a"}[form]
        with pytest.raises(
            CheckpointError, match=rf"got \[a head of form {form}\], .* Load it as pal_{form}"
        ):
            rewards.load(f"pal_{other}", weights=folder)

    def test_options_that_exclude_each_other(self, form, folder):
        with pytest.raises(ConfigError, match=r"got \[a user and a mixture\], expected one of them"):
            rewards.load(f"pal_{form}", weights=folder, user="ada", mixture=[1.0, 0.0, 0.0])
        with pytest.raises(ConfigError, match="expected 3 numbers that sum to 1"):
            rewards.load(f"pal_{form}", weights=folder, mixture=[1.0, 1.0, 0.0])
        with pytest.raises(UnknownNameError, match="'nobody'"):
            rewards.load(f"pal_{form}", weights=folder, user="nobody")

    def test_a_backbone_of_another_width_is_refused(self, form, folder, tmp_path):
        import shutil

        shutil.copytree(folder, tmp_path / "x")
        head = PalHead.load(folder)
        from dataclasses import replace

        PalHead(replace(head.settings, input=5), USERS).save(tmp_path / "x")
        with pytest.raises(ConfigError, match=r"got \[embeddings of width 24\], expected 5"):
            rewards.load(f"pal_{form}", weights=tmp_path / "x")
