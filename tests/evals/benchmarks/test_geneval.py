"""GenEval: clauses by hand, accuracies, official files, pictures that cannot be judged."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from mmalign import registry
from mmalign.errors import ConfigError, RowError
from mmalign.evals.base import Answer
from mmalign.evals.benchmarks import geneval, geneval_hf
from mmalign.evals.benchmarks._records import Record
from mmalign.evals.benchmarks._scene_checks import Thresholds, judge, read_scene, select
from mmalign.evals.detectors import Detection

DOG = Detection("dog", 0.95, (200.0, 40.0, 300.0, 160.0))
PUPPY = Detection("dog", 0.5, (20.0, 30.0, 90.0, 120.0))
BENCH = Detection("bench", 0.8, (10.0, 50.0, 120.0, 150.0))
OBJECTS = {"dog": [DOG, PUPPY], "bench": [BENCH]}
METADATA = [
    {"tag": "two_object", "include": [{"class": "dog", "count": 1}, {"class": "bench", "count": 1}]},
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]},
    {"tag": "colors", "include": [{"class": "bench", "count": 1, "color": "green"}]},
]


def scene(**fields):
    return read_scene(Record({"tag": "position", **fields}, "metadata.jsonl:3"))


def wanted(label, count=1, **more):
    return {"class": label, "count": count, **more}


def coloured(**colours):
    return lambda found, label: [colours[label]] * len(found)


def test_every_included_object_must_be_there_in_number():
    assert judge(OBJECTS, scene(include=[wanted("dog", 2), wanted("bench")])).correct
    verdict = judge(OBJECTS, scene(include=[wanted("dog", 3), wanted("cat")]))
    assert verdict.reasons == ("dog: 2 found, 3 wanted", "cat: 0 found, 1 wanted")


def test_more_objects_than_included_are_right_until_an_exclusion_says_otherwise():
    assert judge(OBJECTS, scene(include=[wanted("dog")])).correct
    verdict = judge(OBJECTS, scene(include=[wanted("dog")], exclude=[wanted("dog", 2)]))
    assert verdict.reasons == ("dog: 2 found, fewer than 2 wanted",)


def test_colours_are_asked_of_the_most_confident_objects_only():
    asked = []

    def colours(found, label):
        asked.append((list(found), label))
        return ["brown"]

    assert judge(OBJECTS, scene(include=[wanted("dog", color="brown")]), colours).correct
    assert asked == [([DOG], "dog")]
    verdict = judge(OBJECTS, scene(include=[wanted("dog", color="black")]), colours)
    assert verdict.reasons == ("dog: brown found, black wanted",)


def test_a_place_is_held_against_every_target_and_fails_without_one():
    right = wanted("dog", position=["right of", 0])
    assert judge(OBJECTS, scene(include=[wanted("bench"), right])).correct
    verdict = judge(OBJECTS, scene(include=[wanted("bench"), wanted("dog", 2, position=["right of", 0])]))
    assert verdict.reasons == ("dog: in no relation, right of wanted",)
    verdict = judge(OBJECTS, scene(include=[wanted("cat"), right]))
    assert verdict.reasons == ("cat: 0 found, 1 wanted", "dog: nothing to be right of")


def test_a_wrong_colour_leaves_nothing_to_stand_beside():
    include = [wanted("bench", color="red"), wanted("dog", position=["right of", 0])]
    verdict = judge(OBJECTS, scene(include=include), coloured(bench="green"))
    assert verdict.reasons == ("bench: green found, red wanted", "dog: nothing to be right of")


def test_a_colour_that_nobody_can_name_is_refused():
    with pytest.raises(ConfigError, match="colours: got None, expected a callable"):
        judge(OBJECTS, scene(include=[wanted("dog", color="brown")]))


def test_counting_asks_for_more_confidence():
    assert select([PUPPY, DOG], "position") == {"dog": [DOG, PUPPY]}
    assert select([PUPPY, DOG, BENCH], "counting") == {"dog": [DOG]}
    assert select([BENCH], "counting", Thresholds(counting_score=0.7)) == {"bench": [BENCH]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"metadata\.jsonl:3 include: got \[no such field"),
        ({"include": []}, r"metadata\.jsonl:3 include: .*at least one object"),
        ({"include": [{"class": "dog"}]}, r"include\[0\] count: .*whole number from 1"),
        ({"include": [wanted("dog", True)]}, r"include\[0\] count: got True"),
        ({"include": [{"count": 1}]}, r"include\[0\] class: .*expected text"),
        ({"include": [wanted("dog", color="mauve")]}, r"include\[0\] color: got 'mauve', expected 'red' or"),
        (
            {"include": [wanted("dog", position=["left of", 0])]},
            r"include\[0\] position: got 0, .*it is first",
        ),
        (
            {"include": [wanted("dog"), wanted("cat", position=["left of", 1])]},
            r"include\[1\] position: got 1, expected a clause before this one \(0 to 0\)",
        ),
        (
            {"include": [wanted("dog"), wanted("cat", position=["beside", 0])]},
            r"include\[1\] position: .*left of",
        ),
        ({"include": [wanted("dog")], "exclude": ["cat"]}, r"exclude: .*a list of objects"),
    ],
)
def test_malformed_metadata_is_refused_with_its_place(fields, message):
    with pytest.raises(RowError, match=message):
        scene(**fields)


def images():
    rows = [
        ("a", "single_object", [1, 0]),
        ("b", "single_object", [1, 1]),
        ("c", "position", [0, math.nan, 0]),
    ]
    return [
        geneval.GenEvalImage(name, tag, float(value), copy=copy)
        for name, tag, values in rows
        for copy, value in enumerate(values)
    ]


def test_every_task_counts_the_same_and_failed_pictures_count_nowhere():
    result = geneval.aggregate(images())
    assert result.per_task == {"single_object": 0.75, "position": 0.0}
    assert result.overall == 0.375
    assert result.image_accuracy == pytest.approx(3 / 6)
    assert result.prompt_accuracy == pytest.approx(2 / 3)
    assert result.failed == 1


def test_the_parts_of_every_metric_average_to_it():
    outcome = geneval.outcome_of(geneval.aggregate(images()))
    found = {metric.name: metric for metric in outcome.metrics}
    assert outcome.metrics[0].name == "overall"
    for name in ("overall", "prompt_accuracy", "task/single_object", "task/position"):
        parts = found[name].per_item.values()
        assert sum(parts) / len(parts) == pytest.approx(found[name].value), name
    assert outcome.counts == {"images": 7, "scored": 6, "failed": 1}


class Fixed:
    """A detector that finds the same in every picture, coloured by the picture's red channel."""

    name = "fixed"
    labels = ("dog", "bench", "mouse")
    calibrated_for = ()

    def __init__(self, *found):
        self.found = list(found)
        self.seen = []

    def detect(self, images):
        self.seen.append(len(images))
        return [self.found for _ in images]

    def provenance(self):
        return {"name": self.name}


@pytest.fixture
def folder(tmp_path):
    lines = [
        json.dumps({**metadata, "prompt": f"a photo {place}"}) for place, metadata in enumerate(METADATA)
    ]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def red(level):
    return np.full((5, 7, 3), level, dtype=np.uint8)


def test_prompts_are_numbered_as_the_official_folders(folder):
    items = geneval_hf.BENCHMARK.items(folder)
    assert [(item.id, item.prompt, item.group) for item in items] == [
        ("geneval/00000", "a photo 0", "two_object"),
        ("geneval/00001", "a photo 1", "counting"),
        ("geneval/00002", "a photo 2", "colors"),
    ]


def test_pictures_are_judged_and_what_cannot_be_is_counted(folder):
    items = geneval_hf.BENCHMARK.items(folder)
    answers = [Answer(item, media=(red(place),)) for place, item in enumerate(items)]
    answers += [
        Answer(items[0], copy=1, error="out of memory"),
        Answer(items[1], copy=1),
        Answer(items[2], media=("nowhere.png",), copy=1),
    ]
    pictures = []

    def colours(image, found, label):
        pictures.append((image, label, len(found)))
        return ["green"]

    detector = Fixed(DOG, PUPPY, BENCH)
    outcome = geneval_hf.BENCHMARK.score(answers, detector=detector, colours=colours)
    found = {metric.name: metric.value for metric in outcome.metrics}
    assert found["task/two_object"] == 1.0
    assert found["task/counting"] == 0.0
    assert found["task/colors"] == 1.0
    assert found["overall"] == pytest.approx(2 / 3)
    assert outcome.counts == {"images": 6, "scored": 3, "failed": 3}
    assert outcome.notes == ("Detector fixed: uncalibrated, not comparable with GenEval.",)
    assert detector.seen == [3]
    ((picture, label, count),) = pictures
    assert isinstance(picture, Image.Image)
    assert (picture.getpixel((0, 0)), label, count) == ((2, 2, 2), "bench", 1)
    result = geneval.score_pictures(answers, detector, colours)
    assert [image.error for image in result.images[3:5]] == ["out of memory", "0 pictures, one expected"]
    assert "nowhere.png" in result.images[5].error


def test_thresholds_reach_the_rule(folder):
    items = geneval_hf.BENCHMARK.items(folder)
    answers = [Answer(items[1], media=(red(0),))]
    outcome = geneval_hf.BENCHMARK.score(answers, detector=Fixed(DOG, PUPPY), counting_score=0.4)
    assert outcome.metrics[0].value == 1.0


def test_a_detector_s_names_are_brought_to_those_of_the_prompts():
    mouse = Detection("mouse", 0.9, (0.0, 0.0, 3.0, 3.0))
    metadata = {"tag": "single_object", "include": [wanted("computer mouse")]}
    item = geneval.Item("geneval/00000", "a photo of a computer mouse", expected=metadata)
    result = geneval.score_pictures([Answer(item, media=(red(0),))], Fixed(mouse))
    assert result.overall == 1.0


def test_a_detector_that_cannot_know_an_object_is_refused(folder):
    items = geneval_hf.BENCHMARK.items(folder)
    detector = Fixed()
    detector.labels = ("bench",)
    with pytest.raises(ConfigError, match=r"detector fixed: got \[no class dog\], expected every class"):
        geneval_hf.BENCHMARK.score([Answer(item) for item in items], detector=detector)


def test_the_official_name_is_kept_for_official_detections(folder):
    items = geneval.BENCHMARK.items(folder)
    answers = [Answer(items[0], media=(red(0),))]
    with pytest.raises(ConfigError, match=r"geneval: got \[detector fixed\].*Use geneval_hf"):
        geneval.BENCHMARK.score(answers, detector=Fixed(DOG))
    with pytest.raises(ConfigError, match=r"geneval: got \[no results\]"):
        geneval.BENCHMARK.score(answers)
    calibrated = Fixed(DOG, BENCH)
    calibrated.calibrated_for = ("geneval",)
    assert geneval.BENCHMARK.score(answers, detector=calibrated).metrics[0].value == 1.0
    assert geneval_hf.BENCHMARK.protocol["calibration"] == "uncalibrated"
    assert {"geneval", "geneval_hf"} <= set(registry.names("benchmarks"))


def official(folder, *rows):
    path = folder / "results.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def verdict(place, correct, **more):
    metadata = {"prompt": f"a photo {place}", **METADATA[place]}
    return {
        "tag": metadata["tag"],
        "correct": correct,
        "metadata": json.dumps(metadata),
        "reason": "a\nb",
        **more,
    }


def test_results_of_the_official_script_are_read(folder):
    items = geneval.BENCHMARK.items(folder)
    path = official(folder, verdict(0, True), verdict(1, False), verdict(0, False))
    found = geneval.read_results(path, items)
    assert [(image.id, image.copy, image.correct) for image in found] == [
        ("geneval/00000", 0, 1.0),
        ("geneval/00001", 0, 0.0),
        ("geneval/00000", 1, 0.0),
    ]
    assert found[1].reasons == ("a", "b")
    outcome = geneval.BENCHMARK.score([Answer(item) for item in items], results=path)
    assert outcome.metrics[0].value == 0.25
    assert outcome.counts["prompts without a picture"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (verdict(0, 1), r"results\.jsonl:1 correct: got 1, expected true or false"),
        (verdict(0, True, metadata="{"), r"results\.jsonl:1 metadata: .*JSON in a text"),
        (verdict(0, True, metadata="{}"), r"results\.jsonl:1 metadata: .*one of the benchmark's prompts"),
    ],
)
def test_malformed_results_are_refused_with_their_line(folder, row, message):
    path = official(folder, row)
    with pytest.raises(RowError, match=message):
        geneval.read_results(path, geneval.BENCHMARK.items(folder))


def test_a_folder_without_the_official_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation_metadata\.jsonl.*none are shipped"):
        geneval.BENCHMARK.items(tmp_path)
