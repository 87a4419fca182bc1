"""The toy world of video: clips, captions, the exact reward, pairs."""

import json
import random

import numpy as np
import pytest
import torch

from mmalign.data.config import DataConfig, VideoLimits
from mmalign.data.readers import open_rows
from mmalign.data.segments import stretches_of
from mmalign.data.video_media import decode_clip
from mmalign.errors import ConfigError
from mmalign.toy.video_pairs import (
    KINDS,
    crossed_pairs,
    edited_pairs,
    sampled_pairs,
    structural_pairs,
    swapped,
    write_pairs,
)
from mmalign.toy.video_reward import WEIGHTS, Score, motion_of, score_clips, score_frames, see
from mmalign.toy.video_scenes import (
    COLOURS,
    DIRECTIONS,
    FPS,
    FRAME_SIZE,
    NUM_FRAMES,
    NUM_SEGMENTS,
    RADIUS,
    SEGMENT_SECONDS,
    SHAPES,
    SPEEDS,
    TURN,
    Facts,
    all_turns,
    draw_facts,
    draw_scene,
    draw_split,
    every_held_out,
    facts_of,
    faulty,
    held_out_prompts,
    is_held_out,
    nose_mask,
    render,
    shape_mask,
    tensor_of,
)

FACTS = Facts("red", "ball", ("right", "down"), "slowly")


def clip_of(facts: Facts, seed: int, **changes: object) -> torch.Tensor:
    scene = draw_scene(facts, random.Random(seed), **changes)
    return tensor_of(render(scene)).float() / 255.0


def many(num: int) -> list[Facts]:
    rng = random.Random("many")
    return [draw_facts(rng) for _ in range(num)]


def mean_total(scores: list[Score]) -> float:
    return sum(score.total for score in scores) / len(scores)


# --- clips and captions -------------------------------------------------------------------------------------


def test_every_caption_is_read_back() -> None:
    facts = [Facts(c, s, d, v) for c in COLOURS for s in SHAPES for d in all_turns() for v in SPEEDS]
    assert len(facts) == 288
    assert [facts_of(one.caption()) for one in facts] == facts
    assert FACTS.caption() == "a red ball moves slowly right, then down"


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a dog runs",
        "a red ball moves slowly right",
        "a red ball moves slowly right, then left",
        "a red cube moves slowly right, then up",
    ],
)
def test_other_captions_are_refused(caption: str) -> None:
    with pytest.raises(ConfigError, match=r"caption of the toy world of video: got .*at a right angle"):
        facts_of(caption)


def test_a_part_of_the_captions_is_held_out_and_never_drawn_for_training() -> None:
    held_out = [one for one in many(600) if is_held_out(one)]
    assert 50 <= len(held_out) <= 150
    assert not any(is_held_out(one) for one in draw_split(200, seed=3, held_out=False))
    assert all(is_held_out(facts_of(prompt)) for prompt in held_out_prompts(50, seed=3))


def test_the_speed_does_not_decide_what_is_held_out() -> None:
    for one in many(30):
        other = Facts(one.colour, one.shape, one.directions, "quickly")
        assert is_held_out(one) == is_held_out(other)


def test_the_same_seed_draws_the_same_clip_and_another_seed_another() -> None:
    first, again, other = (render(draw_scene(FACTS, random.Random(seed))) for seed in (5, 5, 7))
    assert first.shape == (NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3)
    assert (first == again).all()
    assert (first != other).any()


def test_a_shape_turns_behind_the_frame_that_ends_the_first_segment() -> None:
    frames = draw_scene(FACTS, random.Random(2)).frames
    across = np.diff([frame.x for frame in frames])
    along = np.diff([frame.y for frame in frames])
    assert (across[:TURN] > 0.5).all()
    assert not along[:TURN].any()
    assert (along[TURN:] > 0.5).all()
    assert not across[TURN:].any()


def test_segments_are_stretches_of_time_that_latent_frames_do_not_cross() -> None:
    starts = [frame / FPS for frame in range(NUM_FRAMES)]
    owner = [int(start // SEGMENT_SECONDS) for start in starts]
    assert owner == [0] * (TURN + 1) + [1] * (NUM_FRAMES - TURN - 1)
    latents = [[0], *(range(4 * k + 1, 4 * k + 5) for k in range(4))]
    assert all(len({owner[frame] for frame in frames}) == 1 for frames in latents)


def test_every_shape_stays_inside_the_picture() -> None:
    rng = random.Random(11)
    for one in many(60):
        for frame in faulty(one, rng, wrong_turn=0.5, fault_share=0.7).frames:
            assert all(RADIUS < place < FRAME_SIZE - RADIUS for place in (frame.x, frame.y))


def test_a_nose_points_where_the_shape_goes_and_the_ground_brightens() -> None:
    scene = draw_scene(FACTS, random.Random(2))
    assert [frame.nose for frame in scene.frames] == ["right"] * (TURN + 1) + ["down"] * (
        NUM_FRAMES - TURN - 1
    )
    right, down = (nose_mask(scene.frames[number]) for number in (3, 13))
    assert right.sum(0).argmax() > scene.frames[3].x + 4
    assert down.sum(1).argmax() > scene.frames[13].y + 4
    corner = render(scene)[:, 0, 0, 0].astype(int)
    assert (np.diff(corner) > 0).all()


def test_shapes_differ_in_outline_and_not_much_in_area() -> None:
    masks = [shape_mask(shape, 16.0, 16.0) for shape in SHAPES]
    areas = [mask.sum() for mask in masks]
    assert max(areas) < 1.25 * min(areas)
    assert np.minimum(masks[1], masks[2]).sum() / np.maximum(masks[1], masks[2]).sum() < 0.4


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="fault must be one of"):
        draw_scene(FACTS, random.Random(0), fault="melt")


def test_without_faults_and_wrong_turns_a_clip_is_what_its_caption_says() -> None:
    rng = random.Random(17)
    scene = faulty(FACTS, rng, wrong_turn=0.0, fault_share=0.0)
    assert score_frames(tensor_of(render(scene)).float() / 255.0, FACTS).total > 0.97


# --- the exact reward ---------------------------------------------------------------------------------------


def test_true_clips_score_about_one() -> None:
    scores = [score_frames(clip_of(one, number), one) for number, one in enumerate(many(40))]
    assert min(score.total for score in scores) > 0.97
    assert all(score.right_ways == 1.0 and score.identity == 1.0 for score in scores)


def test_the_weights_of_the_axes_add_up_to_one() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(("change", "most"), [("backwards", 0.6), ("still", 0.41), ("shuffled", 0.42)])
def test_clips_whose_order_of_frames_is_wrong_score_low(change: str, most: float) -> None:
    scores = []
    for number, one in enumerate(many(20)):
        order = {
            "backwards": torch.arange(NUM_FRAMES - 1, -1, -1),
            "still": torch.zeros(NUM_FRAMES, dtype=torch.long),
            "shuffled": torch.randperm(NUM_FRAMES, generator=torch.Generator().manual_seed(number)),
        }[change]
        scores.append(score_frames(clip_of(one, number)[order], one))
    assert mean_total(scores) < most
    assert max(score.total for score in scores) < 0.65


def test_a_still_clip_is_smooth_and_itself_and_has_no_motion() -> None:
    score = score_frames(clip_of(FACTS, 3)[:1].expand(NUM_FRAMES, -1, -1, -1), FACTS)
    assert (score.direction, score.motion, score.pixels) == (0.0, 0.0, 0.0)
    assert (score.smoothness, score.identity) == (1.0, 1.0)


def test_one_wrong_segment_costs_its_own_direction_and_no_other() -> None:
    score = score_frames(clip_of(FACTS, 3, directions=("right", "up")), FACTS)
    first, second = score.segments
    assert first.total > 0.97
    assert (first.right_way, second.right_way) == (True, False)
    assert second.direction == pytest.approx(0.0, abs=1e-6)
    assert score.right_ways == 0.5


@pytest.mark.parametrize(
    ("fault", "axis", "most"),
    [("flicker", "identity", 0.9), ("jump", "smoothness", 0.95), ("stall", "motion", 0.6)],
)
def test_a_fault_costs_the_axis_that_it_belongs_to(fault: str, axis: str, most: float) -> None:
    scores = [score_frames(clip_of(one, number, fault=fault), one) for number, one in enumerate(many(20))]
    assert max(getattr(score, axis) for score in scores) < most


def test_another_shape_or_colour_is_not_the_captions() -> None:
    clip = clip_of(FACTS, 5)
    assert score_frames(clip, Facts("blue", "ball", FACTS.directions, "slowly")).identity == 0.0
    assert score_frames(clip, Facts("red", "pole", FACTS.directions, "slowly")).identity == 0.0


def test_motion_counts_pixels_per_frame_and_the_captions_speed() -> None:
    slow, quick = (Facts("red", "ball", ("right", "down"), speed) for speed in SPEEDS)
    clip = clip_of(quick, 7)
    assert score_frames(clip, quick).pixels == pytest.approx(SPEEDS["quickly"], rel=0.1)
    assert score_frames(clip, quick).motion > 0.9
    assert score_frames(clip, slow).motion < 0.65


def test_nothing_to_see_and_broken_pixels_score_next_to_nothing() -> None:
    for clip in (
        torch.zeros(NUM_FRAMES, 3, FRAME_SIZE, FRAME_SIZE),
        torch.full((NUM_FRAMES, 3, 32, 32), torch.nan),
    ):
        score = score_frames(clip, FACTS)
        assert (score.total, score.pixels) == (0.0, 0.0)


def test_what_is_missing_for_some_frames_is_neither_smooth_nor_itself() -> None:
    clip = clip_of(FACTS, 3)
    clip[11:14] = clip[0, :, :1, :1]
    score = score_frames(clip, FACTS)
    assert score.segments[0].total > 0.97
    assert score.segments[1].identity == pytest.approx(5 / 8)
    assert score.segments[1].smoothness < 0.6


def test_a_frame_is_seen_where_it_was_drawn() -> None:
    scene = draw_scene(FACTS, random.Random(13))
    seen = [see(frame.astype(np.float64)) for frame in render(scene)]
    assert all(abs(one.x - frame.x) < 0.5 for one, frame in zip(seen, scene.frames, strict=True))
    assert all(one.overlap > 0.75 for one in seen)
    assert motion_of(seen) == pytest.approx(SPEEDS["slowly"], rel=0.1)


def test_scores_need_captions_of_this_world() -> None:
    with pytest.raises(ConfigError, match="caption of the toy world of video"):
        score_clips([clip_of(FACTS, 3)], ["a dog runs"])


# --- pairs --------------------------------------------------------------------------------------------------


def test_every_held_out_caption_comes_once_and_draws_are_of_them() -> None:
    captions = every_held_out(seed=1)
    assert len(captions) == len(set(captions)) == 48
    assert set(held_out_prompts(500, seed=3)) == set(captions)
    assert every_held_out(seed=2) != captions == every_held_out(seed=1)


def test_the_chosen_clip_is_true_and_labels_say_which_segment_tells() -> None:
    pairs = edited_pairs(60, seed=5, weights=(1.0,) * len(KINDS))
    assert {pair.kind for pair in pairs} == set(KINDS)
    for pair in pairs:
        assert pair.chosen_score.total > 0.97
        assert pair.rejected_score.total < pair.chosen_score.total
        assert not is_held_out(facts_of(pair.prompt))
        assert 1 <= pair.decided == sum(pair.segments) <= NUM_SEGMENTS


def test_in_crossed_pairs_every_half_is_decided_and_the_other_way_round() -> None:
    for pair in crossed_pairs(13, seed=5):
        assert sorted(pair.segments) == [-1, 1]
        assert not is_held_out(facts_of(pair.prompt))
        assert {pair.chosen_score.right_ways, pair.rejected_score.right_ways} == {0.5}
        assert pair.chosen_score.total - pair.rejected_score.total < 0.2


def test_swapped_pairs_keep_what_the_judge_said_over_exchanged_clips() -> None:
    (pair,) = edited_pairs(1, seed=2)
    (other,) = swapped([pair])
    assert other.chosen is pair.rejected
    assert other.rejected is pair.chosen
    assert other.segments == pair.segments
    assert other.chosen_score is pair.chosen_score


def test_sampled_pairs_are_best_and_worst_of_a_captions_clips() -> None:
    def make(prompts: list[str], *, seed: int, copies: int) -> list[torch.Tensor]:
        assert (seed, copies) == (3, 3)
        facts = [facts_of(prompt) for prompt in prompts]
        return [
            clip
            for one in facts
            for clip in (
                clip_of(one, 1, fault="stall"),
                clip_of(one, 2),
                clip_of(one, 3).flip(0),
            )
        ]

    pairs = sampled_pairs(make, 5, 3, copies=3)
    assert len(pairs) == 5
    for pair in pairs:
        assert pair.chosen_score.total > 0.97
        assert pair.rejected_score.total == pytest.approx(0.59, abs=0.03)
        assert pair.segments == (1, 1)


def test_clips_that_are_about_as_good_give_no_pair() -> None:
    def make(prompts: list[str], *, seed: int, copies: int) -> list[torch.Tensor]:
        return [clip_of(facts_of(prompt), seed) for prompt in prompts for _ in range(copies)]

    assert sampled_pairs(make, 3, 0, copies=2) == []
    assert structural_pairs(lambda clips, prompts, levels, *, seed: clips, 3, 0) == []


def test_structural_pairs_come_from_one_clip_and_one_level_and_label_segments_both_ways() -> None:
    asked: dict[str, list[float]] = {}

    def redraw(
        clips: list[torch.Tensor], prompts: list[str], levels: list[float], *, seed: int
    ) -> list[torch.Tensor]:
        asked["levels"] = levels
        assert all(torch.equal(clips[k], clips[k + 1]) for k in range(0, len(clips), 2))
        made = []
        for number, prompt in enumerate(prompts):
            facts = facts_of(prompt)
            wrong = [next(d for d in DIRECTIONS if d != facts.directions[number % 2])]
            ways = [wrong[0], facts.directions[1]] if number % 2 == 0 else [facts.directions[0], wrong[0]]
            made.append(clip_of(facts, 9, directions=ways))
        return made

    pairs = structural_pairs(redraw, 5, 1, levels=(0.7, 0.9))
    assert asked["levels"][::2] == asked["levels"][1::2]
    assert all(0.7 <= level <= 0.9 for level in asked["levels"])
    assert {pair.segments for pair in pairs} <= {(1, -1), (-1, 1)}
    assert all(pair.decided == 2 for pair in pairs)


def test_pairs_travel_as_parquet_without_loss_and_with_labels_in_time(tmp_path) -> None:
    pairs = edited_pairs(3, seed=1)
    path = write_pairs(pairs, tmp_path / "pairs.parquet")
    table = open_rows(DataConfig.model_validate({"source": {"path": str(path), "media": "video"}}))
    rows = [table[index] for index in range(len(table))]
    assert [row.prompt for row in rows] == [pair.prompt for pair in pairs]
    for row, pair in zip(rows, pairs, strict=True):
        clip = decode_clip(row.candidates[1].video, where="row", limits=VideoLimits())
        assert clip.fps == FPS
        torch.testing.assert_close(clip.frames.float() / 255.0, pair.rejected, atol=1e-6, rtol=0)
        assert tuple(stretch.preference for stretch in stretches_of(row)) == pair.segments
        assert row.candidates[0].reward == pytest.approx(pair.chosen_score.total, abs=1e-6)
        assert row.extras["pair_weight"] >= 1.0
    assert json.loads(rows[0].extras["segments"])[1]["start"] == SEGMENT_SECONDS
