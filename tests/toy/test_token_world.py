"""The toy world of tokens: language, exact judge, labellers, model; what improves it and what does not."""

from pathlib import Path

import pytest
import torch

from mmalign import objectives
from mmalign.errors import ConfigError
from mmalign.files import load_tensors, read_json
from mmalign.seeding import generator_for
from mmalign.toy import token_model, token_training
from mmalign.toy.comparison import Interval, bootstrap_mean
from mmalign.toy.token_training import Setting, align, measure, pairs_of, view_of
from mmalign.toy.token_world import (
    ANSWER_WORDS,
    BASE_WRITER,
    CONDITIONS,
    FOREIGN_WRITER,
    PROMPT_WORDS,
    VOCABULARY,
    Condition,
    Pair,
    Writer,
    decode,
    encode_answer,
    encode_prompt,
    flip_labels,
    judge,
    label_pairs,
    prompts,
    truth,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -------------------------------------------------------------------------------------------------- language


def test_no_prompt_is_in_two_splits_and_every_fact_is_asked_in_training() -> None:
    split = prompts()
    assert [len(part) for part in (split.train, split.validation, split.test)] == [384, 96, 160]
    every = [*split.train, *split.validation, *split.test]
    assert len(set(every)) == len(every) == 640
    asked = {(prompt[0], attribute) for prompt in split.train for attribute in prompt[1:]}
    assert asked == {(prompt[0], attribute) for prompt in every for attribute in prompt[1:]}


def test_a_prompt_fills_its_field_and_an_answer_is_decoded_as_it_was() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert [VOCABULARY[token] for token in encode_prompt(("fox", "food"))] == [".", ".", "fox", "food", "?"]
    for prompt in prompts().test:
        assert len(encode_prompt(prompt)) == PROMPT_WORDS
        answer = FOREIGN_WRITER.answer(prompt, generator_for(0, "test", *prompt))
        tokens = encode_answer(answer)
        assert len(tokens) == ANSWER_WORDS
        assert decode(tokens) == answer


# ----------------------------------------------------------------------------------------------------- judge


def _perfect(prompt: tuple[str, ...]) -> tuple[str, ...]:
    return Writer(right=1.0, courtesy=1.0, filler=0.0, slip=0.0).answer(prompt, generator_for(0, "perfect"))


def test_the_judge_gives_one_to_perfect_answers_and_less_to_spoilt_ones() -> None:
    for prompt in prompts().test:
        words = _perfect(prompt)
        best = judge(prompt, words)
        assert best.reward == 1.0
        place = words.index(truth(prompt[0], prompt[1]))
        other = "blue" if words[place] != "blue" else "red"
        spoilt = {
            "impolite": words[:-1],
            "wrong": (*words[:place], other, *words[place + 1 :]),
            "padded": ("well", *words),
            "slip": (*words[:place], "teh", *words[place:]),
            "unasked": (*words[:-1], "and", *words[:2], "thanks"),
            "unfinished": words[:1],
            "empty": (),
        }
        for what, answer in spoilt.items():
            assert judge(prompt, answer).reward < 1.0, what
        assert judge(prompt, ()).reward == 0.0


def test_the_judge_counts_facts_courtesy_clarity_and_slips() -> None:
    prompt = ("fox", "food", "home")
    right, wrong = truth("fox", "food"), "cave" if truth("fox", "home") != "cave" else "nest"
    seen = judge(prompt, ("well", "food", right, "and", "teh", "home", wrong, "thanks"))
    assert (seen.facts, seen.courtesy, seen.words) == (0.5, 1.0, 8)
    assert seen.clarity == pytest.approx(6 / 8)
    assert seen.slips == pytest.approx(1 / 8)
    assert seen.content == pytest.approx(0.5)
    assert seen.reward == pytest.approx(0.5 * 6 / 8)


# ------------------------------------------------------------------------------------------------- labellers


def test_labellers_prefer_content_join_ties_apart_and_look_at_no_slip() -> None:
    prompt = ("fox", "food")
    right, wrong = (
        ("food", truth("fox", "food")),
        ("food", "corn" if truth("fox", "food") != "corn" else "nuts"),
    )
    made = label_pairs(
        prompt, [right, right, wrong, ("teh", *wrong)], Condition("exact"), generator_for(0, "x")
    )
    assert [pair.chosen for pair in made] == [right, right]
    assert {pair.rejected for pair in made} == {wrong, ("teh", *wrong)}
    assert all(pair.worth == (0.75, 0.0) for pair in made)


def test_a_taste_for_length_prefers_the_longer_of_two_wrong_answers() -> None:
    prompt = ("fox", "food")
    wrong = ("food", "corn" if truth("fox", "food") != "corn" else "nuts")
    longer = ("well", "well", *wrong)
    taste = Condition("long", length_taste=0.1)
    made = label_pairs(prompt, [wrong, longer, longer, wrong], taste, generator_for(0, "x"))
    assert [pair.chosen for pair in made] == [longer, longer]


def test_four_answers_are_wanted() -> None:
    with pytest.raises(ConfigError, match="token world pairs: got 3, expected 4 answers"):
        label_pairs(("fox", "food"), [(), (), ()], Condition("exact"), generator_for(0, "x"))


def test_flips_exchange_their_share_of_the_labels_and_nothing_else() -> None:
    pairs = [Pair(("fox", "food"), ("a",), ("b",), (1.0, 0.0))] * 2000
    flipped = flip_labels(pairs, 0.3, generator_for(0, "x"))
    share = sum(pair.chosen == ("b",) for pair in flipped) / len(flipped)
    assert share == pytest.approx(0.3, abs=0.03)
    assert all(
        {pair.chosen, pair.rejected} == {("a",), ("b",)} and pair.worth == (1.0, 0.0) for pair in flipped
    )
    assert flip_labels(pairs, 0.0, generator_for(0, "x")) == pairs
    with pytest.raises(ConfigError, match=r"token world flips: got 1\.5, expected a share"):
        flip_labels(pairs, 1.5, generator_for(0, "x"))


# ----------------------------------------------------------------------------------------------------- model


def test_the_shipped_base_is_small_and_knows_the_language_but_not_all_facts() -> None:
    file = token_model.ASSETS / "model.safetensors"
    assert file.stat().st_size < 1_000_000
    assert read_json(token_model.ASSETS / "config.json")["vocab_size"] == len(VOCABULARY)
    assert sum(value.numel() for value in load_tensors(file).values()) < 500_000
    base = token_training.base_measured("test")
    assert 0.3 < base.reward < 0.45
    assert 0.45 < base.facts < 0.65
    assert base.courtesy < 0.25
    assert base.slips < 0.005
    assert base.kl == pytest.approx(0.0, abs=1e-5)
    assert base.gains == (0.0,) * 160


def test_the_same_seed_gives_the_same_answers_and_another_gives_others() -> None:
    model, asked = token_model.load_base(), prompts().test[:7]
    first = token_model.sample(model, asked, seed=3, per_prompt=2)
    assert token_model.sample(model, asked, seed=3, per_prompt=2) == first
    assert token_model.sample(model, asked, seed=4, per_prompt=2) != first
    assert all(len(answers) == 2 for answers in first)


def test_sampling_follows_the_model_s_own_probabilities() -> None:
    model, prompt = token_model.load_base(), ("fox", "food")
    answers = [answer for (answer,) in token_model.sample(model, [prompt] * 600, seed=0)]
    with torch.no_grad():
        logits = token_model.token_logits(
            model, torch.tensor([encode_prompt(prompt)]), torch.tensor([encode_answer(())])
        )
    expected = logits[0, 0].softmax(-1)[VOCABULARY.index("food")]
    share = sum(answer[:1] == ("food",) for answer in answers) / len(answers)
    assert share == pytest.approx(float(expected), abs=0.07)


def test_the_base_s_training_lowers_its_loss_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    budget = {"steps": 3, "batch_size": 5, "num_texts": 11}
    first, again = (token_model.train_base(0, **budget).state_dict() for _ in range(2))
    other = token_model.train_base(1, **budget).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


# ------------------------------------------------------------------------------------------------------ data


def test_pairs_lists_and_thumbs_hold_the_same_answers() -> None:
    pairs, lists, thumbs = (
        view_of("mixed", 0, kind, "validation") for kind in ("pairs", "lists", "unpaired")
    )
    assert pairs.answer.shape[:2] == (192, 2)
    assert lists.answer.shape[:2] == (96, 4)
    assert thumbs.answer.shape[:2] == (384, 1)
    assert torch.equal(pairs.answer.flatten(0, 1), thumbs.answer.flatten(0, 1))
    assert torch.equal(pairs.answer.flatten(0, 1), lists.answer.flatten(0, 1))
    assert torch.equal(thumbs.labels().desirable[:, 0], torch.tensor([True, False]).repeat(192))
    assert bool((pairs.worth[:, 0] >= pairs.worth[:, 1]).all())


def test_training_labels_are_flipped_and_held_out_ones_are_not() -> None:
    def wrong(condition: str, split: str) -> float:
        pairs = pairs_of(condition, 0, split)
        worth = [
            [judge(pair.prompt, answer).content for answer in (pair.chosen, pair.rejected)] for pair in pairs
        ]
        decided = [chosen < rejected for chosen, rejected in worth if chosen != rejected]
        return sum(decided) / len(decided)

    assert wrong("clean", "train") == 0.0
    assert wrong("noise", "train") == pytest.approx(0.3, abs=0.05)
    assert wrong("noise", "validation") == 0.0


@pytest.mark.slow
def test_foreign_answers_are_unlikely_under_the_base_and_slips_do_not_follow_the_label() -> None:
    own, foreign = (view_of(name, 0, "pairs") for name in ("clean", "foreign"))

    def likelihood(view: token_training.View) -> float:
        return float((view.reference * view.mask).sum(-1).mean())

    assert likelihood(foreign) < likelihood(own) - 5.0
    slips = [
        [judge(pair.prompt, answer).slips for answer in (pair.chosen, pair.rejected)]
        for pair in pairs_of("foreign", 0)
    ]
    chosen, rejected = (sum(values) / len(slips) for values in zip(*slips, strict=True))
    assert chosen == pytest.approx(rejected, abs=0.015)
    assert chosen > 0.05


# -------------------------------------------------------------------------------------------------- training


def test_every_input_an_objective_of_tokens_reads_is_provided_or_named() -> None:
    assert token_training.lacking("dpo") == []
    assert token_training.lacking("modpo") == ["margin_rewards"]
    runnable = [name for name in objectives.names() if not token_training.lacking(name)]
    assert len(runnable) > 100


@pytest.mark.parametrize(
    "name", ["dpo", "kto", "nca", "length_dpo", "odpo", "tdpo1", "sampo", "dense_dpo", "mallows_dpo"]
)
def test_two_steps_of_a_row_move_the_model(name: str) -> None:
    setting = Setting(name, dict(objectives.registered(name).sample), learning_rate=1e-3, steps=2)
    moved, base = align(setting), token_model.load_base()
    assert not all(
        torch.equal(new, old) for new, old in zip(moved.parameters(), base.parameters(), strict=True)
    )


def test_the_same_setting_gives_the_same_model() -> None:
    setting = Setting("dpo", {"beta": 0.3}, steps=2)
    first, again = align(setting).state_dict(), align(setting).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_few_steps_of_dpo_widen_the_margin_of_held_out_pairs() -> None:
    measured = measure(align(Setting("dpo", {"beta": 1.0}, "clean", 1e-3, steps=20)), split="validation")
    assert measured.chosen > measured.rejected
    assert measured.accuracy > 0.6


# ----------------------------------------------------------------------------------------------------- worlds

WORLD_SEEDS = (0, 1, 2)


def _gain(name: str, condition: str, rate: float, *, flips: float = 0.0, **arguments: float) -> Interval:
    """Gain in exact reward on held-out prompts, mean of the seeds, with its interval over prompts."""
    every = [
        measure(align(Setting(name, arguments, condition, rate, seed=seed))).gains for seed in WORLD_SEEDS
    ]
    return bootstrap_mean(torch.tensor(every).mean(dim=0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rate", "arguments"),
    [
        ("dpo", 6e-4, {"beta": 1.0}),
        ("ipo", 2e-4, {"tau": 1.0}),
        ("kto", 6e-4, {"beta": 1.0}),
        ("nca", 6e-4, {"beta": 0.03, "temperature": 0.5}),
    ],
)
def test_a_method_improves_held_out_reward_beyond_its_interval(
    name: str, rate: float, arguments: dict[str, float]
) -> None:
    gain = _gain(name, "mixed", rate, **arguments)
    print(f"{name}: gain {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    assert gain.low > 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments"), [("dpo", {"beta": 1.0}), ("kto", {"beta": 1.0})])
def test_flipped_labels_do_not_improve_it(
    name: str, arguments: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    upside_down = Condition("all labels exchanged", flips=1.0)
    monkeypatch.setattr(token_training, "CONDITIONS", {**CONDITIONS, "upside_down": upside_down})
    gain = _gain(name, "upside_down", 6e-4, **arguments)
    print(f"{name} flipped: gain {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    assert gain.high < 0.0


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["mixed", "foreign"])
def test_with_answers_of_unequal_difficulty_the_reference_matters(condition: str) -> None:
    """Same budget, same data, and for each the best of one grid by validation prompts."""
    grid = [(beta, rate) for beta in (0.1, 1.0) for rate in (2e-4, 6e-4)]

    def best(name: str) -> torch.Tensor:
        def validated(setting: tuple[float, float]) -> float:
            beta, rate = setting
            gains = measure(align(Setting(name, {"beta": beta}, condition, rate)), split="validation").gains
            return sum(gains)

        beta, rate = max(grid, key=validated)
        runs = [
            measure(align(Setting(name, {"beta": beta}, condition, rate, seed=seed))).gains
            for seed in WORLD_SEEDS
        ]
        return torch.tensor(runs).mean(dim=0)

    difference = bootstrap_mean(best("dpo") - best("dpo_reference_free"))
    print(f"{condition}: {difference.value:+.3f}, {difference.low:+.3f} to {difference.high:+.3f}")
    assert difference.low > 0.0


def test_the_base_s_author_and_the_foreign_one_differ_in_slips() -> None:
    assert BASE_WRITER.slip < 0.01 < FOREIGN_WRITER.slip
