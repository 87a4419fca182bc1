"""Answers grow sentence by sentence; scores of the model and of CLIP decide which ends make a pair."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmalign.batch import PreferenceRow
from mmalign.errors import HyperparameterError
from mmalign.rewards.sample import Sample
from mmalign.testing.vlm_dialogues import load_vlm
from mmalign.vlm.network import bare
from mmalign.vlm.pair_making.calibrated import Search, calibrated, calibrated_pairs, searched, shares_of
from mmalign.vlm.pair_making.commands import make_pairs
from mmalign.vlm.pair_making.on_policy import extremes, paired_by_score
from mmalign.vlm.pair_making.painters import Tools
from mmalign.vlm.pair_making.plan import DialoguePairPlan
from mmalign.vlm.pair_making.requests import Request, Sampling
from mmalign.vlm.pair_making.sentence_scores import PictureRelevance, VlmContinuations
from mmalign.vlm.pair_making.writing import begin, model_inputs

WORDS = ("good", "fair", "poor", "bad")
VALUES = dict(zip(WORDS, (30.0, 20.0, 10.0, 0.0), strict=True))


def test_a_score_is_the_weighted_mean_of_values_or_of_ranks() -> None:
    own, image = [0.5, 0.25, 0.75], [10.0, 30.0, 20.0]
    assert calibrated(own, image, image_share=0.9, combine="values") == pytest.approx([9.05, 27.025, 18.075])
    assert calibrated(own, image, image_share=0.75) == pytest.approx([0.125, 0.75, 0.625])
    assert calibrated(own, image, image_share=0.0, combine="values") == own


def test_ranks_share_what_is_equal() -> None:
    assert shares_of([3.0, 1.0, 3.0, 7.0, 3.0]) == [0.5, 0.0, 0.5, 1.0, 0.5]
    assert shares_of([4.0]) == [0.5]


def in_turn(request: Request, number: int) -> str:
    """Two sentences, then the end; words in turn."""
    return "" if request.prefix.count(".") == 2 else f"{WORDS[number % 4]}."


def likely(rows: Sequence[PreferenceRow], before: Sequence[str], texts: Sequence[str]) -> list[float]:
    return [-1.0] * len(texts)


def relevance(rows: Sequence[PreferenceRow], texts: Sequence[str]) -> list[float]:
    return [VALUES[text.removesuffix(".")] for text in texts]


BY_IMAGE = Search(beams=3, branches=4, image_share=1.0, combine="values")


def test_the_best_and_the_worst_answer_of_a_search_become_a_pair(row, scripted, stages) -> None:
    write = scripted(in_turn)
    answers, sentences, counts = searched(
        [row("a"), row("b")], write, likely, relevance, stages, search=BY_IMAGE, sampling=Sampling()
    )
    for one, scores in zip(answers, sentences, strict=True):
        assert [sum(of) / len(of) for of in scores] == pytest.approx(list(one.scores))
        assert one.texts[0] == "good. good."
        assert one.texts[-1] == "bad. bad."
        assert one.scores[0] == 30.0
        assert one.scores[-1] == 0.0
    assert not counts
    # Every sentence is asked for behind the words before it, and stops at its full stop.
    assert {request.prefix for request in write.asked if request.prefix.count(".") == 1} >= {"good.", "bad."}
    assert all(request.stop_at_sentence for request in write.asked)
    pairs, _ = paired_by_score(answers, rule=extremes)
    first = calibrated_pairs(pairs, answers, sentences)[0]
    assert (first.chosen, first.rejected) == ("good. good.", "bad. bad.")
    assert first.columns["sentence_scores_chosen"] == [30.0, 30.0]
    assert first.columns["sentence_scores_rejected"] == [0.0, 0.0]
    assert first.columns["score_chosen"] == 30.0
    # A second run reads what was written.
    again, *_ = searched(
        [row("a"), row("b")],
        scripted(in_turn),
        likely,
        relevance,
        stages,
        search=BY_IMAGE,
        sampling=Sampling(),
    )
    assert [one.texts for one in again] == [one.texts for one in answers]


def test_the_models_own_view_decides_where_the_picture_has_no_share(row, scripted, stages) -> None:
    def prefers_bad(rows: object, before: object, texts: Sequence[str]) -> list[float]:
        return [0.0 if text == "bad." else -5.0 for text in texts]

    answers, _, _ = searched(
        [row("a")],
        scripted(in_turn),
        prefers_bad,
        relevance,
        stages,
        search=Search(beams=2, branches=4, image_share=0.0, combine="values"),
        sampling=Sampling(),
    )
    assert answers[0].texts[0] == "bad. bad."


def test_an_answer_ends_after_so_many_sentences_or_when_nothing_follows(row, scripted, stages) -> None:
    endless = scripted(lambda request, number: f"{WORDS[number % 4]}.")
    answers, sentences, _ = searched(
        [row("a")],
        endless,
        likely,
        relevance,
        stages,
        search=Search(beams=2, branches=2, sentences=3),
        sampling=Sampling(),
    )
    assert {len(scores) for scores in sentences[0]} == {3}
    assert {text.count(".") for text in answers[0].texts} == {3}


def test_a_row_whose_picture_could_not_be_judged_is_left_out(row, scripted, stages) -> None:
    def fails(rows: Sequence[PreferenceRow], texts: Sequence[str]) -> list[float]:
        return [math.nan if one.id == "a" else 1.0 for one in rows]

    answers, _, counts = searched(
        [row("a"), row("b")], scripted(in_turn), likely, fails, stages, search=BY_IMAGE, sampling=Sampling()
    )
    assert [one.row.id for one in answers] == ["b"]
    assert counts == {"score_failed": 1}


@pytest.mark.parametrize(("name", "value"), [("beams", 1), ("image_share", 1.5)])
def test_a_search_without_two_ends_or_with_no_share_is_refused(name: str, value: float) -> None:
    with pytest.raises(HyperparameterError, match=f"csr {name}: got {value}"):
        Search(**{name: value})


def test_a_sentence_is_as_likely_as_the_model_says_behind_the_words_before_it(tiny_vlm_folder, row) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), dtype=torch.float32)
    before, sentence = "There is a red circle.", "It is left of a square."
    (found,) = VlmContinuations(model)([row("a")], [before], [sentence])
    whole = begin(model, Request(row("a"), prefix=f"{before} {sentence}"))
    earlier = begin(model, Request(row("a"), prefix=before)).ids.shape[0]
    with torch.no_grad():
        logits = bare(model.network).model(**model_inputs(model, [whole]), use_cache=False).logits[0]
    shares = logits.log_softmax(-1)
    wanted = [float(shares[place - 1, whole.ids[place]]) for place in range(earlier, whole.ids.shape[0])]
    assert len(wanted) > 3
    assert found == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)


class Shortness:
    """A reward of two outputs: nothing, and 3 less the words of the text."""

    card = SimpleNamespace(outputs=("nothing", "shortness"))

    def __init__(self) -> None:
        self.seen: list[Sample] = []

    def fingerprint(self) -> str:
        return "f"

    def provenance(self) -> dict[str, str]:
        return {"name": "shortness"}

    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> SimpleNamespace:
        self.seen += samples
        values = [[0.0, 3.0 - len(sample.prompt.split())] for sample in samples]
        return SimpleNamespace(values=torch.tensor(values, dtype=torch.float64))


def test_relevance_reads_the_rows_picture_and_is_never_negative(row) -> None:
    reward, rows = Shortness(), [row("a", colour="red"), row("b", colour="blue")]
    assert PictureRelevance(reward, column=1)(rows, ["a b c d e.", "y."]) == [0.0, 2.0]
    assert [(sample.prompt, sample.image) for sample in reward.seen] == [
        ("a b c d e.", rows[0].images[0]),
        ("y.", rows[1].images[0]),
    ]


def test_the_recipe_writes_pairs_with_the_scores_of_their_sentences(
    tiny_vlm_folder, row, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(row("a").images[0])
    record = {"id": "a", "prompt": "What is there?", "images": ["a.png"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n")
    plan = DialoguePairPlan.model_validate(
        {
            "recipe": "csr",
            "model": {"family": "llava", "source": str(tiny_vlm_folder("llava"))},
            "data": {"source": {"path": str(tmp_path / "rows.jsonl"), "media": "dialogue"}},
            "dtype": "float32",
            "sampling": {"temperature": 1.0},
            "csr": {"beams": 2, "sentence_tokens": 5, "sentences": 2, "reward": {"name": "clipscore"}},
        }
    )
    tools = Tools(reward=lambda config, device: Shortness())
    path, counts, _ = make_pairs(plan, tmp_path / "made", device="cpu", tools=tools)
    assert counts["rows"] == 1
    (made,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert made["made_by"] == "csr"
    for side in ("chosen", "rejected"):
        scores = made[f"sentence_scores_{side}"]
        assert made[f"score_{side}"] == pytest.approx(sum(scores) / len(scores))
    assert made["score_chosen"] > made["score_rejected"]
    assert "shortness" in (tmp_path / "made" / "card.yaml").read_text()
