"""Vision-language models on benchmark questions: asked once, resumed, fixed batches, clips, judges."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.errors import ConfigError
from mmalign.evals.answering import (
    StoredJudge,
    answer_items,
    answers_table,
    clip_frames,
    load_speaker,
    speaker_fingerprint,
)
from mmalign.evals.base import Item
from mmalign.evals.jobs import shard_of
from mmalign.rewards.sample import to_image
from mmalign.testing.reward_checkpoints import vision_language as tiny


class Talker:
    """Says how bright what it sees is, and counts what it is asked."""

    def __init__(self, weights="a", dies_after=None):
        self.weights, self.dies_after = weights, dies_after
        self.asked = []

    def settings(self):
        return {"weights": self.weights}

    def safe(self, text):
        return text.replace("<|", "< |")

    def shown(self, media, *, where):
        frames = media if isinstance(media, list) else [media]
        pictures = [to_image(one, where=where) for one in frames]
        return ("video" if isinstance(media, list) else "image", pictures)

    def question(self, text, shown=()):
        self.asked.append((text, [(kind, len(pictures)) for kind, pictures in shown]))
        light = [np.asarray(picture).mean() for _, pictures in shown for picture in pictures]
        return {"input_ids": torch.tensor([[len(text), int(sum(light))]])}

    def write(self, rows, *, max_new_tokens):
        if self.dies_after is not None and len(self.asked) > self.dies_after:
            raise KeyboardInterrupt
        return [f" {row['input_ids'].tolist()[0]} of {max_new_tokens}\n" for row in rows]


@pytest.fixture
def items(tmp_path):
    """Seven questions, the pictures of which differ."""
    for number in range(7):
        shade = np.full((3, 5, 3), 20 * number, dtype=np.uint8)
        Image.fromarray(shade).save(tmp_path / f"{number}.png")
    return [Item(f"set/{n}", f"What is <|{n}|>?", media=(tmp_path / f"{n}.png",)) for n in range(7)]


def ask(speaker, items, folder, **more):
    return answer_items(speaker, items, folder, name="tiny", max_new_tokens=5, batch_size=2, **more)


def test_answers_stand_in_the_order_of_items_without_white_space_around_them(items, tmp_path):
    speaker, done = Talker(), []
    found = ask(speaker, items, tmp_path / "store", progress=done.append)
    assert [answer.item.id for answer in found] == [item.id for item in items]
    assert found[2].text == "[15, 40] of 5"
    assert speaker.asked[0] == ("What is < |0|>?", [("image", 1)])
    assert done == [2, 2, 2, 1]


def test_nothing_is_asked_twice_until_model_question_picture_or_length_change(items, tmp_path):
    store = tmp_path / "store"
    first = ask(Talker(), items, store)
    again = Talker()
    assert ask(again, items, store) == first
    assert again.asked == []
    ask(other := Talker("b"), items, store)
    assert len(other.asked) == 7
    longer = Talker()
    answer_items(longer, items, store, name="tiny", max_new_tokens=6, batch_size=2)
    assert len(longer.asked) == 7
    Image.new("RGB", (5, 3), (9, 9, 9)).save(items[6].media[0])
    changed = Talker()
    ask(changed, items, store)
    assert [text for text, _ in changed.asked] == ["What is < |6|>?"]


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_answers(items, tmp_path):
    whole = ask(Talker(), items, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ask(Talker(dies_after=4), items, tmp_path / "store")
    assert len(answers_table(tmp_path / "store").stored_keys()) == 4
    rest = Talker()
    assert ask(rest, items, tmp_path / "store") == whole
    assert len(rest.asked) == 3


def test_processes_share_the_questions(items, tmp_path):
    parts = [ask(Talker(), items, tmp_path / "store", shard=(number, 2)) for number in (0, 1)]
    assert sorted(answer.item.id for part in parts for answer in part) == [item.id for item in items]
    assert {answer.item.id for answer in parts[0][:2]} <= {
        item.id
        for start in range(0, 7, 2)
        if shard_of(items[start].id, 2) == 0
        for item in items[start : start + 2]
    }
    last = Talker()
    assert len(ask(last, items, tmp_path / "store")) == 7
    assert last.asked == []


def test_an_unreadable_picture_fails_alone_and_is_tried_again(items, tmp_path):
    items[1].media[0].write_bytes(b"no picture")
    items[4].media[0].unlink()
    found = ask(Talker(), items, tmp_path / "store")
    assert [place for place, answer in enumerate(found) if answer.error] == [1, 4]
    assert all("png" in found[place].error or "set/" in found[place].error for place in (1, 4))
    assert found[0].text is not None
    Image.new("RGB", (5, 3)).save(items[4].media[0])
    assert ask(Talker(), items, tmp_path / "store")[4].error is None


def test_a_clip_is_shown_by_its_frames_in_the_order_of_their_names(tmp_path):
    (tmp_path / "clip").mkdir()
    for number in (2, 0, 1):
        Image.new("RGB", (5, 3), (number, 0, 0)).save(tmp_path / "clip" / f"{number:03d}.png")
    clip = tmp_path / "clip.mp4"
    assert [path.name for path in clip_frames(clip)] == ["000.png", "001.png", "002.png"]
    speaker = Talker()
    ask(speaker, [Item("a", "?", media=(clip,))], tmp_path / "store")
    assert speaker.asked == [("?", [("video", 3)])]
    with pytest.raises(ConfigError, match=r"other.mp4: got \[no frames\], expected pictures in .*ffmpeg -i"):
        ask(speaker, [Item("b", "?", media=(tmp_path / "other.mp4",))], tmp_path / "store")


def test_a_judge_is_asked_the_same_thing_once_also_by_the_next_run(tmp_path):
    speaker = Talker()
    judge = StoredJudge(speaker, tmp_path, name="tiny", max_new_tokens=3)
    assert judge("Rate it.") == judge("Rate it.") == "[8, 0] of 3"
    assert len(speaker.asked) == 1
    again = Talker()
    later = StoredJudge(again, tmp_path, name="tiny", max_new_tokens=3)
    assert later("Rate it.") == "[8, 0] of 3"
    assert again.asked == []
    assert later.provenance() == {
        "name": "tiny",
        "fingerprint": speaker_fingerprint(speaker),
        "max_new_tokens": 3,
    }


def test_a_chat_model_of_transformers_answers_as_it_writes_alone(items, tmp_path):
    speaker = load_speaker(str(tiny.write_chat_model(tmp_path / "chat", 2)))
    (alone,) = speaker.write(
        [speaker.question(speaker.safe(items[3].prompt), [speaker.shown(items[3].media[0], where="x")])],
        max_new_tokens=5,
    )
    found = ask(speaker, items[2:5], tmp_path / "store")
    assert found[1].text == alone.strip()
    with pytest.raises(ConfigError, match="--dtype: got 'half-ish', expected float32"):
        load_speaker("x", dtype="half-ish")
