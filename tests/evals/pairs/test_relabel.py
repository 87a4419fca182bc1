import json
import math

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mmalign.cli.main import main
from mmalign.data.audio_media import encode_audio
from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError
from mmalign.evals.pairs.plan import WeightConfig
from mmalign.evals.pairs.relabel import RelabelSettings, relabel
from mmalign.rewards import load
from mmalign.testing.benchmark_examples.sounded import LoudnessReward
from mmalign.testing.simple_rewards import Brightness

REDS = {"a": 200, "b": 100, "c": 100, "d": 40, "e": 10}


@pytest.fixture
def data(tmp_path):
    """Pictures of one colour, and a function that writes rows about them."""
    for name, red in REDS.items():
        pixels = np.zeros((20, 20, 3), dtype=np.uint8)
        pixels[..., 0] = red
        pixels[0, 0] = [ord(name)] * 3  # b and c are equally red on average, and different files
        pixels[0, 0, 0] = red
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")

    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataConfig.model_validate({"source": str(path), "tie_policy": "soft"})

    return write


def pair(chosen, rejected, **more):
    return {
        "prompt": f"{chosen} or {rejected}",
        "chosen": f"{chosen}.png",
        "rejected": f"{rejected}.png",
        **more,
    }


@pytest.fixture
def run(data, tmp_path):
    def go(rows, *names, **settings):
        rewards = {name: load(f"pair_rewards:{name}") for name in names or ("redness",)}
        chosen = RelabelSettings(**settings)
        found = relabel(data(rows), tmp_path / "out", rewards, chosen, store=tmp_path / "store", force=True)
        lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
        return found, [json.loads(line) for line in lines]

    return go


def test_the_reward_decides_and_the_old_label_stays_beside_it(run, tmp_path):
    found, rows = run([pair("a", "d"), pair("e", "a", weight=3.0, user="x")])
    assert [row["prompt"] for row in rows] == ["a or d", "e or a"]
    assert [row["old_preference"] for row in rows] == [1.0, 0.0]
    assert [row["score_chosen"] for row in rows] == pytest.approx([200.0, 200.0])
    assert rows[1]["rewards_rejected"] == {"redness": pytest.approx(10.0)}
    assert (rows[1]["old_weight"], rows[1]["user"], rows[1]["weight"]) == (3.0, "x", 3.0)
    assert found.agreement.value == 0.5
    table = open_rows(DataConfig(source=str(tmp_path / "out")), kind="pairs")
    first, second = (Image.open(candidate.image) for candidate in table[1].candidates)
    assert (first.getpixel((5, 5))[0], second.getpixel((5, 5))[0]) == (200, 10)


def test_ties_of_the_new_label_are_left_out_or_soft(run):
    found, rows = run([pair("b", "c"), pair("a", "d")])
    assert found.left_out == {"tie of the new label": 1}
    assert len(rows) == 1
    found, rows = run([pair("b", "c"), pair("a", "d")], ties="soft")
    assert [row["preference"] for row in rows] == [0.5, 1.0]
    assert found.agreement.count == 1  # a tie neither agrees nor contradicts


def test_old_ties_get_a_side_and_do_not_count_as_agreement(run):
    found, rows = run([pair("d", "a", preference=0.5), pair("a", "e", preference=1.0)])
    assert [row["preference"] for row in rows] == [1.0, 1.0]
    assert [row["old_preference"] for row in rows] == [0.5, 1.0]
    assert (found.agreement.value, found.agreement.count) == (1.0, 1)


def test_soft_labels(run):
    _, rows = run([pair("b", "d")], label="sigmoid", scale=0.01)
    assert rows[0]["preference"] == pytest.approx(1 / (1 + math.exp(-0.6)))
    _, rows = run([pair("d", "b")], label="smpo", logit_scale=1000.0)
    gap = 0.06 / (0.28201571106910706 - 0.11543526500463486)
    assert rows[0]["preference"] == pytest.approx(1 / (1 + math.exp(-gap)))
    assert rows[0]["old_preference"] == 0.0


def test_several_rewards_vote_or_meet_on_one_scale(run):
    found, rows = run([pair("a", "e"), pair("d", "b")], "redness", "contrast", label="votes")
    assert [row["preference"] for row in rows] == [1.0, 1.0]
    assert set(found.by_reward) == {"redness", "contrast"}
    _, rows = run([pair("a", "e"), pair("d", "b")], "redness", "contrast")
    total = sum(row["score_chosen"] + row["score_rejected"] for row in rows)
    assert total == pytest.approx(0.0, abs=1e-9)  # z-scores over the data set


def test_weights_come_from_the_first_reward(run):
    _, rows = run([pair("a", "d"), pair("b", "d")], weight=WeightConfig(how="gap", reward="x", scale=200.0))
    assert [row["weight"] for row in rows] == pytest.approx([2 - 2**0.2, 2**0.5 - 2**0.2])
    _, rows = run(
        [pair("a", "d")] * 2 + [pair("b", "d")], weight=WeightConfig(how="duplication", bin_width=1.0)
    )
    assert [row["weight"] for row in rows] == pytest.approx([1.08, 1.08, 2.16])
    _, rows = run([pair("a", "d")], weight=WeightConfig(how="rarity", bin_width=1.0, mean_one=True))
    assert rows[0].get("weight", 1.0) == 1.0


def test_rankings_get_relevances(run, tmp_path):
    row = {"prompt": "x", "candidates": ["d.png", "a.png", "b.png"], "scores": [3.0, 2.0, 1.0]}
    found, rows = run([row])
    assert rows[0]["scores"] == pytest.approx([40.0, 200.0, 100.0])
    assert rows[0]["old_scores"] == [3.0, 2.0, 1.0]
    assert found.agreement.value == pytest.approx(1 / 3)
    assert open_rows(DataConfig(source=str(tmp_path / "out"))).kind == "lists"


def test_thumbs_follow_a_threshold(run):
    rows = [
        {"prompt": name, "image": f"{name}.png", "label": label}
        for name, label in (("a", True), ("b", False), ("d", True))
    ]
    found, made = run(rows, threshold=100.0)
    assert [row["label"] for row in made] == [True, True, False]
    assert [row["old_label"] for row in made] == [True, False, True]
    assert found.agreement.value == pytest.approx(1 / 3)
    with pytest.raises(ConfigError, match="--threshold: got None, expected a number for unpaired rows"):
        run(rows)


def test_instructions_a_reward_likes_best_are_kept(tmp_path):
    texts = ["one", "one two", "one two three", "one two three four", "five"]
    lines = [{"prompt": f"q{n}", "completion": text, "label": True} for n, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = DataConfig.model_validate({"source": {"path": str(tmp_path / "rows.jsonl"), "media": "text"}})
    rewards = {"words": load("pair_rewards:words")}
    found = relabel(
        config, tmp_path / "out", rewards, RelabelSettings(keep_share=0.4), store=tmp_path / "store"
    )
    kept = [json.loads(line)["prompt"] for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert kept == ["q2", "q3"]
    assert found.left_out == {"below the best share": 3}


def test_answers_are_judged_with_the_picture_they_are_about(data, tmp_path):
    lines = [
        {"prompt": "what is it?", "image": f"{name}.png", "chosen": "red", "rejected": "a red thing"}
        for name in ("a", "e")
    ]
    data(lines)
    config = DataConfig.model_validate({"source": {"path": str(tmp_path / "rows.jsonl"), "media": "text"}})
    rewards = {"words": load("pair_rewards:words_about")}
    relabel(config, tmp_path / "out", rewards, RelabelSettings(), store=tmp_path / "store")
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [row["chosen"] for row in rows] == ["a red thing"] * 2
    assert [row["score_chosen"] for row in rows] == pytest.approx(
        [600.0, 30.0]
    )  # by picture a and by picture e
    assert [row["old_preference"] for row in rows] == [0.0, 0.0]


@pytest.fixture
def sounds(tmp_path):
    """Rows of three clips of noise, of which the chosen one is quieter once."""
    for name, level in {"low": 0.1, "middle": 0.3, "loud": 0.6}.items():
        noise = torch.rand(1, 800, generator=torch.Generator().manual_seed(3)) - 0.5
        (tmp_path / f"{name}.wav").write_bytes(encode_audio(level * noise, 4000, container="wav"))
    rows = [
        {"prompt": "a loud noise", "chosen": "loud.wav", "rejected": "low.wav"},
        {"prompt": "a noise", "chosen": "low.wav", "rejected": "middle.wav"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig.model_validate({"source": {"path": str(path), "media": "audio"}})


def test_sounds_are_relabelled_by_rewards_that_hear(sounds, tmp_path):
    rewards, settings = {"loudness": LoudnessReward()}, RelabelSettings()
    found = relabel(sounds, tmp_path / "out", rewards, settings, store=tmp_path / "store")
    assert (found.rows, found.fresh, found.agreement.value) == (2, 4, 0.5)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    heard = [(tmp_path / "out" / row["chosen"]).read_bytes() for row in rows]
    assert heard == [(tmp_path / f"{name}.wav").read_bytes() for name in ("loud", "middle")]
    assert [row["old_preference"] for row in rows] == [1.0, 0.0]
    assert len(list((tmp_path / "out" / "audio").iterdir())) == 3
    again = relabel(sounds, tmp_path / "out", rewards, settings, store=tmp_path / "store", force=True)
    assert again.fresh == 0
    source = {"path": str(tmp_path / "out"), "media": "audio"}
    table = open_rows(DataConfig.model_validate({"source": source}), kind="pairs")
    assert table[1].candidates[0].audio is not None


def test_rewards_of_another_kind_than_the_rows_are_refused(sounds, data, tmp_path):
    for config, reward, says in (
        (sounds, Brightness(), "got 'a reward of image', expected one of sounds"),
        (
            data([pair("a", "d")]),
            LoudnessReward(),
            "got 'a reward of audio', expected one of images or texts",
        ),
    ):
        with pytest.raises(ConfigError, match=f"data relabel --reward mine: {says}"):
            relabel(config, tmp_path / "out", {"mine": reward}, RelabelSettings(), store=tmp_path / "store")


def test_a_row_no_reward_can_score_is_left_out_and_counted(run):
    found, rows = run([pair("a", "d"), {**pair("b", "d"), "prompt": "an owl"}], "no_owls")
    assert [row["prompt"] for row in rows] == ["a or d"]
    assert found.left_out == {"not scored by every reward": 1}


def test_a_second_run_scores_nothing_and_writes_the_same(run, tmp_path):
    rows = [pair("a", "d"), pair("e", "b"), pair("a", "b")]
    first, _ = run(rows)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    second, _ = run(rows)
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert (first.fresh, second.fresh) == (6, 0)
    assert before == after


def test_nothing_left_or_nothing_given_is_an_error(run, data, tmp_path):
    with pytest.raises(ConfigError, match=r"no rows are left of 1 \(1 tie of the new label\)"):
        run([pair("b", "c")])
    config = data([pair("a", "b")])
    with pytest.raises(ConfigError, match="--reward: got 'none'"):
        relabel(config, tmp_path / "new", {}, RelabelSettings(), store=tmp_path / "store")
    rewards = {"redness": load("pair_rewards:redness")}
    with pytest.raises(ConfigError, match="expected numbers > 0"):
        relabel(config, tmp_path / "new", rewards, RelabelSettings(scale=0.0), store=tmp_path / "store")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=r"there: exists\. Give another name"):
        relabel(config, tmp_path / "there", rewards, RelabelSettings(), store=tmp_path / "store")


def test_the_command_reports_agreement_and_writes_a_card(data, tmp_path, capsys):
    data([pair("a", "d"), pair("e", "b"), pair("d", "e")])
    words = [
        "data",
        "relabel",
        str(tmp_path / "rows.jsonl"),
        "--reward",
        "pair_rewards:redness",
        "--device",
        "cpu",
    ]
    words += ["--output", str(tmp_path / "out"), "--store", str(tmp_path / "store"), "--label", "sigmoid"]
    assert main([*words, "--scale", "0.01", "--weight", "rarity", "--weight-bin", "1"]) == 0
    printed = capsys.readouterr().out
    assert "3 pairs of 3 rows, 6 scores are new" in printed
    assert "agreement of new labels with the old ones: 0.667" in printed
    card = yaml.safe_load((tmp_path / "out" / "card.yaml").read_text())
    assert card["settings"]["label"] == "sigmoid"
    assert len(card["rewards"][0]["fingerprint"]) == 64
    assert main(["data", "check", str(tmp_path / "out")]) == 0
