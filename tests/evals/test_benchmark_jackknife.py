"""Intervals by leaving out groups: groups, known errors, quantiles, coverage, paired differences."""

import math

import numpy as np
import pytest

from mmalign.errors import ConfigError
from mmalign.evals.base import Answer, Benchmark, Item, Metric, Outcome
from mmalign.evals.benchmark_answered import Answered
from mmalign.evals.benchmark_jackknife import (
    group_numbers,
    jackknife_interval,
    replicates,
    student_quantile,
)
from mmalign.evals.benchmarking import benchmark_record
from mmalign.evals.statistics.bootstrap import Resampling


def test_groups_are_equal_in_size_and_hang_on_names_alone():
    names = [f"picture {n}" for n in range(47)]
    found = group_numbers(names, 5)
    sizes = [list(found.values()).count(group) for group in range(5)]
    assert sorted(sizes) == [9, 9, 9, 10, 10]
    assert group_numbers([*reversed(names), *names], 5) == found
    assert group_numbers(names[:9], 5) == {}
    assert group_numbers(names, 0) == {}


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 19, 2.0930), (0.975, 10, 2.2281), (0.995, 19, 2.8609), (0.5, 19, 0.0), (0.025, 49, -2.0096)],
)
def test_quantiles_are_those_of_published_tables(probability, freedom, expected):
    assert student_quantile(probability, freedom) == pytest.approx(expected, abs=1e-3)


def test_the_error_of_a_mean_is_the_usual_one_where_every_group_is_one_value():
    values = np.random.default_rng(0).normal(size=23)
    left_out = [float(np.delete(values, place).mean()) for place in range(23)]
    found = jackknife_interval(float(values.mean()), left_out)
    half = student_quantile(0.975, 22) * values.std(ddof=1) / math.sqrt(23)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_what_is_not_defined_has_no_interval():
    assert jackknife_interval(math.nan, [1.0, 2.0]) is None
    assert jackknife_interval(1.0, [1.0, math.nan]) is None
    with pytest.raises(ConfigError, match=r"jackknife: got \[1 groups\], expected at least two"):
        jackknife_interval(1.0, [1.0])


def share(answers):
    """A ratio of sums, which is no mean over items."""
    pairs = [tuple(map(int, answer.text.split())) for answer in answers]
    wrong, named = (sum(pair[place] for pair in pairs) for place in (0, 1))
    return Outcome((Metric("share", wrong / named, "in [0, 1]", False),), {})


def captions(generator, count, rate):
    """Captions that name 1 to 7 objects, some of them absent."""
    named = generator.integers(1, 8, size=count)
    wrong = generator.binomial(named, rate)
    items = [Item(f"{n}", "?") for n in range(count)]
    return [Answer(item, text=f"{a} {b}") for item, a, b in zip(items, wrong, named, strict=True)]


def test_the_rule_is_applied_without_each_group():
    answers = captions(np.random.default_rng(0), 50, 0.3)
    clusters = {answer.item.id: f"{int(answer.item.id) // 2}" for answer in answers}
    seen = []

    def score(kept):
        seen.append({answer.item.id for answer in kept})
        return share(kept)

    found = replicates(score, answers, clusters, 5)
    assert len(found) == 5
    gone = [{answer.item.id for answer in answers} - kept for kept in seen]
    assert sorted(name for part in gone for name in part) == sorted(answer.item.id for answer in answers)
    assert all({f"{int(name) ^ 1}" for name in part} == part for part in gone)
    assert replicates(score, answers, dict.fromkeys(clusters, "one"), 5) == ()


def test_intervals_of_a_ratio_of_sums_cover_the_truth():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        answers = captions(generator, 80, 0.3)
        clusters = {answer.item.id: answer.item.id for answer in answers}
        left_out = [found["share"] for found in replicates(share, answers, clusters)]
        covered += jackknife_interval(share(answers).metrics[0].value, left_out).holds(0.3)
    assert 134 <= covered <= 149


def test_two_models_are_compared_by_the_metric_itself_without_the_same_groups():
    answers = captions(np.random.default_rng(0), 60, 0.3)
    better = [
        Answer(answer.item, text=f"0 {answer.text.split()[1]}") if int(answer.item.id) % 3 == 0 else answer
        for answer in answers
    ]
    items = [answer.item for answer in answers]
    clusters = {item.id: item.id for item in items}
    models = [
        Answered(name, name, said, share(said), replicates=replicates(share, said, clusters))
        for name, said in (("base", answers), ("tuned", better))
    ]
    benchmark = Benchmark("tiny", "t", "text", read=lambda folder: items, score=share)
    record = benchmark_record(benchmark, items, models, how=Resampling(num_resamples=200))
    (found,) = record["comparisons"]
    base, tuned = (model["metrics"][0] for model in record["models"])
    assert found["difference"]["value"] == pytest.approx(tuned["value"] - base["value"])
    assert found["difference"]["high"] < 0
    assert (found["exact"], found["win_rate"], found["adjusted"]) == (True, None, None)
    # Paired: narrower than two intervals of models that share nothing.
    widths = [one["interval"]["high"] - one["interval"]["low"] for one in (base, tuned)]
    assert found["difference"]["high"] - found["difference"]["low"] < math.hypot(*widths)
