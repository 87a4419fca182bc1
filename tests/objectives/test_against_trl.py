"""Every loss type of the trainers of trl on random inputs: their own methods, on stubs that return numbers.

Values and gradients. The recorded cases of tests/parity hold single points; here shapes, masks and
hyperparameters vary.
"""

import contextlib
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl.experimental.a2po.a2po_trainer import A2POTrainer
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.experimental.tpo.tpo_trainer import TPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.likelihood import token_log_probs
from mmalign.objectives import Scores

PAIRS, TOKENS = 5, 7
BETA = 0.3


class Stub:
    """What a trainer's loss method asks of its trainer and of accelerate."""

    def __init__(self, **settings):
        self.model = torch.nn.Module()  # in training mode
        self.accelerator = SimpleNamespace(
            device="cpu", gather_for_metrics=lambda value: value, gather=lambda value: value
        )
        self.aux_loss_enabled = False
        self.precompute_ref_logps = False
        self.args = SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False)
        self._metrics = {"train": defaultdict(list)}
        self._total_train_tokens = 0
        self._tp_size = 1
        self.ref_model = None
        for name, value in settings.items():
            setattr(self, name, value)


def network(log_probs, **more):
    """A model that returns the given log-probabilities of its labels."""
    filler = torch.zeros_like(log_probs).detach()

    def forward(**_):
        return SimpleNamespace(
            log_probs=log_probs, entropy=filler, mean_logits=filler, is_top1=filler.bool(), **more
        )

    return forward


@pytest.fixture
def numbers(monkeypatch):
    """Token scores [2 * pairs, tokens] of policy (with gradient) and reference, a mask, and their Scores."""
    monkeypatch.setattr(
        "trl.trainer.dpo_trainer.disable_gradient_checkpointing", lambda *_: contextlib.nullcontext()
    )
    monkeypatch.setattr(
        "trl.trainer.kto_trainer.disable_gradient_checkpointing", lambda *_: contextlib.nullcontext()
    )

    def make(seed):
        generator = torch.Generator().manual_seed(seed)

        def draw(*size):
            return torch.rand(*size, generator=generator, dtype=torch.float64)

        mask = (draw(2 * PAIRS, TOKENS) > 0.3).double()
        mask[:, 0] = 1.0
        policy = (-0.1 - 2 * draw(2 * PAIRS, TOKENS)).requires_grad_()
        reference = policy.detach() + 0.5 * draw(2 * PAIRS, TOKENS) - 0.25
        squares = policy.detach() - draw(2 * PAIRS, TOKENS)

        def paired(value):
            return torch.stack(value.chunk(2), dim=1)

        scores = Scores(
            paired(policy), paired(reference), paired(mask), extras={"log_sum_squares": paired(squares)}
        )
        return SimpleNamespace(
            policy=policy, reference=reference, mask=mask, squares=squares, scores=scores, draw=draw
        )

    return make


def whole(mask):
    """The mask with a prompt position in front: trl shifts it away."""
    return torch.cat([torch.zeros(len(mask), 1, dtype=mask.dtype), mask], dim=1).long()


def trl_dpo(given, **settings):
    """`DPOTrainer._compute_loss`."""
    stub = Stub(
        **{
            "beta": BETA,
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "label_smoothing": 0.1,
            "use_weighting": False,
            "loss_weights": [1.0],
            **settings,
        }
    )
    stub.args.discopop_tau = 0.2
    stub.ref_model = network(given.reference * given.mask)
    ids = torch.zeros(2 * PAIRS, TOKENS + 1, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": whole(given.mask)}
    model = network(given.policy * given.mask, log_sum_sq_probs=given.squares * given.mask)
    return DPOTrainer._compute_loss(stub, model, inputs, False)


def same(given, ours, theirs, rtol=1e-9):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-12)
    (found,) = torch.autograd.grad(ours, given.policy, retain_graph=True)
    (wanted,) = torch.autograd.grad(theirs, given.policy)
    torch.testing.assert_close(found, wanted, rtol=10 * rtol, atol=1e-12)


def loss_of(objective, given):
    return objective(given.scores, Labels.pairs(PAIRS)).loss.mean()


LOSS_TYPES = {
    "sigmoid": lambda: objectives.dpo(beta=BETA),
    "hinge": lambda: objectives.hinge(beta=BETA),
    "ipo": lambda: objectives.ipo(tau=BETA),
    "exo_pair": lambda: objectives.exo_pair(beta=BETA, label_smoothing=0.1),
    "nca_pair": lambda: objectives.nca_pair(beta=BETA),
    "robust": lambda: objectives.robust_dpo(beta=BETA, label_smoothing=0.1),
    "bco_pair": lambda: objectives.bco_pair(beta=BETA),
    "sppo_hard": lambda: objectives.sppo_hard(beta=BETA),
    "aot": lambda: objectives.aot(beta=BETA, label_smoothing=0.1),
    "aot_unpaired": lambda: objectives.aot_unpaired(beta=BETA, label_smoothing=0.1),
    "apo_zero": lambda: objectives.apo_zero(beta=BETA),
    "apo_down": lambda: objectives.apo_down(beta=BETA),
    "discopop": lambda: objectives.discopop(beta=BETA, temperature=0.2),
    "sft": lambda: objectives.sft(normaliser="batch_mean"),
    "sigmoid_norm": lambda: objectives.dpo(beta=BETA, reduction="mean"),
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", list(LOSS_TYPES))
def test_dpo_trainer(name, seed, numbers):
    given = numbers(seed)
    # Its exo_pair keeps the smoothing in float32.
    rtol = 1e-6 if name == "exo_pair" else 1e-9
    same(given, loss_of(LOSS_TYPES[name](), given), trl_dpo(given, loss_types=[name]), rtol)


def test_all_loss_types_of_the_installed_trainer_are_compared(numbers):
    with pytest.raises(ValueError, match="Should be one of") as raised:
        trl_dpo(numbers(1), loss_types=["none"])
    known = set(str(raised.value).partition("[")[2].rstrip("].").replace("'", "").split(", "))
    assert known == set(LOSS_TYPES)


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("forward_kl", lambda: objectives.fdpo_forward_kl(beta=BETA)),
        ("js_divergence", lambda: objectives.fdpo_js(beta=BETA)),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_dpo_trainer_under_other_divergences(kind, objective, seed, numbers):
    given = numbers(seed)
    same(given, loss_of(objective(), given), trl_dpo(given, loss_types=["sigmoid"], f_divergence_type=kind))


def test_dpo_trainer_mixes_losses_as_ours_add(numbers):
    given = numbers(4)
    ours = 0.8 * objectives.dpo(beta=BETA) + 0.2 * objectives.bco_pair(beta=BETA)
    ours += objectives.sft(normaliser="batch_mean")
    theirs = trl_dpo(given, loss_types=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    same(given, loss_of(ours, given), theirs)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_kto_trainer(name, numbers):
    given = numbers(5)
    mismatched = given.draw(2 * PAIRS) - 0.2
    liked = torch.arange(2 * PAIRS) % 3 == 0
    stub = Stub(
        beta=BETA,
        loss_type=name,
        calculate_KL=name == "kto",
        desirable_weight=1.3,
        undesirable_weight=0.7 if name == "kto" else 1.3,
        ref_model=network(given.reference * given.mask),
    )
    gaps = iter([mismatched, torch.zeros_like(mismatched)])
    stub._compute_kl_logps = lambda *_: next(gaps)
    ids = torch.zeros(2 * PAIRS, TOKENS + 1, dtype=torch.int64)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": whole(given.mask),
        "label": liked,
    }
    theirs = KTOTrainer._compute_loss(stub, network(given.policy * given.mask), inputs, False)
    scores = Scores(
        given.policy.unsqueeze(1),
        given.reference.unsqueeze(1),
        given.mask.unsqueeze(1),
        extras={"mismatched_log_ratio": mismatched},
    )
    ours = (
        objectives.kto(beta=BETA, desirable_weight=1.3, undesirable_weight=0.7, zero_point="mismatched")
        if name == "kto"
        else 1.3 * objectives.apo_zero(beta=BETA)
    )
    same(given, ours(scores, Labels.unpaired(liked)).loss.mean(), theirs)


def test_orpo_trainer(numbers):
    """Its odds are float32 whatever it is given."""
    given = numbers(6)
    means = (given.policy * given.mask).sum(1) / given.mask.sum(1)
    *_, ratio, _ = ORPOTrainer.odds_ratio_loss(Stub(beta=BETA), *means.chunk(2))
    ours = objectives.orpo(beta=BETA)(given.scores, Labels.pairs(PAIRS))
    same(given, ours.terms["odds_ratio"].mean(), -BETA * ratio.double(), rtol=1e-5)
    torch.testing.assert_close(ours.terms["nll"], -means[:PAIRS])


@pytest.mark.parametrize(
    ("name", "alpha", "mean", "ours"),
    [
        ("sigmoid", 0.0, False, lambda: objectives.cpo(beta=BETA, coefficient=0.0, label_smoothing=0.1)),
        ("hinge", 0.0, False, lambda: objectives.cpo_hinge(beta=BETA, coefficient=0.0)),
        ("ipo", 0.0, True, lambda: objectives.ipo_reference_free(tau=BETA)),
        ("simpo", 0.0, True, lambda: objectives.simpo(beta=BETA, gamma=0.4, label_smoothing=0.1)),
        ("simpo", 0.25, True, lambda: objectives.alphapo(beta=BETA, gamma=0.4, alpha=0.25)),
        ("simpo", -0.25, True, lambda: objectives.alphapo(beta=BETA, gamma=0.4, alpha=-0.25)),
    ],
)
def test_cpo_trainer(name, alpha, mean, ours, numbers):
    """The comparison; its supervised term, a mean over all chosen tokens, is held by tests/parity."""
    given = numbers(7)
    reduced = (given.policy * given.mask).sum(1) / (given.mask.sum(1) if mean else 1.0)
    smoothing = 0.0 if alpha else 0.1
    stub = Stub(beta=BETA, alpha=alpha, loss_type=name, label_smoothing=smoothing, simpo_gamma=0.4)
    theirs, *_ = CPOTrainer.cpo_loss(stub, *reduced.chunk(2))
    same(given, loss_of(ours(), given), theirs.mean())


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (
            "sigmoid",
            lambda: objectives.triple_po(
                beta=BETA, coefficient=0.7, normaliser="batch_mean", label_smoothing=0.1
            ),
        ),
        ("hinge", lambda: objectives.triple_po_hinge(beta=BETA, coefficient=0.7, normaliser="batch_mean")),
        ("ipo", lambda: objectives.triple_po_ipo(tau=BETA, coefficient=0.7, normaliser="batch_mean")),
        (
            "tpo-l",
            lambda: objectives.triple_po_l(
                beta=BETA, gamma=0.4, coefficient=0.7, normaliser="batch_mean", label_smoothing=0.1
            ),
        ),
    ],
)
def test_tpo_trainer(name, ours):
    """Chosen, rejected and gold answers from logits, as the trainer takes them."""
    words, generator = 11, torch.Generator().manual_seed(8)
    logits = torch.randn(3 * PAIRS, TOKENS + 1, words, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    ids = torch.randint(words, (3 * PAIRS, TOKENS + 1), generator=generator)
    mask = (torch.rand(3 * PAIRS, TOKENS, generator=generator) > 0.3).long()
    mask[:, 0] = 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": whole(mask)}
    stub = Stub(beta=BETA, loss_type=name, label_smoothing=0.1, tpo_alpha=0.7, tpo_l_gamma=0.4)
    theirs = TPOTrainer._compute_loss(stub, lambda **_: SimpleNamespace(logits=logits), inputs, False)
    labels = ids.masked_fill(whole(mask) == 0, -100)
    scores, kept = token_log_probs(logits, labels)
    chosen, rejected, gold = scores.chunk(3)
    chosen_kept, rejected_kept, gold_kept = kept.chunk(3)
    given = Scores(
        torch.stack([chosen, rejected], dim=1),
        mask=torch.stack([chosen_kept, rejected_kept], dim=1),
        extras={"gold_score": (gold * gold_kept).sum(-1), "gold_length": gold_kept.sum(-1).double()},
    )
    same(SimpleNamespace(policy=logits), ours()(given, Labels.pairs(PAIRS)).loss.mean(), theirs)


def test_a2po_trainer(numbers):
    given = numbers(9)
    policy, reference = (value * given.mask for value in (given.policy, given.reference))
    rewards, optimal = given.draw(2 * PAIRS), given.draw(2 * PAIRS)
    stub = Stub(_get_sequence_logps=lambda *_: policy.sum(1))
    stub.args.beta2 = BETA
    inputs = {"ref_logps": reference.sum(1), "rewards": rewards, "v_star": optimal}
    inputs |= dict.fromkeys(("input_ids", "attention_mask", "logits_to_keep"))
    stub._metrics["train"] = defaultdict(list)
    theirs = A2POTrainer.compute_loss(stub, None, inputs)
    scores = Scores(
        policy.unsqueeze(1),
        reference.unsqueeze(1),
        given.mask.unsqueeze(1),
        reward=rewards.unsqueeze(1),
        extras={"optimal_value": optimal.unsqueeze(1)},
    )
    ours = objectives.a2po_regression(beta=BETA)
    liked = torch.ones(2 * PAIRS, dtype=torch.bool)
    same(given, ours(scores, Labels.unpaired(liked)).loss.mean(), theirs)
