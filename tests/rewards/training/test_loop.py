"""Real trainings of seconds on features with known preferences, and a run that is stopped and goes on."""

import json
import math
from dataclasses import replace

import pytest
import torch

from mmalign.errors import CheckpointError, ConfigError, TrainingError
from mmalign.evals.statistics import wilson_interval
from mmalign.files import read_json_lines
from mmalign.rewards.training.loop import CHECKPOINTS, METRICS, held_out, judge, measures_of, train_head
from mmalign.rewards.training.scoring import make_head, make_loss, rewards_of
from mmalign.rewards.training.validation import best_scale, best_tie_threshold, measure, nll
from mmalign.testing.variants import variants

WIDTH = 7


@pytest.fixture
def items(draw):
    return draw(4000, WIDTH, dtype=torch.float32)


def differences(values):
    return values[0::2] - values[1::2]


def test_bradley_terry_recovers_order_and_probability_of_held_out_pairs(
    items, make_pairs, make_config, trained
):
    chance = (2.0 * differences(items[:, 0]) - differences(items[:, 1])).sigmoid()
    head, test, _ = trained(make_config(), make_pairs(items, chance))
    found = measure(held_out(head, test)(1.0))
    assert wilson_interval(found.right, found.pairs).low > 0.7
    assert found.calibration_error < 0.08
    probability = held_out(head, test)(1.0).logit.sigmoid()
    truth = (2.0 * items[:, 0] - items[:, 1])[test.first] - (2.0 * items[:, 0] - items[:, 1])[test.second]
    assert (probability - truth.double().sigmoid()).abs().mean() < 0.08


@pytest.mark.slow
def test_deviations_are_larger_where_labels_contradict_each_other(
    draw, make_pairs, make_config, trained, make_generator
):
    """Things with a positive second feature are judged almost at random, the others surely."""
    items = draw(6000, WIDTH, dtype=torch.float32)
    noise = torch.where(items[:, 1] > 0, 6.0, 0.01) * torch.randn(len(items), generator=make_generator(5))
    certain = (differences(4.0 * items[:, 0] + noise) > 0).float()
    config = make_config(
        "reward_pearl", head={"width": 16, "hidden": 0}, train={"epochs": 30, "patience": 30}
    )
    head, test, _ = trained(config, make_pairs(items, certain))
    seen = test.side("first")
    deviation = rewards_of(head, seen)[:, 1].exp()
    noisy, clean = (
        deviation[chosen].median() for chosen in (seen.items[:, 1] > 0.3, seen.items[:, 1] < -0.3)
    )
    assert noisy > 1.5 * clean
    assert measure(held_out(head, test)(1.0)).accuracy > 0.7


@pytest.mark.slow
def test_entropy_s_price_keeps_deviations_up_under_the_published_loss(
    items, make_pairs, make_config, trained
):
    chance = (3.0 * differences(items[:, 0])).sigmoid()
    found = {}
    for weight in (0.0, 1.0):
        loss = {"expectation": "loss", "entropy_weight": weight, "entropy_floor": 1.4189}
        config = make_config(
            "reward_pearl",
            loss=loss,
            head={"width": 8, "hidden": 0},
            train={"output": make_config().train.output + str(weight), "learning_rate": 1e-2},
        )
        head, test, _ = trained(config, make_pairs(items, chance))
        found[weight] = rewards_of(head, test.side("first"))[:, 1].exp().median().item()
    assert found[0.0] < 0.8 < found[1.0] < 1.3


@pytest.mark.parametrize("form", variants(["a", "b"], fast=("b",)))
def test_pal_recovers_two_groups_of_users_who_want_the_opposite(
    form, items, make_pairs, make_config, trained, make_generator
):
    users = torch.randint(6, (len(items) // 2,), generator=make_generator(6))
    sign = torch.where(users % 2 == 0, 1.0, -1.0)
    chance = (4.0 * sign * differences(items[:, 0]) + differences(items[:, 2])).sigmoid()
    prompts = torch.randn(3, WIDTH, generator=make_generator(7))
    prompt = torch.randint(3, (len(users),), generator=make_generator(8))
    pairs = make_pairs(items, chance, user=users, prompts=prompts, prompt=prompt)
    config = make_config(
        "reward_pal",
        head={"width": 16, "form": form, "prototypes": 2},
        train={"epochs": 30, "schedule": "constant"},
    )
    head, test, _ = trained(config, pairs, users=tuple("abcdef"))
    first = head.weights_of(head.logits)[:, 0]
    one, other = sorted([first[0::2].tolist(), first[1::2].tolist()], key=lambda group: group[0])
    assert max(one) < min(other), "the groups do not overlap"
    assert wilson_interval(measure(held_out(head, test)(1.0)).right, len(test)).low > 0.65


def test_a_context_decides_what_counts(items, make_pairs, make_config, trained, make_generator):
    context = torch.randint(2, (len(items) // 2,), generator=make_generator(9))
    wanted = torch.where(context == 0, differences(items[:, 0]), differences(items[:, 1]))
    contexts = torch.randn(2, 5, generator=make_generator(10))
    pairs = make_pairs(items, (4.0 * wanted).sigmoid(), contexts=contexts, context=context)
    head, test, _ = trained(make_config("reward_context"), pairs)
    aware = measure(held_out(head, test)(1.0))
    blind_pairs = make_pairs(items, (4.0 * wanted).sigmoid())
    blind_config = make_config(train={"output": make_config().train.output + "-blind"})
    blind, blind_test, _ = trained(blind_config, blind_pairs)
    assert wilson_interval(aware.right, aware.pairs).low > measure(held_out(blind, blind_test)(1.0)).accuracy
    thing = torch.zeros(1, WIDTH)
    thing[0, 0], thing[0, 1] = 2.0, -2.0
    under = [
        head(thing, None, contexts[number][None]) - head(-thing, None, contexts[number][None])
        for number in (0, 1)
    ]
    assert under[0].item() > 0 > under[1].item(), "the same two things, ordered the other way round"


def test_more_learns_a_rare_task_beside_a_frequent_one(
    items, make_pairs, make_config, trained, make_generator
):
    task = (torch.rand(len(items) // 2, generator=make_generator(11)) < 0.15).long()
    wanted = torch.where(task == 0, differences(items[:, 0]), differences(items[:, 1]))
    pairs = make_pairs(items, (4.0 * wanted + differences(items[:, 2])).sigmoid(), task=task)
    config = make_config("reward_more", train={"epochs": 6})
    head, test, _ = trained(config, pairs)
    for number in (0, 1):
        of_task = test.at((test.task == number).nonzero()[:, 0])
        assert measure(held_out(head, of_task)(1.0)).accuracy > 0.6, f"task {number}"
    with pytest.raises(ConfigError, match=r"reward_more tasks: got 1, expected 2 or more.*columns\.task"):
        make_loss("reward_more", config.loss, form="b", tasks=1)


def test_validation_pairs_decide_temperature_and_threshold_and_test_pairs_nothing(
    items, make_pairs, make_config
):
    """The head is three times too sure on validation pairs and half as sure as it should be on test pairs."""
    head, _ = fresh(make_config())
    with torch.no_grad():
        head.last.weight *= 10.0
        gap = (head(items[0::2]) - head(items[1::2]))[:, 0].double()
    every = make_pairs(items, torch.ones(len(gap)))
    near = gap.abs() < gap.abs().quantile(0.3)
    label = torch.where(near, 0.5, (gap / 3).sigmoid()).float()
    validation = replace(every, probability=label).at(torch.arange(1000))
    test = replace(every, probability=(2 * gap).sigmoid().float()).at(torch.arange(1000, 2000))
    calibrated, raw = measures_of(head, validation=validation, test=test)
    seen = held_out(head, validation)
    temperature = best_scale(lambda value: nll(seen(value)))
    assert 2.0 < calibrated.temperature == temperature < 5.0
    assert 0.1 < best_scale(lambda value: nll(held_out(head, test)(value))) < 1.0
    for found, value in ((calibrated, temperature), (raw, 1.0)):
        threshold = best_tie_threshold(seen(value))
        expected = measure(held_out(head, test)(value), temperature=value, tie_threshold=threshold)
        assert found == expected
    assert raw.tie_threshold > best_tie_threshold(held_out(head, test)(1.0))


# --------------------------------------------------------------------------------------------------- resume


@pytest.fixture
def parts(items, make_pairs):
    pairs = make_pairs(items, (2.0 * differences(items[:, 0])).sigmoid())
    return pairs.at(torch.arange(0, 1500)), pairs.at(torch.arange(1500, 2000))


def fresh(config):
    head = make_head(
        config, item=WIDTH, prompt=0, context=0, users=(), generator=torch.Generator().manual_seed(2)
    )
    return head, make_loss(config.method, config.loss, form="b", tasks=1)


def test_a_run_that_was_stopped_ends_with_the_same_weights_bit_by_bit(parts, make_config, tmp_path):
    settings = {"epochs": 5, "evaluate_every": 7, "warmup_steps": 5}
    heads = []
    for name, stops in (("whole", ()), ("parts", (14, 35))):
        config = make_config(
            head={"width": 16, "dropout": 0.2}, train={**settings, "output": str(tmp_path / name)}
        )
        for stop in (*stops, None):
            head, loss = fresh(config)  # a new process knows nothing
            progress = train_head(
                head, *parts, loss, config.train, identity="same", stop=lambda step, at=stop: step == at
            )
        assert progress.finished
        heads.append(head.state_dict())
    assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())
    whole, resumed = (read_json_lines(tmp_path / name / METRICS) for name in ("whole", "parts"))
    assert whole == resumed
    assert len(list((tmp_path / "parts" / CHECKPOINTS).iterdir())) == 2


def test_another_run_in_the_folder_is_refused_and_can_be_replaced(parts, make_config):
    config = make_config(train={"epochs": 1})
    head, loss = fresh(config)
    train_head(head, *parts, loss, config.train, identity="one")
    with pytest.raises(CheckpointError, match=r"other settings, data or features.*train\.resume=none"):
        train_head(head, *parts, loss, config.train, identity="other")
    anew = config.train.model_copy(update={"resume": "none"})
    assert train_head(head, *parts, loss, anew, identity="other").finished


def test_patience_ends_the_run_and_the_best_weights_are_kept(parts, make_config):
    config = make_config(train={"epochs": 200, "patience": 2, "learning_rate": 3e-2, "schedule": "constant"})
    head, loss = fresh(config)
    progress = train_head(head, *parts, loss, config.train)
    assert progress.stopped_early
    records = read_json_lines(f"{config.train.output}/{METRICS}")
    lowest = min(records, key=lambda record: record["validation_nll"])
    assert (progress.best_step, progress.best_nll) == (lowest["step"], lowest["validation_nll"])
    assert progress.step == records[-1]["step"] > progress.best_step
    assert judge(head, parts[1])[0] == progress.best_nll
    assert not head.training


def test_weights_of_pairs_multiply_their_loss(parts, make_config, items, make_pairs):
    """Half of the pairs are labelled wrongly and weigh nothing; the other half decides."""
    pairs = make_pairs(items, (differences(items[:, 0]) > 0).float())
    wrong = torch.arange(len(pairs)) % 2 == 1
    turned = make_pairs(items, ((differences(items[:, 0]) > 0) != wrong).float(), weight=(~wrong).float())
    config = make_config(train={"epochs": 4})
    head, loss = fresh(config)
    train_head(head, turned.at(torch.arange(1500)), pairs.at(torch.arange(1500, 2000)), loss, config.train)
    assert measure(held_out(head, pairs.at(torch.arange(1500, 2000)))(1.0)).accuracy > 0.8


def test_the_loss_is_the_mean_of_the_pairs_weighted_by_their_weights(parts, make_config):
    config = make_config(train={"steps": 1, "batch_size": len(parts[0])})
    head, loss = fresh(config)
    with torch.no_grad():
        losses = loss(head, parts[0])
    weight = torch.where(losses > losses.median(), 3.0, 0.25)
    train = replace(parts[0], weight=weight)
    train_head(head, train, parts[1], loss, config.train)
    (record,) = read_json_lines(f"{config.train.output}/{METRICS}")
    assert record["loss"] == pytest.approx(((losses * weight).sum() / weight.sum()).item(), rel=1e-5)
    assert record["loss"] != pytest.approx(losses.mean().item(), rel=0.01)


def test_weight_decay_shrinks_matrices_alone(parts, make_config):
    """Without a gradient nothing else moves the weights."""
    config = make_config(
        train={"steps": 1, "weight_decay": 0.5, "learning_rate": 0.1, "schedule": "constant"},
    )
    head, _ = fresh(config)
    head.last.bias.data.fill_(2.0)
    before = {name: value.clone() for name, value in head.named_parameters()}

    def nothing(head, pairs):
        return sum(value.sum() for value in head.parameters()) * 0.0 + torch.zeros(len(pairs))

    train_head(head, *parts, nothing, config.train)
    for name, value in head.named_parameters():
        shrunk = before[name] * ((1 - 0.1 * 0.5) if value.ndim > 1 else 1.0)
        torch.testing.assert_close(value, shrunk)


def test_gradients_are_cut_to_the_longest_that_is_allowed(parts, make_config, tmp_path):
    """Far below the optimiser's epsilon a step is proportional to the gradient, so that the cut is seen."""
    moved = []
    for limit in (1e-12, None):
        settings = {"steps": 1, "max_grad_norm": limit, "weight_decay": 0.0, "learning_rate": 0.1}
        config = make_config(train={**settings, "output": str(tmp_path / str(limit))})
        head, loss = fresh(config)
        start = head.first.weight.clone()
        train_head(head, *parts, loss, config.train)
        moved.append((head.first.weight - start).abs().max().item())
    assert moved[0] < 1e-4
    assert moved[1] > 1e-2


def test_a_loss_that_is_not_finite_ends_the_run(parts, make_config):
    config = make_config(train={"epochs": 1})
    head, loss = fresh(config)
    head.last.bias.data.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"step 0: the loss is nan\. Lower train\.learning_rate"):
        train_head(head, *parts, loss, config.train)


def test_metrics_are_one_json_record_per_evaluation(parts, make_config):
    config = make_config(train={"steps": 6, "evaluate_every": 4})
    head, loss = fresh(config)
    train_head(head, *parts, loss, config.train)
    with open(f"{config.train.output}/{METRICS}", encoding="utf-8") as file:
        assert [json.loads(line)["step"] for line in file] == [4, 6]


def test_the_rate_warms_up_and_falls_along_a_cosine(parts, make_config):
    config = make_config(train={"steps": 8, "evaluate_every": 1, "warmup_steps": 2, "learning_rate": 1e-2})
    head, loss = fresh(config)
    train_head(head, *parts, loss, config.train)
    rates = [record["learning_rate"] for record in read_json_lines(f"{config.train.output}/{METRICS}")]
    falling = [0.5e-2 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx([0.5 * falling[0], *falling[1:]])
