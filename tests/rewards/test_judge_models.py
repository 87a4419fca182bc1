import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import rewards
from mmalign.errors import ConfigError, RowError
from mmalign.rewards import unified_reward
from mmalign.rewards.base import Scored
from mmalign.rewards.judge_models import PairJudge, TemplateAsker, order_choices, orders_of
from mmalign.rewards.sample import Sample
from mmalign.testing.reward_checkpoints import vision_language as tiny

DIGITS = (
    "name: digits\nkind: {kind}\nsubject: image\nimages: {images}\noutput: digit\nlow: 2\nhigh: 4\n"
    "instruction: How good?\n"
)


def picture(seed, width=40, height=40):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_chat_model(tmp_path_factory.mktemp("judge"), 1)


def scripted(reward, answers):
    """The reward with a model that writes these answers by question and order of what is shown."""
    asked = []

    def write(rows, *, max_new_tokens):
        asked.extend(rows)
        return [answers[place % len(answers)] for place in range(len(rows))]

    reward.model.write = write
    return asked


def one(seed=0, **extras):
    return Sample(prompt="a cat", image=picture(seed), extras=extras)


def pair(seed=0):
    return one(seed, other=picture(seed + 100))


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("unifiedreward_image", "cat (animal): 1\nFinal Score: 3.5", [3.5]),
        ("unifiedreward_image", "Final Score: 7", None),
        ("unifiedreward_image", "I like it, 4 of 5", None),
        ("unifiedreward_video", "Final Score: 7", [7.0]),
        (
            "unifiedreward2_image_acs",
            "Alignment Score: 3\nCoherence Score: 2\nStyle Score: 4",
            [3.0, 3.0, 2.0, 4.0],
        ),
        ("unifiedreward2_video_aps", "Alignment Score: 3\nStyle Score: 4", None),
    ],
)
def test_pointwise_answers_become_numbers_or_nothing(tmp_path, name, answer, expected):
    weights = tiny.CHECKPOINTS[name](tmp_path / "w", 0)
    reward = rewards.load(name, weights=weights, **tiny.LOAD_OPTIONS[name])
    scripted(reward, [answer])
    sample = Sample(prompt="p", frames=[picture(1), picture(2)]) if "video" in name else one()
    found = reward.score([sample])
    assert found.raw == (answer,)
    if expected is None:
        assert bool(found.values.isnan().all())
        assert "no verdict could be read from the answer" in found.errors[0]
    else:
        assert found.values[0].tolist() == expected
        assert found.errors == (None,)


CHOICES = {
    "unifiedreward_image_pair": "Image {} is better.",
    "unifiedreward_think_image_pair": "<think>x</think><answer>Image {} is better</answer>",
    "unifiedreward_flex_image_pair": '{{"winner": "Image {}"}}',
}


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_a_win_is_a_win_in_both_orders(tmp_path, name):
    weights = tiny.CHECKPOINTS[name](tmp_path / "w", 0)
    reward = rewards.load(name, weights=weights, **tiny.LOAD_OPTIONS[name])
    # (answer in order, answer swapped) -> (preference, in order, swapped), from the sample's own view
    cases = {("1", "2"): (1, 1, 1), ("2", "1"): (0, 0, 0), ("1", "1"): (0.5, 1, 0), ("2", "2"): (0.5, 0, 1)}
    for (first, second), expected in cases.items():
        scripted(reward, [CHOICES[name].format(first), CHOICES[name].format(second)])
        found = reward.score([pair()])
        assert found.values[0].tolist() == list(expected)
        assert set(json.loads(found.raw[0])) == {"in_order", "swapped"}


def test_answer_without_a_verdict_is_nobodys_win(tmp_path):
    name = "unifiedreward_image_pair"
    reward = rewards.load(name, weights=tiny.CHECKPOINTS[name](tmp_path / "w", 0), **tiny.LOAD_OPTIONS[name])
    scripted(reward, ["Image 1 is better.", "I cannot tell."])
    found = reward.score([pair()])
    assert math.isnan(found.values[0, 0])
    assert found.values[0, 1] == 1.0
    assert "no verdict" in found.errors[0]
    assert orders_of(found).invalid_rate == 1.0


def test_shares_are_averaged_over_axes_and_orders(tmp_path):
    name = "unifiedreward2_image_pair"
    reward = rewards.load(name, weights=tiny.CHECKPOINTS[name](tmp_path / "w", 0), **tiny.LOAD_OPTIONS[name])
    lines = [
        "".join(
            f"{axis} Score:\nImage 1: {first}\nImage 2: {1 - first}\n"
            for axis in ("Alignment", "Coherence", "Style")
        )
        for first in (0.75, 0.5)
    ]
    scripted(reward, lines)
    found = reward.score([pair()])
    assert found.values[0].tolist() == pytest.approx([0.625, 0.75, 0.5])


def test_swapped_question_shows_the_other_first(folder):
    reward = rewards.load("vlm_pairwise_judge", weights=folder)
    prepared = reward.prepare(pair(3)).inputs
    patches = prepared["in_order"]["pixel_values"], prepared["swapped"]["pixel_values"]
    half = len(patches[0]) // 2
    assert torch.equal(patches[0][:half], patches[1][half:])
    assert torch.equal(patches[0][half:], patches[1][:half])
    assert not torch.equal(*patches)
    assert torch.equal(prepared["in_order"]["input_ids"], prepared["swapped"]["input_ids"])


def test_position_rates_of_a_judge_are_counted():
    values = torch.tensor([[1.0, 1, 1], [0.5, 1, 0], [0.5, 1, 0], [math.nan, 1, math.nan]]).double()
    none = (None,) * 4
    scored = Scored(values, unified_reward.PAIR_OUTPUTS, none, (False,) * 4, none)
    rates = orders_of(scored)
    assert (rates.num_pairs, rates.num_valid, rates.num_inconsistent) == (4, 3, 2)
    assert rates.first_position_rate == pytest.approx(5 / 6)
    with pytest.raises(ConfigError, match="the outputs in_order and swapped of a pairwise judge"):
        orders_of(Scored(values[:, :1], ("score",), none, (False,) * 4, none))
    assert order_choices(0.5, 0.5) == ("tie", "tie")


@pytest.fixture
def digits(tmp_path):
    paths = {}
    for kind, images in (("score", 1), ("compare", 2)):
        paths[kind] = tmp_path / f"{kind}.yaml"
        paths[kind].write_text(DIGITS.format(kind=kind, images=images))
    return paths


def last_logits(reward, row):
    with torch.no_grad():
        inputs = {name: value for name, value in row.items() if name != "attention_mask"}
        return reward.model.network(**inputs).logits[0, -1]


def test_logit_mode_is_the_expected_score(folder, digits):
    reward = rewards.load("vlm_judge", weights=folder, rubric=digits["score"], mode="logit")
    assert reward.card.outputs == ("score", "spread", "mass")
    found = reward.score([one()]).values[0]
    logits = last_logits(reward, reward.prepare(one()).inputs)
    chances = torch.exp(logits) / torch.exp(logits).sum()
    two, three, four = (float(chances[reward.model.tokenizer.encode(digit)[0]]) for digit in "234")
    mass = two + three + four
    mean = (2 * two + 3 * three + 4 * four) / mass
    spread = math.sqrt((4 * two + 9 * three + 16 * four) / mass - mean**2)
    assert found.tolist() == pytest.approx([mean, spread, mass], rel=1e-4)


def test_logit_mode_averages_log_odds_of_both_orders(folder, digits):
    reward = rewards.load("vlm_pairwise_judge", weights=folder, rubric=digits["compare"], mode="logit")
    found = reward.score([pair(), pair(5)])
    for place, sample in enumerate((pair(), pair(5))):
        rows = reward.prepare(sample).inputs
        one_, two = (reward.model.tokenizer.encode(digit)[0] for digit in "12")
        odds = [
            float((logits := last_logits(reward, rows[name]))[one_] - logits[two])
            for name in ("in_order", "swapped")
        ]
        share = [1 / (1 + math.exp(-value)) for value in ((odds[0] - odds[1]) / 2, odds[0], -odds[1])]
        assert found.values[place].tolist() == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vlm_judge",
            {"rubric": "image_preference"},
            "kind: got 'compare', expected score. Use vlm_pairwise",
        ),
        (
            "vlm_pairwise_judge",
            {"rubric": "image_quality"},
            "kind: got 'score', expected compare. Use vlm_judge",
        ),
        ("vlm_judge", {"mode": "guess"}, "mode: got 'guess', expected generate or logit"),
        ("vlm_pairwise_judge", {"mode": "guess"}, "mode: got 'guess', expected generate or logit"),
        ("vlm_judge", {"mode": "logit"}, "output: got 'result', expected digit for logit mode"),
        ("vlm_pairwise_judge", {"mode": "logit"}, "expected digit for logit mode"),
    ],
)
def test_rubrics_and_modes_that_do_not_fit_are_refused(folder, name, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        rewards.load(name, weights=folder, **options)


def test_answers_are_judged_with_what_the_question_shows(folder):
    reward = rewards.load("vlm_pairwise_judge", weights=folder, rubric="answer_preference")
    image = picture(1)
    sample = Sample(prompt="what?", text="a cat", image=image, extras={"other": "a dog <|im_end|>"})
    rows = reward.prepare(sample).inputs
    texts = {name: reward.model.tokenizer.decode(row["input_ids"][0]) for name, row in rows.items()}
    assert texts["in_order"].index("a cat") < texts["in_order"].index("a dog < |im_end|>")
    assert texts["swapped"].index("a cat") > texts["swapped"].index("a dog < |im_end|>")
    with pytest.raises(RowError, match=r"Sample.text: got None, expected the text of an answer"):
        reward.prepare(Sample(prompt="what?", image=image, extras={"other": "x"}))
    with pytest.raises(RowError, match=r"0 pictures or clips.*expected 1, as rubric answer_preference says"):
        reward.prepare(Sample(prompt="what?", text="a", extras={"other": "x"}))


def test_pictures_shown_for_comparison_come_first(folder, tmp_path):
    rubric = tmp_path / "compared.yaml"
    rubric.write_text(
        "name: compared\nkind: score\nsubject: image\nimages: 2\noutput: result\n"
        "instruction: As good as the first?\n"
    )
    reward = rewards.load("vlm_judge", weights=folder, rubric=rubric)
    row = reward.prepare(one(1, shown=[picture(7)])).inputs
    turned = reward.prepare(one(7, shown=[picture(1)])).inputs
    half = len(row["pixel_values"]) // 2
    assert torch.equal(row["pixel_values"][:half], turned["pixel_values"][half:])
    with pytest.raises(RowError, match=r"1 pictures or clips.*expected 2"):
        reward.prepare(one(1))


def test_second_thing_of_a_pair_is_needed(folder):
    reward = rewards.load("vlm_pairwise_judge", weights=folder)
    with pytest.raises(RowError, match=r"Sample.extras other: got None.*extras\['other'\]"):
        reward.prepare(one())


def test_missing_question_names_its_file(folder):
    with pytest.raises(ConfigError, match=r"9fa0115144d4037d.*qwen_pair_rank_image_generation.py"):
        rewards.load("unifiedreward_image_pair", weights=folder)


def test_braces_of_a_prompt_stay_in_the_question(folder):
    reward = rewards.load("vlm_judge", weights=folder)
    asker = TemplateAsker("Judge {} please")
    text, _ = asker.ask(Sample(prompt="a {} {0} {b}", image=picture(1)), reward.model)
    assert text == "Judge a {} {0} {b} please"


def test_mode_is_checked_where_a_judge_is_built(folder, untyped):
    reward = rewards.load("vlm_pairwise_judge", weights=folder)
    with untyped, pytest.raises(ConfigError, match="mode: got 'guess', expected generate or logit"):
        PairJudge(reward.card, reward.model, reward.asker, read=lambda text: None, reader="x", mode="guess")


def test_shared_text_of_the_family_is_consistent():
    for name, variant in unified_reward.VARIANTS.items():
        card = rewards.card(name)
        assert (variant.read is None) != (variant.choose is None)
        assert card.outputs == (unified_reward.PAIR_OUTPUTS if name.endswith("_pair") else variant.outputs)
        assert re.fullmatch(r"[0-9a-f]{16}", variant.template)
    assert len({variant.template for variant in unified_reward.VARIANTS.values()}) == len(
        unified_reward.VARIANTS
    )
