"""PAL's mixtures, rewards and losses, and the heads made of them."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from mmalign.errors import CheckpointError, ConfigError, HyperparameterError, ShapeError, UnknownNameError
from mmalign.rewards import ideal_points
from mmalign.rewards.ideal_point_models import PalHead, PalSettings
from mmalign.rewards.ideal_point_official import read_official_b

USERS = ("ada", "grace.h", "42")


def head_of(form, **given):
    settings = PalSettings(**{"form": form, "input": 5, "width": 7, "prototypes": 3, "hidden": 1, **given})
    return PalHead(settings, USERS, generator=torch.Generator().manual_seed(1)).eval()


class TestMixtures:
    def test_rows_sum_to_one_and_order_follows_the_logits(self, draw):
        logits = draw(5, 3)
        weights = ideal_points.user_weights(logits)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(5, dtype=torch.float64))
        assert torch.equal(weights.argsort(dim=1), logits.argsort(dim=1))

    def test_a_low_temperature_sharpens(self, draw):
        logits = draw(2, 3)
        sharp = ideal_points.user_weights(logits, temperature=1e-3)
        torch.testing.assert_close(sharp, ideal_points.user_weights(logits, hard=True), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("temperature", [0.0, -1.0])
    def test_a_temperature_that_is_none_is_refused(self, draw, temperature):
        with pytest.raises(HyperparameterError, match=r"temperature: got .*, expected above 0"):
            ideal_points.user_weights(draw(2, 3), temperature=temperature)


class TestRewards:
    def test_the_ideal_point_has_the_highest_reward(self, draw):
        ideal = draw(5, 3)
        assert ideal_points.distance_rewards(ideal, ideal).eq(0).all()
        assert ideal_points.distance_rewards(ideal + draw(5, 3), ideal).lt(0).all()

    def test_angles_do_not_see_lengths_and_the_scale_is_capped(self, draw):
        items, ideal = draw(5, 3), draw(5, 3)
        found = ideal_points.angle_rewards(items, ideal, torch.tensor(9.0).double())
        torch.testing.assert_close(found, 100 * F.cosine_similarity(items, 7 * ideal, dim=-1))


class TestLosses:
    def test_the_preferred_side_pulls_its_reward_up(self, draw):
        left, right = draw(5, requires_grad=True), draw(5, requires_grad=True)
        y = torch.tensor([1, -1, 1, -1, 1])
        for losses in (ideal_points.hinge_losses, ideal_points.choice_losses):
            # A margin no difference reaches, so that every hinge is open.
            found = losses(left, right, y, margin=100.0) if losses is ideal_points.hinge_losses else None
            found = losses(left, right, y) if found is None else found
            (gradient,) = torch.autograd.grad(found.sum(), right)
            assert torch.equal(gradient.sign(), -y.double())

    def test_a_pair_beyond_the_margin_costs_nothing(self):
        left, right = torch.tensor([-5.0, -1.0]), torch.tensor([-3.0, -2.0])
        found = ideal_points.hinge_losses(left, right, torch.tensor([1, -1]), margin=1.5)
        assert found.tolist() == [0.0, 0.5]

    def test_choice_losses_are_cross_entropies(self, draw):
        left, right = draw(5), draw(5)
        y = torch.tensor([1, -1, -1, 1, 1])
        expected = F.cross_entropy(torch.stack([left, right], dim=1), (y > 0).long(), reduction="none")
        torch.testing.assert_close(ideal_points.choice_losses(left, right, y), expected)

    @pytest.mark.parametrize(
        ("weighting", "expected"),
        [
            ("mean", [0, 1 / 3, 1 / 3, 1 / 3, 0]),
            ("cumulative", [0, 1 / 6, 2 / 6, 3 / 6, 0]),
            ("only_last", [0, 0, 0, 1, 0]),
        ],
    )
    def test_span_weights(self, weighting, expected):
        found = ideal_points.span_weights(torch.tensor([1]), torch.tensor([4]), 5, weighting)
        assert found[0].tolist() == pytest.approx(expected)

    def test_padding_may_hold_anything(self, draw):
        losses = draw(2, 5)
        losses[0, 3:] = torch.nan
        losses[1, 0] = torch.inf
        found = ideal_points.span_loss(losses, torch.tensor([0, 1]), torch.tensor([3, 5]))
        torch.testing.assert_close(found, (losses[0, :3].mean() + losses[1, 1:].mean()) / 2)

    def test_another_weighting_is_refused(self, untyped):
        with untyped, pytest.raises(HyperparameterError, match="weighting: got 'first'"):
            ideal_points.span_weights(torch.tensor([0]), torch.tensor([2]), 3, "first")

    def test_only_points_outside_the_ball_are_penalised(self):
        ideal = torch.tensor([[3.0, 4.0], [0.1, 0.0]])
        assert float(ideal_points.ideal_norm_penalty(ideal, 2.0, weight=3.0)) == pytest.approx(9.0)


class TestHeads:
    @pytest.mark.parametrize("points", ["projected", "mixed", "each"])
    def test_form_a_is_minus_the_distance_to_the_users_point(self, draw, points):
        head = head_of("a", points=points).double()
        images, weights = draw(2, 5), head.weights_of(head.logits)[:2]

        def project(x):
            first, last = head.projector.layers[0], head.projector.layers[-1]
            return (x @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias

        items = project(images / images.norm(dim=-1, keepdim=True))
        ideal = {
            "projected": lambda: weights @ head.points,
            "mixed": lambda: project(weights @ head.points),
            "each": lambda: weights @ project(head.points),
        }[points]()
        torch.testing.assert_close(head(images, weights), -(items - ideal).square().sum(-1).sqrt())

    def test_form_b_is_the_angle_to_the_users_point_for_the_prompt(self, draw):
        head = head_of("b", activation="gelu", unit_inputs=False, temperature=2.0).double()
        images, prompts = draw(2, 5), draw(2, 5)
        weights = (head.logits[:2] / 2.0).softmax(dim=-1)

        def project(layers, x):
            return F.gelu(x @ layers[0].weight.T + layers[0].bias) @ layers[-1].weight.T + layers[-1].bias

        ideal = sum(
            weights[:, k, None] * project(p.layers, prompts) for k, p in enumerate(head.prompt_projectors)
        )
        cosine = F.cosine_similarity(project(head.projector.layers, images), ideal, dim=-1)
        torch.testing.assert_close(head(images, weights, prompts), cosine / 0.07)

    def test_prompt_and_image_stand_behind_one_another(self, draw):
        head = head_of("a", items="prompt_and_image").double()
        images, prompts, weights = draw(2, 5), draw(2, 5), head.weights_of(head.logits)[:2]
        assert head.projector.layers[0].in_features == 10
        assert not torch.allclose(head(images, weights, prompts), head(prompts, weights, images))
        with pytest.raises(ShapeError, match=r"prompts: got \[none\], expected embeddings of width 5"):
            head(images, weights)

    def test_a_residual_adds_the_input(self, draw):
        head = head_of("a", width=5, residual=True).double()
        x = draw(2, 5)
        torch.testing.assert_close(head.projector(x), x + head.projector.layers(x))

    def test_embeddings_of_another_width_are_refused(self, draw):
        head = head_of("a").double()
        with pytest.raises(ShapeError, match=r"images: got \[width 3\], expected embeddings of width 5"):
            head(draw(2, 3), head.weights_of(head.logits)[:2])

    def test_a_partition_scores_by_one_prototype_and_trains_on_mixtures(self):
        head = head_of("a", partition=True)
        assert head.mixture("ada").max() == 1.0
        assert head.train().mixture("ada").max() < 1.0

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"form": "c"}, "form: got 'c', expected 'a' or 'b'"),
            ({"activation": "tanh"}, "activation: got 'tanh'"),
            ({"points": "far"}, "points: got 'far'"),
            ({"prototypes": 0}, "prototypes: got 0, expected 1 or more"),
            ({"temperature": 0.0}, "temperature: got 0.0"),
            ({"residual": True}, "residual: got True, expected False, or equal widths"),
            ({"items": "text"}, "items: got 'text'"),
            ({"form": "b", "items": "prompt_and_image"}, "expected 'image' in form b"),
        ],
    )
    def test_settings_no_head_can_have_are_refused(self, given, message, untyped):
        with untyped, pytest.raises(ConfigError, match=message):
            PalSettings(**{"form": "a", "input": 5, "width": 7, **given})

    def test_weights_come_from_the_generator_alone(self):
        torch.testing.assert_close(head_of("b").state_dict(), head_of("b").state_dict())


class TestUsers:
    def test_a_new_user_is_added_and_nothing_else_changes(self, draw):
        head = head_of("a")
        before = {name: value.clone() for name, value in head.state_dict().items()}
        head.set_user("new", torch.tensor([1.0, 0.0, -1.0]))
        after = head.state_dict()
        assert torch.equal(after.pop("logits")[:3], before.pop("logits"))
        torch.testing.assert_close(after, before)
        torch.testing.assert_close(head.mixture("new"), torch.tensor([1.0, 0.0, -1.0]).softmax(0))

    def test_a_known_user_is_replaced(self):
        head = head_of("a")
        head.set_user("grace.h", torch.zeros(3))
        assert len(head.logits) == 3
        torch.testing.assert_close(head.mixture("grace.h"), torch.full((3,), 1 / 3))

    def test_an_unknown_user_is_named_with_the_near_ones(self):
        with pytest.raises(UnknownNameError, match=r"'grace'.*Did you mean grace\.h"):
            head_of("a").mixture("grace")

    def test_a_name_twice_is_refused(self):
        with pytest.raises(ConfigError, match=r"got \[a name twice\]"):
            PalHead(PalSettings(form="a", input=5, width=7), ("a", "a"))


class TestFiles:
    @pytest.mark.parametrize("form", ["a", "b"])
    def test_a_head_comes_back_as_it_was(self, tmp_path, draw, form):
        head = head_of(form, temperature=1.5)
        head.set_user("new", torch.ones(3))
        found = PalHead.load(head.save(tmp_path))
        assert found.settings == head.settings
        assert found.users == head.users
        torch.testing.assert_close(found.state_dict(), head.state_dict())
        assert not found.training

    def test_a_folder_without_head_is_refused(self, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"got \[no pal\.json\], expected a folder that PalHead\.save"
        ):
            PalHead.load(tmp_path)

    def test_a_setting_nobody_knows_is_named(self, tmp_path):
        head_of("a").save(tmp_path)
        content = json.loads((tmp_path / "pal.json").read_text())
        (tmp_path / "pal.json").write_text(json.dumps(content | {"shape": "round"}))
        with pytest.raises(CheckpointError, match=r"got \[shape\], expected settings of PalSettings"):
            PalHead.load(tmp_path)

    def test_other_sizes_are_named(self, tmp_path):
        head_of("a").save(tmp_path)
        content = json.loads((tmp_path / "pal.json").read_text())
        (tmp_path / "pal.json").write_text(json.dumps(content | {"prototypes": 2}))
        with pytest.raises(CheckpointError, match=r"logits is \[3, 3\] in the file and \[3, 2\] here"):
            PalHead.load(tmp_path)


class TestOfficialFiles:
    def state(self, draw, *, prefix="preference_learner.", mlp="mlp"):
        """Keys of the official text-to-image training: K = 2, width 5, one hidden layer."""
        state = {"logit_scale": torch.tensor(2.0), "softmax_w.temperature": torch.tensor([1.0])}
        names = ["item_learner.projector", "user_learner.projectors.0", "user_learner.projectors.1"]
        for name in names:
            for layer in (0, 3):
                state[f"{name}.{mlp}.layers.{layer}.weight"] = draw(5, 5, dtype=torch.float32)
                state[f"{name}.{mlp}.layers.{layer}.bias"] = draw(5, dtype=torch.float32)
        twins = {
            name.replace("item_learner.projector", "projector_f"): value
            for name, value in state.items()
            if name.startswith("item_learner")
        }
        state |= twins | {"user_learner.softmax.temperature": torch.tensor([1.0])}
        state |= {f"user_learner.W.{user}": draw(2, dtype=torch.float32) for user in ("7", "11")}
        return {prefix + name: value for name, value in state.items()}

    @pytest.mark.parametrize("layout", [{}, {"prefix": ""}, {"mlp": "m"}], ids=str)
    def test_rewards_equal_the_official_formula(self, draw, layout):
        state = self.state(draw, **layout)
        head = read_official_b(state, where="here", unit_inputs=False)
        images, prompts = draw(3, 5, dtype=torch.float32), draw(3, 5, dtype=torch.float32)
        prefix, mlp = layout.get("prefix", "preference_learner."), layout.get("mlp", "mlp")

        def project(name, x):
            def layer(n, x):
                at = f"{prefix}{name}.{mlp}.layers.{n}"
                return x @ state[f"{at}.weight"].T + state[f"{at}.bias"]

            return x + layer(3, layer(0, x).relu())

        weights = state[f"{prefix}user_learner.W.11"].softmax(0)
        ideal = sum(weights[k] * project(f"user_learner.projectors.{k}", prompts) for k in (0, 1))
        items = project("item_learner.projector", images)
        expected = math.exp(2.0) * F.cosine_similarity(items, ideal, dim=-1)
        torch.testing.assert_close(head(images, head.mixture("11").expand(3, -1), prompts), expected)

    def test_other_checkpoints_are_refused(self, draw):
        with pytest.raises(CheckpointError, match=r"got \[1 other keys\], expected item_learner\.projector"):
            read_official_b({"weight": draw(2)}, where="here")

    def test_a_key_too_many_is_named(self, draw):
        state = self.state(draw) | {"preference_learner.connector_p.mlp.layers.0.weight": torch.ones(1)}
        with pytest.raises(CheckpointError, match=r"unexpected: connector_p"):
            read_official_b(state, where="here")
