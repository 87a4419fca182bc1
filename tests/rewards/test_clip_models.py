"""Rewards on Hugging Face CLIP folders: full forwards against plain transformers, loading, prompts."""

from io import BytesIO

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from mmalign import rewards
from mmalign.errors import CheckpointError, RowError, ShapeError, UnknownNameError
from mmalign.rewards.clip_models import HuggingFaceClip, as_embedding, cut_keeping_end
from mmalign.rewards.sample import Sample
from mmalign.testing.reward_checkpoints.clip import (
    SIZE,
    picture_samples,
    write_clip_folder,
    write_clipscore,
    write_pickscore,
)

PROMPTS = ("a red cube", "", "zwei blaue Würfel 🐈", "many words " * 60)


@pytest.fixture(scope="module")
def pickscore_folder(tmp_path_factory):
    return write_pickscore(tmp_path_factory.mktemp("pickscore"), 0)


@pytest.fixture(scope="module")
def clipscore_folder(tmp_path_factory):
    return write_clipscore(tmp_path_factory.mktemp("clipscore"), 0)


def odd_pictures():
    """Pictures whose crop margin is odd, where the two published crop rules differ."""
    generator = torch.Generator().manual_seed(3)
    for size in ((28, 31), (39, 28), (28, 28), (28, 35)):
        yield Image.fromarray(
            torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy()
        )


def plain_embeddings(folder, images, prompts, *, left_floor=True):
    """(Image, text) embeddings by transformers' own classes; `left_floor=False` crops as torchvision does."""
    model = CLIPModel.from_pretrained(str(folder)).eval()
    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    text = tokenizer(list(prompts), padding=True, truncation=True, max_length=77, return_tensors="pt")
    if left_floor:
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
        )
        pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    else:
        from open_clip.transform import image_transform

        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        chain = image_transform(SIZE, is_train=False, mean=mean, std=std)
        pixels = torch.stack([chain(image) for image in images])
    with torch.no_grad():
        found = model(**text, pixel_values=pixels)
    return found, found.image_embeds, found.text_embeds


def test_pickscore_equals_the_logits_of_transformers(pickscore_folder):
    images = list(odd_pictures())
    expected, _, _ = plain_embeddings(pickscore_folder, images, PROMPTS)
    reward = rewards.load("pickscore_v1", weights=pickscore_folder)
    samples = [Sample(prompt, image=image) for prompt, image in zip(PROMPTS, images, strict=True)]
    found = reward.score(samples)
    torch.testing.assert_close(
        found.first(), expected.logits_per_image.diagonal().double(), rtol=0, atol=2e-4
    )
    assert found.truncated == (False, False, False, True)


@pytest.mark.parametrize(
    ("options", "prefix", "factor", "clamped"),
    [
        ({}, "A photo depicts ", 2.5, True),
        ({"variant": "torchmetrics", "backbone": "vit-l-14"}, "", 100.0, False),
        ({"variant": "cosine"}, "", 1.0, False),
    ],
)
def test_clipscore_equals_plain_cosines(clipscore_folder, options, prefix, factor, clamped):
    folder = clipscore_folder / (
        "clip-vit-large-patch14" if options.get("backbone") == "vit-l-14" else "clip-vit-base-patch32"
    )
    images = list(odd_pictures())
    texts = [prefix + prompt for prompt in PROMPTS]
    _, image, text = plain_embeddings(
        folder, images, texts, left_floor=options.get("variant") == "torchmetrics"
    )
    expected = (image * text).sum(-1).double()
    expected = factor * (expected.clamp(min=0) if clamped else expected)
    reward = rewards.load("clipscore", weights=clipscore_folder, **options)
    samples = [Sample(prompt, image=image) for prompt, image in zip(PROMPTS, images, strict=True)]
    torch.testing.assert_close(reward.score(samples).first(), expected, rtol=0, atol=2e-6 * factor)
    assert reward.card.name == (
        f"clipscore[{options.get('backbone', 'vit-b-32')}, {options.get('variant', 'original')}]"
    )


def test_refclipscore_equals_the_plain_harmonic_mean(clipscore_folder):
    images = list(odd_pictures())[:3]
    references = [["a cube"], ["nothing here", "an empty page", "a page"], ["two blue cubes", "cubes"]]
    values = []
    for image, prompt, captions in zip(images, PROMPTS, references, strict=False):
        texts = [f"A photo depicts {text}" for text in [prompt, *captions]]
        _, picture, text = plain_embeddings(
            clipscore_folder / "clip-vit-base-patch32", [image], texts, left_floor=False
        )
        own = 2.5 * max(float(picture[0] @ text[0]), 0.0)
        best = max(float(text[0] @ other) for other in text[1:])
        values.append(2 * own * best / (own + best) if own > 0 else 0.0)
    reward = rewards.load("refclipscore", weights=clipscore_folder)
    samples = [
        Sample(prompt, image=image, extras={"references": captions})
        for prompt, image, captions in zip(PROMPTS, images, references, strict=False)
    ]
    assert reward.score(samples).first().tolist() == pytest.approx(values, abs=2e-6)


@pytest.mark.parametrize("references", [None, [], "one text", [1]])
def test_refclipscore_without_references_is_an_error_of_that_sample(clipscore_folder, references):
    reward = rewards.load("refclipscore", weights=clipscore_folder)
    image = next(odd_pictures())
    found = reward.score(
        [
            Sample("a", image=image, extras={} if references is None else {"references": references}),
            Sample("a", image=image, extras={"references": ["b"]}),
        ]
    )
    assert "expected a list of at least one reference caption" in found.errors[0]
    assert bool(found.values[0].isnan())
    assert found.errors[1] is None


def test_a_sample_without_a_picture_is_an_error_of_that_sample(pickscore_folder):
    reward = rewards.load("pickscore_v1", weights=pickscore_folder)
    with pytest.raises(RowError, match="pickscore_v1 sample 'seven': got None, expected an image") as caught:
        reward.prepare(Sample("a", id="seven"))
    assert caught.value.reason == "missing_image"


def test_names_of_special_tokens_in_a_prompt_are_text(pickscore_folder):
    encoder = rewards.load("pickscore_v1", weights=pickscore_folder).encoder
    ids, _ = encoder.tokens("a cat <|endoftext|> with wings <|startoftext|>")
    spelled, _ = encoder.tokens("a cat <| endoftext|> with wings <| startoftext|>")
    assert torch.equal(ids, spelled)
    end = CLIPTokenizer.from_pretrained(str(pickscore_folder)).eos_token_id
    assert (ids == end).nonzero()[0, 0] > 20, "the prompt's own end is the first end token"


def test_a_cut_prompt_keeps_its_end_token():
    ids, cut = cut_keeping_end([9, *range(1, 7), 8], 5, padding=0)
    assert (ids.tolist(), cut) == ([9, 1, 2, 3, 8], True)
    ids, cut = cut_keeping_end([9, 1, 8], 5, padding=7)
    assert (ids.tolist(), cut) == ([9, 1, 8, 7, 7], False)


def test_transparent_and_turned_files_are_scored_as_they_look(pickscore_folder):
    reward = rewards.load("pickscore_v1", weights=pickscore_folder)
    flat = Image.new("RGB", (31, 43), (255, 255, 255))
    flat.paste((200, 30, 30), (3, 5, 17, 29))
    clear = flat.convert("RGBA")
    clear.putalpha(Image.new("L", flat.size, 255))
    clear.paste((9, 9, 9, 0), (20, 33, 31, 43))  # shown white
    turned = flat.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    turned.save(buffer, format="PNG", exif=exif)
    values = reward.score([Sample("a", image=media) for media in (flat, clear, buffer.getvalue())]).first()
    assert values[1:].tolist() == pytest.approx([float(values[0])] * 2, abs=1e-4)


def test_older_weight_files_give_the_same_values(tmp_path):
    """`pytorch_model.bin` with the position ids that old checkpoints carry."""
    new = write_clip_folder(tmp_path / "new", 5)
    old = write_clip_folder(tmp_path / "old", 5, weight_file="pytorch_model.bin")
    state = torch.load(old / "pytorch_model.bin", weights_only=True)
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(state, old / "pytorch_model.bin")
    values = [
        HuggingFaceClip(folder, device="cpu", dtype=torch.float32).text_features(torch.tensor([[3, 5, 7]]))
        for folder in (new, old)
    ]
    torch.testing.assert_close(*values, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_scale": None}, "lacks logit_scale"),
        ({"visual_projection.weight": None, "surprise": torch.zeros(2)}, "lacks visual_proj.* has surprise"),
    ],
)
def test_a_checkpoint_with_other_keys_is_refused(tmp_path, change, message):
    folder = write_pickscore(tmp_path / "weights", 0)
    state = load_file(folder / "model.safetensors")
    for name, value in change.items():
        state.pop(name, None)
        if value is not None:
            state[name] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        rewards.load("pickscore_v1", weights=folder)


def test_another_kind_of_model_is_refused(tmp_path):
    folder = write_pickscore(tmp_path / "weights", 0)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model_type: got 'bert', expected 'clip' or 'siglip'"):
        rewards.load("pickscore_v1", weights=folder)


def test_the_logit_scale_keeps_its_precision_in_bfloat16(pickscore_folder):
    encoder = HuggingFaceClip(pickscore_folder, device="cpu", dtype=torch.bfloat16)
    assert encoder.log_scale == pytest.approx(4.6052, abs=1e-6)
    assert next(encoder.network.parameters()).dtype == torch.bfloat16


def test_score_tensor_asks_for_one_prompt_per_picture(pickscore_folder):
    reward = rewards.load("pickscore_v1", weights=pickscore_folder)
    with pytest.raises(ShapeError, match=r"\[1 prompts\], expected 2, one per picture"):
        reward.score_tensor(torch.rand(2, 3, 31, 29), ["a"])


def test_the_tensor_path_has_a_fingerprint_of_its_own(pickscore_folder):
    reward = rewards.load("pickscore_v1", weights=pickscore_folder)
    assert reward.tensor_fingerprint() != reward.fingerprint()
    assert (
        reward.tensor_fingerprint()
        == rewards.load("pickscore_v1", weights=pickscore_folder).tensor_fingerprint()
    )


def test_unknown_backbones_and_variants_are_named(clipscore_folder):
    with pytest.raises(UnknownNameError, match=r"CLIP backbone 'vit-l-15'. Did you mean vit-l-14"):
        rewards.load("clipscore", weights=clipscore_folder, backbone="vit-l-15")
    with pytest.raises(
        UnknownNameError, match=r"CLIPScore variant 'torch'.*Known: cosine, original, torchmetrics"
    ):
        rewards.load("clipscore", weights=clipscore_folder, variant="torch")


def test_a_siglip_model_can_be_the_backbone(tmp_path):
    folder = write_siglip(tmp_path / "siglip")
    from transformers import SiglipModel

    reward = rewards.load("clipscore", weights=tmp_path, backbone="someone/siglip", variant="cosine")
    assert reward.card.text_limit == 11
    samples = picture_samples()[:3]
    found = reward.score(samples)
    assert found.truncated == (False, False, True)
    prepared = [reward.prepare(sample) for sample in samples]
    model = SiglipModel.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        plain = model(
            input_ids=torch.stack([one.inputs["ids"] for one in prepared]),
            pixel_values=torch.stack([one.inputs["pixels"] for one in prepared]),
        )
    expected = (plain.image_embeds * plain.text_embeds).sum(-1).double()
    torch.testing.assert_close(found.first(), expected, rtol=0, atol=2e-6)


def write_siglip(folder):
    """A SigLIP folder: pictures squashed to a square, prompts padded to 11 tokens."""
    import json

    from transformers import SiglipConfig, SiglipModel

    write_clip_folder(folder)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**sizes, "vocab_size": 514, "max_position_embeddings": 11, "projection_size": 24},
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SiglipModel(config).save_pretrained(str(folder))
    settings = {
        "size": {"height": 28, "width": 28},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_embeddings_are_found_in_every_form_libraries_return():
    tensor = torch.zeros(2, 3)
    output = type("Output", (), {"pooler_output": tensor})()
    for form in (tensor, (torch.zeros(2, 5, 3), tensor), output):
        assert as_embedding(form) is tensor
    with pytest.raises(TypeError, match="got 'str', expected a tensor, an output with pooler_output"):
        as_embedding("nothing")
