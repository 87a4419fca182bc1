"""Ensembles: units within prompts, scales, disagreement, failures, and the file that describes one."""

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmalign import rewards
from mmalign.errors import ConfigError, ShapeError, UnknownNameError
from mmalign.rewards import Sample
from mmalign.rewards.aggregation import (
    HOWS,
    aggregate,
    fractional_ranks,
    group_numbers,
    groups_of,
    relative_values,
)
from mmalign.rewards.ensemble import Ensemble, Member, Scale, is_relative, measure_scales
from mmalign.rewards.ensemble_file import load_ensemble, read_ensemble
from mmalign.rewards.functions import FunctionReward
from mmalign.testing.simple_rewards import Brightness

# Four candidates of one prompt, four rewards of very different scales.
SCORES = torch.tensor(
    [[21.4, 0.27, 0.3, 5.9], [20.1, 0.28, 0.9, 5.9], [22.3, 0.279, 0.8, 6.4], [20.9, 0.24, -1.2, 5.1]],
    dtype=torch.float64,
)


def picture(red: int) -> Tensor:
    """A picture whose mean red is `red / 255`."""
    pixels = torch.zeros(3, 5, 7, dtype=torch.uint8)
    pixels[0] = red
    return pixels


def samples(reds: Sequence[int | None], prompts: str = "aabba") -> list[Sample]:
    """Pictures of given red; None for one that cannot be read."""
    return [
        Sample(prompt=prompt, image=b"" if red is None else picture(red), id=str(number))
        for number, (red, prompt) in enumerate(zip(reds, prompts, strict=False))
    ]


def table(name: str, values: Sequence[float], *, higher: bool = True) -> FunctionReward:
    """A reward that looks its values up by the samples' ids."""
    reward = FunctionReward(lambda batch: [values[int(sample.id)] for sample in batch], name=name)
    if not higher:
        object.__setattr__(reward.card, "higher_is_better", False)
    return reward


def beats(left: float, right: float) -> float:
    return 1.0 if left > right else 0.5 if left == right else 0.0


# ------------------------------------------------------------------------------------------------ units


def test_win_probability_counts_opponents_and_halves_ties() -> None:
    groups = torch.zeros(4, dtype=torch.int64)
    expected = [
        [
            sum(beats(float(SCORES[i, m]), float(SCORES[j, m])) for j in range(4) if j != i) / 3
            for m in range(4)
        ]
        for i in range(4)
    ]
    found = relative_values(SCORES, groups, "win_probability")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_ranks_share_the_mean_of_tied_places() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1])
    values = torch.tensor([[5.0], [7.0], [5.0], [1.0], [2.0]], dtype=torch.float64)
    assert fractional_ranks(values, groups).flatten().tolist() == [2.5, 1.0, 2.5, 2.0, 1.0]


def test_z_scores_have_mean_zero_and_population_deviation_one_within_each_prompt() -> None:
    groups = torch.tensor([0, 1, 0, 1, 0])
    values = torch.tensor([[1.0], [10.0], [2.0], [30.0], [6.0]], dtype=torch.float64)
    found = relative_values(values, groups, "z").flatten()
    for group in (0, 1):
        inside = found[groups == group]
        assert float(inside.mean()) == pytest.approx(0.0, abs=1e-12)
        assert float(inside.std(correction=0)) == pytest.approx(1.0)
    assert float(found[0]) == pytest.approx((1.0 - 3.0) / math.sqrt((4 + 1 + 9) / 3))


def test_equal_values_are_in_the_middle_of_every_unit() -> None:
    values = torch.full((3, 1), 0.1, dtype=torch.float64)  # three of them have no exact mean
    groups = torch.zeros(3, dtype=torch.int64)
    middles = {"z": 0.0, "minmax": 0.5, "rank": 2.0, "win_probability": 0.5}
    for unit, middle in middles.items():
        assert relative_values(values, groups, unit).flatten().tolist() == [middle] * 3


def test_min_max_runs_from_zero_to_one() -> None:
    groups = torch.zeros(3, dtype=torch.int64)
    values = torch.tensor([[2.0], [6.0], [3.0]], dtype=torch.float64)
    assert relative_values(values, groups, "minmax").flatten().tolist() == [0.0, 1.0, 0.25]


@pytest.mark.parametrize("how", [name for name in HOWS if "_" in name])
def test_neither_order_nor_other_prompts_nor_a_monotone_scale_of_ranks_move_a_score(how: str) -> None:
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    values = torch.cat([SCORES, SCORES[[2, 0, 1]] * 3.0 - 1.0])
    found = aggregate(values, groups, how=how)
    order = torch.tensor([5, 1, 3, 0, 6, 2, 4])
    shuffled = aggregate(values[order], groups[order], how=how)
    torch.testing.assert_close(shuffled.score, found.score[order])
    torch.testing.assert_close(shuffled.spread, found.spread[order])
    alone = aggregate(SCORES, torch.zeros(4, dtype=torch.int64), how=how)
    torch.testing.assert_close(alone.score, found.score[:4])
    if how.endswith(("rank", "win_probability")):
        curved = aggregate(values.exp(), groups, how=how)
        torch.testing.assert_close(curved.score, found.score)


def test_mean_worst_and_penalised_of_scaled_values_are_what_their_names_say() -> None:
    values = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    group = torch.zeros(1, dtype=torch.int64)
    weights = [3.0, 1.0]
    mean, variance = 1.75, 0.75 * 0.75**2 + 0.25 * 2.25**2
    assert aggregate(values, group, how="mean", weights=weights).score.tolist() == [mean]
    assert aggregate(values, group, how="min", weights=weights).score.tolist() == [1.0]
    penalised = aggregate(values, group, how="penalised", weights=weights, penalty=0.5)
    assert penalised.score.tolist() == [pytest.approx(mean - 0.5 * variance)]
    assert penalised.spread.tolist() == [pytest.approx(math.sqrt(variance))]


def test_the_worst_rank_is_the_largest_and_disagreement_raises_a_penalised_rank() -> None:
    values = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]], dtype=torch.float64)
    groups = torch.zeros(3, dtype=torch.int64)
    assert aggregate(values, groups, how="min_rank").score.tolist() == [3.0, 2.0, 3.0]
    assert aggregate(values, groups, how="penalised_rank").score.tolist() == [3.0, 2.0, 3.0]


def test_members_of_weight_zero_are_not_the_worst() -> None:
    values = torch.tensor([[1.0, -9.0]], dtype=torch.float64)
    found = aggregate(values, torch.zeros(1, dtype=torch.int64), how="min", weights=[1.0, 0.0])
    assert found.score.tolist() == [1.0]


def test_an_incomplete_sample_is_left_out_of_its_prompt() -> None:
    values = torch.cat([SCORES, torch.tensor([[99.0, math.nan, 9.0, 9.0]], dtype=torch.float64)])
    found = aggregate(values, torch.zeros(5, dtype=torch.int64))
    alone = aggregate(SCORES, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(found.score[:4], alone.score)
    assert math.isnan(found.score[4])
    assert not found.alone.any()


def test_aggregation_refuses_what_does_not_fit(untyped: AbstractContextManager[None]) -> None:
    group = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UnknownNameError, match=r"unknown ensemble 'mean_zz'\. Did you mean mean_z"):
        aggregate(SCORES, group, how="mean_zz")
    for weights in ([1.0], [1.0, -1.0, 1.0, 1.0], [0.0] * 4, [math.nan, 1.0, 1.0, 1.0]):
        with pytest.raises(ConfigError, match=r"ensemble weights: got .*expected 4 numbers >= 0"):
            aggregate(SCORES, group, weights=weights)
    with pytest.raises(ConfigError, match="ensemble penalty"):
        aggregate(SCORES, group, penalty=-1.0)
    with untyped, pytest.raises(ShapeError, match=r"got \[3 groups for 4 samples\]"):
        fractional_ranks(SCORES, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="relative_values unit"):
        relative_values(SCORES, group, "scaled")


def test_samples_are_grouped_by_prompt_by_an_extra_or_not_at_all() -> None:
    made = [Sample(prompt="a", extras={"set": 1}), Sample(prompt="b", extras={"set": 1})]
    assert group_numbers(groups_of(made)).tolist() == [0, 1]
    assert group_numbers(groups_of(made, "all")).tolist() == [0, 0]
    assert group_numbers(groups_of(made, "extras.set")).tolist() == [0, 0]
    with pytest.raises(ConfigError, match=r"samples\[0\]\.extras: got \[no 'user'\]"):
        groups_of(made, "extras.user")
    with pytest.raises(ConfigError, match=r"group: got 'promt', expected prompt, all or extras\.NAME"):
        groups_of(made, "promt")


# ------------------------------------------------------------------------------------------------ the reward


def test_an_ensemble_gives_score_spread_and_every_member_s_own_value() -> None:
    members = [table(name, column.tolist()) for name, column in zip("wxyz", SCORES.T, strict=True)]
    ensemble = Ensemble(members)
    made = [Sample(prompt="p", id=str(number)) for number in range(4)]
    scored = ensemble.score(made, batch_size=3)
    wins = relative_values(SCORES, torch.zeros(4, dtype=torch.int64), "win_probability")
    assert scored.outputs == ensemble.card.outputs == ("score", "spread", "w", "x", "y", "z")
    torch.testing.assert_close(scored.values[:, 0], wins.mean(1))
    torch.testing.assert_close(scored.values[:, 1], wins.std(1, correction=0))
    torch.testing.assert_close(scored.values[:, 2:], SCORES)
    assert scored.errors == (None,) * 4


@pytest.mark.parametrize("how", ["mean_win_probability", "mean_z", "mean"])
def test_batch_size_and_order_do_not_move_an_ensemble(how: str) -> None:
    scales = {"brightness": (0.5, 0.2), "dark": (0.5, 0.1)} if how == "mean" else None
    ensemble = Ensemble(
        [Brightness(gain=3.0), Brightness(name="dark", higher_is_better=False)], how=how, scales=scales
    )
    made = samples([10, 200, 30, 90, 120])
    expected = ensemble.score(made, batch_size=5).values
    for size in (1, 2, 3):
        torch.testing.assert_close(ensemble.score(made, batch_size=size).values, expected)
    order = [3, 1, 4, 0, 2]
    found = ensemble.score([made[place] for place in order]).values
    torch.testing.assert_close(found, expected[order])


def test_a_reward_whose_lower_values_are_better_is_turned_round() -> None:
    values = [1.0, 2.0, 3.0]
    made = [Sample(prompt="p", id=str(number)) for number in range(3)]
    up = Ensemble([table("d", values)]).score(made)
    down = Ensemble([table("d", values, higher=False)]).score(made)
    assert up.first().tolist() == [0.0, 0.5, 1.0]
    assert down.first().tolist() == [1.0, 0.5, 0.0]
    assert down.values[:, 2].tolist() == values, "the member's own column keeps its own unit"


def test_a_failed_member_is_named_and_leaves_the_others_as_if_the_sample_were_not_there() -> None:
    ensemble = Ensemble([Brightness(), table("t", [1.0, 2.0, 3.0, 4.0, 5.0])], weights={"t": 3.0})
    whole = ensemble.score(samples([10, None, 30, 40, 50], "aaaaa"))
    without = ensemble.score([sample for sample in samples([10, 0, 30, 40, 50], "aaaaa") if sample.id != "1"])
    torch.testing.assert_close(whole.values[[0, 2, 3, 4]], without.values)
    assert math.isnan(whole.values[1, 0])
    assert math.isnan(whole.values[1, 2])
    assert float(whole.values[1, 3]) == 2.0
    assert "brightness: " in str(whole.errors[1])
    assert "expected an image" in str(whole.errors[1])
    assert [error for place, error in enumerate(whole.errors) if place != 1] == [None] * 4


def test_a_lone_candidate_is_an_error_and_no_number() -> None:
    scored = Ensemble([Brightness()]).score(samples([10, 20, 30], "aab"))
    assert math.isnan(scored.values[2, 0])
    assert "the only complete candidate of its prompt" in str(scored.errors[2])
    assert scored.errors[:2] == (None, None)


def test_scaled_ways_depend_on_the_sample_alone() -> None:
    scales = {"brightness": Scale(0.2, 0.1), "words": Scale(2.0, 4.0)}
    bright = Brightness()
    ensemble = Ensemble([bright, Member(bright, output="words", name="words")], how="min", scales=scales)
    assert not ensemble.relative
    (scored,) = ensemble.score([Sample(prompt="a b c", image=picture(51))]).values.tolist()
    assert scored[0] == pytest.approx(0.0, abs=1e-6)  # min((0.2 - 0.2) / 0.1, (3 - 2) / 4)
    assert scored[2:] == [pytest.approx(0.2), 3.0]
    assert bright.calls == [1], "two outputs of one reward cost one forward"


def test_truncation_and_answers_of_any_member_are_passed_on() -> None:
    made = [Sample(prompt=prompt, image=picture(5)) for prompt in ("one two three four five six", "one")]
    scored = Ensemble([Brightness()], group="all").score(made)
    assert scored.truncated == (True, False)
    assert scored.raw == (None, None)


def test_the_gradient_of_a_scaled_ensemble_reaches_the_pixels() -> None:
    members = [Brightness(gain=2.0), Brightness(gain=5.0, name="other")]
    scales = {"brightness": (0.0, 2.0), "other": (0.0, 5.0)}
    ensemble = Ensemble(members, how="mean", scales=scales)
    pixels = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = ensemble.score_tensor(pixels, ["a", "b"])
    torch.testing.assert_close(found, pixels[:, 0].mean(dim=(1, 2)))
    found.sum().backward()
    torch.testing.assert_close(pixels.grad[:, 0], torch.full((2, 5, 7), 1 / 35))
    torch.testing.assert_close(
        found.detach().double(), ensemble.score([Sample(image=one) for one in pixels.detach()]).first()
    )
    with pytest.raises(ConfigError, match=r"score_tensor: got \[mean_rank\]"):
        Ensemble(members, how="mean_rank").score_tensor(pixels, ["a", "b"])


def test_the_fingerprint_follows_all_that_can_move_a_value() -> None:
    one, two = Brightness(), Brightness(gain=2.0, name="two")
    scales = {"brightness": (0.0, 1.0), "two": (0.0, 1.0)}
    made = [
        Ensemble([one, two]),
        Ensemble([one, two], how="mean_z"),
        Ensemble([one, two], weights=[1.0, 2.0]),
        Ensemble([one, two], group="all"),
        Ensemble([one, Brightness(gain=3.0, name="two")]),
        Ensemble([one, Member(two, output="words", name="two")]),
        Ensemble([one, Brightness(gain=2.0, name="two", higher_is_better=False)]),
        Ensemble([one, two], how="mean", scales=scales),
        Ensemble([one, two], how="mean", scales={**scales, "two": (0.5, 1.0)}),
        Ensemble([one, two], how="penalised", scales=scales),
        Ensemble([one, two], how="penalised", scales=scales, penalty=2.0),
    ]
    prints = [ensemble.fingerprint() for ensemble in made]
    assert len(set(prints)) == len(made)
    assert Ensemble([Brightness(), Brightness(gain=2.0, name="two")]).fingerprint() == prints[0]
    assert Ensemble([one, two], weights=[5.0, 5.0]).fingerprint() == prints[0], "only shares matter"


def test_ensembles_that_compare_candidates_say_so_and_do_not_nest() -> None:
    relative = Ensemble([Brightness()])
    assert is_relative(relative)
    assert not is_relative(Brightness())
    with pytest.raises(ConfigError, match="whose values depend on the other candidates"):
        Ensemble([relative])


def test_what_an_ensemble_refuses() -> None:
    one, two = Brightness(), Brightness(name="two")
    with pytest.raises(ConfigError, match=r"ensemble members: got \[none\]"):
        Ensemble([])
    with pytest.raises(
        ConfigError, match=r"got 'brightness', expected a name of its own.*Member\(reward, name"
    ):
        Ensemble([one, Brightness()])
    with pytest.raises(ConfigError, match="got 'spread'"):
        Ensemble([Member(one, name="spread")])
    with pytest.raises(
        ConfigError, match=r"none for brightness, two\].*differ a hundredfold.*measure_scales"
    ):
        Ensemble([one, two], how="mean")
    with pytest.raises(ConfigError, match=r"expected none for 'mean_z'"):
        Ensemble([one], how="mean_z", scales={"brightness": (0.0, 1.0)})
    with pytest.raises(ConfigError, match=r"scale of brightness: .* a spread above 0"):
        Ensemble([one], how="mean", scales={"brightness": (0.0, 0.0)})
    with pytest.raises(
        UnknownNameError, match=r"ensemble weights: member 'brigtness'.*Did you mean brightness"
    ):
        Ensemble([one], weights={"brigtness": 1.0})
    with pytest.raises(UnknownNameError, match=r"output of brightness 'sharpness'.*score, words"):
        Ensemble([Member(one, output="sharpness")])


def test_scales_are_measured_over_the_samples_that_could_be_scored() -> None:
    found = measure_scales([Brightness()], samples([51, 153, None]))
    assert found["brightness"] == (pytest.approx(0.4), pytest.approx(0.2))
    with pytest.raises(ConfigError, match=r"scale of brightness: got \[2 finite values, all equal\]"):
        measure_scales([Brightness()], samples([7, 7, None]))


# ------------------------------------------------------------------------------------------------ the file


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of rewards on the path."""
    source = "def words(batch):\n    return [len(one.prompt.split()) for one in batch]\n\n"
    source += "def letters(batch):\n    return [len(one.prompt) for one in batch]\n"
    (tmp_path / "ensemble_functions.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_file_names_an_ensemble_wherever_a_reward_is_named(functions: Path) -> None:
    file = functions / "length.yaml"
    file.write_text(
        "how: mean\nmembers:\n"
        "  - {reward: 'ensemble_functions:words', weight: 3, scale: {center: 1, spread: 2}, name: words}\n"
        "  - {reward: 'ensemble_functions:letters', scale: {center: 0, spread: 10}, name: letters}\n"
    )
    reward = rewards.load(str(file))
    assert reward.card.name == "length"
    (scored,) = reward.score([Sample(prompt="a bc def")]).values.tolist()
    assert scored[0] == pytest.approx((3 * (3 - 1) / 2 + 8 / 10) / 4)
    assert scored[2:] == [3.0, 8.0]


def test_a_reward_that_stands_twice_in_a_file_is_loaded_once(functions: Path) -> None:
    file = functions / "twice.yml"
    entry = "{{reward: 'ensemble_functions:words', name: {}}}"
    file.write_text("members:\n" + "".join(f"  - {entry.format(name)}\n" for name in ("a", "b")))
    first, second = load_ensemble(file).members
    assert first.reward is second.reward


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members: []", r"members: List should have at least 1 item"),
        (
            "members: [{reward: a, wieght: 2}]",
            r"members\.0\.wieght: Extra inputs are not permitted \(got 2\)",
        ),
        ("members: [{reward: a, scale: {center: 1, spread: 0}}]", r"spread: Input should be greater than 0"),
        ("- a\n- b", r"got 'list', expected a mapping with `members`"),
        ("members: [", r"cannot be read as YAML"),
    ],
)
def test_a_faulty_file_is_a_message_that_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "faulty.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)faulty\.yaml.*{message}"):
        read_ensemble(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ensemble .*none\.yaml: cannot be read"):
        read_ensemble(tmp_path / "none.yaml")


def test_ten_thousand_samples_are_combined_in_little_time() -> None:
    """Linear in the prompts: pairwise comparisons of all candidates of one prompt would not be."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10_000, 5, generator=generator, dtype=torch.float64)
    one_prompt = aggregate(values, torch.zeros(10_000, dtype=torch.int64))
    assert float(one_prompt.score.mean()) == pytest.approx(0.5)
    groups = torch.arange(10_000) // 7
    found = aggregate(values, groups)
    for start in itertools.islice(range(0, 10_000, 7), 3):
        part = aggregate(values[start : start + 7], torch.zeros(7, dtype=torch.int64))
        torch.testing.assert_close(found.score[start : start + 7], part.score)
