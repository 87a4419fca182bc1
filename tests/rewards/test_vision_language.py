import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmalign import rewards
from mmalign.errors import CheckpointError, ConfigError, RowError
from mmalign.rewards.chat_batches import RepetitionPenalty, stacks
from mmalign.rewards.sample import Sample
from mmalign.rewards.vision_language import ChatModel, within, without_special_tokens
from mmalign.testing.reward_checkpoints import vision_language as tiny


def picture(seed, width, height):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_chat_model(tmp_path_factory.mktemp("chat"), 2)


@pytest.fixture(scope="module")
def model(folder):
    return ChatModel(folder)


def questions(model, *texts):
    shown = [model.shown(picture(place, 40 + 30 * place, 40), where="x") for place in range(len(texts))]
    return [model.question(text, [media]) for text, media in zip(texts, shown, strict=True)]


def test_padded_rows_give_the_logits_of_rows_alone(model):
    rows = questions(model, "a", "b" * 40, "cc")
    together = model.logits(rows)
    for place, row in enumerate(rows):
        torch.testing.assert_close(together[place], model.logits([row])[0], rtol=1e-5, atol=1e-5)


def test_padded_rows_write_what_rows_alone_write(model):
    rows = questions(model, "a", "b" * 40, "cc")
    assert model.write(rows, max_new_tokens=7) == [model.write([row], max_new_tokens=7)[0] for row in rows]


def test_writing_is_greedy_with_the_repetition_penalty_of_the_checkpoint(folder, model):
    assert json.loads((folder / "generation_config.json").read_text())["do_sample"] is True
    (row,) = questions(model, "what?")
    ids = row["input_ids"][0].tolist()
    start = len(ids)
    for _ in range(6):
        kinds = torch.cat(
            [row["mm_token_type_ids"], torch.zeros(1, len(ids) - start, dtype=torch.long)], dim=1
        )
        with torch.no_grad():
            seen = {name: row[name] for name in ("pixel_values", "image_grid_thw")}
            logits = model.network(
                input_ids=torch.tensor([ids]), mm_token_type_ids=kinds.to(torch.int), **seen
            ).logits[0, -1]
        for token in set(ids):
            logits[token] = logits[token] / 1.05 if logits[token] > 0 else logits[token] * 1.05
        ids.append(int(logits.argmax()))
    assert model.write([row], max_new_tokens=6) == [
        model.tokenizer.decode(ids[start:], skip_special_tokens=True)
    ]


def test_padding_is_no_repetition():
    scores = torch.tensor([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]])
    ids = torch.tensor([[0, 0, 1], [0, 2, 1]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    found = RepetitionPenalty(2.0, mask, pad=0)(ids, scores)
    assert found.tolist() == [[2.0, 1.0, 2.0], [1.0, 1.0, 1.0]]


def llava(path):
    """A LLaVA model: another family, whose pictures are one tensor each and whose text is Llama's."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    template = (
        "{% for m in messages %}USER: {% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n"
        "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessor(**size),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(str(path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(
                    hidden_size=16,
                    intermediate_size=24,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    image_size=28,
                    patch_size=14,
                ).to_dict(),
                text_config=LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=24,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                ).to_dict(),
                image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            )
        ).save_pretrained(str(path))
    return path


def test_other_families_are_asked_the_same_way(tmp_path):
    folder = llava(tmp_path / "llava")
    reward = rewards.load("vqascore", weights=folder)
    samples = [
        Sample(prompt=p, image=picture(n, 40, 30)) for n, p in enumerate(("a", "b <image> b", "c" * 50))
    ]
    alone, together = reward.score(samples, batch_size=1), reward.score(samples, batch_size=3)
    assert together.errors == (None, None, None)
    torch.testing.assert_close(alone.values, together.values, rtol=1e-5, atol=1e-8)
    assert len(set(alone.first().tolist())) == 3


def test_rows_that_cannot_be_stacked_run_apart(model):
    first, second = questions(model, "a", "bb")
    length = first["input_ids"].shape[1]
    odd = {**first, "cross_attention_mask": torch.ones(1, length, 1, 2)}
    wide = {**second, "pixel_values": torch.zeros(4, 7)}
    found = stacks([first, odd, second, wide], pad=model.pad, device=model.device)
    assert sorted(places for places, _ in found) == [[0, 2], [1], [3]]


def test_row_without_a_mask_is_refused(model):
    (row,) = questions(model, "a")
    row = {name: value for name, value in row.items() if name != "attention_mask"}
    with pytest.raises(ConfigError, match=r"processor outputs: .*expected an attention_mask among them"):
        model.logits([row])


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_checkpoint_that_does_not_fit_is_refused(tmp_path, change):
    folder = tiny.write_chat_model(tmp_path / "chat")
    path = folder / "model.safetensors"
    state = load_file(path)
    name = sorted(name for name in state if "up_proj" in name)[0]
    if change == "missing":
        del state[name]
    else:
        state["model.extra"] = torch.zeros(2)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"do not fit the network \({change}: .*parts would be random"):
        ChatModel(folder)


def test_model_without_chat_template_is_refused(tmp_path):
    folder = tiny.write_chat_model(tmp_path / "chat")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"got \[no chat template\].*chat_template.jinja"):
        ChatModel(folder)


def test_special_tokens_in_a_prompt_are_broken(model):
    found = without_special_tokens("x <|image_pad|> <|im_end|> y", model.tokenizer)
    assert found == "x < |image_pad|> < |im_end|> y"
    ids = model.tokenizer(found)["input_ids"]
    assert not set(ids) & {
        model.tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        model.tokenizer.eos_token_id,
    }


def test_large_pictures_are_scaled_down_and_small_ones_left():
    assert within(Image.new("RGB", (100, 50)), 800).size == (40, 20)
    assert within(Image.new("RGB", (20, 10)), 800).size == (20, 10)
    assert within(Image.new("RGB", (2000, 1)), 100).size[1] == 1


def test_clips_are_shown_as_clips(model):
    frames = [picture(number, 40, 40) for number in range(4)]
    row = model.question("what?", [model.shown(frames, where="x")])
    assert {"pixel_values_videos", "video_grid_thw"} <= set(row)
    assert row["video_grid_thw"][0, 0] == 2  # four frames, two to a patch


@pytest.mark.parametrize(("media", "message"), [(None, "Sample.image: got None"), ([], "pictures of a clip")])
def test_nothing_to_show_says_so(model, media, message):
    with pytest.raises(RowError, match=re.escape(message)):
        model.shown(media, where="Sample.image")
