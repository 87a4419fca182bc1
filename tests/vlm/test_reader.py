"""Rows to tokens: lengths, media, views, numbers of the data."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.batch import Candidate, PreferenceRow
from mmalign.errors import ConfigError, RowError
from mmalign.methods.row import View
from mmalign.testing.vlm_dialogues import ANSWERS, batch_of, dialogue, load_vlm, photo, token_log_probs
from mmalign.vlm.family import VlmModel

Folder = Callable[[str], Path]


def _large(number: int = 1, **options: Any) -> PreferenceRow:
    return replace(dialogue(number), images=(photo(number, size=(160, 140)),), **options)


def _length(model: VlmModel, row: PreferenceRow) -> int:
    example = model.example(row, key=0)
    return max(example["prompts"][a.prompt].ids.shape[0] + a.ids.shape[0] for a in example["answers"])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "llava_onevision", "internvl", "smolvlm"])
def test_images_shrink_until_a_row_fits(family: str, tiny_vlm_folder: Folder) -> None:
    free = load_vlm(family, tiny_vlm_folder(family), dtype=torch.float32)
    row = _large()
    needed = _length(free, row)
    visual = free.example(row, key=0)["prompts"][0].media[0].num_tokens
    limit = needed - visual // 4
    model = load_vlm(family, tiny_vlm_folder(family), tokens={"max_length": limit}, dtype=torch.float32)
    example = model.example(row, key=0)
    assert _length(model, row) <= limit
    assert example["prompts"][0].media[0].num_tokens < visual
    assert example["counts"] == {"shrunk_images": 1, "cut_answers": 0, "merged_seams": 0}
    assert torch.isfinite(token_log_probs(model, [row])).all()
    assert model.counts["shrunk_images"] == 1


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_answers_lose_their_end_when_images_are_as_small_as_they_get(
    family: str, tiny_vlm_folder: Folder
) -> None:
    free = load_vlm(family, tiny_vlm_folder(family), dtype=torch.float32)
    prompt = free.example(dialogue(1), key=0)["prompts"][0].ids.shape[0]
    model = load_vlm(family, tiny_vlm_folder(family), tokens={"max_length": prompt + 3}, dtype=torch.float32)
    example = model.example(dialogue(1), key=0)
    assert example["counts"]["cut_answers"] == 2
    whole = free.example(dialogue(1), key=0)["answers"]
    for cut, answer in zip(example["answers"], whole, strict=True):
        assert cut.ids.tolist() == answer.ids[:3].tolist()
    assert example["prompts"][0].ids.shape[0] == prompt


def test_a_prompt_that_leaves_no_room_is_refused_with_its_counts(tiny_vlm_folder: Folder) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), tokens={"max_length": 20}, dtype=torch.float32)
    with pytest.raises(
        RowError, match=r"test:1: length: got \[\d+ tokens, \d+ of them prompt, 16 of"
    ) as caught:
        model.example(dialogue(1), key=0)
    assert caught.value.reason == "too_long"


def test_rows_with_images_are_dropped_or_end_the_run_where_that_is_wanted(tiny_vlm_folder: Folder) -> None:
    folder = tiny_vlm_folder("llava")
    limit = _length(load_vlm("llava", folder, dtype=torch.float32), dialogue(1)) - 1
    dropping, failing = (
        load_vlm("llava", folder, tokens={"max_length": limit, "fit": fit}, dtype=torch.float32)
        for fit in ("drop", "error")
    )
    with pytest.raises(RowError, match="expected at most"):
        dropping.example(dialogue(1), key=0)
    with pytest.raises(ConfigError, match="expected at most"):
        failing.example(dialogue(1), key=0)
    text = dialogue(1, images=0, answers=("Yes. " * 60, "No."))
    assert failing.example(text, key=0)["counts"]["cut_answers"] == 1
    assert _length(failing, text) == limit


def test_long_answers_are_cut_before_their_end_of_turn(tiny_vlm_folder: Folder) -> None:
    model = load_vlm(
        "llava", tiny_vlm_folder("llava"), tokens={"max_completion_length": 5}, dtype=torch.float32
    )
    answers = model.example(dialogue(1), key=0)["answers"]
    assert [answer.ids.shape[0] for answer in answers] == [5, 5]
    assert model.traits.tokenizer.eos_token_id not in answers[0].ids.tolist()
    batch_of(model, [dialogue(1)])
    assert model.counts["cut_answers"] == 2


def test_max_pixels_bounds_every_image(tiny_vlm_folder: Folder) -> None:
    folder = tiny_vlm_folder("qwen2_vl")
    free, bound = (
        load_vlm("qwen2_vl", folder, tokens=tokens, dtype=torch.float32)
        for tokens in ({}, {"max_pixels": 3200})
    )
    many, few = (m.example(_large(), key=0)["prompts"][0].media[0] for m in (free, bound))
    assert few.num_tokens < many.num_tokens
    assert few.num_tokens * 28**2 <= 3200
    other = tiny_vlm_folder("llava_next")
    model = load_vlm("llava_next", other, tokens={"max_pixels": 2000}, dtype=torch.float32)
    height, width = model.example(_large(), key=0)["prompts"][0].media[0].tensors["image_sizes"][0].tolist()
    assert height * width <= 2000
    assert abs(width / height - 160 / 140) < 0.1


def test_views_add_answers_beside_other_images_decided_by_the_key(tiny_vlm_folder: Folder) -> None:
    model = load_vlm(
        "llava",
        tiny_vlm_folder("llava"),
        dtype=torch.float32,
        views=(View(0), View(1, images="blank", becomes="blank")),
    )
    row = dialogue(1)
    examples = [model.example(row, key=key) for key in (1, 1, 2)]
    assert [len(example["answers"]) for example in examples] == [4, 4, 4]
    assert examples[0]["answers"][2].ids.tolist() == examples[0]["answers"][0].ids.tolist()
    assert [a.prompt for a in examples[0]["answers"]] == [0, 0, 1, 2]
    digests = [[prompt.media[0].digest for prompt in example["prompts"]] for example in examples]
    assert digests[0] == digests[1]
    assert digests[0][0] == digests[2][0]
    assert digests[0][1] != digests[2][1]
    assert digests[0][2] == digests[2][2]


def test_views_need_an_image(tiny_vlm_folder: Folder) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), dtype=torch.float32, views=(View(0),))
    with pytest.raises(RowError, match=r"images: got \[none\], expected at least one") as caught:
        model.example(dialogue(1, images=0), key=0)
    assert caught.value.reason == "no_image"


def test_numbers_of_the_data_reach_the_batch_beside_their_tokens(tiny_vlm_folder: Folder) -> None:
    names = frozenset({"severity", "changed", "token_severity"})
    model = load_vlm("qwen2_5_vl", tiny_vlm_folder("qwen2_5_vl"), dtype=torch.float32, record=names)
    place = ANSWERS[1].index("two blue")
    row = replace(
        dialogue(1),
        extras={
            "severity": [1.0, 2.5],
            "spans_chosen": [],
            "spans_rejected": [(place, place + 8, 1.0)],
            "token_severity": [[(0, len(ANSWERS[0]) + 1, 3.0)], []],
        },
    )
    batch = batch_of(model, [row])
    assert batch.recorded["severity"].tolist() == [[1.0, 2.5]]
    changed, mask = batch.recorded["changed"][0], batch.element_mask
    assert mask is not None
    assert changed[0].sum() == 0
    words = model.traits.tokenizer.decode(batch.clean[0, 1][changed[1] == 1])
    assert words.strip() == "two blue"
    weights = batch.recorded["token_severity"][0]
    assert torch.equal(weights[0], 3.0 * mask[0, 0])
    assert torch.equal(weights[1], mask[0, 1])


def test_a_row_without_a_wanted_number_is_refused(tiny_vlm_folder: Folder) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), dtype=torch.float32, record=frozenset({"severity"}))
    with pytest.raises(RowError, match=r"severity: got \[\], expected 'severity' too") as caught:
        model.example(dialogue(1), key=0)
    assert caught.value.reason == "missing_number"
    with pytest.raises(RowError, match="expected one entry per candidate, 2"):
        model.example(replace(dialogue(1), extras={"severity": [1.0]}), key=0)
    with pytest.raises(RowError, match="expected a number"):
        model.example(replace(dialogue(1), extras={"severity": "bad"}), key=0)


@pytest.mark.parametrize(
    ("text", "reason"), [("", "no_answer_tokens"), ("a <image> b", "placeholder_in_text")]
)
def test_answers_without_words_or_with_placeholders_are_refused(
    text: str, reason: str, tiny_vlm_folder: Folder
) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), dtype=torch.float32)
    row = replace(dialogue(1), candidates=(Candidate(text="fine"), Candidate(text=text)))
    with pytest.raises(RowError, match="test:1") as caught:
        model.example(row, key=0)
    assert caught.value.reason == reason


def test_a_damaged_image_is_refused(tiny_vlm_folder: Folder) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), dtype=torch.float32)
    with pytest.raises(RowError, match="test:1 image 0") as caught:
        model.example(replace(dialogue(1), images=(photo(1)[:200],)), key=0)
    assert caught.value.reason in ("truncated_image", "damaged_image")


def test_lists_of_different_lengths_are_one_batch(tiny_vlm_folder: Folder) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), dtype=torch.float32)
    three = dialogue(1, answers=("a", "b c", "d"))
    found = token_log_probs(model, [three, dialogue(2)])
    assert found.shape[:2] == (2, 3)
    assert not found[1, 2].any()
    assert (found[0].sum(-1) < 0).all()


def _frames(folder: Path, number: int) -> Path:
    folder.mkdir()
    for frame in range(number):
        Image.fromarray(np.full((50, 60, 3), 20 * frame, dtype=np.uint8)).save(
            folder / f"frame_{frame:03d}.png"
        )
    return folder


def test_videos_may_be_folders_of_frames_or_files(tiny_vlm_folder: Folder, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    frames = _frames(tmp_path / "frames", 11)
    file = tmp_path / "clip.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(11):
            picture = np.full((48, 64, 3), 20 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    model = load_vlm(
        "qwen2_5_vl", tiny_vlm_folder("qwen2_5_vl"), tokens={"num_frames": 4}, dtype=torch.float32
    )
    for video in (str(frames), str(file), file.read_bytes()):
        row = replace(dialogue(1, images=0), videos=(video,))
        prompt = model.example(row, key=0)["prompts"][0]
        assert prompt.media[0].tensors["video_grid_thw"][0, 0] == 2
        assert (prompt.kinds == 2).sum() == prompt.media[0].num_tokens


def test_videos_without_frames_are_refused(tiny_vlm_folder: Folder, tmp_path: Path) -> None:
    model = load_vlm("qwen2_5_vl", tiny_vlm_folder("qwen2_5_vl"), dtype=torch.float32)
    row = replace(dialogue(1, images=0), videos=(str(_frames(tmp_path / "none", 0)),))
    with pytest.raises(RowError, match="a video without frames") as caught:
        model.example(row, key=0)
    assert caught.value.reason == "empty_video"
    unequal = (photo(1), photo(2, size=(30, 50)))
    with pytest.raises(RowError, match="frames of several sizes"):
        model.example(replace(dialogue(1, images=0), videos=(unequal,)), key=0)


def test_transparent_and_turned_pictures_are_seen_upright_in_rgb(tiny_vlm_folder: Folder) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), dtype=torch.float32)
    buffer = BytesIO()
    Image.new("RGBA", (60, 50), (255, 0, 0, 0)).save(buffer, format="PNG")
    white = BytesIO()
    Image.new("RGB", (60, 50), (255, 255, 255)).save(white, format="PNG")
    digests = [
        model.example(replace(dialogue(1), images=(data.getvalue(),)), key=0)["prompts"][0].media[0].digest
        for data in (buffer, white)
    ]
    assert digests[0] == digests[1]


def test_a_beginning_that_a_template_writes_twice_is_refused(tiny_vlm_folder: Folder) -> None:
    model = load_vlm("causal_lm", tiny_vlm_folder("causal_lm"), dtype=torch.float32)
    tokenizer = model.traits.tokenizer
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}"
    with pytest.raises(RowError, match="the token of the beginning twice") as caught:
        model.example(dialogue(1, images=0), key=0)
    assert caught.value.reason == "double_bos"
