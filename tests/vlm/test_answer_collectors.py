"""Rounds of answers: who meets whom, what is left out and counted, and that pairs train and survive."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.batch import Batch, Candidate, Conditioning, Labels, PreferenceRow, RowKeys
from mmalign.errors import CheckpointError, ConfigError, RowError
from mmalign.likelihood.tokens import Tokens
from mmalign.testing.vlm_dialogues import dialogue, load_vlm, photo, shared_vlm, with_adapter
from mmalign.train.token_sections import AnswerRolloutConfig
from mmalign.vlm import answer_collectors
from mmalign.vlm.answer_items import restored_queue
from mmalign.vlm.answer_rounds import prompt_with_room
from mmalign.vlm.drawing import DrawnAnswer
from mmalign.vlm.family import VlmModel

ROLLOUT = AnswerRolloutConfig(
    samples=3,
    threshold=0.0,
    temperature=1.0,
    top_p=1.0,
    max_new_tokens=5,
    hidden=1.0,
    similar=0.97,
    hiding_rounds=1,
    swap=0.0,
    similarity="equal",
)


class ByText:
    """Scores by a function of the answer."""

    name = "by text"

    def __init__(self, score: Callable[[str], float]) -> None:
        self.score, self.seen = score, list[tuple[str, str]]()

    def score_answers(self, rows: Sequence[PreferenceRow], answers: Sequence[str]) -> list[float]:
        self.seen += [(row.id, answer) for row, answer in zip(rows, answers, strict=True)]
        return [self.score(answer) for answer in answers]


def checksum(text: str) -> float:
    return float(sum(text.encode()) % 97)


def asked(number: int) -> PreferenceRow:
    return replace(dialogue(number), kind="prompts", candidates=(), index=number)


def answered(number: int, text: str = "It is red. It is big.") -> PreferenceRow:
    return replace(dialogue(number), kind="chosen", candidates=(Candidate(text=text),), index=number)


def round_of(
    model: VlmModel, rows: Sequence[PreferenceRow], kind: str = "best_of_n", *, valid: Sequence[bool] = ()
) -> Batch:
    reader = model.rounds(ROLLOUT, kind=kind)
    examples = [reader.example(row, key=70 + row.index) for row in rows]
    encoded = model.encode(reader.collate(examples))
    key = torch.tensor([70 + row.index for row in rows])
    return Batch(
        clean=encoded.clean,
        conditioning=Conditioning(),
        labels=Labels(),
        weight=torch.ones(len(rows)),
        valid=torch.tensor(valid or [True] * len(rows)),
        keys=RowKeys(key, torch.zeros(len(rows)), len(rows)),
        element_mask=encoded.element_mask,
        context=encoded.context,
    )


def makers(model: VlmModel, reward: Any, kind: str = "best_of_n", rows: Sequence[PreferenceRow] = ()) -> Any:
    table = {row.index: row for row in rows}
    return model.collectors(ROLLOUT, kind=kind, reward=reward, row=table.__getitem__, seed=3)


@pytest.fixture
def llava(tiny_vlm_folder: Callable[[str], Path]) -> VlmModel:
    return shared_vlm("llava", tiny_vlm_folder("llava"))


def words(model: VlmModel, batch: Batch, place: int, candidate: int) -> list[int]:
    assert batch.element_mask is not None
    own: list[int] = batch.clean[place, candidate][batch.element_mask[place, candidate] > 0].tolist()
    return own


# --- the best against the worst -----------------------------------------------------------------------------


def test_the_best_answer_meets_the_worst_token_by_token(llava: VlmModel, monkeypatch) -> None:
    drawn: list[DrawnAnswer] = []
    real = answer_collectors.draw_answers

    def recorded(*args: Any, **options: Any) -> list[DrawnAnswer]:
        drawn.extend(real(*args, **options))
        return drawn

    monkeypatch.setattr(answer_collectors, "draw_answers", recorded)
    reward = ByText(checksum)
    found = makers(llava, reward).online.collect(round_of(llava, [asked(1), asked(2)]))
    batch = found.items.take(2)
    assert [row for row, _ in reward.seen] == ["1", "1", "1", "2", "2", "2"]
    for place in range(2):
        own = sorted(drawn[3 * place : 3 * place + 3], key=lambda answer: checksum(answer.text))
        assert words(llava, batch, place, 0) == list(own[-1].ids)
        assert words(llava, batch, place, 1) == list(own[0].ids)
        assert batch.reward is not None
        assert batch.reward[place].tolist() == [checksum(own[-1].text), checksum(own[0].text)]
    assert found.facts["kept"].tolist() == [1.0, 1.0]
    assert found.facts["unfinished"].mean() == 1.0  # a random network does not end within five tokens
    torch.testing.assert_close(
        found.facts["reward"], torch.tensor([checksum(answer.text) for answer in drawn])
    )


def test_unreadable_rows_are_asked_nothing(llava: VlmModel) -> None:
    reward = ByText(checksum)
    batch = round_of(llava, [asked(1), asked(2)], valid=[False, True])
    found = makers(llava, reward).online.collect(batch)
    assert {row for row, _ in reward.seen} == {"2"}
    assert len(found.items) == 1


def test_prompts_whose_answers_score_alike_give_no_pair_and_are_counted(llava: VlmModel) -> None:
    found = makers(llava, ByText(lambda _: 2.0)).online.collect(round_of(llava, [asked(1), asked(2)]))
    assert len(found.items) == 0
    assert found.facts["tied"].tolist() == [1.0, 1.0]
    assert found.facts["kept"].tolist() == [0.0, 0.0]
    assert found.facts["reward_failed"].sum() == 0


def test_an_empty_answer_is_not_judged_and_meets_nobody(llava: VlmModel, monkeypatch) -> None:
    """It would win wherever claims are counted: it makes none."""
    texts = ["", "aa", "a", "", "", "b"]
    made = [DrawnAnswer((2,) if not text else (5, len(text), 2), text, ended=True) for text in texts]
    monkeypatch.setattr(answer_collectors, "draw_answers", lambda *_, **__: made)
    reward = ByText(lambda text: -float(len(text)))
    found = makers(llava, reward).online.collect(round_of(llava, [asked(1), asked(2)]))
    assert [text for _, text in reward.seen] == ["aa", "a", "b"]
    assert len(found.items) == 1
    batch = found.items.take(1)
    assert words(llava, batch, 0, 0) == [5, 1, 2]
    assert words(llava, batch, 0, 1) == [5, 2, 2]
    assert found.facts["empty"].tolist() == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    assert found.facts["tied"].tolist() == [0.0, 0.0]


def test_answers_that_could_not_be_judged_are_passed_over_and_counted(llava: VlmModel) -> None:
    found = makers(llava, ByText(lambda _: math.nan)).online.collect(round_of(llava, [asked(1)]))
    assert len(found.items) == 0
    assert found.facts["reward_failed"].tolist() == [1.0, 1.0, 1.0]
    assert found.facts["tied"].tolist() == [0.0]


def test_a_reward_that_forgets_an_answer_is_refused(llava: VlmModel) -> None:
    reward = ByText(checksum)
    reward.score_answers = lambda rows, answers: [1.0]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"reward by text: got \[1 numbers\], expected 3, one per answer"):
        makers(llava, reward).online.collect(round_of(llava, [asked(1)]))


def test_gradients_of_fresh_pairs_reach_the_adapters(tiny_vlm_folder: Callable[[str], Path]) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    trainables = with_adapter(model)
    queue = makers(model, ByText(checksum)).online.collect(round_of(model, [asked(1), asked(2)])).items
    batch, likelihood = queue.take(2), Tokens()
    evaluation = likelihood.evaluate(model.policy(model.network), batch, likelihood.draw(batch))
    (evaluation.score[:, 0] - evaluation.score[:, 1]).sum().backward()
    assert all(
        parameter.grad is not None and float(parameter.grad.abs().max()) > 0
        for parameter in trainables.parameters.values()
    )


# --- the data's answer against a guess ----------------------------------------------------------------------


def guess(model: VlmModel, picture: int, hidden: float) -> str:
    rollout = ROLLOUT.model_copy(update={"hidden": hidden, "max_new_tokens": 9})
    row = replace(answered(1), images=(photo(picture, size=(84, 50)),))
    maker = model.collectors(rollout, kind="bias_driven", reward=None, row=lambda _: row, seed=3).online
    (stored,) = json.loads(
        bytes(maker.collect(round_of(model, [row], "bias_driven")).items.state_dict()["items"].tolist())
    )
    text: str = stored["recipe"]["rejected"]
    return text


def test_hidden_images_change_nothing_of_a_guess_and_shown_ones_do(llava: VlmModel) -> None:
    assert guess(llava, 5, hidden=1.0) == guess(llava, 6, hidden=1.0)
    assert guess(llava, 5, hidden=0.0) != guess(llava, 6, hidden=0.0)


def test_the_answer_of_the_data_is_chosen_and_the_guess_rejected(llava: VlmModel) -> None:
    rows = [answered(1), answered(2)]
    found = makers(llava, None, "bias_driven", rows).online.collect(round_of(llava, rows, "bias_driven"))
    batch = found.items.take(2)
    expected = llava.example(rows[1], key=72)["answers"][0].ids.tolist()
    assert words(llava, batch, 1, 0) == expected
    assert words(llava, batch, 1, 1) != expected
    assert batch.reward is None
    assert found.facts["rounds"].tolist() == [1.0] * 4  # two sentences per answer


# --- pairs of the data, and the queue -----------------------------------------------------------------------


def test_pairs_of_the_data_keep_their_preference_and_their_rewards(llava: VlmModel) -> None:
    row = replace(dialogue(1), preference=0.75, index=1)
    rated = replace(
        row, candidates=tuple(replace(each, reward=float(n)) for n, each in enumerate(row.candidates))
    )
    made = makers(llava, ByText(checksum), "mixed", [row])
    batch = made.offline.collect(round_of(llava, [rated], "mixed")).items.take(1)
    assert batch.labels.probability is not None
    assert batch.labels.probability.tolist() == [0.75]
    assert not batch.labels.certain
    assert batch.reward is not None
    assert batch.reward.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("kind", ["best_of_n", "bias_driven", "mixed"])
def test_a_stored_queue_gives_the_same_batch(llava: VlmModel, kind: str) -> None:
    make = {"best_of_n": asked, "bias_driven": answered, "mixed": lambda n: replace(dialogue(n), index=n)}
    rows = [make[kind](number) for number in (1, 2, 3)]
    made = makers(llava, None if kind == "bias_driven" else ByText(checksum), kind, rows)
    maker = made.offline if kind == "mixed" else made.online
    queue = maker.collect(round_of(llava, rows, kind)).items.after(1)
    assert len(queue) == 2
    again = made.restored(queue.state_dict()).take(2)
    expected = queue.take(2)
    for name in ("clean", "element_mask", "reward", "weight"):
        one, other = getattr(again, name), getattr(expected, name)
        assert one is other is None or torch.equal(one, other), name
    assert torch.equal(again.keys.key, expected.keys.key)
    assert torch.equal(again.context.ids, expected.context.ids)
    assert torch.equal(again.context.features["image"].values, expected.context.features["image"].values)


def test_a_queue_of_other_data_is_refused(llava: VlmModel) -> None:
    made = makers(llava, ByText(checksum), rows=[asked(1)])
    state = made.online.collect(round_of(llava, [asked(1)])).items.state_dict()
    with pytest.raises(CheckpointError, match=r"row '2' as number 1, expected '1'. The data have changed"):
        restored_queue(llava, lambda _: asked(2), state)
    with pytest.raises(CheckpointError, match="items missing"):
        made.restored({})


# --- room ---------------------------------------------------------------------------------------------------


def test_an_answer_has_the_room_that_its_prompt_leaves(llava: VlmModel) -> None:
    row = asked(1)
    length = llava.reader.prompt(row).ids.shape[0]
    roomy, tight = (replace(llava.reader, max_length=length + room) for room in (9, 4))
    assert prompt_with_room(roomy, row, 7)[1] == 7
    assert prompt_with_room(tight, row, 7)[1] == 4
    with pytest.raises(RowError, match=f"expected at most {length}"):
        prompt_with_room(replace(llava.reader, max_length=length), row, 7)
    with pytest.raises(ConfigError, match="expected at most"):
        prompt_with_room(replace(tight, fit="error"), row, 7)


def test_pictures_are_made_smaller_where_the_family_can(tiny_vlm_folder: Callable[[str], Path]) -> None:
    model = shared_vlm("qwen2_5_vl", tiny_vlm_folder("qwen2_5_vl"))
    row = replace(asked(1), images=(photo(1, size=(280, 280)),))
    length = model.reader.prompt(row).ids.shape[0]
    prompt, room = prompt_with_room(replace(model.reader, max_length=length), row, 7)
    assert room == 7
    assert prompt.ids.shape[0] <= length - 7
