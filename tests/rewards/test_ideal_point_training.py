"""Training PAL's heads, and a new user from a few choices."""

import pytest
import torch

from mmalign.errors import ConfigError, HyperparameterError, ShapeError, UnknownNameError
from mmalign.rewards.ideal_point_models import PalHead, PalSettings
from mmalign.rewards.ideal_point_training import (
    Choices,
    accuracy,
    choice_loss,
    fit_head,
    fit_user,
    parameter_groups,
)

WIDTH = 7


def head_of(form, prototypes=3, users=(), seed=1):
    settings = PalSettings(form=form, input=WIDTH, width=5, prototypes=prototypes, hidden=1)
    return PalHead(settings, users, generator=torch.Generator().manual_seed(seed)).eval()


def spread(head, factor=2.5):
    """The same head with prototypes further apart, so that mixtures matter for the choices."""
    with torch.no_grad():
        if head.settings.form == "a":
            head.points.mul_(factor)
        for projector in [head.projector, *getattr(head, "prompt_projectors", ())]:
            projector.layers[0].weight.mul_(factor)
    return head


def choices_of(head, weights, count, seed=0, *, noisy):
    """Choices of a user with a known mixture: by probability sigmoid(gap), or always the higher reward."""
    generator = torch.Generator().manual_seed(seed)
    left, right, prompts = (torch.randn(count, WIDTH, generator=generator) for _ in range(3))
    given = prompts if head.settings.needs_prompt else None
    with torch.no_grad():
        gap = head(right, weights.expand(count, -1), given) - head(left, weights.expand(count, -1), given)
    bar = torch.rand(count, generator=generator) if noisy else torch.full((count,), 0.5)
    y = torch.where(gap.sigmoid() > bar, 1, -1)
    return Choices(left, right, y, given)


class TestNewUser:
    @pytest.mark.parametrize("form", ["a", "b"])
    def test_a_known_mixture_is_recovered_from_many_noisy_choices(self, form):
        head, truth = spread(head_of(form), 5.0), torch.tensor([0.6, 0.3, 0.1])
        fit = fit_user(head, choices_of(head, truth, 6000, noisy=True), loss="choice")
        assert fit.converged
        torch.testing.assert_close(fit.weights.float(), truth, atol=0.05, rtol=0)

    def test_the_hinge_finds_the_direction_of_a_decided_user(self):
        head, truth = spread(head_of("a"), 4.0), torch.tensor([0.9, 0.05, 0.05])
        fit = fit_user(head, choices_of(head, truth, 300, noisy=False))
        fresh = choices_of(head, truth, 500, seed=9, noisy=False)
        head.set_user("new", fit.logits)
        named = Choices(fresh.left, fresh.right, fresh.y, users=["new"] * 500)
        assert int(fit.weights.argmax()) == 0
        assert accuracy(head, named) > 0.9

    @pytest.mark.parametrize("form", ["a", "b"])
    def test_a_few_choices_beat_the_uniform_mixture_on_new_pairs(self, form):
        head, truth = spread(head_of(form)), torch.tensor([0.02, 0.96, 0.02])
        fit = fit_user(head, choices_of(head, truth, 20, noisy=False))
        head.set_user("fitted", fit.logits)
        head.set_user("uniform", torch.zeros(3))
        fresh = choices_of(head, truth, 700, seed=5, noisy=False)
        found = {
            name: accuracy(head, Choices(fresh.left, fresh.right, fresh.y, fresh.prompts, [name] * 700))
            for name in ("fitted", "uniform")
        }
        assert found["fitted"] > found["uniform"] + 0.03
        assert found["fitted"] > 0.9

    def test_nothing_in_the_head_changes(self):
        head = head_of("b", users=("ada",))
        before = {name: value.clone() for name, value in head.state_dict().items()}
        fit_user(head, choices_of(head, torch.tensor([0.2, 0.2, 0.6]), 11, noisy=True))
        torch.testing.assert_close(head.state_dict(), before)
        assert all(parameter.grad is None for parameter in head.parameters())

    def test_it_is_deterministic_and_draws_nothing(self):
        head = head_of("a")
        choices = choices_of(head, torch.tensor([0.2, 0.2, 0.6]), 13, noisy=True)
        before = torch.get_rng_state()
        first, second = fit_user(head, choices), fit_user(head, choices)
        assert torch.equal(first.logits, second.logits)
        assert torch.equal(before, torch.get_rng_state())

    def test_one_sided_choices_keep_finite_logits(self):
        head = spread(head_of("b"))
        choices = choices_of(head, torch.tensor([1.0, 0.0, 0.0]), 5, noisy=False)
        fit = fit_user(head, choices)
        assert torch.isfinite(fit.logits).all()
        assert fit.logits.abs().max() < 50
        assert fit.accuracy == 1.0
        assert float(fit.logits.sum()) == pytest.approx(0.0, abs=1e-9)

    def test_a_stronger_pull_stays_nearer_to_the_uniform_mixture(self):
        head = spread(head_of("b"))
        choices = choices_of(head, torch.tensor([0.9, 0.1, 0.0]), 11, noisy=False)
        weak, strong = (fit_user(head, choices, ridge=ridge).weights for ridge in (1e-3, 100.0))
        uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
        assert (strong - uniform).norm() < 0.2 * (weak - uniform).norm()

    def test_with_one_prototype_there_is_nothing_to_find(self):
        head = head_of("a", prototypes=1)
        fit = fit_user(head, choices_of(head, torch.ones(1), 7, noisy=True))
        assert fit.weights.tolist() == [1.0]
        assert fit.converged

    def test_the_reported_loss_is_the_heads_own(self):
        head = head_of("b", users=())
        choices = choices_of(head, torch.tensor([0.2, 0.2, 0.6]), 17, noisy=True)
        fit = fit_user(head, choices)
        head.set_user("new", fit.logits)
        named = Choices(choices.left, choices.right, choices.y, choices.prompts, ["new"] * 17)
        assert float(choice_loss(head, named).detach()) == pytest.approx(fit.loss, rel=1e-5)
        assert accuracy(head, named) == pytest.approx(fit.accuracy)

    @pytest.mark.parametrize(
        ("given", "message"),
        [({"ridge": 0.0}, "ridge: got 0.0, expected above 0"), ({"loss": "square"}, "loss: got 'square'")],
    )
    def test_other_options_are_refused(self, given, message):
        head = head_of("a")
        choices = choices_of(head, torch.full((3,), 1 / 3), 5, noisy=True)
        with pytest.raises(HyperparameterError, match=message):
            fit_user(head, choices, **given)

    def test_a_head_in_training_is_refused(self):
        head = head_of("a")
        choices = choices_of(head, torch.full((3,), 1 / 3), 5, noisy=True)
        with pytest.raises(ConfigError, match=r"got \[a head in training mode\]"):
            fit_user(head.train(), choices)


class TestTraining:
    def two_tastes(self, form, count=400):
        """Two users with opposite tastes along the first axis."""
        generator = torch.Generator().manual_seed(3)
        left, right, prompts = (torch.randn(count, WIDTH, generator=generator) for _ in range(3))
        taste = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
        y = ((right - left)[:, 0] * taste).sign().int()
        users = [("up", "down")[place % 2] for place in range(count)]
        return Choices(left, right, y, prompts if form == "b" else None, users)

    @pytest.mark.parametrize("form", ["a", "b"])
    def test_opposite_users_are_told_apart(self, form, make_generator):
        choices = self.two_tastes(form)
        head = head_of(form, prototypes=2, users=("up", "down"), seed=4)
        groups = parameter_groups(head, projector_lr=1e-2, point_lr=5e-2, user_lr=5e-2, scale_lr=1e-2)
        history = fit_head(
            head, choices, epochs=40, batch_size=100, generator=make_generator(2), groups=groups
        )
        assert history[-1] < 0.5 * history[0]
        assert accuracy(head, choices) > 0.9
        assert (head.mixture("up") - head.mixture("down")).abs().max() > 0.5
        assert not head.training

    def test_training_is_decided_by_its_generator(self, make_generator):
        choices = self.two_tastes("a", 60)
        runs = []
        for seed in (2, 2, 3):
            head = head_of("a", prototypes=2, users=("up", "down"))
            fit_head(head, choices, epochs=2, batch_size=13, generator=make_generator(seed))
            runs.append(head.points.detach().clone())
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])

    def test_groups_have_the_published_rates_and_hold_every_parameter_once(self):
        head = head_of("b", users=("ada",))
        groups = {group["name"]: group for group in parameter_groups(head)}
        assert {name: group["lr"] for name, group in groups.items()} == {
            "projector": 1e-4,
            "logits": 5e-3,
            "log_scale": 0.1,
        }
        assert {name: group["weight_decay"] for name, group in groups.items() if group["weight_decay"]} == {
            "projector": 0.01
        }
        held = [parameter for group in groups.values() for parameter in group["params"]]
        assert len(held) == len({id(p) for p in held}) == len(list(head.parameters()))

    def test_the_norm_bound_enters_the_loss_where_it_is_asked_for(self):
        head = spread(head_of("a", prototypes=2, users=("up", "down")), 10.0)
        choices = self.two_tastes("a", 20)
        plain, bound = choice_loss(head, choices), choice_loss(head, choices, norm_bound=0.5)
        norms = head.ideal(head.weights_of(head.logits))[torch.arange(20) % 2].norm(dim=-1)
        expected = (norms - 0.5).clamp(min=0.0).mean()
        torch.testing.assert_close(bound - plain, expected)
        assert float(expected.detach()) > 0


class TestChoices:
    def test_other_numbers_are_refused(self, draw, untyped):
        with untyped, pytest.raises(ShapeError, match=r"got \[3 left items with 3, 2 of the rest\]"):
            Choices(draw(3, 5), draw(3, 5), torch.tensor([1, -1]))

    def test_ties_are_refused(self, draw):
        with pytest.raises(ConfigError, match=r"label: got 0, expected \+1 .* Leave ties out"):
            Choices(draw(3, 5), draw(3, 5), torch.tensor([1, 0, -1]))

    def test_a_user_the_head_does_not_know_is_named(self, draw):
        head = head_of("a", users=("ada",))
        given = draw(2, WIDTH, dtype=torch.float32)
        with pytest.raises(UnknownNameError, match="'grace'"):
            choice_loss(head, Choices(given, given, torch.tensor([1, -1]), users=["ada", "grace"]))

    def test_training_needs_users(self, draw):
        given = draw(2, WIDTH, dtype=torch.float32)
        with pytest.raises(ConfigError, match=r"got \[no users\], expected the user of each pair"):
            choice_loss(head_of("a"), Choices(given, given, torch.tensor([1, -1])))
