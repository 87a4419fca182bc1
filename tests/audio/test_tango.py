"""A tiny Tango through the family contract: encoding, denoising, dropout, sampling, settings."""

from dataclasses import replace

import pytest
import torch

from mmalign.batch import Batch, Labels
from mmalign.diffusion.sampling import SCHEDULERS
from mmalign.errors import ConfigError
from mmalign.likelihood import Elbo, UniformTimesteps
from mmalign.train.model import PreferenceModel, TrainedModel

PROMPTS = ["a dog", "rain on a tin roof"]


def encoded(model, rows, keys):
    numbers = keys.key.tolist()
    examples = [model.example(row, key=key) for row, key in zip(rows, numbers, strict=True)]
    return model.encode(model.collate(examples), keys)


def batch_of(model, rows, keys):
    clean, conditioning = encoded(model, rows, keys)
    num = len(rows)
    return Batch(
        clean=clean,
        conditioning=conditioning,
        labels=Labels.pairs(num),
        weight=torch.ones(num),
        valid=torch.ones(num, dtype=torch.bool),
        keys=keys,
    )


def test_the_shapes_of_a_model_are_those_of_its_clips(tango):
    assert (tango.sampling_rate, tango.channels, tango.duration) == (16_000, 1, 0.64)
    assert tango.latent_shape == (8, 16, 16)
    assert tango.prediction == "v_prediction"
    assert tango.latent_shape_of(10.24) == (8, 256, 16)
    assert not any(parameter.requires_grad for parameter in tango.bare_network.parameters())
    assert any("16000 Hz" in note for note in tango.notes)


def test_it_is_a_model_as_the_loop_wants_them(tango):
    wanted = {
        name
        for protocol in (PreferenceModel, TrainedModel)
        for name in (*vars(protocol), *protocol.__annotations__)
        if not name.startswith("_")
    }
    assert {"denoise", "encode", "meta_inputs", "latent_shape"} <= wanted
    # Everything but pictures.
    assert [name for name in sorted(wanted) if not hasattr(tango, name)] == []


def test_a_row_is_encoded_the_same_in_any_company(tango, pair, keys):
    alone = encoded(tango, [pair("hum")], keys(5))
    together = encoded(tango, [pair("a long hum", 500, 600), pair("hum")], keys(9, 5))
    assert torch.allclose(alone[0][0], together[0][1], atol=1e-5)
    length = alone[1].shared["text"].shape[1]
    assert torch.allclose(alone[1].shared["text"][0], together[1].shared["text"][1, :length], atol=1e-5)
    assert together[1].shared["text_mask"][1].sum() == length


def test_other_keys_draw_other_latents_and_the_mean_draws_none(load_tango, pair, keys):
    model = load_tango()
    first, again, other = (encoded(model, [pair()], keys(number))[0] for number in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    model.at_mean = True
    assert torch.equal(encoded(model, [pair()], keys(1))[0], encoded(model, [pair()], keys(2))[0])


def test_padding_of_a_text_changes_no_prediction(tango):
    generator = torch.Generator().manual_seed(0)
    noised = torch.randn(1, *tango.latent_shape, generator=generator)
    timestep = torch.tensor([500])
    short = tango.prompt_conditioning(["hum"]).rows(1)
    filled = {
        name: value[:1] for name, value in tango.prompt_conditioning(["hum", "a long hum"]).rows(1).items()
    }
    with torch.no_grad():
        alone, other = (tango.denoise(noised, timestep, rows) for rows in (short, filled))
        unmasked = tango.denoise(
            noised, timestep, {**filled, "text_mask": torch.ones_like(filled["text_mask"])}
        )
    assert torch.allclose(alone, other, atol=1e-5)
    assert not torch.allclose(alone, unmasked, atol=1e-3)


def test_errors_of_a_pair_share_noise_and_have_gradients(load_tango, pair, keys):
    model = load_tango()
    model.bare_network.requires_grad_(True)
    elbo = Elbo(model.schedule, model.prediction, UniformTimesteps())
    batch = batch_of(model, [pair("a"), pair("bb")], keys(3, 4))
    draw = elbo.draw(batch)
    assert torch.equal(draw.noise[:, 0], draw.noise[:, 1])
    elbo.evaluate(model.denoise, batch, draw).error.sum().backward()
    assert model.bare_network.conv_in.weight.grad.abs().max() > 0


class TestDroppedPrompts:
    def test_whole_rows_are_given_the_empty_prompt(self, load_tango, pair, keys):
        model = load_tango(prompt_dropout=1.0)
        _, conditioning = encoded(model, [pair("hum"), pair("a long hum")], keys(1, 2))
        empty = model.prompt_conditioning([""]).shared["text"][0]
        for text, mask in zip(conditioning.shared["text"], conditioning.shared["text_mask"], strict=True):
            assert mask.sum() == len(empty)
            assert torch.allclose(text[: len(empty)], empty, atol=1e-6)

    def test_zeros_keep_the_mask_as_the_released_flag_does(self, load_tango, pair, keys):
        model = load_tango(prompt_dropout=1.0, dropped_prompt="zeros")
        _, conditioning = encoded(model, [pair("hum"), pair("a long hum")], keys(1, 2))
        assert not conditioning.shared["text"].any()
        assert conditioning.shared["text_mask"].sum(1).tolist() == [
            len(ids) for ids in model.tokenizers[0](["hum", "a long hum"])["input_ids"]
        ]

    def test_the_share_is_that_of_the_setting(self, load_tango, pair, keys):
        model = load_tango(prompt_dropout=0.5, dropped_prompt="zeros")
        example = model.example(pair("hum"), key=0)
        many = model.collate([example] * 24)
        many["waves"] = many["waves"][:, :, :, :10_240]
        text = model._conditions(many, keys(*range(24)), count=2)["text"]
        dropped = (text == 0).flatten(1).all(1)
        assert 4 < dropped.sum() < 20

    def test_candidates_with_prompts_of_their_own_are_dropped_together(self, load_tango, pair, keys):
        model = load_tango(prompt_dropout=1.0)
        row = pair("hum")
        own = zip(row.candidates, ("ab", "a longer one"), strict=True)
        row = replace(row, candidates=tuple(replace(candidate, prompt=prompt) for candidate, prompt in own))
        _, conditioning = encoded(model, [row], keys(1))
        text = conditioning.per_candidate["text"]
        assert torch.equal(text[0, 0], text[0, 1])


class TestTextEncoderDropout:
    def test_it_is_off_by_default_and_the_runs_choice(self, load_tango, pair, keys):
        calm, restless = load_tango(), load_tango(text_encoder_dropout=True)
        rows = [pair("a long hum")]
        expected = encoded(calm, rows, keys(1))[1].shared["text"]
        first, again, other = (
            encoded(restless, rows, keys(number))[1].shared["text"] for number in (1, 1, 2)
        )
        assert torch.equal(encoded(calm, rows, keys(2))[1].shared["text"], expected)
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=1e-3)
        assert not torch.allclose(first, expected, atol=1e-3)

    def test_samples_and_the_global_generator_know_nothing_of_it(self, load_tango, pair, keys):
        model = load_tango(text_encoder_dropout=True)
        before = torch.random.get_rng_state()
        encoded(model, [pair("a long hum")], keys(1))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not model.encoders[0].training
        first, second = (model.prompt_conditioning(["a dog"]).shared["text"] for _ in range(2))
        assert torch.equal(first, second)

    def test_a_cache_cannot_hold_it(self, load_tango):
        with pytest.raises(ValueError, match=r"text_encoder_dropout makes other text states at every visit"):
            load_tango(text_encoder_dropout=True, cache="somewhere")


class TestSampling:
    def test_a_clip_depends_on_its_prompt_and_seed_and_not_on_its_neighbours(self, tango):
        settings = {"seed": 3, "num_steps": 2, "guidance_scale": 3.0}
        both = tango.sample(PROMPTS, **settings)
        alone = tango.sample(PROMPTS[1:], keys=[1], **settings)[0]
        one_by_one = tango.sample(PROMPTS, batch_size=1, **settings)
        assert torch.allclose(both[1].samples, alone.samples, atol=1e-4)
        assert torch.allclose(both[1].samples, one_by_one[1].samples, atol=1e-4)
        assert not torch.allclose(both[0].samples, both[1].samples, atol=1e-2)

    def test_clips_are_sound(self, tango):
        (found,) = tango.sample(["a dog"], seed=0, num_steps=2, guidance_scale=1.0)
        assert found.samples.shape == (1, 10_240)
        assert found.sampling_rate == 16_000
        assert found.samples.dtype == torch.float32
        assert 1e-3 < found.samples.abs().max() <= 1.0

    def test_copies_of_a_prompt_differ_and_lie_side_by_side(self, tango):
        first, second = tango.sample(["a dog"], seed=0, num_steps=1, guidance_scale=1.0, copies=2)
        again = tango.sample(["a dog"], seed=0, num_steps=1, guidance_scale=1.0)[0]
        assert torch.allclose(first.samples, again.samples, atol=1e-5)
        assert not torch.allclose(first.samples, second.samples, atol=1e-2)

    def test_guidance_contrasts_with_the_negative_prompt(self, tango):
        settings = {"seed": 0, "num_steps": 1, "guidance_scale": 4.0}
        plain, against = (
            tango.sample(["a dog"], negative_prompts=negative, **settings)[0]
            for negative in (None, ["a cat"])
        )
        same = tango.sample(["a dog"], negative_prompts=["a dog"], **settings)[0]
        unguided = tango.sample(["a dog"], **{**settings, "guidance_scale": 1.0})[0]
        assert not torch.allclose(plain.samples, against.samples, atol=1e-3)
        assert torch.allclose(same.samples, unguided.samples, atol=1e-3)

    def test_the_time_axis_is_free(self, tango):
        (found,) = tango.sample(["a dog"], seed=0, num_steps=1, guidance_scale=1.0, duration=0.16)
        assert found.samples.shape == (1, 2_560)

    @pytest.mark.parametrize("name", sorted(SCHEDULERS))
    def test_other_samplers_have_the_same_schedule(self, tango, name):
        (found,) = tango.sample(["a dog"], seed=0, num_steps=3, guidance_scale=1.0, scheduler=name)
        assert found.samples.isfinite().all()

    @pytest.mark.parametrize("name", ["keys", "negative_prompts"])
    def test_lists_of_another_length_are_refused(self, tango, name):
        with pytest.raises(ConfigError, match=f"{name}: got '1 for 2 prompts', expected one per prompt"):
            tango.sample(PROMPTS, seed=0, num_steps=1, guidance_scale=1.0, **{name: ["x"]})


def test_half_precision_is_for_network_and_text_and_not_for_sound(load_tango, pair, keys):
    model = load_tango(dtype=torch.bfloat16)
    clean, conditioning = encoded(model, [pair("hum")], keys(1))
    assert clean.dtype == torch.float32
    assert conditioning.shared["text"].dtype == torch.bfloat16
    assert conditioning.shared["text_mask"].dtype == torch.bool
    assert {value.dtype for value in model.autoencoder.vocoder.parameters()} == {torch.float32}
    (found,) = model.sample(["a dog"], seed=0, num_steps=2, guidance_scale=3.0)
    assert found.samples.dtype == torch.float32
    assert found.samples.isfinite().all()


def test_memory_is_counted_without_running_anything(tango):
    noised, timestep, rows = tango.meta_inputs(3)
    assert noised.shape == (3, 8, 16, 16)
    assert {value.device.type for value in (noised, timestep, *rows.values())} == {"meta"}
    assert rows["text_mask"].dtype == torch.bool


def test_sound_of_latents_is_as_long_as_the_vocoder_makes_it(tango):
    waves = tango.decode_waveforms(torch.zeros(2, 8, 4, 16))
    assert waves.shape == (2, 1, 160 * 16 + 32)
    assert waves.abs().max() <= 1.0


@pytest.mark.parametrize("duration", [0.65, 0.001])
def test_a_duration_the_model_cannot_make_names_the_nearest(load_tango, duration):
    with pytest.raises(
        ConfigError, match=r"audio.duration: got .* a multiple of 0.04 seconds.* The nearest is"
    ):
        load_tango(duration=duration)


def test_mixtures_and_caches_exclude_each_other(load_tango):
    with pytest.raises(ValueError, match=r"audio\.mix_augmentation needs the sound itself"):
        load_tango(mix_augmentation=0.5, cache="somewhere")


def test_text_length_is_the_runs(load_tango):
    model = load_tango(model={"text_length": 3})
    assert model.prompt_conditioning(["a very long hum"]).shared["text"].shape[1] == 3
