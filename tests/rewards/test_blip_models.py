"""ImageReward: the whole forward against a second writing of BLIP, and what its loading refuses."""

import json

import pytest
import torch
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.functional import InterpolationMode, normalize, to_tensor

from mmalign import rewards
from mmalign.errors import CheckpointError, ShapeError
from mmalign.rewards import Sample, blip_models
from mmalign.rewards.sample import to_image
from mmalign.testing.reward_checkpoints.blip import write_imagereward
from mmalign.testing.straight_line import blip_text, blip_vision

PROMPTS = ("a painting of an ocean", "clouds, and birds with an ocean " * 5, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_imagereward(tmp_path_factory.mktemp("imagereward"), 3)


@pytest.fixture(scope="module")
def reward(folder):
    return rewards.load("imagereward", weights=folder)


@pytest.fixture(scope="module")
def samples():
    generator = torch.Generator().manual_seed(0)
    sizes = ((37, 59), (61, 41), (32, 32))
    return [
        Sample(prompt=prompt, image=torch.rand(3, *size, generator=generator))
        for prompt, size in zip(PROMPTS, sizes, strict=True)
    ]


def straight(folder, reward, samples):
    """The reward of each sample by formulas alone; token ids and head constants are the published ones."""
    state = torch.load(folder / "ImageReward.pt", weights_only=True)

    def below(prefix):
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    found = []
    for sample in samples:
        picture = CenterCrop(32)(Resize(32, InterpolationMode.BICUBIC)(to_image(sample.image)))
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        pixels = normalize(to_tensor(picture), mean, std)[None]
        row = reward.tokens.tokenizer(
            sample.prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        )
        image = blip_vision(below("blip.visual_encoder."), pixels, heads=2, layers=2, patch=8)
        text = below("blip.text_encoder.")
        x = blip_text(text, row.input_ids, row.attention_mask, image, heads=4, layers=2)[:, 0]
        for place in (0, 2, 4, 6, 7):
            x = x @ state[f"mlp.layers.{place}.weight"].T + state[f"mlp.layers.{place}.bias"]
        found.append((x[0, 0] - 0.16717362830052426) / 1.0333394966054072)
    return torch.stack(found).double()


def test_the_whole_forward_equals_a_second_writing(folder, reward, samples):
    found = reward.score(samples)
    expected = straight(folder, reward, samples)
    assert expected.std() > 0.1
    torch.testing.assert_close(found.values[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert found.truncated == (False, True, False)
    assert found.errors == (None, None, None)


def test_prompt_and_picture_both_move_the_reward(reward, samples):
    first, other = samples[0], samples[2]
    mixed = [first, Sample(prompt=other.prompt, image=first.image), Sample(first.prompt, image=other.image)]
    values = reward.score(mixed).first()
    assert (values[1:] - values[0]).abs().min() > 1e-3


def test_a_tensor_scores_like_its_picture_where_no_resize_is_needed(reward, samples):
    image = (samples[2].image * 255).round() / 255
    found = reward.score_tensor(image[None], ["a painting"])
    expected = reward.score([Sample(prompt="a painting", image=image)]).first()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_tensor_path_carries_a_gradient(reward, samples):
    pixels = samples[0].image[None].clone().requires_grad_()
    reward.score_tensor(pixels, ["a painting"]).sum().backward()
    assert torch.isfinite(pixels.grad).all()
    assert pixels.grad.abs().max() > 0


def test_other_numbers_of_prompts_are_refused(reward):
    with pytest.raises(ShapeError, match=r"got \[1 prompts\], expected 2, one per picture"):
        reward.score_tensor(torch.rand(2, 3, 32, 32), ["a"])


def test_a_sample_without_picture_fails_alone(reward, samples):
    found = reward.score([samples[0], Sample(prompt="a")])
    assert found.errors[0] is None
    assert "a sample without image" in found.errors[1]
    assert found.values[0, 0] == reward.score([samples[0]]).values[0, 0]


def test_the_head_stays_in_float32(folder):
    half = rewards.load("imagereward", weights=folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.network.mlp.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.network.text.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "blip.visual_encoder.blocks.1.norm2.bias",
            r"missing: vision\.encoder\.layers\.1\.layer_norm2\.bias",
        ),
        ("blip.text_encoder.encoder.layer.0.crossattention.self.key.weight", r"missing: text\.encoder"),
        ("blip.visual_encoder.pos_embed", r"got \[no key blip\.visual_encoder\.pos_embed\]"),
    ],
)
def test_a_missing_key_is_named(tmp_path, key, message):
    folder = write_imagereward(tmp_path)
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    del state[key]
    torch.save(state, folder / "ImageReward.pt")
    with pytest.raises(CheckpointError, match=message):
        rewards.load("imagereward", weights=folder)


@pytest.mark.parametrize("key", ["blip.visual_encoder.blocks.0.extra", "other.weight", "blip.new.weight"])
def test_an_unexpected_key_is_named(tmp_path, key):
    folder = write_imagereward(tmp_path)
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    torch.save(state | {key: torch.ones(1)}, folder / "ImageReward.pt")
    with pytest.raises(CheckpointError, match=f"unexpected: {key}"):
        rewards.load("imagereward", weights=folder)


def test_another_text_configuration_does_not_fit(tmp_path):
    folder = write_imagereward(tmp_path)
    settings = json.loads((folder / "med_config.json").read_text())
    (folder / "med_config.json").write_text(json.dumps(settings | {"intermediate_size": 20}))
    with pytest.raises(CheckpointError, match=r"other shape: .*is \[48"):
        rewards.load("imagereward", weights=folder)


def test_ranks_are_one_for_the_best_and_stable_for_equals():
    assert blip_models.ranks(torch.tensor([0.5, 2.0, -1.0, 2.0, 0.5])).tolist() == [3, 1, 5, 2, 4]


def test_the_published_values_stand_in_the_card():
    card = rewards.card("imagereward")
    assert [reference.media for reference in card.references] == [
        f"assets/images/{n}.webp" for n in (1, 2, 3, 4)
    ]
    values = [reference.value for reference in card.references]
    assert values == sorted(values, reverse=True)
    assert {reference.tolerance for reference in card.references} == {1e-3}
