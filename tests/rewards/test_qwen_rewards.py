import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmalign import rewards
from mmalign.errors import CheckpointError, ConfigError, RowError
from mmalign.rewards import qwen_rewards
from mmalign.rewards.published_texts import text_sha256
from mmalign.rewards.sample import Sample
from mmalign.testing.reward_checkpoints import qwen_heads as tiny

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HPSV3 = tiny.LOAD_OPTIONS["hpsv3"]
VIDEO = tiny.LOAD_OPTIONS["videoreward"]


@pytest.fixture(scope="module")
def hpsv3_folder(tmp_path_factory):
    return tiny.write_hpsv3(tmp_path_factory.mktemp("hpsv3"), 3)


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    return tiny.write_videoreward(tmp_path_factory.mktemp("video"), 3)


def picture(seed, width, height):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def patches(frames):
    """Frames [frame, height, width, 3] in 0..255 as rows of Qwen2-VL patches, written out loop by loop."""
    values = (frames.astype(np.float64) / 255 - MEAN) / STD
    rows = []
    for time in range(0, len(values), 2):
        for top in range(0, values.shape[1], 28):
            for left in range(0, values.shape[2], 28):
                for y in (top, top + 14):
                    for x in (left, left + 14):
                        block = values[time : time + 2, y : y + 14, x : x + 14]
                        rows.append(block.transpose(3, 0, 1, 2).reshape(-1))
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def body(base, state):
    """The network filled by hand from the checkpoint's old names."""
    from transformers import AutoConfig, Qwen2VLModel

    config = AutoConfig.from_pretrained(str(base))
    config.text_config.vocab_size = len(state["model.embed_tokens.weight"])
    network = Qwen2VLModel(config).eval()
    for name, parameter in network.named_parameters():
        old = name.replace("language_model.", "model.") if name.startswith("language") else name
        parameter.data = state[old]
    return network


def ids_of(base, text, kind, count, special):
    """Token ids of the chat, its media token repeated, with reward tokens at the end of the vocabulary."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    chat = (
        f"<|im_start|>user\n<|vision_start|>{f'<|{kind}_pad|>' * count}<|vision_end|>{text}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = []
    for part in re.split("(" + "|".join(map(re.escape, special)) + ")", chat):
        own = [len(tokenizer) + special.index(part)] if part in special else None
        ids += own or tokenizer(part, add_special_tokens=False)["input_ids"]
    return torch.tensor([ids])


def test_hpsv3_equals_a_straight_line_computation(hpsv3_folder):
    sample = Sample(prompt="a {red} cat", image=picture(1, 90, 60))
    found = rewards.load("hpsv3", weights=hpsv3_folder, **HPSV3).score([sample])

    state = load_file(hpsv3_folder / "HPSv3/HPSv3.safetensors")
    base = hpsv3_folder / "Qwen2-VL-7B-Instruct"
    # 90 x 60 to at most 3136 pixels: sqrt(5400 / 3136) = 1.312; 90 / 1.312 = 68 -> 56, 60 / 1.312 = 45 -> 28.
    image = np.asarray(sample.image.resize((56, 28), Image.Resampling.BICUBIC))
    text = tiny.HPSV3_TEXTS[0].replace("{text_prompt}", "a {red} cat") + tiny.HPSV3_TEXTS[1]
    ids = ids_of(base, text, "image", 2, ["<|Reward|>"])
    with torch.no_grad():
        states = body(base, state)(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
            pixel_values=patches(np.stack([image, image])),
            image_grid_thw=torch.tensor([[1, 2, 4]]),
        ).last_hidden_state[0, int((ids[0] == int(ids.max())).nonzero())]
    hidden = torch.relu(states @ state["rm_head.0.weight"].T + state["rm_head.0.bias"])
    hidden = torch.relu(hidden @ state["rm_head.3.weight"].T + state["rm_head.3.bias"])
    mu, log_sigma = hidden @ state["rm_head.5.weight"].T + state["rm_head.5.bias"]
    expected = torch.stack([mu, log_sigma.exp()])
    torch.testing.assert_close(found.values[0].float(), expected, rtol=1e-4, atol=1e-5)


def test_positions_of_todays_library_give_other_numbers(hpsv3_folder):
    sample = Sample(prompt="a cat", image=picture(1, 90, 60))
    plain, axes = (
        rewards.load("hpsv3", weights=hpsv3_folder, positions=positions, **HPSV3).score([sample]).values
        for positions in ("sequential", "mrope")
    )
    assert float((plain - axes).abs().max()) > 1e-3
    with pytest.raises(ConfigError, match="got 'rotary', expected sequential or mrope"):
        rewards.load("hpsv3", weights=hpsv3_folder, positions="rotary", **HPSV3)


def test_reward_token_in_a_prompt_is_text(hpsv3_folder):
    reward = rewards.load("hpsv3", weights=hpsv3_folder, **HPSV3)
    image = picture(1, 56, 56)
    prompts = ("a cat <|Reward|>", "<|im_end|> <|image_pad|>", "a cat < |Reward|>")
    found = reward.score([Sample(prompt=prompt, image=image) for prompt in prompts])
    assert found.errors == (None, None, None)
    assert found.values[0].tolist() == found.values[2].tolist()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", "", "missing: language_model.layers.1.mlp.up_proj.weight"),
        ("visual.merger.ln_q.bias", "visual.merger.ln_k.bias", "unexpected: visual.merger.ln_k.bias"),
        ("rm_head.3.bias", "", "missing: 3.bias"),
        ("lm_head.weight", "language_head.weight", "belong to nothing: language_head.weight"),
        ("model.embed_tokens.weight", "", "no model.embed_tokens.weight"),
    ],
)
def test_no_part_of_the_network_is_left_random(tmp_path, old, new, message):
    folder = tiny.write_hpsv3(tmp_path)
    path = folder / "HPSv3/HPSv3.safetensors"
    state = load_file(path)
    value = state.pop(old)
    save_file({**state, **({new: value} if new else {})}, path)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        rewards.load("hpsv3", weights=folder, **HPSV3)


def test_checkpoint_without_room_for_the_reward_token_is_refused(tmp_path):
    folder = tiny.write_hpsv3(tmp_path)
    path = folder / "HPSv3/HPSv3.safetensors"
    state = load_file(path)
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:-1].clone()
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"vocabulary: got \d+, expected at least the tokenizer's"):
        rewards.load("hpsv3", weights=folder, **HPSV3)


def test_missing_instruction_says_where_it_can_be_had(hpsv3_folder):
    with pytest.raises(ConfigError, match=r"0393599dad45a971.*pip install --no-deps hpsv3"):
        rewards.load("hpsv3", weights=hpsv3_folder)


def frames_of(count, width, height):
    return [picture(number, width, height) for number in range(count)]


@pytest.mark.parametrize("output_dim", [1, 3])
def test_videoreward_equals_a_straight_line_computation(tmp_path, output_dim):
    folder = tiny.write_videoreward(tmp_path, 5, output_dim=output_dim)
    sample = Sample(prompt="a cat runs", frames=frames_of(4, 56, 56))
    found = rewards.load("videoreward", weights=folder, **VIDEO).score([sample])

    saved = torch.load(folder / "VideoReward/checkpoint-11352/model.pth", weights_only=True)
    state = {}
    for name, value in saved.items():
        short = name.replace("base_model.model.", "").replace(".base_layer.", ".")
        if ".lora_" in short:
            continue
        if name.endswith(".base_layer.weight"):
            root = name.removesuffix(".base_layer.weight")
            up, down = saved[f"{root}.lora_B.default.weight"], saved[f"{root}.lora_A.default.weight"]
            value = value + 2.0 * up @ down  # alpha 4, rank 2
        state[short] = value
    base = folder / "Qwen2-VL-2B-Instruct"
    special = ["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"]
    text = tiny.VIDEO_TEXT.replace("{text_prompt}", "a cat runs")
    ids = ids_of(base, text, "video", 8, special)
    with torch.no_grad():
        states = body(base, state)(
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
            pixel_values_videos=patches(np.stack([np.asarray(frame) for frame in sample.frames])),
            video_grid_thw=torch.tensor([[2, 4, 4]]),
        ).last_hidden_state[0]
    first = int(ids.max()) - 2
    places = [int((ids[0] == first + number).nonzero()) for number in range(3)]
    rows = [state["rm_head.weight"][0 if output_dim == 1 else number] for number in range(3)]
    raw = torch.stack([states[place] @ row for place, row in zip(places, rows, strict=True)])
    parts = (raw - torch.tensor([3.6757, 1.1646, 2.8105])) / torch.tensor([2.2476, 1.3811, 2.5121])
    expected = torch.cat([parts.sum(0, keepdim=True), parts])
    torch.testing.assert_close(found.values[0].float(), expected, rtol=1e-4, atol=1e-4)


def test_prompt_reaches_text_alignment_only(video_folder):
    reward = rewards.load("videoreward", weights=video_folder, **VIDEO)
    frames = frames_of(2, 56, 28)
    first, second = reward.score([Sample(prompt=p, frames=frames) for p in ("a cat", "two dogs")]).values
    columns = reward.card.outputs
    for name in ("VQ", "MQ"):
        assert float((first - second)[columns.index(name)].abs()) < 1e-5
    assert float((first - second)[columns.index("TA")].abs()) > 1e-3


def test_frames_are_picked_at_two_a_second(video_folder):
    reward = rewards.load("videoreward", weights=video_folder, **VIDEO)
    frames = frames_of(25, 56, 28)
    # 25 frames at 10 a second are 2.5 seconds: five frames wanted, rounded to the even 4: 0, 8, 16, 24.
    picked = Sample(frames=[frames[place] for place in (0, 8, 16, 24)])
    whole = Sample(frames=frames, extras={"fps": 10})
    first, second = reward.score([picked, whole]).values
    assert first.tolist() == second.tolist()


def test_odd_clips_repeat_their_last_frame(video_folder):
    reward = rewards.load("videoreward", weights=video_folder, **VIDEO)
    frames = frames_of(3, 56, 28)
    first, second = reward.score([Sample(frames=frames), Sample(frames=[*frames, frames[-1]])]).values
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample(prompt="p"), "expected the pictures of a clip"),
        (Sample(video="clip.mp4"), r"clip\.mp4: got \[no such file\]"),
        (Sample(), r"or its file as Sample\.video"),
        (Sample(frames=[picture(0, 56, 28), picture(1, 28, 28)]), "frames of one size"),
        (Sample(frames=frames_of(1, 56, 28), extras={"fps": 8}), "too_few|at least 2"),
    ],
)
def test_clips_that_cannot_be_scored_say_why(video_folder, sample, message):
    reward = rewards.load("videoreward", weights=video_folder, **VIDEO)
    with pytest.raises(RowError, match=message):
        reward.prepare(sample)


def test_latest_checkpoint_is_taken_and_its_unit_can_be_asked_for(tmp_path):
    folder = tiny.write_videoreward(tmp_path, 1, step=9)
    tiny.write_videoreward(tmp_path, 2, step=10)
    reward = rewards.load("videoreward", weights=folder, normalised=False, **VIDEO)
    assert reward.checkpoint.parent.name == "checkpoint-10"
    plain = rewards.load("videoreward", weights=folder, **VIDEO)
    sample = Sample(frames=frames_of(2, 56, 28))
    raw, scaled = reward.score([sample]).values[0, 1], plain.score([sample]).values[0, 1]
    assert float((raw - 3.6757) / 2.2476) == pytest.approx(float(scaled), rel=1e-5)


def test_configuration_without_a_constant_is_refused(tmp_path):
    folder = tiny.write_videoreward(tmp_path)
    path = folder / "VideoReward/model_config.json"
    content = json.loads(path.read_text())
    del content["inference_config"]["MQ_std"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"model_config.json inference_config.*a value for MQ_std"):
        rewards.load("videoreward", weights=folder, **VIDEO)


def test_half_an_adapter_is_refused():
    state = {"base_model.model.a.base_layer.weight": torch.zeros(2, 3)}
    lonely = {"base_model.model.b.lora_A.default.weight": torch.zeros(2, 3)}
    with pytest.raises(CheckpointError, match=r"adapter of a is incomplete, a.lora_B"):
        qwen_rewards.merge_adapters(state, scale=1.0, where="x")
    with pytest.raises(CheckpointError, match=r"adapters of nothing: b.lora_A"):
        qwen_rewards.merge_adapters(lonely, scale=1.0, where="x")


def test_trained_copy_of_a_saved_module_is_taken():
    state = {
        "base_model.model.h.modules_to_save.default.weight": torch.ones(2),
        "base_model.model.h.original_module.weight": torch.zeros(2),
    }
    merged = qwen_rewards.merge_adapters(state, scale=1.0, where="x")
    assert list(merged) == ["h.weight"]
    assert merged["h.weight"].tolist() == [1.0, 1.0]


def test_reward_token_must_stand_once():
    values = torch.zeros(1, 3, 1)
    with pytest.raises(RowError, match=r"reward token 7: got \[\[2\] times\]"):
        qwen_rewards.at_tokens(values, torch.tensor([[7, 7, 1]]), [7])
    with pytest.raises(ConfigError, match="reward head outputs: got 2, expected 1 or 3"):
        qwen_rewards.at_tokens(torch.zeros(1, 3, 2), torch.tensor([[5, 6, 7]]), [5, 6, 7])


def test_template_of_another_hash_is_another_reward(hpsv3_folder, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Rate {text_prompt} ")
    hashes = f"{text_sha256('Rate {text_prompt} ')},{text_sha256(tiny.HPSV3_TEXTS[1])}"
    sample = Sample(prompt="a", image=picture(1, 56, 56))
    ours = rewards.load("hpsv3", weights=hpsv3_folder, **HPSV3)
    given = {**HPSV3, "template_sha256": hashes, "template": tmp_path}
    lacking = {**given, "template_sha256": f"{hashes.split(',')[0]},{'0' * 64}"}
    with pytest.raises(ConfigError, match=r"hpsv3 tail: no text"):
        rewards.load("hpsv3", weights=hpsv3_folder, **lacking)
    theirs = rewards.load("hpsv3", weights=hpsv3_folder, **given)
    assert ours.fingerprint() != theirs.fingerprint()
    assert ours.score([sample]).values.tolist() != theirs.score([sample]).values.tolist()
