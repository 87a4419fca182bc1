"""Distillation and several scorings: against loops in plain Python, and what each loss is for."""

import math
from collections.abc import Callable

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from mmalign.errors import HyperparameterError, ShapeError
from mmalign.objectives.distillation import (
    adpa_loss,
    advantage,
    aligndistil_loss,
    are_consistent,
    dckd_loss,
    fast_slow_loss,
    sami_loss,
    scir_penalty,
)
from mmalign.objectives.policy_gradient import nash_md_loss

PROMPTS, TOKENS, VOCABULARY = 5, 3, 7
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def mask_of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Lengths 1, 2, 3, 1, ... over the last axis."""
    rows = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1]) % shape[-1]
    return (torch.arange(shape[-1]) <= rows.unsqueeze(-1)).to(dtype)


def chances(logits: Tensor) -> list[float]:
    """Softmax of one row, in Python."""
    top = max(logits.tolist())
    powers = [math.exp(value - top) for value in logits.tolist()]
    return [power / sum(powers) for power in powers]


def kl(first: list[float], second: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def near(tensor: Tensor, plain: list[float]) -> None:
    tolerance = 1e-9 if tensor.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        tensor.double(), torch.tensor(plain, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


# --- teacher and student ------------------------------------------------------------------------------------


@DTYPES
def test_dckd_is_the_mean_divergence_from_the_teacher_on_both_answers(dtype):
    shape = (PROMPTS, 2, TOKENS, VOCABULARY)
    student, teacher = normal(*shape, seed=0, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    mask, nll = mask_of(*shape[:-1], dtype=dtype), normal(PROMPTS, seed=2, dtype=dtype).abs()
    plain = []
    for i in range(PROMPTS):
        total = float(nll[i])
        for k in range(2):
            places = [t for t in range(TOKENS) if mask[i, k, t]]
            total += 0.3 * mean([kl(chances(teacher[i, k, t]), chances(student[i, k, t])) for t in places])
        plain.append(total)
    near(dckd_loss(student, teacher, mask, nll, strength=0.3), plain)


@DTYPES
def test_adpa_is_the_expected_advantage_of_the_next_token(dtype):
    shape = (PROMPTS, TOKENS, VOCABULARY)
    student, teacher, base = (normal(*shape, seed=seed, dtype=dtype) for seed in range(3))
    mask, nll = mask_of(*shape[:-1], dtype=dtype), normal(PROMPTS, seed=3, dtype=dtype).abs()
    plain = []
    for i in range(PROMPTS):
        values = []
        for t in (t for t in range(TOKENS) if mask[i, t]):
            aligned, before = chances(teacher[i, t]), chances(base[i, t])
            favour = [math.log(max(a, 0.05) / max(b, 0.05)) for a, b in zip(aligned, before, strict=True)]
            values.append(sum(p * a for p, a in zip(chances(student[i, t]), favour, strict=True)))
        plain.append(float(nll[i]) - 2.0 * mean(values))
    near(adpa_loss(student, teacher, base, mask, nll, strength=2.0, floor=0.05), plain)


@DTYPES
@pytest.mark.parametrize("per_token", [False, True])
def test_aligndistil_is_the_divergence_from_the_extrapolated_teacher(dtype, per_token):
    shape = (PROMPTS, TOKENS, VOCABULARY)
    student, base, aligned, contrast = (normal(*shape, seed=seed, dtype=dtype) for seed in range(4))
    mask = mask_of(*shape[:-1], dtype=dtype)
    factor = normal(PROMPTS, TOKENS, seed=5, dtype=dtype).abs() if per_token else 1.7
    plain = []
    for i in range(PROMPTS):
        values = []
        for t in (t for t in range(TOKENS) if mask[i, t]):
            much = float(factor[i, t]) if per_token else factor
            values.append(
                kl(
                    chances(student[i, t]),
                    chances(base[i, t] + much * (aligned[i, t] - contrast[i, t])),
                )
            )
        plain.append(mean(values))
    near(aligndistil_loss(student, base, aligned, contrast, mask, extrapolation=factor), plain)


def test_aligndistil_s_teacher_is_the_best_trade_of_reward_and_divergence():
    """No distribution has more `reward - kl_beta * KL(. || base)` than the teacher, with DPO's reward."""
    base, aligned = normal(VOCABULARY, seed=0), normal(VOCABULARY, seed=1)
    dpo_beta, kl_beta = 0.3, 0.2
    reward = dpo_beta * (aligned.log_softmax(-1) - base.log_softmax(-1))
    ahead = dpo_beta / kl_beta
    mask = torch.ones(1, 1, dtype=torch.float64)

    def gain(logits: Tensor) -> Tensor:
        policy = logits.log_softmax(-1)
        return (policy.exp() * (reward - kl_beta * (policy - base.log_softmax(-1)))).sum()

    student = normal(VOCABULARY, seed=2).requires_grad_()
    (loss_gradient,) = torch.autograd.grad(
        aligndistil_loss(
            student[None, None],
            base[None, None],
            aligned[None, None],
            base[None, None],
            mask,
            extrapolation=ahead,
        ).sum(),
        student,
    )
    (gain_gradient,) = torch.autograd.grad(gain(student), student)
    torch.testing.assert_close(-kl_beta * loss_gradient, gain_gradient)


def distillations() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Each loss as a function of student and teacher logits [prompt, candidate, inner, vocabulary]."""
    nll = torch.zeros(PROMPTS)
    return {
        "dckd": lambda student, teacher: dckd_loss(
            student, teacher, mask_of(PROMPTS, 2, TOKENS), nll, strength=1.0
        ),
        "adpa": lambda student, teacher: adpa_loss(
            student[:, 0],
            teacher[:, 0],
            teacher[:, 1],
            mask_of(PROMPTS, TOKENS),
            nll,
            strength=1.0,
            floor=1e-7,
        ),
        "aligndistil": lambda student, teacher: aligndistil_loss(
            student[:, 0],
            teacher[:, 0],
            teacher[:, 1],
            teacher[:, 0],
            mask_of(PROMPTS, TOKENS),
            extrapolation=1.5,
        ),
    }


EACH = pytest.mark.parametrize("name", list(distillations()))
FULL = (PROMPTS, 2, TOKENS, VOCABULARY)


@EACH
def test_gradient_reaches_the_student_and_nobody_else(name):
    student, teacher = normal(*FULL, seed=0).requires_grad_(), normal(*FULL, seed=1).requires_grad_()
    loss = distillations()[name](student, teacher)
    gradients = torch.autograd.grad(loss.sum(), (student, teacher), allow_unused=True)
    assert gradients[0] is not None
    assert gradients[0].abs().max() > 0
    assert gradients[1] is None


@EACH
@pytest.mark.parametrize("filling", [math.nan, math.inf, 1e30])
def test_padding_counts_for_nothing_whatever_it_holds(name, filling):
    student, teacher = normal(*FULL, seed=0), normal(*FULL, seed=1)
    # Every candidate is cut like the first: some losses take only one of the two.
    padded = (mask_of(PROMPTS, TOKENS)[:, None].expand(FULL[:-1]) == 0) & (mask_of(*FULL[:-1]) == 0)
    dirty = [
        torch.where(padded[..., None], torch.full_like(value, filling), value) for value in (student, teacher)
    ]
    leaf = dirty[0].requires_grad_()
    loss = distillations()[name](leaf, dirty[1])
    torch.testing.assert_close(loss, distillations()[name](student, teacher))
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient.isfinite().all()


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(name, dtype):
    student = (1e4 * normal(*FULL, seed=0)).to(dtype).requires_grad_()
    loss = distillations()[name](student, (1e4 * normal(*FULL, seed=1)).to(dtype))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@EACH
def test_the_level_of_logits_does_not_matter_and_rows_stand_alone(name):
    student, teacher = normal(*FULL, seed=0), normal(*FULL, seed=1)
    loss = distillations()[name](student, teacher)
    torch.testing.assert_close(distillations()[name](student + 5.0, teacher - 3.0), loss)
    changed = student.clone()
    changed[2] *= 3.0
    moved = distillations()[name](changed, teacher) != loss
    assert moved.tolist() == [False, False, True, False, False]


def test_a_student_like_its_teacher_has_nothing_to_learn():
    student, mask = normal(*FULL, seed=0).requires_grad_(), mask_of(*FULL[:-1])
    loss = dckd_loss(student, student.detach().clone(), mask, torch.zeros(PROMPTS), strength=1.0)
    near(loss.detach(), [0.0] * PROMPTS)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_a_teacher_may_exclude_tokens():
    teacher = normal(*FULL, seed=1)
    teacher[..., 3] = -math.inf
    student = normal(*FULL, seed=0).requires_grad_()
    for name in ("dckd", "adpa"):
        loss = distillations()[name](student, teacher)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_adpa_moves_probability_to_what_alignment_favoured():
    student, base = torch.zeros(1, 1, VOCABULARY, requires_grad=True), torch.zeros(1, 1, VOCABULARY)
    teacher = base.clone()
    teacher[..., 2] = 1.0
    loss = adpa_loss(student, teacher, base, torch.ones(1, 1), torch.zeros(1), strength=1.0, floor=1e-7)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert (gradient < 0).flatten().tolist() == [token == 2 for token in range(VOCABULARY)]


def test_the_floor_bounds_the_advantage_of_tokens_nobody_writes():
    teacher, base = torch.tensor([0.0, -80.0, 0.0]), torch.tensor([0.0, -40.0, 0.0])
    favour = advantage(teacher, base, floor=1e-7)
    assert favour[1] == 0.0
    assert advantage(torch.tensor([0.0, -800.0]), torch.tensor([-800.0, 0.0]), floor=1e-7).abs().max() == (
        pytest.approx(-math.log(1e-7), rel=1e-5)
    )


@pytest.mark.parametrize("floor", [0.0, 1.0, math.nan])
def test_a_floor_is_a_probability(floor):
    with pytest.raises(HyperparameterError, match=r"advantage floor: got .*, expected a number in \(0, 1\)"):
        advantage(torch.zeros(3), torch.zeros(3), floor=floor)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_strengths_are_finite_and_not_negative(value):
    logits, mask, nll = normal(*FULL, seed=0), mask_of(*FULL[:-1]), torch.zeros(PROMPTS)
    one, two = logits[:, 0], logits[:, :, 0, 0]
    for where, call in {
        "dckd_loss strength": lambda: dckd_loss(logits, logits, mask, nll, strength=value),
        "adpa_loss strength": lambda: adpa_loss(one, one, one, mask[:, 0], nll, strength=value, floor=0.1),
        "aligndistil_loss extrapolation": lambda: aligndistil_loss(
            one, one, one, one, mask[:, 0], extrapolation=value
        ),
        "scir_penalty confidence": lambda: scir_penalty(two, confidence=value),
        "fast_slow_loss strength": lambda: fast_slow_loss(two, two, two, beta=0.1, strength=value),
    }.items():
        with pytest.raises(HyperparameterError, match=rf"{where}: got .*, expected a finite number >= 0"):
            call()


def test_shapes_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as in a script, whose annotations nobody checks
    logits, mask, nll = normal(*FULL, seed=0), mask_of(*FULL[:-1]), torch.zeros(PROMPTS)
    with pytest.raises(
        ShapeError, match=r"dckd_loss: student has shape \[5, 2, 3, 7\], teacher \[5, 2, 3, 6\]"
    ):
        dckd_loss(logits, logits[..., 1:], mask, nll, strength=1.0)
    with pytest.raises(ShapeError, match=r"dckd_loss: got logits \[5, 2, 3, 7\] and a mask \[5, 2, 2\]"):
        dckd_loss(logits, logits, mask[..., 1:], nll, strength=1.0)
    with pytest.raises(ShapeError, match="sami_loss: got 2 constitutions and 3 answers"):
        sami_loss(torch.zeros(PROMPTS, 2, 3))
    with pytest.raises(ShapeError, match="sami_loss: got 1 constitutions"):
        sami_loss(torch.zeros(PROMPTS, 1, 1))
    with pytest.raises(ShapeError, match="scir_penalty: got 1 judge, expected at least two"):
        scir_penalty(torch.zeros(PROMPTS, 1), confidence=0.0)
    with pytest.raises(ShapeError, match="fast_slow_loss: got 3 candidates, expected 2"):
        fast_slow_loss(*(torch.zeros(PROMPTS, 3) for _ in range(3)), beta=0.1, strength=0.1)


# --- several scorings ---------------------------------------------------------------------------------------


@DTYPES
def test_sami_is_the_cross_entropy_of_rows_and_columns(dtype):
    scores = normal(PROMPTS, 3, 3, seed=0, dtype=dtype)
    plain = []
    for table in scores:
        rows = [-math.log(chances(table[i])[i]) for i in range(3)]
        columns = [-math.log(chances(table[:, i])[i]) for i in range(3)]
        plain.append((mean(rows) + mean(columns)) / 2)
    near(sami_loss(scores), plain)


def test_sami_knows_nothing_at_first_and_ends_at_nothing():
    near(sami_loss(torch.zeros(2, 7, 7, dtype=torch.float64)), [math.log(7)] * 2)
    near(sami_loss(1e4 * torch.eye(7).expand(2, 7, 7)), [0.0, 0.0])


def test_sami_only_compares_within_a_prompt():
    scores = normal(PROMPTS, 3, 3, seed=0)
    torch.testing.assert_close(sami_loss(scores + 4.0), sami_loss(scores))
    torch.testing.assert_close(sami_loss(scores.flip(0)), sami_loss(scores).flip(0))
    torch.testing.assert_close(sami_loss(scores.flip(1, 2)), sami_loss(scores))


@DTYPES
def test_scir_is_symmetric_divergence_and_entropy(dtype):
    logits = normal(PROMPTS, 3, seed=0, dtype=dtype)
    plain = []
    for row in logits.tolist():
        coins = [[p, 1 - p] for p in (1 / (1 + math.exp(-value)) for value in row)]
        pairs = [(a, b) for n, a in enumerate(coins) for b in coins[n + 1 :]]
        disagreement = mean([(kl(a, b) + kl(b, a)) / 2 for a, b in pairs])
        entropy = mean([-sum(p * math.log(p) for p in coin) for coin in coins])
        plain.append(disagreement + 0.3 * entropy)
    near(scir_penalty(logits, confidence=0.3), plain)


def test_scir_costs_nothing_when_judges_agree_and_are_sure():
    near(scir_penalty(torch.full((3, 2), 1e4), confidence=1.0), [0.0] * 3)
    near(scir_penalty(torch.zeros(3, 2), confidence=1.0), [math.log(2)] * 3)
    near(scir_penalty(torch.full((3, 2), 0.7), confidence=0.0), [0.0] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_odds_give_finite_penalties_and_gradients(dtype):
    logits = torch.tensor([[1e4, -1e4], [1e4, 1e4], [0.0, -1e4]], dtype=dtype, requires_grad=True)
    loss = scir_penalty(logits, confidence=0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_only_pairs_on_which_all_judges_agree_are_consistent():
    logits = torch.tensor([[0.1, 2.0, 3.0], [-0.1, -1.0, -3.0], [0.1, -1.0, 3.0], [0.0, 1.0, 1.0]])
    assert are_consistent(logits).tolist() == [True, True, False, False]


@DTYPES
def test_fast_and_slow_have_dpo_losses_and_opposite_parts_of_the_chase(dtype):
    fast, slow, reference = (normal(PROMPTS, 2, seed=seed, dtype=dtype) for seed in range(3))
    out = fast_slow_loss(fast, slow, reference, beta=0.4, strength=0.2)
    plain_fast, plain_slow = [], []
    for f, s, r in zip(fast.tolist(), slow.tolist(), reference.tolist(), strict=True):

        def nll(first: list[float], second: list[float]) -> float:
            return math.log(1 + math.exp(-0.4 * ((first[0] - second[0]) - (first[1] - second[1]))))

        plain_fast.append(nll(f, r) + 0.2 * nll(f, s))
        plain_slow.append(nll(s, r) - 0.2 * nll(f, s))
    near(out.fast, plain_fast)
    near(out.slow, plain_slow)
    near(out.gap, (0.4 * ((fast[:, 0] - fast[:, 1]) - (slow[:, 0] - slow[:, 1]))).tolist())


def test_each_module_is_trained_by_its_own_loss_alone():
    fast, slow = normal(PROMPTS, 2, seed=0).requires_grad_(), normal(PROMPTS, 2, seed=1).requires_grad_()
    reference = normal(PROMPTS, 2, seed=2).requires_grad_()
    out = fast_slow_loss(fast, slow, reference, beta=0.4, strength=0.2)
    leaves = (fast, slow, reference)
    of_fast = torch.autograd.grad(out.fast.sum(), leaves, allow_unused=True)
    of_slow = torch.autograd.grad(out.slow.sum(), leaves, allow_unused=True)
    assert [value is None for value in of_fast] == [False, True, True]
    assert [value is None for value in of_slow] == [True, False, True]
    # Both are pulled towards the chosen candidate: the fast one to keep its lead, the slow one to catch up.
    assert (of_fast[0][:, 0] < 0).all()
    assert (of_slow[1][:, 0] < 0).all()


def test_a_strength_of_nothing_leaves_two_dpo_losses():
    from mmalign import objectives
    from mmalign.batch import Labels

    fast, slow, reference = (normal(PROMPTS, 2, seed=seed) for seed in range(3))
    out = fast_slow_loss(fast, slow, reference, beta=0.4, strength=0.0)
    for ours, policy in ((out.fast, fast), (out.slow, slow)):
        scores = objectives.Scores(policy=policy, reference=reference)
        torch.testing.assert_close(ours, objectives.dpo(beta=0.4)(scores, Labels.pairs(PROMPTS)).loss)


def test_far_leads_stay_finite():
    fast = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    out = fast_slow_loss(fast, torch.zeros(2, 2), torch.zeros(2, 2), beta=1.0, strength=0.5)
    (gradient,) = torch.autograd.grad((out.fast + out.slow).sum(), fast)
    assert out.fast.isfinite().all()
    assert out.slow.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_is_positive(beta):
    scores = torch.zeros(PROMPTS, 2)
    with pytest.raises(
        HyperparameterError, match=r"fast_slow_loss beta: got .*, expected a finite number > 0"
    ):
        fast_slow_loss(scores, scores, scores, beta=beta, strength=0.1)


@pytest.mark.compiled
def test_every_loss_is_one_graph_without_a_look_at_its_numbers():
    student, teacher = normal(*FULL, seed=0), normal(*FULL, seed=1)
    scores, table = normal(PROMPTS, 2, seed=2), normal(PROMPTS, 3, 3, seed=3)
    calls: dict[str, Callable[[], Tensor]] = {
        name: lambda loss=loss: loss(student, teacher) for name, loss in distillations().items()
    }
    calls["sami"] = lambda: sami_loss(table)
    calls["scir"] = lambda: scir_penalty(scores, confidence=0.5)
    calls["fast_slow"] = lambda: fast_slow_loss(scores, -scores, 0 * scores, beta=0.4, strength=0.2).slow
    calls["nash_md"] = lambda: (
        nash_md_loss(
            student[:, 0, :, 0],
            teacher[:, 0, :, 0],
            scores[:, 0].sigmoid(),
            mask_of(PROMPTS, TOKENS),
            beta=0.1,
            penalty_credit="token",
        ).loss
    )
    for name, call in calls.items():
        torch.compiler.reset()
        found = torch.compile(call, fullgraph=True, backend="eager")()
        torch.testing.assert_close(found, call(), msg=lambda text, name=name: f"{name}: {text}")
