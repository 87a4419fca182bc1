"""SPO's step-aware model: the whole forward, both starts, timesteps of samples, and its training loss."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig

from mmalign import rewards
from mmalign.errors import CheckpointError, ConfigError, ShapeError
from mmalign.rewards import Sample
from mmalign.rewards.step_aware import StepAwareClip, start_neutral, step_aware_loss, timestep_embedding
from mmalign.rewards.step_aware_reward import step_aware_pixels
from mmalign.testing.reward_checkpoints.step_aware import clip_config, write_pickscore, write_step_aware
from mmalign.testing.straight_line import clip_text, clip_vision, linear, norm

NAME = "sd-v1-5_step-aware_preference_model.bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_step_aware("sd-v1-5")(tmp_path_factory.mktemp("spm"), 4)


@pytest.fixture(scope="module")
def reward(folder):
    return rewards.load("spm_sd15", weights=folder)


@pytest.fixture(scope="module")
def samples():
    generator = torch.Generator().manual_seed(0)
    given = (("a painting", (37, 59), 951), ("an ocean", (61, 41), 251.5), ("", (28, 28), 0))
    return [
        Sample(prompt=prompt, image=torch.rand(3, *size, generator=generator), extras={"timestep": step})
        for prompt, size, step in given
    ]


def straight(folder, reward, sample):
    """One score by formulas alone."""
    loaded = torch.load(folder / NAME, weights_only=True)
    state = {name.removeprefix("model."): value for name, value in loaded.items()}
    image = sample.image[None] * 2 - 1  # as a decoder gives it
    scale = 28 / min(image.shape[-2:])
    size = [int(side * scale + 0.5) for side in image.shape[-2:]]
    image = F.interpolate(image, size=size, mode="bicubic", align_corners=False)
    top, left = (round((side - 28) / 2.0) for side in size)
    image = (image[..., top : top + 28, left : left + 28] / 2 + 0.5).clamp(0, 1)
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
    angles = [sample.extras["timestep"] * math.exp(-math.log(10000) * i / 128) for i in range(128)]
    wave = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])[None]
    time = linear(state, "t_embedder.mlp.2", F.silu(linear(state, "t_embedder.mlp.0", wave)))
    first = clip_vision(state, (image - mean) / std, heads=4, layers=2, patch=7, time=time)[:, 0]
    shift, factor = linear(state, "vision_model.adaLN_modulation.1", F.silu(time)).chunk(2, dim=-1)
    pooled = norm(state, "vision_model.post_layernorm", first) * (1 + factor) + shift
    seen = pooled @ state["visual_projection.weight"].T
    row = reward.tokens.encode(sample.prompt)
    text = clip_text(state, row.ids[None], heads=3, layers=2)[0, int(row.mask.sum()) - 1]
    text = text @ state["text_projection.weight"].T
    return (state["logit_scale"].exp() * F.cosine_similarity(seen[0], text, dim=0)).double()


def test_the_whole_forward_equals_a_second_writing(folder, reward, samples):
    expected = torch.stack([straight(folder, reward, sample) for sample in samples])
    assert expected.std() > 0.1
    torch.testing.assert_close(reward.score(samples).first(), expected, rtol=1e-4, atol=1e-4)


def test_the_timestep_moves_the_score_and_every_sample_has_its_own(reward, samples):
    steps = (0, 251, 501, 951, 952)
    same = [Sample("a", image=samples[0].image, extras={"timestep": step}) for step in steps]
    together = reward.score(same).first()
    assert together.unique().numel() == len(steps)
    alone = torch.cat([reward.score([sample]).first() for sample in same])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_neighbouring_steps_differ_in_half_precision(folder, samples):
    half = rewards.load("spm_sd15", weights=folder, dtype="bfloat16")
    found = half.network.model.t_embedder.mlp[0].weight.new_tensor([951.0, 952.0])
    assert found[0] == found[1]  # bfloat16 cannot tell them apart
    time = half.network.time_condition(torch.tensor([951.0, 952.0]))
    assert not torch.equal(time[0], time[1])


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({}, r"extras\['timestep'\]: got None"),
        ({"timestep": "late"}, "got 'late', expected a number from 0 to 1000"),
        ({"timestep": -1}, "got -1"),
        ({"timestep": 1001}, "got 1001"),
        ({"timestep": True}, "got True"),
        ({"timestep": float("nan")}, "got nan"),
    ],
)
def test_samples_without_a_timestep_fail_alone(reward, samples, extras, message):
    found = reward.score([samples[0], Sample("a", image=samples[0].image, extras=extras)])
    assert found.errors[0] is None
    assert torch.isnan(found.values[1, 0])
    assert __import__("re").search(message, found.errors[1])


def test_an_option_gives_finished_pictures_their_timestep(folder, samples):
    finished = rewards.load("spm_sd15", weights=folder, timestep=0)
    plain = Sample(samples[2].prompt, image=samples[2].image)
    torch.testing.assert_close(finished.score([plain]).first(), finished.score([samples[2]]).first())


def test_a_timestep_option_out_of_range_is_refused(folder):
    with pytest.raises(ConfigError, match=r"option timestep: got 2000\.0"):
        rewards.load("spm_sd15", weights=folder, timestep=2000)


class TestTensors:
    def test_they_score_as_pictures_do(self, reward, samples):
        for sample in samples:
            steps = torch.tensor([float(sample.extras["timestep"])])
            found = reward.score_tensor(sample.image[None], [sample.prompt], steps)
            torch.testing.assert_close(found.double(), reward.score([sample]).first(), rtol=1e-5, atol=1e-5)

    def test_they_carry_a_gradient(self, reward, samples):
        pixels = samples[0].image[None].clone().requires_grad_()
        reward.score_tensor(pixels, ["a"], torch.tensor([501])).sum().backward()
        assert torch.isfinite(pixels.grad).all()
        assert pixels.grad.abs().max() > 0

    def test_they_need_timesteps(self, reward):
        with pytest.raises(ConfigError, match=r"got \[no timesteps\], expected one per picture"):
            reward.score_tensor(torch.rand(2, 3, 28, 28), ["a", "b"])

    def test_one_timestep_per_picture(self, reward, untyped):
        with untyped, pytest.raises(ShapeError, match=r"got \[3 timesteps\], expected 2"):
            reward.score_tensor(torch.rand(2, 3, 28, 28), ["a", "b"], torch.zeros(3))

    def test_overshoot_of_the_resize_is_clipped_before_normalising(self):
        edge = torch.zeros(1, 3, 40, 40)
        edge[..., 20:] = 1.0
        found = step_aware_pixels(edge, 28)
        mean, std = torch.tensor(0.48145466), torch.tensor(0.26862954)
        assert found[0, 0].min() == pytest.approx(float(-mean / std), abs=1e-5)
        assert found[0, 0].max() == pytest.approx(float((1 - mean) / std), abs=1e-5)


class TestStart:
    def test_a_new_model_scores_as_pickscore_at_every_timestep(self, tmp_path, samples):
        folder = write_pickscore(tmp_path, 6)
        new = rewards.load("spm_sd15", weights=folder, start="pickscore", timestep=0)
        from transformers import CLIPModel

        clip = CLIPModel(CLIPConfig.from_pretrained(folder / "config.json")).eval()
        from safetensors.torch import load_file

        clip.load_state_dict(load_file(folder / "model.safetensors"))
        for step in (0.0, 951.0):
            pixels = step_aware_pixels(samples[0].image[None], 28)
            ids, mask = new.tokens.encode_all(["a painting"])
            found = new.network(pixels, ids, torch.tensor([step]))
            with torch.no_grad():
                expected = clip(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits_per_image[0]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    def test_training_can_move_it_from_there(self, generator):
        config = clip_config(60, positions=11)
        network = StepAwareClip(CLIPConfig(**config))
        start_neutral(network, generator)
        pixels = torch.rand(2, 3, 28, 28, generator=generator)
        network(pixels, torch.tensor([[58, 3, 59], [58, 5, 59]]), torch.tensor([1.0, 501.0])).sum().backward()
        layer = network.model.vision_model.encoder.layers[0].adaLN_modulation[-1]
        assert layer.weight.grad.abs().max() > 0
        assert layer.bias.detach().chunk(6)[2].eq(1).all()
        assert layer.bias.detach().chunk(6)[0].eq(0).all()

    def test_the_seed_draws_the_embedder(self):
        def embedder(seed):
            network = StepAwareClip(CLIPConfig(**clip_config(60, positions=11)))
            start_neutral(network, torch.Generator().manual_seed(seed))
            return network.model.t_embedder.mlp[0].weight

        assert torch.equal(embedder(2), embedder(2))
        assert not torch.equal(embedder(2), embedder(3))
        assert float(embedder(2).detach().std()) == pytest.approx(0.02, rel=0.1)

    def test_the_fingerprint_names_the_start(self, tmp_path, folder):
        write_pickscore(tmp_path, 6)
        new = rewards.load("spm_sd15", weights=tmp_path, start="pickscore")
        assert new.provenance()["options"]["start"] == "pickscore"
        assert set(new.provenance()["weights"]) == {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }

    def test_another_start_is_refused(self, folder, untyped):
        with untyped, pytest.raises(ConfigError, match="got 'scratch', expected 'released' or 'pickscore'"):
            rewards.load("spm_sd15", weights=folder, start="scratch")

    def test_a_released_model_is_no_start(self, tmp_path, folder):
        from safetensors.torch import save_file

        state = torch.load(folder / NAME, weights_only=True)
        write_pickscore(tmp_path)
        save_file(
            {name.removeprefix("model."): v for name, v in state.items()}, tmp_path / "model.safetensors"
        )
        with pytest.raises(CheckpointError, match=r"got \[a model that is step-aware already\]"):
            rewards.load("spm_sd15", weights=tmp_path, start="pickscore")

    def test_a_missing_modulation_is_named(self, tmp_path):
        folder = write_step_aware("sd-v1-5")(tmp_path, 0)
        state = torch.load(folder / NAME, weights_only=True)
        del state["model.vision_model.encoder.layers.1.adaLN_modulation.1.bias"]
        torch.save(state, folder / NAME)
        with pytest.raises(CheckpointError, match=r"missing: model\.vision_model\.encoder\.layers\.1\.adaLN"):
            rewards.load("spm_sd15", weights=folder)


class TestEmbedding:
    def test_an_odd_width_ends_in_zero(self):
        found = timestep_embedding(torch.tensor([3.0, 5.0]), 7)
        assert found.shape == (2, 7)
        assert found[:, -1].eq(0).all()

    def test_cosines_come_first(self):
        found = timestep_embedding(torch.tensor([0, 951]), 6)
        assert found[0].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
        assert found[1, 0] == pytest.approx(math.cos(951), abs=1e-5)


class TestLoss:
    def features(self, draw, pairs=5):
        return draw(pairs, 7), draw(pairs, 7), draw(pairs, 7)

    def loss(self, features, labels, counts, **options):
        return step_aware_loss(
            *features,
            label_0=torch.tensor(labels, dtype=torch.float64),
            examples_per_prompt=torch.tensor(counts),
            logit_scale=10.0,
            **options,
        )

    def test_a_perfect_tie_costs_nothing(self, draw):
        text, image, _ = self.features(draw, 3)
        assert float(self.loss((text, image, image), [0.5] * 3, [1] * 3)) == pytest.approx(0.0, abs=1e-12)

    def test_prompts_with_many_pairs_weigh_less(self, draw):
        features = self.features(draw, 2)
        alone = [self.loss([f[n : n + 1] for f in features], [1.0], [1]) for n in (0, 1)]
        found = self.loss(features, [1.0, 1.0], [1, 3])
        torch.testing.assert_close(found, (3 * alone[0] + alone[1]) / 4)

    def test_swapping_pictures_and_labels_changes_nothing(self, draw):
        text, first, second = self.features(draw)
        labels = [1.0, 0.0, 0.5, 1.0, 0.0]
        swapped = [1 - label for label in labels]
        for options in ({}, {"in_batch_negatives": True}):
            torch.testing.assert_close(
                self.loss((text, first, second), labels, [1, 2, 3, 5, 7], **options),
                self.loss((text, second, first), swapped, [1, 2, 3, 5, 7], **options),
            )

    def test_in_batch_negatives_are_the_four_cross_entropies(self, draw):
        text, first, second = (F.normalize(f, dim=-1) for f in self.features(draw, 3))
        images = torch.cat([first, second])
        per_image, per_text, place = 10 * images @ text.T, 10 * text @ images.T, torch.arange(3)
        label = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
        image = label * F.cross_entropy(per_image[:3], place, reduction="none")
        image = image + (1 - label) * F.cross_entropy(per_image[3:], place, reduction="none")
        words = label * F.cross_entropy(per_text, place, reduction="none")
        words = words + (1 - label) * F.cross_entropy(per_text, place + 3, reduction="none")
        words = words + torch.tensor([0.0, 0.0, math.log(0.5)])
        weights = torch.tensor([1.0, 1 / 2, 1 / 5]).double()
        expected = ((image + words) / 2 * weights / weights.sum()).sum()
        found = self.loss((text, first, second), label.tolist(), [1, 2, 5], in_batch_negatives=True)
        torch.testing.assert_close(found, expected)
