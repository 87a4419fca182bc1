"""`mmalign data derive | audit`: what is written, what is reported, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmalign.cli.main import main
from mmalign.data import open_rows
from mmalign.data.audit import audit
from mmalign.data.config import DataConfig
from mmalign.data.derive import DeriveSettings, derive
from mmalign.errors import ConfigError, RowError, TrainingError

TEXT = {"media": "text"}


@pytest.fixture
def rankings(write_lines):
    """Seven rankings of four texts; every third candidate of a prompt is the best, the fourth the worst."""
    records = [
        {
            "prompt": f"question {number}",
            "responses": [f"answer {number} {place}" + " more" * place for place in range(4)],
            "scores": [3.0, 2.0, 5.0, 1.0 + 0.1 * number],
            "verbosity": [4, 3, 2, 1],
            "user_id": f"u{number % 2}",
            "label": "leftover",
        }
        for number in range(7)
    ]
    return write_lines(records)


@pytest.fixture
def images(pickapic_records, write_parquet):
    """Five pairs of images, two of them labelled for the second image, with scores and features."""
    records = pickapic_records([1.0, 0.0, 1.0, 0.0, 1.0])
    for number, record in enumerate(records):
        better = int(record["label_0"] == 0.0)
        record["score_0"], record["score_1"] = (4.0, 7.0) if better else (7.0, 4.0)
        record["features_a"], record["features_b"] = ([0.0, number], [1.0, number])[:: 1 if better else -1]
    return write_parquet(records)


def read(config_of, path, **source):
    return list(open_rows(config_of(path, source=source)))


# --- derive


@pytest.mark.parametrize(
    ("how", "count"), [("all_pairs", 6), ("best_worst", 1), ("adjacent", 3), ("best_vs_rest", 3)]
)
def test_rankings_become_pairs_that_can_be_read_back(rankings, config_of, tmp_path, how, count):
    found = derive(config_of(rankings, source=TEXT), tmp_path / "out", DeriveSettings(how))
    assert (found.rows, found.kind, found.media) == (7 * count, "pairs", "text")
    rows = read(config_of, tmp_path / "out", **TEXT)
    assert len(rows) == 7 * count
    for row in rows:
        assert row.candidates[0].reward > row.candidates[1].reward
        assert row.extras["verbosity"] == [4 - int(c.text.split()[2]) for c in row.candidates]
        assert row.extras["user_id"] in ("u0", "u1")
        assert row.extras["source_label"] == "leftover"  # not mistaken for a preference


def test_a_gap_and_a_cap_bound_the_pairs_of_a_prompt(rankings, config_of, tmp_path):
    settings = DeriveSettings("all_pairs", min_gap=1.0, max_per_prompt=2)
    found = derive(config_of(rankings, source=TEXT), tmp_path / "out", settings)
    assert found.rows == 14
    assert found.dropped["over_max_per_prompt"] > 0
    gaps = [
        row.candidates[0].reward - row.candidates[1].reward
        for row in read(config_of, tmp_path / "out", **TEXT)
    ]
    assert min(gaps) >= 3.0


def test_stages_of_a_curriculum_are_splits_from_easy_to_hard(rankings, config_of, tmp_path):
    found = derive(config_of(rankings, source=TEXT), tmp_path / "out", DeriveSettings("curriculum"))
    assert found.stages == (7, 7, 7)
    means = []
    for stage in (1, 2, 3):
        rows = read(config_of, tmp_path / "out", split=f"stage_{stage}", **TEXT)
        assert {row.prompt for row in rows} == {f"question {number}" for number in range(7)}
        means.append(np.mean([row.candidates[0].reward - row.candidates[1].reward for row in rows]))
    assert means == sorted(means, reverse=True)
    assert "stage_1 7, stage_2 7, stage_3 7" in found.summary("out")


def test_goals_turn_image_pairs_round_and_store_each_image_once(images, config_of, tmp_path):
    out = tmp_path / "out"
    settings = DeriveSettings("reward_augmented", template="score {goal}: {prompt}")
    derive(config_of(images), out, settings)
    rows = read(config_of, out)
    assert [row.prompt for row in rows[:2]] == ["score 7: prompt 0", "score 4: prompt 0"]
    before = read(config_of, images)
    for number, row in enumerate(before):
        high, low = rows[2 * number : 2 * number + 2]
        bytes_of = [Path(candidate.image).read_bytes() for candidate in high.candidates]
        assert bytes_of == [candidate.image for candidate in row.candidates]
        assert [c.image for c in low.candidates] == [c.image for c in high.candidates][::-1]
        # The label of every second row is for b: features follow the images, not the columns.
        assert (high.extras["features_a"], low.extras["features_a"]) == ([1.0, number], [0.0, number])
        assert high.extras["model_chosen"] == row.candidates[0].model
    assert len(list((out / "images").iterdir())) == 10


def test_images_that_no_row_uses_are_not_left_behind(write_lines, config_of, tmp_path):
    names = ("a.png", "b.png", "c.png")
    path = write_lines([{"prompt": "x", "image_path": list(names), "rank": [2, 1, 3]}], images=names)
    derive(config_of(path), tmp_path / "out", DeriveSettings("best_worst"))
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2
    (row,) = read(config_of, tmp_path / "out")
    assert Path(row.candidates[0].image).read_bytes() == (tmp_path / "b.png").read_bytes()


def test_directions_give_liked_rows_or_pairs(rankings, config_of, tmp_path):
    config = config_of(rankings, source=TEXT)
    settings = {"how": "directional", "objectives": ("relevance", "verbosity"), "directions": 2}
    found = derive(config, tmp_path / "best", DeriveSettings(**settings))
    assert (found.rows, found.kind) == (14, "unpaired")
    assert {row.desirable for row in read(config_of, tmp_path / "best", **TEXT)} == {True}
    found = derive(config, tmp_path / "pairs", DeriveSettings(**settings, keep="pairs"))
    assert (found.rows, found.kind) == (14, "pairs")
    assert read(config_of, tmp_path / "pairs", **TEXT)[0].prompt.startswith("Weigh the qualities")


def test_examples_of_the_same_user_stand_in_the_prompt(rankings, config_of, tmp_path):
    settings = DeriveSettings("few_shot", pairs="best_worst", shots=2)
    derive(config_of(rankings, source=TEXT), tmp_path / "out", settings)
    for number, row in enumerate(read(config_of, tmp_path / "out", **TEXT)):
        shown = [place for place in range(7) if f"question {place}\n" in row.prompt]
        assert len(shown) == 2
        assert all(place != number and place % 2 == number % 2 for place in shown)


def test_the_filter_keeps_the_lowest_values_of_a_column(write_lines, config_of, tmp_path):
    records = [
        {"prompt": f"p{n}", "chosen": f"a{n}", "rejected": f"b{n}", "ches": [3, 1, 2, 0][n]} for n in range(4)
    ]
    config = config_of(write_lines(records), source=TEXT)
    found = derive(config, tmp_path / "out", DeriveSettings("keep_lowest", share=0.5))
    assert [row.prompt for row in read(config_of, tmp_path / "out", **TEXT)] == ["p1", "p3"]
    assert found.dropped == {"high_score": 2}
    with pytest.raises(
        RowError, match=r"rows.jsonl:1 risk: got None, expected a number. Extra columns: ches"
    ):
        derive(config, tmp_path / "no", DeriveSettings("keep_lowest", score_column="risk"))


def test_the_same_settings_write_the_same_bytes(rankings, config_of, tmp_path):
    for how in ("few_shot", "directional", "curriculum"):
        settings = DeriveSettings(how, shots=2, objectives=("relevance", "verbosity"))
        for name in ("one", "two"):
            derive(config_of(rankings, source=TEXT), tmp_path / name, settings, force=True)
        assert (tmp_path / "one/rows.jsonl").read_bytes() == (tmp_path / "two/rows.jsonl").read_bytes()


def test_a_card_says_what_was_made_of_what(rankings, config_of, tmp_path):
    derive(config_of(rankings, source=TEXT), tmp_path / "out", DeriveSettings("all_pairs", min_gap=3.5))
    card = yaml.safe_load((tmp_path / "out/card.yaml").read_text())
    assert card["sources"] == [str(rankings)]
    assert card["settings"]["how"] == "all_pairs"
    assert card["settings"]["min_gap"] == 3.5
    assert (card["rows_read"], card["rows_written"], card["kind"]) == (7, 6, "pairs")
    assert card["left_out_by_the_rule"] == {"no_gap": 1}


def test_nothing_is_left_behind_when_nothing_is_left(rankings, config_of, tmp_path):
    with pytest.raises(ConfigError, match=r"no rows are left of 7 lists \(all_pairs; left out: 7 no_gap\)"):
        derive(config_of(rankings, source=TEXT), tmp_path / "out", DeriveSettings("all_pairs", min_gap=99.0))
    assert [child.name for child in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_existing_output_is_not_replaced_unless_forced(rankings, config_of, tmp_path):
    config, out = config_of(rankings, source=TEXT), tmp_path / "out"
    derive(config, out, DeriveSettings("best_worst"))
    with pytest.raises(ConfigError, match=r"out: exists. Give another name, or --force"):
        derive(config, out, DeriveSettings("all_pairs"))
    assert len(read(config_of, out, **TEXT)) == 7
    derive(config, out, DeriveSettings("all_pairs"), force=True)
    assert len(read(config_of, out, **TEXT)) == 42


def test_broken_rows_are_counted_and_too_many_end_it(pickapic_records, write_parquet, config_of, tmp_path):
    records = pickapic_records([1.0, 1.0, 1.0])
    for record in records:
        record["score_0"], record["score_1"] = 2.0, 1.0
    records[1]["jpg_1"] = b""
    path = write_parquet(records)
    settings = DeriveSettings("reward_augmented")
    with pytest.raises(TrainingError, match=r"1 of 3 rows .* cannot be used: 1 empty_file"):
        derive(config_of(path), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    found = derive(config_of(path, max_bad_share=0.5), tmp_path / "out", settings)
    assert found.rows == 4
    assert "left out when reading: 1 empty_file" in found.summary("out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"how": "all_pairs"}, r"data derive --how all_pairs: got 'pairs rows', expected rankings"),
        ({"how": "directional", "objectives": ("a", "b")}, r"got 'pairs', expected lists for directional"),
        ({"how": "few_shot"}, r"--user-column: got 'user_id', expected a column .* found: features_a"),
        ({"how": "few_shot", "user_column": "features_a"}, r"got 'media', expected texts"),
        ({"how": "curriculum"}, r"at most 1 of one prompt, expected enough for 3 stages"),
    ],
)
def test_rules_say_what_they_lack(images, config_of, tmp_path, settings, message):
    with pytest.raises((ConfigError, RowError), match=message):
        derive(config_of(images), tmp_path / "out", DeriveSettings(**settings))
    assert not (tmp_path / "out").exists()


def test_pictures_and_clips_together_are_refused(images, tmp_path):
    sources = [{"path": str(images), "media": media} for media in ("image", "video")]
    config = DataConfig.model_validate({"sources": sources})
    with pytest.raises(ConfigError, match=r"data derive media: got 'image, video', expected images alone"):
        derive(config, tmp_path / "out", DeriveSettings("few_shot"))


def test_the_command_derives_and_says_how_to_train_on_it(rankings, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["data", "derive", str(rankings), "--media", "text", "--how", "curriculum", "--output", str(out)]
    assert main([*words, "--stages", "2", "--pairs", "all_pairs"]) == 0
    shown = capsys.readouterr().out
    assert f"{out}: 42 pairs from 7 rows" in shown
    assert "stage_1 21, stage_2 21" in shown
    assert f"data.source: {{path: {out}, media: text, split: stage_1}}" in shown
    assert main(words) == 2
    assert "exists. Give another name" in capsys.readouterr().err


def test_converted_texts_stand_in_the_rows(rankings, config_of, tmp_path, capsys):
    pairs, back = tmp_path / "pairs", tmp_path / "back"
    derive(config_of(rankings, source=TEXT), pairs, DeriveSettings("best_worst"))
    words = ["data", "convert", str(pairs), "--media", "text"]
    assert main([*words, str(back), "--to", "jsonl"]) == 0
    texts = [[c.text for c in row.candidates] for row in read(config_of, pairs, **TEXT)]
    assert [[c.text for c in row.candidates] for row in read(config_of, back, **TEXT)] == texts
    assert main([*words, str(tmp_path / "x.parquet"), "--to", "pickapic"]) == 2
    assert "got texts, expected images for pickapic" in capsys.readouterr().err


# --- audit


def test_an_audit_of_rankings_looks_at_all_their_pairs(rankings, config_of):
    found = audit(config_of(rankings, source=TEXT, tie_policy="soft"))
    assert (found.consistency.pairs, found.consistency.prompts) == (42, 7)
    assert found.scores.scored == found.consistency.pairs - found.consistency.ties
    assert found.separability is None


def test_an_audit_sees_ties_repetitions_contradictions_and_equal_media(
    pickapic_records, write_parquet, config_of
):
    records = pickapic_records([1.0, 1.0, 0.5, 1.0])
    records[1] |= {"caption": "prompt 0", "jpg_0": records[0]["jpg_1"], "jpg_1": records[0]["jpg_0"]}
    records[3]["jpg_1"] = records[3]["jpg_0"]
    found = audit(config_of(write_parquet(records), tie_policy="soft"))
    same = found.consistency
    assert (same.pairs, same.ties, same.contradictory, same.identical) == (4, 1, 1, 1)
    assert same.examples == (("pairs.parquet:0", "pairs.parquet:1"),)
    assert any("preferred both ways" in note for note in found.notes)
    assert found.length.unit == "encoded bytes"


@pytest.mark.parametrize("names", [("features_a", "features_b"), ("features",)])
def test_features_follow_the_label_and_not_the_column(pickapic_records, write_parquet, config_of, names):
    records = pickapic_records([float(number % 2) for number in range(20)])
    generator = np.random.default_rng(0)
    for record in records:
        noise = generator.standard_normal((2, 3))
        noise[0 if record["label_0"] == 1.0 else 1, 1] += 9.0  # the preferred image's
        vectors = noise.tolist()
        record |= dict(zip(names, vectors, strict=True)) if len(names) == 2 else {"features": vectors}
    found = audit(config_of(write_parquet(records)))
    assert found.separability.accuracy.value == 1.0
    assert found.separability.separable
    assert any("Features alone tell chosen from rejected" in note for note in found.notes)


def test_features_of_a_ranking_follow_its_candidates(write_lines, config_of):
    generator = np.random.default_rng(0)
    records = [
        {
            "prompt": f"p{number}",
            "responses": [f"{number} {place}" for place in range(3)],
            "scores": (order := generator.permutation(3)).tolist(),
            "embedding": [[float(rank), float(generator.standard_normal())] for rank in order],
        }
        for number in range(23)
    ]
    config = config_of(write_lines(records), source=TEXT)
    assert audit(config).separability is None
    found = audit(config, features="embedding").separability
    assert (found.accuracy.count, found.accuracy.clusters) == (69, 23)
    assert found.accuracy.value > 0.6
    with pytest.raises(
        ConfigError, match=r"--features: got 'vectors', expected a column. Columns found: embed"
    ):
        audit(config, features="vectors")


def test_broken_features_and_too_few_prompts_are_reported(images, pickapic_records, write_parquet, config_of):
    found = audit(config_of(images))
    assert any("Separability was not computed: separability: got '5 prompts'" in note for note in found.notes)
    records = pickapic_records([1.0, 1.0])
    records[0]["features"], records[1]["features"] = [[1.0], [2.0]], [[1.0]]
    found = audit(config_of(write_parquet(records, "broken.parquet")))
    assert found.read.bad == {"bad_features": 1}
    assert (
        "got [1 numbers, nothing], expected a feature vector for each"
        in found.read.examples["bad_features"][0]
    )
    assert not found.ok


def test_the_command_prints_numbers_with_intervals_and_notes(rankings, capsys):
    assert main(["data", "audit", str(rankings), "--media", "text"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pairs 42 of 7 prompts" in shown
    assert "accuracy of length alone" in shown
    assert "choose the shorter" in shown
    assert main(["data", "audit", str(rankings), "--media", "text", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["length"]["longer_wins"]["clusters"] == 7
    assert found["separability"] is None


def test_thumbs_compare_nothing(write_lines, capsys):
    path = write_lines([{"prompt": "p", "completion": "x", "label": True}])
    assert main(["data", "audit", str(path), "--media", "text"]) == 2
    assert "data audit: got 'unpaired rows', expected pairs or rankings" in capsys.readouterr().err


def test_an_audit_without_one_usable_row_is_an_error(write_lines, capsys):
    path = write_lines([{"prompt": "p", "chosen": "no.png", "rejected": "none.png"}])
    assert main(["data", "audit", str(path)]) == 2
    assert "no row can be used. 1 rows read; 0 kept; bad 1 missing_file" in capsys.readouterr().err
