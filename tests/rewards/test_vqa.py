import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import rewards
from mmalign.errors import CheckpointError, ConfigError, RowError
from mmalign.rewards import clip_flant5, vqa
from mmalign.rewards.sample import Sample
from mmalign.testing.reward_checkpoints import clip_flant5 as tiny_flant5
from mmalign.testing.reward_checkpoints import vision_language as tiny


def picture(seed, width, height):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    return tiny.write_chat_model(tmp_path_factory.mktemp("chat"), 1)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    return tiny_flant5.write_clip_flant5(tmp_path_factory.mktemp("t5"), 1)


def next_token_logits(folder, text, image):
    """One chat, one forward pass of the whole model, no padding, the last row of logits."""
    from transformers import AutoProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(str(folder), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    seen = AutoProcessor.from_pretrained(str(folder)).image_processor(images=[image], return_tensors="pt")
    count = int(seen["image_grid_thw"].prod()) // 4
    chat = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>{text}<|im_end|>\n"
    ids = tokenizer(chat + "<|im_start|>assistant\n", return_tensors="pt")["input_ids"]
    kinds = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    with torch.no_grad():
        return tokenizer, model(input_ids=ids, mm_token_type_ids=kinds, **seen).logits[0, -1]


def test_chat_score_equals_one_forward_pass(chat_folder):
    prompts = ("a {} cat", "two dogs on a very long sofa")
    samples = [Sample(prompt=prompt, image=picture(n, 60 + 50 * n, 40)) for n, prompt in enumerate(prompts)]
    score = rewards.load("vqascore", weights=chat_folder).score(samples)
    share = rewards.load("yes_no_ratio", weights=chat_folder).score(samples)
    for place, sample in enumerate(samples):
        text = 'Does this figure show "' + sample.prompt + '"? Please answer Yes or No.'
        tokenizer, logits = next_token_logits(chat_folder, text, sample.image)
        chances = torch.exp(logits) / torch.exp(logits).sum()
        yes, no = (float(chances[tokenizer.encode(word)[0]]) for word in ("Yes", "No"))
        assert score.values[place].tolist() == pytest.approx([yes, yes + no], rel=1e-4)
        assert share.values[place].tolist() == pytest.approx([yes / (yes + no), yes + no], rel=1e-4)


def test_answer_of_several_tokens_is_teacher_forced(chat_folder):
    reward = rewards.load("vqascore", weights=chat_folder)
    rows = [
        reward.prepare(Sample(prompt=prompt, image=picture(1, 40, 40))).inputs for prompt in ("a", "b" * 30)
    ]
    answer = [5, 77, 130]
    forced = reward.model.logits(rows, answer)
    assert forced.shape[:2] == (2, 3)
    for place, row in enumerate(rows):
        for step in range(3):
            longer = dict(row)
            given = torch.tensor([answer[:step]], dtype=torch.long)
            for name, fill in (
                ("input_ids", given),
                ("attention_mask", given * 0 + 1),
                ("mm_token_type_ids", given * 0),
            ):
                longer[name] = torch.cat([row[name], fill.to(row[name].dtype)], dim=1)
            alone = reward.model.logits([longer])[0, 0]
            torch.testing.assert_close(forced[place, step], alone, rtol=1e-4, atol=1e-4)


def test_yes_must_be_one_token(chat_folder):
    with pytest.raises(ConfigError, match=r"token of 'Perhaps'.*expected one token"):
        rewards.load("vqascore", weights=chat_folder, answer="Perhaps")


def test_question_needs_one_place_for_the_prompt(chat_folder):
    with pytest.raises(ConfigError, match=r"expected a text with one \{\} for the prompt"):
        rewards.load("vqascore", weights=chat_folder, question="Is it good?")


def test_temperature_must_be_positive(chat_folder):
    with pytest.raises(ConfigError, match=r"temperature: got 0.0, expected a number above 0"):
        rewards.load("vqascore", weights=chat_folder, temperature=0.0)
    with pytest.raises(ConfigError, match=r"temperature: got -1.0"):
        vqa.answer_probability(torch.zeros(2, 1, 3), [0], temperature=-1.0)


def test_probability_of_an_answer_is_a_geometric_mean():
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]]))
    assert vqa.answer_probability(logits, [0, 1]).item() == pytest.approx((0.5 * 0.8) ** 0.5)
    with pytest.raises(ConfigError, match="got 2, expected 3 steps"):
        vqa.answer_probability(logits, [0, 1, 1])


def test_model_must_be_named():
    with pytest.raises(ConfigError, match="reward vqascore: got None, expected a vision-language model"):
        rewards.load("vqascore")


def test_model_may_be_named_by_its_folder(chat_folder):
    named = rewards.load("vqascore", model=str(chat_folder))
    assert named.fingerprint() == rewards.load("vqascore", weights=chat_folder).fingerprint()


def test_picture_is_needed(chat_folder, t5_folder):
    for name, folder in (("vqascore", chat_folder), ("vqascore_flant5", t5_folder)):
        with pytest.raises(RowError, match=r"Sample.image: got None"):
            rewards.load(name, weights=folder).prepare(Sample(prompt="a cat"))


# -------------------------------------------------------------------------------- CLIP-FlanT5


def straight_line(folder, sample):
    """CLIP-FlanT5 of one sample, from the files' tensors to the score."""
    from transformers import (
        AutoTokenizer,
        CLIPVisionConfig,
        CLIPVisionModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    model = folder / "clip-flant5-xxl"
    state = {}
    for file in model.glob("*.bin"):
        state.update(torch.load(file, weights_only=True))
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "flan-t5-xxl"))
    text = T5ForConditionalGeneration(T5Config.from_dict(json.loads((model / "config.json").read_text())))
    for name, parameter in text.named_parameters():
        parameter.data = state[name]
    text.encoder.embed_tokens.weight.data = text.decoder.embed_tokens.weight.data = state["shared.weight"]
    vision = CLIPVisionModel(CLIPVisionConfig.from_pretrained(str(folder / "clip-vit-large-patch14-336")))
    for name, parameter in vision.named_parameters():
        parameter.data = state[f"vision_tower.vision_tower.vision_model.{name}"]

    side = max(sample.image.size)
    colour = tuple(int(255 * mean) for mean in (0.48145466, 0.4578275, 0.40821073))
    padded = Image.new("RGB", (side, side), colour)
    padded.paste(sample.image, ((side - sample.image.width) // 2, (side - sample.image.height) // 2))
    values = np.asarray(padded.resize((28, 28), Image.Resampling.BICUBIC)) / 255.0
    values = (values - (0.48145466, 0.4578275, 0.40821073)) / (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.tensor(values.transpose(2, 0, 1), dtype=torch.float32)[None]
    with torch.no_grad():
        seen = vision.eval()(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
        seen = seen @ state["mm_projector.0.weight"].T + state["mm_projector.0.bias"]
        seen = (
            torch.nn.functional.gelu(seen) @ state["mm_projector.2.weight"].T + state["mm_projector.2.bias"]
        )
        system = (
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
            "helpful, detailed, and polite answers to the user's questions. USER: "
        )
        asked = f'\nDoes this figure show "{sample.prompt}"? Please answer yes or no. ASSISTANT: '
        before, after = (tokenizer(chunk)["input_ids"] for chunk in (system, asked))
        assert before[-1] == after[-1] == 1  # either chunk is closed by </s>
        table = state["shared.weight"]
        rows = torch.cat([table[before], seen, table[after]])[None]
        yes = tokenizer("Yes")["input_ids"][0]
        logits = text.eval()(inputs_embeds=rows, decoder_input_ids=torch.tensor([[0, yes]])).logits[0]
    chances = logits.softmax(dim=1)
    return float((chances[0, yes] * chances[1, 1]).sqrt())


def test_flant5_equals_a_straight_line_computation(t5_folder):
    samples = [
        Sample(prompt="a {} cat", image=picture(1, 40, 70)),
        Sample(prompt="two dogs on a sofa", image=picture(2, 33, 20)),
        Sample(prompt="b", image=picture(3, 28, 28)),
    ]
    found = rewards.load("vqascore_flant5", weights=t5_folder).score(samples, batch_size=3)
    expected = [straight_line(t5_folder, sample) for sample in samples]
    assert found.first().tolist() == pytest.approx(expected, rel=2e-4)
    assert len({round(value, 7) for value in expected}) == 3


def test_tower_comes_from_clip_where_the_model_has_none(tmp_path, t5_folder):
    bare = tiny_flant5.write_clip_flant5(tmp_path, 1, with_tower=False)
    sample = Sample(prompt="a", image=picture(1, 40, 40))
    first, second = (rewards.load("vqascore_flant5", weights=folder) for folder in (t5_folder, bare))
    assert first.score([sample]).values.tolist() == second.score([sample]).values.tolist()
    assert first.fingerprint() != second.fingerprint()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("decoder.block.1.layer.1.EncDecAttention.q.weight", "missing: decoder.block.1.layer.1"),
        ("mm_projector.2.bias", "missing: 2.bias"),
        ("vision_tower.vision_tower.vision_model.post_layernorm.bias", "missing: post_layernorm.bias"),
        ("shared.weight", "no shared.weight, so it is no T5"),
    ],
)
def test_no_part_of_flant5_is_left_random(tmp_path, key, message):
    folder = tiny_flant5.write_clip_flant5(tmp_path)
    for file in (folder / "clip-flant5-xxl").glob("*.bin"):
        state = torch.load(file, weights_only=True)
        if state.pop(key, None) is not None:
            torch.save(state, file)
    with pytest.raises(CheckpointError, match=message):
        rewards.load("vqascore_flant5", weights=folder)


def test_unknown_projector_and_size_are_refused(tmp_path):
    folder = tiny_flant5.write_clip_flant5(tmp_path)
    path = folder / "clip-flant5-xxl/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mm_projector_type": "linear"}))
    with pytest.raises(ConfigError, match="mm_projector_type: got 'linear', expected mlp2x_gelu"):
        rewards.load("vqascore_flant5", weights=folder)
    with pytest.raises(ConfigError, match="size: got 'xs', expected xxl or xl"):
        rewards.load("vqascore_flant5", weights=folder, size="xs")


def test_special_tokens_in_a_prompt_stay_text(t5_folder):
    reward = rewards.load("vqascore_flant5", weights=t5_folder)
    prepared = reward.prepare(Sample(prompt="a </s> b", image=picture(1, 28, 28)))
    assert prepared.inputs["after"].tolist().count(1) == 1


def test_odd_margins_go_right_and_bottom():
    image = Image.new("RGB", (3, 6), (255, 255, 255))
    found = np.asarray(clip_flant5.square(image, (1, 2, 3)))
    assert found.shape == (6, 6, 3)
    assert [int(value) for value in found[0, :, 0]] == [1, 255, 255, 255, 1, 1]


def test_the_picture_tower_of_clip_flant5_is_fetched_at_a_pinned_revision():
    from mmalign.rewards.clip_backbones import BACKBONES

    tower = next(one for one in rewards.card("vqascore_flant5").weights if one.role == "base")
    assert tower.repository == BACKBONES["vit-l-14-336"].repository
    assert len(tower.revision) == 40
