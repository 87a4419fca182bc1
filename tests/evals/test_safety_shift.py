"""Refusals clean and shifted: models with a known weakness show it where it is, with honest intervals."""

import math

import pytest
import torch
from PIL import Image

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.image_shifts import mixup, rotate, standard_shifts
from mmalign.evals.safety_shift import SafetyItem, is_refusal, run_shifts
from mmalign.evals.shares import paired_difference

NO = "I'm sorry, but I can't help with that."
YES = "Of course. First, take the red block."
SHIFTS = (mixup(0.3), rotate(90))


def red(must_refuse=True, num=29):
    """Plain red pictures stand for what must be refused, blue ones for harmless items."""
    colour = (250, 0, 0) if must_refuse else (0, 0, 250)
    word = "bad" if must_refuse else "fine"
    return [
        SafetyItem(f"{word}{i}", f"{word} question {i}", Image.new("RGB", (14, 10), colour), must_refuse)
        for i in range(num)
    ]


GREEN = Image.new("RGB", (7, 5), (0, 250, 0))


def by_colour(questions):
    """Refuses what it sees to be red: mixing takes the red away, turning does not."""
    return [NO if image.resize((1, 1)).getpixel((0, 0))[0] > 128 else YES for _, image in questions]


def test_a_shift_that_gets_past_a_model_is_named_and_another_is_not():
    report = run_shifts(red(), by_colour, shifts=SHIFTS, auxiliaries=[GREEN])
    clean, mixed, turned = (report.find(name) for name in ("clean", "mixup 0.3", "rotate 90"))
    assert (clean.refusal_rate.value, mixed.refusal_rate.value, turned.refusal_rate.value) == (1.0, 0.0, 1.0)
    assert mixed.change.high < 0
    assert turned.change.holds(0.0)
    assert turned.change.low < -0.03  # 29 items cannot rule out a small change
    assert report.find("worst").refusal_rate.value == 0.0


def test_harmless_items_are_reported_apart():
    report = run_shifts([*red(), *red(False, 13)], lambda questions: [NO] * len(questions), shifts=SHIFTS[1:])
    assert report.find("clean").num_items == 29
    over = report.find("clean", must_refuse=False)
    assert (over.num_items, over.refusal_rate.value) == (13, 1.0)
    assert "clean (harmless): refused 1.000" in str(report)


def test_the_worst_case_counts_an_item_as_refused_only_where_all_answers_refuse():
    def model(questions):  # item 0 gives way when turned, item 1 when mixed
        gives_way = {"bad question 0": (10, 14), "bad question 1": (14, 10)}
        return [
            YES
            if image.size == gives_way.get(prompt)
            and by_colour([(prompt, image)]) == [NO if image.size == (10, 14) else YES]
            else NO
            for prompt, image in questions
        ]

    report = run_shifts(red(num=5), model, shifts=SHIFTS, auxiliaries=[GREEN])
    assert report.find("rotate 90").refusal_rate.value == pytest.approx(4 / 5)
    assert report.find("mixup 0.3").refusal_rate.value == pytest.approx(4 / 5)
    assert report.find("worst").refusal_rate.value == pytest.approx(3 / 5)


def test_harm_is_compared_item_by_item_and_the_worst_is_the_greatest():
    def judge(pairs):
        return [0.0 if is_refusal(text) else 7.0 for _, text in pairs]

    report = run_shifts(red(), by_colour, shifts=SHIFTS, auxiliaries=[GREEN], harm=judge)
    assert report.find("clean").harm.value == 0.0
    assert report.find("mixup 0.3").harm_change.value == 7.0
    assert report.find("worst").harm.value == 7.0
    assert "harm 7.000" in str(report.find("worst"))


def test_failures_are_counted_and_pull_no_rate(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    items = [*red(num=5), SafetyItem("broken", "q", broken)]

    def model(questions):
        return [
            None if prompt.endswith("0") else "" if prompt.endswith("1") else NO for prompt, _ in questions
        ]

    report = run_shifts(items, model, shifts=SHIFTS[1:], batch_size=5)  # the last batch has nothing to ask
    clean = report.find("clean")
    assert (clean.num_items, clean.num_failed, clean.refusal_rate.value) == (6, 3, 1.0)
    errors = {
        record.id: record.error for record in report.records if record.shift == "clean" and record.error
    }
    assert errors.keys() == {"bad0", "bad1", "broken"}
    assert "broken.png" in errors["broken"]
    assert errors["bad0"] == "no answer"


def test_results_do_not_depend_on_batches_or_order():
    seen = {}

    def model(questions):
        seen.update({(prompt, image.size, image.tobytes()): 1 for prompt, image in questions})
        return by_colour(questions)

    shades = [Image.new("RGB", (7, 5), (0, shade, 0)) for shade in (20, 120, 250)]
    given = {"auxiliaries": shades, "shifts": standard_shifts()}
    one = run_shifts(red(num=7), model, **given)
    questions = dict(seen)
    other = run_shifts(red(num=7)[::-1], model, batch_size=3, **given)
    assert one.as_dict() == other.as_dict()
    assert seen == questions  # every picture came out the same
    run_shifts(red(num=7), model, seed=1, **given)
    assert seen != questions


def test_without_auxiliaries_only_shifts_that_need_none_are_run():
    report = run_shifts(red(num=2), by_colour)
    assert {result.shift for result in report.results} == {
        "clean",
        "worst",
        *(shift.name for shift in standard_shifts(mixing=False)),
    }


@pytest.mark.parametrize(
    "text",
    [
        NO,
        "I cannot assist with this request.",
        "I\u2019m unable to provide instructions for that.",
        "I must decline.",
        "Unfortunately I won't be able to help you with this.",
        "That request violates our policy.",
        "It would be unethical to explain this.",
        "I apologize, but I am not able to describe how to do that.",
    ],
)
def test_refusals_are_recognised(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        YES,
        "I'm sorry to hear that. Here is what you can do.",
        "I can't see a dog in the picture, only a cat.",
        "I cannot tell whether it is a cat.",
        "The sign says: help is not available.",
        "Sure! " + "Step. " * 100 + "I can't help further.",
    ],
)
def test_answers_are_not_taken_for_refusals(text):
    assert not is_refusal(text)


def test_what_cannot_be_run_is_refused():
    with pytest.raises(ConfigError, match=r"run_shifts items: got 'none', expected at least one"):
        run_shifts([], by_colour)
    with pytest.raises(ConfigError, match=r"run_shifts items: got 'bad0 twice'"):
        run_shifts([*red(num=1), *red(num=1)], by_colour)
    with pytest.raises(ConfigError, match=r"run_shifts shifts: got 'rotate 90 twice'"):
        run_shifts(red(num=1), by_colour, shifts=[rotate(90), rotate(90)])
    with pytest.raises(ConfigError, match=r"shift mixup 0.3: got 'no auxiliary pictures', expected some"):
        run_shifts(red(num=1), by_colour, shifts=SHIFTS)
    with pytest.raises(ShapeError, match=r"the model: got '2 answers', expected one per question, 1"):
        run_shifts(red(num=1), lambda questions: [NO, NO])
    with pytest.raises(ShapeError, match=r"the harm judge: got '0 answers', expected one per question, 1"):
        run_shifts(red(num=1), by_colour, harm=lambda pairs: [])
    with pytest.raises(
        ConfigError, match=r"shift: got 'mixup', expected one that was run \(clean, rotate 90, worst\)"
    ):
        run_shifts(red(num=1), by_colour, shifts=SHIFTS[1:]).find("mixup")


def test_paired_differences_cover_the_truth(generator):
    held = 0
    for _ in range(400):
        base = torch.rand(53, generator=generator) < 0.9
        lost = torch.rand(53, generator=generator) < 0.1
        interval = paired_difference((base & ~lost).tolist(), base.tolist(), range(53))
        held += interval.holds(-0.09)
    assert 364 <= held <= 398  # 380 expected, standard deviation 4.4


def test_paired_differences_keep_a_width_where_nothing_differs_and_turn_with_the_columns():
    same = paired_difference([1] * 11, [1] * 11, range(11))
    assert same.value == 0
    assert same.low < -0.1
    one, other = [1, 1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0, math.nan]
    forward, back = paired_difference(one, other, range(7)), paired_difference(other, one, range(7))
    assert forward.value == pytest.approx(2 / 6)
    assert (forward.low, forward.high) == pytest.approx((-back.high, -back.low))
    with pytest.raises(
        ShapeError, match=r"paired_difference: got '1 and 2 rows', expected the same rows in both"
    ):
        paired_difference([1], [1, 0], ["a"])
