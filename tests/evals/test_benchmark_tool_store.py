"""What tools say of pictures is kept: masks, scores, and nothing of tools that do not say what they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.errors import CheckpointError
from mmalign.evals.benchmark_tool_store import ToolStore
from mmalign.evals.detectors import Detection
from mmalign.rewards.sample import Sample
from mmalign.testing.simple_rewards import Brightness


def picture(level):
    return Image.new("RGB", (7, 5), (level, 0, 0))


class Detector:
    name = "masks"
    labels = ("dog",)
    calibrated_for = ("geneval",)

    def __init__(self, threshold=0.5):
        self.threshold, self.seen = threshold, 0

    def detect(self, images):
        self.seen += len(images)
        mask = np.zeros((5, 7), dtype=bool)
        mask[1:3, 2:7] = True
        return [
            [Detection("dog", 0.75, (0.5, 1.0, 6.5, 5.0), mask), Detection("dog", 0.5, (0.0, 0.0, 1.0, 1.0))]
        ] * len(images)

    def provenance(self):
        return {"threshold": self.threshold}


class Answers:
    name = "blip"

    def __init__(self):
        self.asked = []

    def __call__(self, image, questions):
        self.asked.append(list(questions))
        return [0.25] * len(questions)

    def provenance(self):
        return {"weights": "x"}


def test_objects_come_back_with_their_masks_and_each_picture_is_looked_at_once(tmp_path):
    detector = Detector()
    with ToolStore(tmp_path) as store:
        fresh = store.wrap("detector", detector).detect([picture(1), picture(2)])
    with ToolStore(tmp_path) as store:
        stored = store.wrap("detector", detector)
        again = stored.detect([picture(2), picture(3), picture(1)])
    assert detector.seen == 3
    for found in (*fresh, *again):
        assert [(one.label, one.score, one.box) for one in found] == [
            ("dog", 0.75, (0.5, 1.0, 6.5, 5.0)),
            ("dog", 0.5, (0.0, 0.0, 1.0, 1.0)),
        ]
        assert found[0].mask.dtype == bool
        assert (found[0].mask.shape, int(found[0].mask.sum()), bool(found[0].mask[1, 2])) == (
            (5, 7),
            10,
            True,
        )
        assert found[1].mask is None
    assert (stored.name, stored.labels, stored.calibrated_for) == ("masks", ("dog",), ("geneval",))


def test_another_threshold_is_another_detector(tmp_path):
    other = Detector(threshold=0.25)
    with ToolStore(tmp_path) as store:
        store.wrap("detector", Detector()).detect([picture(1)])
        store.wrap("detector", other).detect([picture(1)])
    assert other.seen == 1


def test_questions_are_asked_once_of_a_picture_and_other_ones_again(tmp_path):
    tool = Answers()
    with ToolStore(tmp_path) as store:
        asked = store.wrap("yes", tool)
        assert asked(picture(1), ["a dog?"]) == [0.25]
        assert asked(picture(1), ["a dog?"]) == [0.25]
        asked(picture(1), ["a cat?", "a dog?"])
        asked(picture(2), ["a dog?"])
        store.wrap("vqa", tool)(picture(1), ["a dog?"])
    assert tool.asked == [["a dog?"], ["a cat?", "a dog?"], ["a dog?"], ["a dog?"]]
    assert (asked.name, asked.provenance()) == ("blip", {"weights": "x"})


def test_what_objects_were_shown_is_part_of_the_question(tmp_path):
    tool = Answers()
    (found,) = Detector().detect([picture(1)])
    with ToolStore(tmp_path) as store:
        colours = store.wrap("colours", tool)
        for objects in (found, found[:1], found):
            colours(picture(1), objects)
    assert len(tool.asked) == 2


def test_a_tool_that_does_not_say_what_it_is_is_never_stored(tmp_path):
    def similarity(image, text):
        return 0.5

    with ToolStore(tmp_path) as store:
        assert store.wrap("similarity", similarity) is similarity


def test_what_was_said_before_an_error_is_kept(tmp_path):
    tool = Answers()

    def stopped():
        with ToolStore(tmp_path) as store:
            store.wrap("yes", tool)(picture(1), ["a dog?"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with ToolStore(tmp_path, ask=False) as store:
        assert store.wrap("yes", tool)(picture(1), ["a dog?"]) == [0.25]
        with pytest.raises(CheckpointError, match=r"yes: 1 of 1 are not there yet\. Run --stage score first"):
            store.wrap("yes", tool)(picture(2), ["a dog?"])


# ---------------------------------------------------------------------------------------------- rewards


@pytest.fixture
def samples(tmp_path):
    found = []
    for level in (10, 200):
        picture(level).save(tmp_path / f"{level}.png")
        found.append(Sample(prompt="a dog", image=tmp_path / f"{level}.png"))
    return found


def test_scores_are_those_of_the_reward_and_are_kept_with_those_of_suites(tmp_path, samples, monkeypatch):
    reward = Brightness()
    direct = reward.score(samples).values
    with ToolStore(tmp_path / "store") as store:
        stored = store.wrap("reward", reward)
        assert torch.equal(stored.score(samples).values, direct)
    assert (stored.card.name, stored.fingerprint()) == (reward.card.name, reward.fingerprint())
    monkeypatch.setattr(Brightness, "score", lambda *_, **options: pytest.fail("scored again"))
    with ToolStore(tmp_path / "store", ask=False) as store:
        again = store.wrap("reward", reward).score([samples[1], samples[0], samples[1]]).values
        assert again[:, 0].tolist() == direct[[1, 0, 1], 0].tolist()
        other = [Sample(prompt="a cat", image=samples[0].image)]
        with pytest.raises(CheckpointError, match=r"1 samples are not scored yet\. Run --stage score first"):
            store.wrap("reward", reward).score(other)


def test_a_picture_that_cannot_be_read_has_no_score_and_a_reason(tmp_path, samples):
    gone = Sample(prompt="a dog", image=tmp_path / "gone.png")
    with ToolStore(tmp_path / "store") as store:
        scored = store.wrap("reward", Brightness()).score([samples[0], gone])
    assert torch.isnan(scored.values[:, 0]).tolist() == [False, True]
    assert scored.errors[0] is None
    assert "gone.png" in scored.errors[1]


def test_pictures_in_memory_are_scored_without_the_store(tmp_path):
    reward = Brightness()
    inside = [Sample(prompt="a dog", image=picture(90))]
    with ToolStore(tmp_path / "store") as store:
        assert torch.equal(store.wrap("reward", reward).score(inside).values, reward.score(inside).values)
    assert not (tmp_path / "store" / "scores").exists()
