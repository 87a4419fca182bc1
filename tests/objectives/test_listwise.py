"""Lists and rankings: ties and padding against loops, what two candidates reduce to, messages."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError
from mmalign.objectives import ObjectiveState, Scores
from mmalign.objectives.rankings import curriculum
from mmalign.testing.parity import adapter_module

PLAIN = adapter_module(Path(__file__).parent / "plain_listwise.py").PLAIN
LISTS = [name for name in PLAIN if objectives.row(name).data == "lists"]
PROMPTS, CANDIDATES = 7, 5
# The rows of ranks and grades read the relevance itself, so they take no list without one.
NEED_RELEVANCE = {
    "irpo_incontext_ranking",
    "irpo_incontext_ranking_official",
    "lipo_lambda",
    "lipo_point_mse",
    "lipo_point_sigmoid",
    "lipo_softmax",
    "rankdpo",
    "tree_po",
    "tree_po_rank",
}


def arguments(name):
    defaults = {
        key: given.default
        for key, given in objectives.signature(name).parameters.items()
        if given.default is not given.empty
    }
    return defaults | dict(objectives.registered(name).sample)


def lists(seed, *, tied, padded):
    """Random lists; NaN at padding, so that nothing there may be looked at."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    shape = (PROMPTS, CANDIDATES)
    relevance = (1 + draw(*shape).mul(3).floor()) / 4 if tied else 0.1 + 0.8 * draw(*shape)
    valid = torch.ones(shape, dtype=torch.bool)
    if padded:
        for row in range(PROMPTS):  # 0, 1, ... real candidates, anywhere in the list
            valid[row] = draw(CANDIDATES).argsort() < row
    blank = torch.where(valid, 0.0, math.nan)
    scores = Scores(
        policy=(-4 * draw(*shape) + blank).requires_grad_(),
        reference=-4 * draw(*shape) + blank,
        reward=draw(*shape) + blank,
        extras={
            "rank": draw(*shape).argsort(1).double() + 1.0,
            "task_weight": draw(PROMPTS),
            "step_weight": draw(*shape),
        },
    )
    return scores, Labels(relevance=relevance, valid=valid if padded else None)


def assert_plain(name, scores, labels):
    built = objectives.registered(name).builder(**objectives.registered(name).sample)
    out = built(scores, labels)
    expected = PLAIN[name](scores, labels, arguments(name))
    torch.testing.assert_close(out.loss, expected, rtol=1e-9, atol=1e-12)
    (wanted,) = torch.autograd.grad(expected.sum(), scores.policy)
    (found,) = torch.autograd.grad(out.loss.sum(), scores.policy)
    torch.testing.assert_close(found, wanted.nan_to_num(), rtol=1e-8, atol=1e-11)
    for value in out.metrics.values():
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("tied", [False, True], ids=["strict", "tied"])
@pytest.mark.parametrize("name", LISTS)
def test_ties_and_padding_are_what_the_sums_of_the_paper_say(name, tied, padded):
    assert_plain(name, *lists(5, tied=tied, padded=padded))


@pytest.mark.parametrize("name", [name for name in LISTS if name not in NEED_RELEVANCE])
def test_without_relevance_candidates_stand_best_first(name):
    scores, _ = lists(6, tied=False, padded=False)
    assert_plain(name, scores, Labels())


@pytest.mark.parametrize("name", sorted(NEED_RELEVANCE))
def test_grades_are_asked_for_by_name(name):
    scores, _ = lists(6, tied=False, padded=False)
    built = objectives.registered(name).builder(**objectives.registered(name).sample)
    with pytest.raises(ConfigError, match=r"Labels\.relevance.*got None"):
        built(scores, Labels())


def pair(seed=2):
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    return Scores(policy, reference), Labels(relevance=torch.tensor([[0.9, 0.2]] * 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("listwise", "pairwise"),
    [
        (objectives.s_dpo(beta=0.7), objectives.dpo(beta=0.7)),
        (objectives.dmpo_recommendation(beta=0.7), objectives.dpo(beta=0.7)),
        (objectives.plackett_luce_dpo(beta=0.7), objectives.dpo(beta=0.7)),
        (objectives.lipo_pair_logistic(beta=0.7), objectives.dpo(beta=0.7)),
        (objectives.lipo_pair_hinge(beta=0.7), objectives.hinge(beta=0.7)),
        (objectives.curry_dpo(beta=0.7), objectives.dpo(beta=0.7)),
    ],
    ids=lambda objective: objective.name,
)
def test_two_candidates_are_a_pair(listwise, pairwise):
    scores, labels = pair()
    labels = labels if objectives.row(listwise.name).data == "lists" else Labels()
    expected = pairwise(scores, Labels())
    found = listwise(scores, labels)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.logit, expected.logit, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        found.metrics["gradient_factor"], expected.metrics["gradient_factor"], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    "name", ["plackett_luce_dpo", "lipo_lambda", "lipo_pair_logistic", "lipo_pair_hinge"]
)
def test_mean_divides_the_sum_by_what_was_summed(name):
    scores, labels = lists(8, tied=False, padded=False)
    number = CANDIDATES - 1 if name == "plackett_luce_dpo" else CANDIDATES * (CANDIDATES - 1) / 2
    summed, mean = (
        objectives.build(name, beta=0.3, aggregate=how)(scores, labels) for how in ("sum", "mean")
    )
    torch.testing.assert_close(mean.loss, summed.loss / number)
    torch.testing.assert_close(mean.metrics["gradient_factor"], summed.metrics["gradient_factor"] / number)


def test_adpo_on_raw_rewards_is_infonca_and_its_z_scores_ignore_the_unit():
    scores, labels = lists(9, tied=False, padded=False)
    raw = objectives.adpo_listwise(anchor_temperature=0.8, reward_temperature=0.5, rewards="raw")
    expected = objectives.infonca(beta=1.25, temperature=0.5)(scores, labels).loss
    torch.testing.assert_close(raw(scores, labels).loss, expected)
    own = objectives.adpo_listwise(anchor_temperature=0.8, reward_temperature=0.5, rewards="standardised")
    other = replace(scores, reward=100 * scores.reward - 3)
    torch.testing.assert_close(own(other, labels).loss, own(scores, labels).loss, rtol=1e-6, atol=0)


def test_equal_rewards_make_a_uniform_target():
    scores, labels = lists(9, tied=False, padded=False)
    same = replace(scores, reward=torch.ones_like(scores.reward))
    built = objectives.adpo_listwise(anchor_temperature=1.0, reward_temperature=0.5, rewards="standardised")
    u = scores.policy - scores.reference
    torch.testing.assert_close(built(same, labels).loss, -u.log_softmax(1).mean(1))


def test_official_exo_differs_from_the_normalised_target_by_a_constant():
    scores, _ = pair()
    share = math.exp(-10) / (1 + math.exp(-10))
    official = objectives.exo_pref_official(beta=0.5)(scores, Labels()).loss
    normalised = objectives.exo_pair(beta=0.5, label_smoothing=share)(scores, Labels()).loss
    torch.testing.assert_close(normalised - official, torch.full((3,), math.log1p(math.exp(-10))).double())


def test_softmax_dpo_pushes_the_hardest_candidate_most_and_the_mean_pushes_all_alike():
    policy = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    scores = Scores(policy, torch.zeros(1, 3, dtype=torch.float64))
    hard = torch.autograd.grad(objectives.s_dpo(beta=1.0)(scores, Labels()).loss.sum(), policy)[0][0]
    even = torch.autograd.grad(objectives.dmpo_recommendation(beta=1.0)(scores, Labels()).loss.sum(), policy)[
        0
    ][0]
    assert hard[1] / hard[2] == pytest.approx(math.exp(2))
    assert even[1] == pytest.approx(even[2].item())
    assert hard.sum() == pytest.approx(0.0, abs=1e-12)


def test_released_residue_of_in_context_ranking_vanishes_at_the_released_temperature():
    scores, labels = lists(3, tied=True, padded=True)
    for beta, same in ((1.0, True), (0.1, False)):
        exact = objectives.irpo_incontext_ranking(beta=beta)(scores, labels).loss
        official = objectives.irpo_incontext_ranking_official(beta=beta)(scores, labels).loss
        assert torch.allclose(exact, official, rtol=1e-12, atol=0) is same
        assert torch.allclose(exact, official, rtol=1e-3, atol=0)


def test_relevance_without_any_win_gives_a_softmax_target_of_zero():
    scores, labels = lists(4, tied=False, padded=False)
    nothing = Labels(relevance=torch.zeros_like(labels.relevance))
    loss = objectives.lipo_softmax(beta=0.05)(scores, nothing).loss
    assert loss.abs().max() < 1e-300


def test_ranks_of_the_weights_follow_scores_or_labels():
    """Best first by label, worst first by score: the outer pair is swapped, so both rules give it the same
    weight; the pair of first and second is ranks 1 and 2 by label, 3 and 2 by score."""
    labels = Labels(relevance=torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64))
    scores = Scores(
        torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    )

    def cost(first, second):
        return abs(1 / math.log(1 + first) - 1 / math.log(1 + second))

    def softplus(x):
        return math.log1p(math.exp(x))

    gains = (2**1 - 2**0.5, 2**0.5 - 1, 1.0)
    for ranks, (one, two, three) in (("labels", (1, 2, 3)), ("scores", (3, 2, 1))):
        loss = objectives.rankdpo(beta=1.0, ranks=ranks)(scores, labels).loss.item()
        expected = (
            gains[0] * cost(one, two) * softplus(1)
            + gains[1] * cost(two, three) * softplus(1)
            + gains[2] * cost(one, three) * softplus(2)
        )
        assert loss == pytest.approx(expected, rel=1e-12)


def test_tree_ranking_pulls_the_best_up_where_the_released_wrapper_pushes_it_down():
    policy = torch.tensor([[0.3, -0.2, 0.1, 0.4]], dtype=torch.float64, requires_grad=True)
    labels = Labels(relevance=torch.tensor([[0.9, 0.3, 0.1, 0.5]], dtype=torch.float64))
    loss = objectives.tree_po_rank(beta=1.0)(Scores(policy, torch.zeros_like(policy)), labels).loss.sum()
    wrapped = -torch.nn.functional.logsigmoid(0.1 * loss)
    (right,) = torch.autograd.grad(loss, policy, retain_graph=True)
    (wrong,) = torch.autograd.grad(wrapped, policy)
    assert right[0, 0] < 0 < wrong[0, 0]


def test_ties_and_the_diagonal_of_the_tree_cost_a_constant():
    policy = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    same = Labels(relevance=torch.ones(1, 3, dtype=torch.float64))
    loss = objectives.tree_po_rank(beta=1.0)(Scores(policy, torch.zeros(1, 3).double()), same).loss
    assert loss.item() == pytest.approx(9 * math.log(2) / 6)
    assert torch.autograd.grad(loss.sum(), policy)[0].abs().max() == 0


def test_steps_that_resemble_the_best_answer_count_more():
    policy = torch.tensor([[[1.0, 3.0], [2.0, 0.0]]], dtype=torch.float64)
    weight = torch.tensor([[[1.0, 1.0], [1.5, 0.5]]], dtype=torch.float64)
    scores = Scores(policy, torch.zeros_like(policy), extras={"step_weight": weight})
    labels = Labels(relevance=torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    out = objectives.tree_po(beta=1.0)(scores, labels)
    assert out.logit.item() == pytest.approx(2.0 - 1.5)
    assert out.loss.item() == pytest.approx(math.log1p(math.exp(-0.5)) + math.log(2))


TOKENS = Scores(
    policy=-torch.tensor([[[1.0, 3.0], [2.0, 2.0], [4.0, 4.0]]], dtype=torch.float64),
    mask=torch.tensor([[[1, 1], [1, 0], [1, 1]]]),
    reward=torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64),
)


def test_preference_ranking_by_hand():
    """Means -2, -2, -4; stage 1: temperatures 2 (own), 1, 2; stage 2: 1 (own), 1. Sum of the best: -4."""
    first = math.log(math.exp(-4) + math.exp(-2) + math.exp(-8)) + 4
    second = math.log(math.exp(-2) + math.exp(-4)) + 2
    loss = objectives.pro(sft_weight=0.05)(TOKENS, Labels()).loss
    assert loss.item() == pytest.approx(first + second + 0.05 * 4 * 4, rel=1e-12)


def test_preference_ranking_learns_the_answer_it_is_given():
    given = replace(TOKENS, extras={"supervised": torch.tensor([[0.0, 0.0, 1.0]])})
    best, other = (
        objectives.pro(sft_weight=0.5, supervised=which)(given, Labels()).terms["nll"].item()
        for which in ("best", "given")
    )
    assert (best, other) == pytest.approx((0.5 * 4 * 4, 0.5 * 4 * 8))


def test_knowledge_alignment_by_hand():
    """Scores -1, -3, -2: weights 1 and 0 of the first two."""

    def softplus(x):
        return math.log1p(math.exp(x))

    scores = Scores(torch.tensor([[-1.0, -3.0, -2.0]], dtype=torch.float64))
    expected = softplus(1) + (softplus(-3) + softplus(-2)) / 2
    for divisor in (3.0, 2.0):
        loss = objectives.knowpat_align(divisor=divisor)(scores, Labels()).loss.item()
        assert loss == pytest.approx(expected / divisor, rel=1e-12)


def test_equally_likely_answers_are_aligned_with_full_weight():
    policy = torch.full((1, 3), -2.0, requires_grad=True)
    loss = objectives.knowpat_align(divisor=3.0)(Scores(policy), Labels()).loss
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert torch.isfinite(loss).all()
    assert gradient[0, 0] < 0 < gradient[0, 2]


def test_equal_task_weights_change_nothing():
    scores, labels = lists(7, tied=True, padded=True)
    even = replace(scores, extras={"task_weight": torch.full((PROMPTS,), 0.25, dtype=torch.float64)})
    plain = objectives.reward_ranking()(even, labels).loss
    torch.testing.assert_close(objectives.more_ranking(tasks=4)(even, labels).loss, plain)


def test_every_pair_of_the_batch_weighs_the_same_wherever_its_list_lies():
    """A list of three and one of two: four pairs. On two ranks the other one's counts come by the sum."""
    labels = Labels(
        relevance=torch.tensor([[3.0, 2.0, 1.0], [2.0, 1.0, 0.0]], dtype=torch.float64),
        valid=torch.tensor([[True, True, True], [True, True, False]]),
    )
    scores = Scores(torch.zeros(2, 3, dtype=torch.float64))
    whole = objectives.reward_ranking()(scores, labels).loss
    assert whole.tolist() == pytest.approx([3 * 2 / 4 * math.log(2), 2 / 4 * math.log(2)])
    state = ObjectiveState(sum_across=lambda value: value + torch.tensor([1.0, 1.0], dtype=torch.float64))
    mine = Labels(relevance=labels.relevance[:1], valid=labels.valid[:1])
    alone = objectives.reward_ranking()(Scores(scores.policy[:1]), mine, state).loss
    assert alone.item() == pytest.approx(whole[0].item())


def test_curriculum_goes_from_the_widest_gap_to_the_narrowest():
    stages = curriculum(torch.tensor([[2.0, 5.0, 4.0, 3.0]]))
    assert stages.chosen.tolist() == [[1, 1, 1]]
    assert stages.rejected.tolist() == [[0, 3, 2]]
    assert stages.gap.tolist() == [[3.0, 2.0, 1.0]]
    assert stages.valid.all()


def test_curriculum_leaves_out_ties_with_the_best_and_padding():
    stages = curriculum(
        torch.tensor([[4.0, 4.0, 1.0], [9.0, 1.0, 2.0]]),
        torch.tensor([[True, True, True], [False, True, True]]),
    )
    assert stages.valid.tolist() == [[True, False], [True, False]]
    assert stages.chosen[:, 0].tolist() == [0, 2]
    assert stages.rejected[:, 0].tolist() == [2, 1]
    assert stages.gap.tolist() == [[3.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: objectives.exo_pair(beta=1.0, label_smoothing=0.0), r"exo_pair label_smoothing: got 0\.0"),
        (
            lambda: objectives.exo_pref_official(beta=1.0, log_epsilon=0.0),
            r"exo_pref_official log_epsilon: got 0\.0, expected a finite number < 0",
        ),
        (lambda: objectives.exo_listwise(beta=0.0, temperature=1.0), "exo_listwise beta"),
        (lambda: objectives.dpo_rw(beta=1.0, temperature=0.0), r"temperature: got 0\.0"),
        (
            lambda: objectives.adpo_listwise(anchor_temperature=0.0, reward_temperature=1.0, rewards="raw"),
            r"adpo_listwise anchor_temperature: got 0\.0, expected a number > 0",
        ),
        (
            lambda: objectives.adpo_listwise(anchor_temperature=1.0, reward_temperature=1.0, rewards="ranks"),
            r"adpo_listwise rewards: got 'ranks', expected 'raw' or 'standardised'",
        ),
        (
            lambda: objectives.lipo_lambda(beta=1.0, aggregate="max"),
            r"lipo_lambda aggregate: got 'max', expected 'sum' or 'mean'",
        ),
        (lambda: objectives.rankdpo(beta=1.0, ranks="rewards"), r"rankdpo ranks: got 'rewards'"),
        (lambda: objectives.pro(sft_weight=-1.0), r"pro sft_weight: got -1\.0, expected a number >= 0"),
        (lambda: objectives.pro(sft_weight=1.0, supervised="worst"), r"pro supervised: got 'worst'"),
        (lambda: objectives.knowpat_align(divisor=0.0), r"knowpat_align divisor: got 0\.0"),
        (lambda: objectives.more_ranking(tasks=0.5), r"more_ranking tasks: got 0\.5, expected a number >= 1"),
    ],
)
def test_wrong_hyperparameters_are_explained(build, message, untyped):
    with untyped, pytest.raises(HyperparameterError, match=message):
        build()


@pytest.mark.parametrize("name", ["adpo_listwise", "exo_listwise", "infonca", "pro"])
def test_missing_rewards_are_explained(name):
    scores, labels = lists(1, tied=False, padded=False)
    built = objectives.registered(name).builder(**objectives.registered(name).sample)
    with pytest.raises(ConfigError, match=r"reward.*got None.*Pass"):
        built(replace(scores, reward=None), labels)


def test_single_candidates_cannot_be_ranked():
    with pytest.raises(Exception, match="objective s_dpo: got 1 candidate per prompt, expected at least 2"):
        objectives.s_dpo(beta=1.0)(Scores(torch.zeros(3, 1), torch.zeros(3, 1)), Labels())
