"""VBench: constants, refusals, result files in every form, and what is measured of a clip."""

import json
import math
import zipfile

import pytest
import torch

from mmalign.errors import ConfigError, RowError, ShapeError
from mmalign.evals.base import Answer
from mmalign.evals.benchmarks import vbench
from mmalign.evals.benchmarks._clip_measures import (
    frame_interval,
    frame_similarities,
    judge_motion,
    temporal_flickering,
    top_flow,
)

BEST = {name: constants.high for name, constants in vbench.DIMENSIONS.items()}
WORST = {name: constants.low for name, constants in vbench.DIMENSIONS.items()}


def test_the_best_and_the_worst_of_every_dimension_are_one_and_zero():
    best = vbench.aggregate(BEST)
    assert (best.total, best.quality, best.semantic) == (1.0, 1.0, 1.0)
    assert best.weighted["dynamic degree"] == 0.5
    worst = vbench.aggregate(WORST)
    assert (worst.total, worst.quality, worst.semantic) == (0.0, 0.0, 0.0)


def test_quality_weighs_four_times_and_dynamic_degree_half():
    assert vbench.aggregate({**WORST, "dynamic degree": 1.0}).quality == pytest.approx(0.5 / 6.5)
    semantic = vbench.aggregate({**WORST, "scene": 0.4111})
    assert semantic.semantic == pytest.approx(0.5 / 9)
    assert semantic.total == pytest.approx(0.1 / 9)


def test_names_of_the_package_s_files_are_the_same_dimensions():
    underscored = {name.replace(" ", "_"): value for name, value in BEST.items()}
    assert vbench.aggregate(underscored) == vbench.aggregate(BEST)


def test_a_missing_dimension_is_refused_and_not_zero():
    given = {name: value for name, value in BEST.items() if name not in ("scene", "color")}
    with pytest.raises(
        ConfigError, match=r"got \[14 of 16\], expected also color, scene\. The released script"
    ):
        vbench.aggregate(given)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"charm": 0.5}, "VBench dimension charm: got 'charm', expected one of subject consistency"),
        (
            {"imaging quality": 66.1},
            r"imaging quality: got 66\.1, expected a number from 0 to 1\. Results of old",
        ),
        ({"scene": math.nan}, "scene: got nan, expected a number from 0 to 1"),
        ({"scene": True}, "scene: got True"),
        ({"human_action": 0.5}, "human_action: got 'human_action', expected given once"),
    ],
)
def test_values_that_are_no_scores_are_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        vbench.aggregate({**BEST, **more})


def clips(**values):
    return [
        {"video_path": f"/videos/{name.replace('_', ' ')}.mp4", "video_results": value}
        for name, value in values.items()
    ]


def entries(**more):
    found = {name.replace(" ", "_"): [value, []] for name, value in BEST.items()}
    return {**found, **more}


@pytest.mark.parametrize("form", ["file", "folder", "zip"])
def test_results_are_read_in_every_form(tmp_path, form):
    measured = entries(scene=[0.4, clips(**{"a_cat-0": 0.2, "a_cat-1": True, "a_dog-0": None})])
    halves = dict(list(measured.items())[:7]), dict(list(measured.items())[7:])
    if form == "file":
        path = tmp_path / "x_eval_results.json"
        path.write_text(json.dumps(measured))
    elif form == "folder":
        path = tmp_path
        for number, half in enumerate(halves):
            (path / f"{number}_eval_results.json").write_text(json.dumps(half))
        (path / "x_full_info.json").write_text("[]")
    else:
        path = tmp_path / "submission.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for number, half in enumerate(halves):
                archive.writestr(f"model/{number}_eval_results.json", json.dumps(half))
            archive.writestr("__MACOSX/0.json", "rubbish")
    found = vbench.read_results(path)
    assert list(found) == list(vbench.DIMENSIONS)
    assert found["scene"].value == 0.4
    assert found["scene"].clips["a cat-1.mp4"] == 1.0
    assert math.isnan(found["scene"].clips["a dog-0.mp4"])


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"charm": [1, []]}, RowError, r"r\.json charm: got 'charm', expected a dimension of VBench"),
        ({"scene": 0.5}, RowError, r"r\.json scene: got 'float', expected \[value, list of clips\]"),
        ({"scene": [0.5, [{"video": 1}]]}, RowError, r"r\.json scene\[1\]\[0\] video_path: got"),
        ([], ConfigError, r"r\.json: got \[no results\]"),
    ],
)
def test_malformed_results_are_refused_with_their_place(tmp_path, content, error, message):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        vbench.read_results(path)


def test_a_dimension_that_two_files_hold_is_refused(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text('{"scene": [0.5, []]}')
    with pytest.raises(ConfigError, match=r"b\.json: got 'scene', expected it not in .*a\.json too"):
        vbench.read_results(tmp_path)


def test_a_zip_that_holds_no_json_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("a.json", "{")
    with pytest.raises(ConfigError, match=r"s\.zip:a\.json: got .*expected JSON"):
        vbench.read_results(tmp_path / "s.zip")


def test_the_harness_gets_every_dimension_with_its_clips(tmp_path):
    prompts = [
        {"prompt_en": "a cat", "dimension": ["scene", "color"]},
        {"prompt_en": "a dog", "dimension": ["scene"]},
    ]
    (tmp_path / "VBench_full_info.json").write_text(json.dumps(prompts))
    items = vbench.BENCHMARK.items(tmp_path)
    assert [(item.id, item.group) for item in items] == [("vbench/00000", "scene"), ("vbench/00001", "scene")]
    measured = entries(scene=[0.4111, clips(**{"a_cat-0": 0.25, "a_cat-1": 0.75, "a_bird-0": 1.0})])
    path = tmp_path / "results.json"
    path.write_text(json.dumps(measured))
    outcome = vbench.BENCHMARK.score([Answer(item) for item in items], results=path)
    found = {metric.name: metric for metric in outcome.metrics}
    assert found["semantic"].value == pytest.approx(8.5 / 9)
    assert found["total"].value == pytest.approx((4 + 8.5 / 9) / 5)
    assert found["scene"].per_item == {"vbench/00000": 0.5}
    assert outcome.counts == {"clip values": 3, "clips of no prompt": 1}
    assert found["quality"].beside == ("dynamic degree",)


# -------------------------------------------------------------------------------------------- clips


def test_frames_are_thinned_to_about_eight_a_second():
    assert [frame_interval(fps) for fps in (24.0, 8.0, 5.0, 30.0, 20.0, 12.0, 28.0)] == [3, 1, 1, 4, 2, 2, 4]


def test_the_longest_vectors_decide():
    flow = torch.zeros(2, 4, 10)
    flow[:, 0, 0] = torch.tensor([3.0, 4.0])
    flow[:, 3, 9] = torch.tensor([-6.0, 8.0])
    assert top_flow(flow) == pytest.approx(7.5)
    assert top_flow(flow, share=0.025) == pytest.approx(10.0)
    with pytest.raises(ShapeError, match=r"top_flow: got \[2, 3, 5\], expected at least 20 pixels"):
        top_flow(torch.zeros(2, 3, 5))


def test_a_clip_is_dynamic_when_enough_pairs_move():
    # 128 pixels: beyond 3; ten frames: 2.5 rounds to 2 pairs.
    still, moving = judge_motion([3.0, 3.1, 0.5], height=128, width=200, num_frames=10), None
    moving = judge_motion([3.0, 3.1, 3.2], height=128, width=200, num_frames=10)
    assert (still.dynamic, still.moving, still.needed, still.threshold) == (False, 1, 2, 3.0)
    assert moving.dynamic
    assert moving.mean_flow == pytest.approx(3.1)
    assert judge_motion([9.9] * 3, height=256, width=256, num_frames=14).needed == 4
    assert not judge_motion([], height=8, width=8, num_frames=1).dynamic
    assert judge_motion([0.0], height=8, width=8, num_frames=2).dynamic


def test_flicker_is_the_mean_change_of_a_pixel():
    frames = torch.zeros(3, 2, 5, 3, dtype=torch.uint8)
    frames[1] = 255
    frames[2, 0] = 255
    assert temporal_flickering(frames) == pytest.approx(1 - 0.75)
    assert temporal_flickering(frames[:1].expand(2, -1, -1, -1)) == 1.0
    with pytest.raises(ShapeError, match=r"got \[1 frames of torch\.uint8\], expected two frames or more"):
        temporal_flickering(frames[:1])
    with pytest.raises(ShapeError, match=r"of torch\.float32"):
        temporal_flickering(frames.float())


def test_a_frame_is_held_against_the_first_and_the_one_before():
    features = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 1.0]])
    half = 0.5**0.5
    assert frame_similarities(features).tolist() == pytest.approx([0.0, half / 2])
    still = torch.ones(3, 7)
    assert frame_similarities(still).tolist() == pytest.approx([1.0, 1.0])


def test_styles_of_prompts_are_read_nested_or_plain_and_refused_in_words(tmp_path):
    path = tmp_path / "VBench_full_info.json"

    def expected(style):
        info = {"auxiliary_info": {"appearance_style": style}}
        path.write_text(json.dumps([{"prompt_en": "a", "dimension": ["appearance_style"], **info}]))
        return vbench.read_items(tmp_path)[0].expected

    assert expected({"appearance_style": "ink"})["appearance_style"] == "ink"
    assert expected("ink")["appearance_style"] == "ink"
    assert set(expected(None)) == {"dimensions"}
    with pytest.raises(RowError, match="appearance_style: got 7, expected text"):
        expected({"appearance_style": 7})
