import math

import pytest

from mmalign.errors import ConfigError
from mmalign.evals.pairs.making import make, usable
from mmalign.evals.pairs.plan import SelectionConfig
from mmalign.evals.pairs.pool import distinct, without_duplicates

FIRST = [[3.0, 0.3], [2.0, 0.2], [1.0, 0.1]]
SECOND = [[1.0, 0.9], [5.0, 0.5], [4.0, 0.1], [2.0, 0.7], [3.0, 0.3]]


def settings(**given):
    return SelectionConfig.model_validate({"duplicates": {"by": "none"}, **given})


def ids(made):
    return [pair.id for pair in made.pairs]


def test_one_pair_per_prompt_by_default(make_pool):
    made = make(make_pool(FIRST, SECOND), settings())
    assert ids(made) == ["p0:c0>p0:c2", "p1:c1>p1:c2"]
    assert [(pair.preference, pair.weight) for pair in made.pairs] == [(1.0, 1.0)] * 2


def test_a_failed_score_takes_out_the_candidate_and_is_counted(make_pool):
    failed = [[3.0, math.nan], [2.0, 0.2], [1.0, 0.1]]
    alone = [[math.nan, 1.0], [1.0, 1.0]]
    pool = usable(make_pool(failed, alone), settings())
    assert [[candidate.id for candidate in prompt.candidates] for prompt in pool.prompts] == [
        ["p0:c1", "p0:c2"]
    ]
    (step,) = pool.steps
    assert step.left_out == {"candidates": 2, "prompts with fewer than two candidates": 1}
    assert step.record() == {
        "step": "scored by every reward",
        "prompts": 1,
        "candidates": 2,
        "left_out": dict(step.left_out),
    }


def test_thresholds_take_out_candidates_outside_their_ends(make_pool):
    chosen = settings(thresholds={"first": [None, 4.0], "second": [0.3, None]})
    (prompt,) = usable(make_pool(SECOND), chosen).prompts
    assert [candidate.id for candidate in prompt.candidates] == ["p0:c0", "p0:c3", "p0:c4"]
    with pytest.raises(ConfigError, match="pairs reward: got 'third', expected one of first, second"):
        usable(make_pool(SECOND), settings(thresholds={"third": [0, 1]}))


def test_named_rewards_decide_alone_and_by_their_weights(make_pool):
    pool = make_pool(SECOND)
    assert ids(make(pool, settings(rewards={"second": 1.0}))) == ["p0:c0>p0:c2"]
    raw = make(pool, settings(rewards={"first": 1.0}, standing="raw", margin=3.5))
    assert ids(raw) == ["p0:c1>p0:c0"]
    assert raw.pairs[0].gap == 4.0


def test_the_cap_keeps_the_widest_gaps_in_their_order(make_pool):
    made = make(make_pool(FIRST), settings(rule="all_pairs", standing="minmax", max_per_prompt=2))
    assert ids(made) == ["p0:c0>p0:c1", "p0:c0>p0:c2"]
    assert made.steps[-1].record()["left_out"] == {"pairs": 1}


def test_relevance_and_likelihood_have_no_vote(make_pool):
    # By the first reward alone 1 wins; times its relevance 0.5 it stands below candidate 3.
    pool = make_pool(SECOND)
    made = make(
        pool, settings(relevance="second", relevance_bounds=[0.0, 1.0], standing="minmax", rule="best_worst")
    )
    assert made.pairs[0].standing == pytest.approx((0.5, 0.0))
    hard = make(pool, settings(rule="hard", likelihood="second", standing="minmax", margin=0.3))
    assert ids(hard) == ["p0:c1>p0:c0"]


def test_nothing_left_is_an_error_that_tells_where_it_went(make_pool):
    where = r"(?s)nothing was written.*best_worst, margin 2: 0 prompts, 0 pairs \(left out: 1 prompts without"
    with pytest.raises(ConfigError, match=where):
        make(make_pool(FIRST), settings(margin=2.0))


# ------------------------------------------------------------------------------------------------ rankings


def test_rankings_hold_every_candidate_best_first(make_pool):
    made = make(make_pool(FIRST, SECOND), settings(make="rankings"))
    assert [ranking.order for ranking in made.rankings] == [(0, 1, 2), (1, 0, 3, 2, 4)]
    assert made.rankings[0].standing == (1.0, 0.5, 0.0)
    assert not made.pairs


def test_rankings_by_dominance_share_ranks_within_a_front(make_pool):
    made = make(make_pool(SECOND), settings(make="rankings", rule="pareto"))
    assert made.rankings[0].standing == (0.0, 0.0, -1.0, 0.0, -1.0)


def test_a_prompt_whose_candidates_stand_alike_ranks_nothing(make_pool):
    made = make(make_pool([[1.0, 2.0], [2.0, 1.0]], FIRST), settings(make="rankings"))
    assert [ranking.prompt.id for ranking in made.rankings] == ["p1"]
    assert made.steps[-1].left_out == {"prompts whose range does not exceed the margin": 1}


# ------------------------------------------------------------------------------------------------ labels


def test_votes_soften_labels_and_turn_pairs_the_majority_disagrees_with(make_pool):
    table = [[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    chosen = settings(rewards={"a": 1.0}, label={"how": "votes"})
    made = make(make_pool(table, titles=("a", "b", "c")), chosen)
    (pair,) = made.pairs
    assert (pair.winner, pair.loser) == (1, 0)
    assert pair.preference == pytest.approx(2 / 3)
    assert "1 turned" in made.steps[-1].name


def test_a_label_without_a_side_is_left_out(make_pool):
    table = [[3.0, 0.0], [1.0, 1.0]]
    chosen = settings(rewards={"first": 1.0}, label={"how": "votes"})
    made = make(make_pool(table, FIRST), chosen)
    assert ids(made) == ["p1:c0>p1:c2"]
    assert made.steps[-1].left_out == {"ties of the label": 1}


def test_smpo_labels_convert_units_and_follow_pickscore(make_pool):
    table = [[22.0, 0.1], [20.0, 0.9]]
    chosen = settings(
        rewards={"aesthetic": 1.0}, label={"how": "smpo", "reward": "pick", "logit_scale": 100.0}
    )
    (pair,) = make(make_pool(table, titles=("pick", "aesthetic")), chosen).pairs
    assert pair.winner == 0
    gap = 0.02 / (0.28201571106910706 - 0.11543526500463486)
    assert pair.preference == pytest.approx(1 / (1 + math.exp(-gap)))


def test_weights_by_gap_take_one_reward_in_its_own_unit(make_pool):
    chosen = settings(weight={"how": "gap", "reward": "first", "scale": 5.0})
    weights = [pair.weight for pair in make(make_pool(FIRST, SECOND), chosen).pairs]
    assert weights == pytest.approx([2**0.6 - 2**0.2, 2.0 - 2**0.8])


def test_rare_gaps_weigh_more_and_the_histogram_is_kept(make_pool):
    chosen = settings(
        standing="raw",
        rewards={"first": 1.0},
        weight={"how": "duplication", "bin_width": 1.0, "beta": 1.0},
    )
    made = make(make_pool(FIRST, FIRST, FIRST, SECOND), chosen)
    assert [pair.weight for pair in made.pairs] == pytest.approx([0.96] * 3 + [2.88])
    assert made.histogram == {"2": 3, "4": 1}
    even = make(
        make_pool(FIRST, SECOND),
        chosen.model_copy(
            update={"weight": chosen.weight.model_copy(update={"how": "rarity", "mean_one": True})}
        ),
    )
    assert sum(pair.weight for pair in even.pairs) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"make": "rankings", "layout": "pickapic"}, "holds pairs"),
        ({"label": {"how": "smpo"}}, "needs label.reward"),
        ({"duplicates": {"by": "embedding"}}, "duplicates.embeddings"),
        ({"relevance": "first", "standing": "z"}, "win_probability or minmax"),
        ({"standing": "raw"}, "takes one reward"),
        ({"weight": {"how": "gap"}}, "needs weight.reward"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        settings(**given)


# ------------------------------------------------------------------------------------------------ duplicates


def test_of_what_is_the_same_the_first_stays():
    import torch

    same = torch.eye(5, dtype=torch.bool)
    same[0, 2] = same[2, 0] = same[2, 4] = same[4, 2] = True
    # 4 is the same as 2 only, which has gone: it stays.
    assert distinct(same) == [0, 1, 3, 4]


def test_equal_files_of_a_prompt_count_once(make_pool):
    pool = make_pool(FIRST)
    (prompt,) = pool.prompts
    twin = prompt.candidates[0]
    from dataclasses import replace

    copied = (twin, replace(prompt.candidates[1], sha256=twin.sha256), prompt.candidates[2])
    pool.prompts[0] = replace(prompt, candidates=copied)
    chosen = settings(duplicates={"by": "bytes"}).duplicates
    (left,) = without_duplicates(pool, chosen).prompts
    assert [candidate.id for candidate in left.candidates] == ["p0:c0", "p0:c2"]
    assert left.values.tolist() == [FIRST[0], FIRST[2]]
