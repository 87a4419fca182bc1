"""The toy world of images: the grammar, the renderer, the exact reward, and the preference data."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.errors import RowError
from mmalign.testing.variants import variants
from mmalign.toy.images import (
    COLOURS,
    CORRUPTIONS,
    SHAPES,
    STYLES,
    Facts,
    Group,
    Mark,
    Scene,
    corrupt,
    draw_facts,
    draw_scene,
    draw_split,
    held_out_prompts,
    is_held_out,
    parse_caption,
    preference_pairs,
    render,
    score_images,
    style_score,
    to_tensor,
    unpaired_rows,
    write_pickapic,
    write_unpaired,
)

TWO_GROUPS = Facts(Group(2, "red", "circle"), "left of", Group(1, "blue", "square"))


def scenes(num: int, *, seed: int, style: str | None = None) -> list[tuple[Facts, Scene]]:
    rng = random.Random(seed)
    facts = [draw_facts(rng) for _ in range(num)]
    return [(one, draw_scene(one, rng, style=style or rng.choice(STYLES))) for one in facts]


def test_captions_read_as_in_the_issue() -> None:
    assert TWO_GROUPS.caption() == "two red circles left of a blue square"
    assert Facts(Group(3, "green", "cross")).caption() == "three green crosses"


def test_every_caption_is_parsed_back_to_its_facts() -> None:
    for facts, _ in scenes(500, seed=1):
        assert parse_caption(facts.caption()) == facts


@pytest.mark.parametrize(
    "text",
    ["", "a zebra", "a red circle left of", "four red circles", "a red circle left of a red square", "🙂"],
)
def test_text_outside_the_grammar_has_no_facts(text: str) -> None:
    assert parse_caption(text) is None


def test_judging_a_prompt_outside_the_grammar_says_what_a_caption_looks_like() -> None:
    with pytest.raises(RowError, match="got 'a zebra', expected a caption of the toy grammar"):
        score_images([Image.new("RGB", (64, 64))], ["a zebra"])


@pytest.mark.parametrize("style", variants(STYLES, fast=("plain",)))
def test_every_true_scene_is_scored_fully_faithful(style: str) -> None:
    drawn = scenes(300, seed=2, style=style)
    scores = score_images([render(scene) for _, scene in drawn], [facts.caption() for facts, _ in drawn])
    wrong = [(f.caption(), s.facts) for (f, _), s in zip(drawn, scores, strict=True) if s.faithfulness != 1.0]
    assert not wrong


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_and_shape_is_recognised_in_every_size(colour: str, shape: str) -> None:
    caption = Facts(Group(1, colour, shape)).caption()
    marks = [Mark(colour, shape, 31.3 + 0.21 * step, 33.1, 6.5 + 0.4 * step) for step in range(11)]
    for framed in (False, True):
        pictures = [render(Scene((mark,), framed=framed)) for mark in marks]
        scores = score_images(pictures, [caption] * len(marks))
        assert [score.faithfulness for score in scores] == [1.0] * len(marks)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_scene_with_a_broken_fact_scores_strictly_lower(kind: str) -> None:
    rng = random.Random(3)
    drawn = scenes(150, seed=3)
    broken = [corrupt(scene, facts, kind, rng) for facts, scene in drawn]
    scores = score_images([render(scene) for scene in broken], [facts.caption() for facts, _ in drawn])
    assert max(score.faithfulness for score in scores) < 1.0
    assert all(new.framed is old.framed for new, (_, old) in zip(broken, drawn, strict=True))


def test_the_mirrored_scene_breaks_the_relation_and_nothing_else() -> None:
    scene = draw_scene(TWO_GROUPS, random.Random(5))
    mirrored = corrupt(scene, TWO_GROUPS, "place", random.Random(5))
    (score,) = score_images([render(mirrored)], [TWO_GROUPS.caption()])
    assert [fact for fact, holds in score.facts if not holds] == ["left of"]
    assert score.faithfulness == 7 / 8


def test_an_empty_picture_and_a_picture_with_more_than_was_asked_are_not_faithful() -> None:
    extra = Scene((Mark("red", "circle", 20.0, 20.0, 8.0), Mark("blue", "cross", 45.0, 45.0, 8.0)))
    pictures = [render(Scene((), framed=True)), render(extra)]
    empty, more = score_images(pictures, ["a red circle"] * 2)
    assert empty.faithfulness == 0.0
    assert empty.total == 0.0
    assert [fact for fact, holds in more.facts if not holds] == ["nothing else"]


def test_swapped_colours_are_not_faithful() -> None:
    swapped = Facts(Group(1, "blue", "circle"), "left of", Group(1, "red", "square"))
    asked = Facts(Group(1, "red", "circle"), "left of", Group(1, "blue", "square"))
    (score,) = score_images([render(draw_scene(swapped, random.Random(0)))], [asked.caption()])
    assert score.faithfulness < 0.7


def test_noise_is_not_faithful() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (score,) = score_images([Image.fromarray(noise)], ["a red circle"])
    assert score.faithfulness <= 0.5


def test_style_is_one_with_a_frame_and_zero_without_and_does_not_depend_on_the_shapes() -> None:
    for style, expected in (("framed", 1.0), ("plain", 0.0)):
        pictures = to_tensor([render(scene) for _, scene in scenes(50, seed=11, style=style)])
        assert style_score(pictures).tolist() == [expected] * 50


def test_style_counts_the_share_of_the_border_that_is_a_frame() -> None:
    whole, plain = (to_tensor([render(Scene((), framed=framed))]) for framed in (True, False))
    half = torch.cat([whole[..., :32], plain[..., 32:]], dim=-1)
    assert style_score(half).item() == 0.5


def test_a_dark_picture_is_not_a_framed_one() -> None:
    dark = Scene((Mark("yellow", "circle", 32.0, 32.0, 9.0),), (22, 22, 44))
    assert style_score(to_tensor([render(dark)])).item() == 0.0


def test_a_coloured_border_is_a_shape_and_no_frame() -> None:
    picture = Image.new("RGB", (64, 64), COLOURS["blue"])
    picture.paste(render(Scene((Mark("red", "circle", 32.0, 32.0, 9.0),))).crop((4, 4, 60, 60)), (4, 4))
    (score,) = score_images([picture], ["a red circle"])
    assert score.style == 0.0
    assert [fact for fact, holds in score.facts if not holds] == ["nothing else"]


def test_style_is_worth_nothing_without_faithfulness_and_at_most_as_much_as_it() -> None:
    pictures = [render(draw_scene(TWO_GROUPS, random.Random(7), style=style)) for style in STYLES]
    plain, framed = score_images(pictures, [TWO_GROUPS.caption()] * 2)
    assert (plain.total, framed.total) == (0.5, 1.0)


def test_a_picture_of_another_size_or_mode_is_judged_too() -> None:
    picture = render(draw_scene(TWO_GROUPS, random.Random(13))).resize((128, 128)).convert("RGBA")
    (score,) = score_images([picture], [TWO_GROUPS.caption()])
    assert score.faithfulness == 1.0


def test_scoring_depends_on_no_other_picture_of_the_batch() -> None:
    drawn = scenes(7, seed=17)
    pictures = [render(corrupt(s, f, "shape", random.Random(1))) for f, s in drawn]
    prompts = [f.caption() for f, _ in drawn]
    alone = [score_images([picture], [prompt])[0] for picture, prompt in zip(pictures, prompts, strict=True)]
    assert score_images(pictures, prompts) == alone


def test_no_training_caption_is_held_out_and_about_one_in_eight_is() -> None:
    assert not any(is_held_out(facts) for facts in draw_split(500, seed=0, held_out=False))
    prompts = held_out_prompts(200)
    assert len(set(prompts)) == 200
    assert all(is_held_out(facts) for facts in map(parse_caption, prompts) if facts is not None)
    rng = random.Random(0)
    share = sum(is_held_out(draw_facts(rng)) for _ in range(3000)) / 3000
    assert 0.09 < share < 0.17


def test_the_chosen_picture_of_every_pair_has_the_higher_reward() -> None:
    pairs = preference_pairs(101, seed=19)
    assert all(pair.chosen_score.total == 1.0 for pair in pairs)
    for pair in pairs:
        assert (pair.rejected_score.faithfulness < 1.0) is (pair.kind in {"facts", "both"})
        assert pair.rejected_score.style == (0.0 if pair.kind in {"style", "both"} else 1.0)
    assert not any(
        is_held_out(facts) for facts in (parse_caption(pair.prompt) for pair in pairs) if facts is not None
    )


def test_equal_seeds_give_equal_pairs_and_other_seeds_others() -> None:
    def pixels(seed: int) -> list[bytes]:
        return [pair.chosen.tobytes() + pair.rejected.tobytes() for pair in preference_pairs(7, seed)]

    assert pixels(0) == pixels(0)
    assert pixels(0) != pixels(1)


def test_unpaired_rows_like_what_is_right_and_dislike_what_is_not() -> None:
    rows = unpaired_rows(10, seed=23)
    assert [row.desirable for row in rows] == [True, False] * 5
    assert all((row.score.total == 1.0) is row.desirable for row in rows)


def test_the_parquet_file_has_the_layout_of_pick_a_pic_and_names_the_right_winner(tmp_path) -> None:
    from io import BytesIO

    from pyarrow import parquet

    pairs = preference_pairs(23, seed=29)
    rows = parquet.read_table(write_pickapic(pairs, tmp_path / "pairs.parquet")).to_pylist()
    assert {row["label_0"] for row in rows} == {0.0, 1.0}
    for row, pair in zip(rows, pairs, strict=True):
        side = 0 if row["label_0"] == 1.0 else 1
        assert row["label_0"] + row["label_1"] == 1.0
        assert row["caption"] == pair.prompt
        assert row["has_label"]
        assert row["are_different"]
        assert row["best_image_uid"] == row[f"image_{side}_uid"]
        winner, loser = (Image.open(BytesIO(row[f"jpg_{index}"])) for index in (side, 1 - side))
        better, worse = score_images([winner, loser], [pair.prompt] * 2)
        assert winner.format == "JPEG"
        assert better.total == pytest.approx(1.0)  # JPEG does not change what the reward sees
        assert worse.total < better.total


def test_unpaired_files_are_read_back(tmp_path) -> None:
    import json

    rows = unpaired_rows(5, seed=31)
    path = write_unpaired(rows, tmp_path)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [record["label"] for record in records] == [row.desirable for row in rows]
    with Image.open(tmp_path / records[0]["image"]) as image:
        assert image.tobytes() == rows[0].image.tobytes()


@pytest.mark.slow
def test_the_world_without_its_model_loads_no_diffusers() -> None:
    code = (
        "import sys, mmalign.toy.images; print(sorted({'diffusers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tensors_hold_pictures_in_the_unit_range() -> None:
    pictures = to_tensor([Image.new("L", (5, 7), 255)])
    assert pictures.shape == (1, 3, 64, 64)
    assert torch.equal(pictures, torch.ones(1, 3, 64, 64))
