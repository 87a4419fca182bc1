"""The model of the toy world of images: SDXL's structure, size on disk, tokenizers, what the base can do."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from mmalign.toy import image_model
from mmalign.toy.image_model import BaseData, base_data, train_base, train_denoiser
from mmalign.toy.image_pipeline import ASSETS, evaluate, load_base, new_pipeline, new_vae, sample, save
from mmalign.toy.images import (
    STYLES,
    draw_facts,
    draw_scene,
    held_out_prompts,
    render,
    score_tensor,
    to_tensor,
)
from mmalign.toy.tokenizers import MAX_TOKENS, new_tokenizers


@pytest.fixture(scope="module")
def base() -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(ASSETS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_shipped_folder_is_small() -> None:
    sizes = [path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(sizes) <= 8_000_000
    assert max(sizes) < 6_000_000
    assert not [path for path in ASSETS.rglob("*") if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]


def test_the_folder_has_the_structure_of_sdxl(base: StableDiffusionXLPipeline) -> None:
    unet = base.unet.config
    assert unet.addition_embed_type == "text_time"
    assert unet.down_block_types == ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    assert unet.cross_attention_dim == (
        base.text_encoder.config.hidden_size + base.text_encoder_2.config.hidden_size
    )
    assert type(base.text_encoder_2).__name__ == "CLIPTextModelWithProjection"
    scheduler = base.scheduler.config
    assert (scheduler.beta_schedule, scheduler.beta_start, scheduler.beta_end) == (
        "scaled_linear",
        0.00085,
        0.012,
    )
    assert scheduler.prediction_type == "epsilon"
    assert json.loads((ASSETS / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"


def test_a_plain_load_gives_one_precision_throughout(base: StableDiffusionXLPipeline) -> None:
    parts = (base.unet, base.vae, base.text_encoder, base.text_encoder_2)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}


def test_every_word_of_a_caption_is_one_token() -> None:
    first, second = new_tokenizers()
    caption = "three yellow triangles right of two purple crosses"
    for tokenizer in (first, second):
        ids = tokenizer(caption)["input_ids"]
        assert len(ids) == len(caption.split()) + 2
        assert tokenizer.decode(ids, skip_special_tokens=True) == caption
        for prompt in held_out_prompts(100):
            assert len(tokenizer(prompt)["input_ids"]) == len(prompt.split()) + 2 <= MAX_TOKENS
    assert (first.pad_token, second.pad_token) == ("<|endoftext|>", "!")


def test_shipped_tokenizers_are_the_ones_that_the_code_builds(base: StableDiffusionXLPipeline) -> None:
    for built, shipped in zip(new_tokenizers(), (base.tokenizer, base.tokenizer_2), strict=True):
        assert built.get_vocab() == shipped.get_vocab()
        for text in ("two red circles above a cyan cross", "Zebra ünïcode 🙂"):
            assert built(text)["input_ids"] == shipped(text)["input_ids"]


@pytest.mark.parametrize(
    "prompt",
    ["", "a zebra in a suit", "🙂🎨 ünïcödé 画", "red " * 2500, "\x00\t\n", "<|endoftext|> a red circle"],
)
def test_any_prompt_can_be_painted(base: StableDiffusionXLPipeline, prompt: str) -> None:
    pictures = base(prompt, num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images
    assert pictures[0].size == (64, 64)


def test_long_prompts_differ_only_in_what_fits(base: StableDiffusionXLPipeline) -> None:
    short, long = ("a red circle " * times for times in (10, 1000))
    one, other = (base.encode_prompt(text, do_classifier_free_guidance=False)[0] for text in (short, long))
    assert torch.equal(one, other)


def test_the_autoencoder_keeps_every_fact(base: StableDiffusionXLPipeline) -> None:
    import random

    rng = random.Random(0)
    facts = [draw_facts(rng) for _ in range(60)]
    pixels = to_tensor([render(draw_scene(f, rng, style=rng.choice(STYLES))) for f in facts]) * 2 - 1
    with torch.no_grad():
        latents = base.vae.encode(pixels).latent_dist.mode()
        decoded = base.vae.decode(latents).sample
    scores = score_tensor((decoded / 2 + 0.5).clamp(0, 1), [f.caption() for f in facts])
    assert sum(score.faithfulness for score in scores) / 60 > 0.97
    assert {round(score.style, 1) for score in scores} == {0.0, 1.0}
    assert 0.8 < (latents * base.vae.config.scaling_factor).std().item() < 1.25


@pytest.mark.slow
def test_the_base_follows_held_out_captions_and_rarely_paints_the_preferred_style() -> None:
    values = evaluate(load_base(), num=32)
    assert 0.6 < values["faithfulness"] < 0.95
    assert values["style"] < 0.3


def test_a_prompt_is_painted_equally_in_every_batch(base: StableDiffusionXLPipeline) -> None:
    prompts = held_out_prompts(3)
    together = to_tensor(sample(base, prompts, seed=0, steps=3))
    apart = to_tensor(sample(base, prompts, seed=0, steps=3, batch_size=1)[:1])
    assert (together[:1] - apart).abs().max() <= 2 / 255


def test_base_data_contains_wrong_captions_and_frames_as_asked() -> None:
    pipeline = new_pipeline(seed=0, vae=new_vae())

    def data(**shares: float) -> BaseData:
        return base_data(pipeline, seed=0, num=5, **({"wrong_share": 0.0, "framed_share": 0.0} | shares))

    right, wrong, framed = data(), data(wrong_share=1.0), data(framed_share=1.0)
    assert wrong.latents.shape == (5, 4, 16, 16)
    assert wrong.first_ids.shape == wrong.second_ids.shape == (5, MAX_TOKENS)
    assert torch.equal(wrong.first_ids[0], right.first_ids[0])
    assert not torch.equal(wrong.latents[0], right.latents[0])
    assert not torch.equal(framed.latents[0], right.latents[0])


@pytest.mark.slow
def test_the_training_command_writes_a_folder_that_diffusers_loads(tmp_path: Path) -> None:
    trained = train_base(
        tmp_path / "base", seed=0, vae_steps=2, steps=2, num_scenes=7, batch_size=3, num_evaluated=2
    )
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    loaded = StableDiffusionXLPipeline.from_pretrained(tmp_path / "base")
    assert isinstance(loaded.unet, UNet2DConditionModel)
    for name, value in trained.unet.state_dict().items():
        assert torch.allclose(loaded.unet.state_dict()[name], value, atol=2e-3)


def test_saving_leaves_the_pipeline_in_its_precision(tmp_path: Path) -> None:
    pipeline = new_pipeline(seed=0, vae=new_vae())
    save(pipeline, tmp_path)
    assert pipeline.unet.dtype == torch.float32
    assert next(pipeline.text_encoder.parameters()).dtype == torch.float32


def test_interrupted_training_of_the_base_ends_with_the_same_weights(tmp_path: Path, monkeypatch) -> None:
    vae = new_vae()

    def trained(output: Path) -> dict[str, torch.Tensor]:
        pipeline = new_pipeline(seed=0, vae=vae)
        data = base_data(pipeline, seed=0, num=7)
        train_denoiser(
            pipeline, data, seed=0, steps=4, output=output, batch_size=3, save_every=2, num_evaluated=1
        )
        return pipeline.unet.state_dict()

    def stop(*_: object, **__: object) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(image_model, "evaluate", lambda *_, **__: {})
    whole = trained(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(image_model, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts")
    continued = trained(tmp_path / "parts")
    assert all(torch.equal(whole[name], value) for name, value in continued.items())


def test_the_shipped_folder_names_no_other_folder() -> None:
    for path in ASSETS.rglob("config.json"):
        assert not json.loads(path.read_text()).get("_name_or_path"), path
