"""CHAIR: vocabularies, ground truth, counting, files."""

import json
import math

import pytest

from mmalign.errors import ConfigError, RowError
from mmalign.evals.base import Answer
from mmalign.evals.benchmarks import chair

LINES = [
    "person, man, woman, people",
    "motorcycle, motor bike,  scooter",
    "chair, seat",
    "toilet",
    "bear, teddy bear",
    "stop sign, red stop sign",
    "wine glass",
    "train",
]


@pytest.fixture(params=["original", "refined", "strict"])
def vocabulary(request):
    return chair.ObjectVocabulary.from_lines(LINES, request.param)


def named(vocabulary, caption):
    return [(mention.word, mention.node) for mention in vocabulary.mentions(caption)]


def test_stray_spaces_hide_a_synonym_from_the_original_alone(vocabulary):
    found = named(vocabulary, "A scooter.")
    assert found == ([] if vocabulary.form == "original" else [("scooter", "motorcycle")])


def test_only_the_strict_form_finds_names_of_three_words(vocabulary):
    found = named(vocabulary, "two red stop signs")
    expected = "red stop sign" if vocabulary.form == "strict" else "stop sign"
    assert found == [(expected, "stop sign")]


def test_only_the_strict_form_opens_hyphens(vocabulary):
    found = named(vocabulary, "a stop-sign")
    assert found == ([("stop sign", "stop sign")] if vocabulary.form == "strict" else [])


def test_every_form_merges_qualified_animals_and_vehicles(vocabulary):
    assert named(vocabulary, "Baby bears on a passenger train") == [("bear", "bear"), ("train", "train")]


def test_a_seat_beside_a_toilet_is_no_chair(vocabulary):
    assert named(vocabulary, "The toilet and the seats") == [("toilet", "toilet")]
    assert named(vocabulary, "a toilet seat") == [("toilet", "toilet")]
    assert named(vocabulary, "The seats") == [("seat", "chair")]


def test_wine_glasses_are_found_by_our_singulars_and_by_cut_ones(vocabulary):
    assert named(vocabulary, "wine glasses") == [("wine glass", "wine glass")]
    cut = {"glasses": "glas"}
    vocabulary = chair.ObjectVocabulary.from_lines(
        LINES, vocabulary.form, singularise=lambda word: cut.get(word, word)
    )
    assert named(vocabulary, "wine glasses") == [("wine glass", "wine glass")]


def test_an_empty_synonym_file_is_refused():
    with pytest.raises(ConfigError, match=r"synonyms: got \[no words\]"):
        chair.ObjectVocabulary.from_lines(["", " "])


TRUTH = {"1": frozenset({"person", "train", "bear"}), "2": frozenset({"toilet"}), "3": frozenset()}


def test_captions_and_mentions_are_counted_apart(vocabulary):
    rows = [
        {"image_id": 1, "caption": "A man and a woman near a train, chairs and chairs"},
        {"image_id": "000000000002", "answer": "a clean toilet"},
        {"image_id": 2, "id": "second", "text": "nothing here"},
    ]
    result = chair.score_answers(rows, TRUTH, vocabulary)
    assert result.protocol == f"chair({vocabulary.form})"
    assert result.chair_s == pytest.approx(1 / 3)
    assert result.response_rate == pytest.approx(1 / 2)
    assert result.chair_i == pytest.approx(2 / 6)
    assert result.recall == pytest.approx((2 + 1 + 0) / (3 + 1 + 1))
    assert result.mean_length == pytest.approx((11 + 3 + 2) / 3)
    assert result.without_objects == 1
    assert [item.id for item in result.items] == ["1", "2", "second"]
    assert result.items[0].hallucinated_share == pytest.approx(2 / 5)


def test_an_image_without_objects_has_no_recall(vocabulary):
    result = chair.score_answers([{"image_id": 3, "caption": "a train"}], TRUTH, vocabulary)
    assert math.isnan(result.recall)
    assert math.isnan(result.items[0].recall)
    assert result.chair_i == 1.0


def test_captions_without_mentions_leave_chair_i_undefined(vocabulary):
    result = chair.score_answers([{"image_id": 1, "caption": "nothing"}], TRUTH, vocabulary)
    assert math.isnan(result.chair_i)
    assert result.chair_s == 0.0


def test_a_failed_caption_is_counted_and_scored_nowhere(vocabulary):
    rows = [{"image_id": 1, "caption": None, "error": "timeout"}, {"image_id": 2, "caption": "a toilet"}]
    result = chair.score_answers(rows, TRUTH, vocabulary)
    assert (result.failed, result.chair_s, result.recall) == (1, 0.0, 1.0)
    assert result.items[0].error == "timeout"
    assert math.isnan(result.items[0].hallucinates)


def test_an_unknown_image_is_named(vocabulary):
    with pytest.raises(RowError, match=r"captions\[0\] image_id: got '9', expected an annotated image"):
        chair.score_answers([{"image_id": 9, "caption": "a"}], TRUTH, vocabulary)


def test_a_category_outside_the_synonyms_is_refused(vocabulary):
    with pytest.raises(ConfigError, match="category of image 4: got 'zeppelin'"):
        chair.ground_truth({"4": ["zeppelin"]}, {}, vocabulary)


@pytest.fixture
def folder(tmp_path):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    for part, image in (("train", 5), ("val", 7)):
        instances = {
            "categories": [{"id": 2, "name": "person"}, {"id": 3, "name": "train"}],
            "annotations": [{"image_id": image, "category_id": 2}, {"image_id": 11, "category_id": 3}],
        }
        captions = {"annotations": [{"image_id": image, "caption": "A bear by a stop sign."}]}
        (annotations / f"instances_{part}2014.json").write_text(json.dumps(instances))
        (annotations / f"captions_{part}2014.json").write_text(json.dumps(captions))
    (tmp_path / "synonyms.txt").write_text("\n".join(LINES) + "\n")
    (tmp_path / "images.jsonl").write_text(
        '{"image_id": 7}\n{"image_id": 5, "image": "b.png", "question": "What?"}\n'
    )
    return tmp_path


def test_ground_truth_joins_instances_and_reference_captions(folder):
    paths = [
        [folder / "annotations" / f"{kind}_{part}2014.json" for part in ("train", "val")]
        for kind in ("instances", "captions")
    ]
    categories, captions = chair.read_coco(*paths, images=[5, 7])
    vocabulary = chair.read_synonyms(folder / "synonyms.txt")
    truth = chair.ground_truth(categories, captions, vocabulary)
    assert truth == {image: frozenset({"person", "bear", "stop sign"}) for image in ("5", "7")}


def test_an_unknown_category_number_is_named(folder):
    path = folder / "annotations" / "instances_val2014.json"
    path.write_text(json.dumps({"categories": [], "annotations": [{"image_id": 5, "category_id": 2}]}))
    with pytest.raises(RowError, match=r"annotations\[0\] category_id: got 2, expected a category of"):
        chair.read_coco([path], [])


def test_a_file_of_another_layout_is_refused(folder):
    path = folder / "annotations" / "captions_val2014.json"
    path.write_text("[]")
    with pytest.raises(ConfigError, match="expected COCO's lists annotations"):
        chair.read_coco([], [path])


def test_stored_ground_truth_is_read(folder):
    path = folder / "ground_truth.json"
    path.write_text('{"000007": ["person"], "5": []}')
    assert chair.read_ground_truth(path) == {"7": frozenset({"person"}), "5": frozenset()}
    path.write_text('{"7": "person"}')
    with pytest.raises(RowError, match=r"ground_truth.json 7: got 'person', expected a list of texts"):
        chair.read_ground_truth(path)


def test_captions_in_the_released_layout_are_read(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(
        json.dumps({"overall": {}, "imgToEval": {"1": {"image_id": 1, "caption": "a train"}}}, indent=1)
    )
    assert chair.read_captions(path)[0]["caption"] == "a train"
    path.write_text('{"image_id": 1, "caption": "a train"}\n{"caption": "lost"}')
    with pytest.raises(RowError, match=r"captions.json:2 image_id"):
        chair.read_captions(path)


@pytest.mark.parametrize("stored", [False, True])
def test_the_harness_scores_a_folder(folder, stored):
    if stored:
        (folder / "ground_truth.json").write_text(
            '{"7": ["person", "bear", "stop sign"], "5": ["person", "bear", "stop sign"]}'
        )
    items = chair.BENCHMARK.items(folder)
    assert [item.id for item in items] == ["7", "5"]
    assert items[0].media[0].name == "COCO_val2014_000000000007.jpg"
    assert items[1].prompt == "What?"
    json.dumps([item.expected for item in items])
    answers = [Answer(items[0], text="A man and a train."), Answer(items[1], text="A scooter")]
    outcome = chair.BENCHMARK.score(answers)
    found = {metric.name: metric for metric in outcome.metrics}
    assert found["chair_i"].value == 0.5
    assert found["chair_s"].per_item == {"7": 1.0, "5": 0.0}
    assert found["recall"].value == pytest.approx(1 / 6)
    assert set(found["chair_s"].beside) == {"recall", "mean_length"}
    strict = {metric.name: metric.value for metric in chair.BENCHMARK.score(answers, mode="strict").metrics}
    assert strict["chair_s"] == 1.0


def test_an_image_nobody_annotated_is_refused(folder):
    (folder / "images.jsonl").write_text('{"image_id": 8}')
    with pytest.raises(
        RowError, match=r"images.jsonl:1 image_id: got 8, expected an image of the annotations"
    ):
        chair.BENCHMARK.items(folder)


def test_a_folder_without_the_files_lists_them(tmp_path):
    with pytest.raises(ConfigError, match=r"expected images\.jsonl or images\.json"):
        chair.BENCHMARK.items(tmp_path)
