import math

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mmalign import rewards
from mmalign.errors import ConfigError, HyperparameterError, ShapeError
from mmalign.rewards.checklist import Check, Checklist, fit_weights, load_checklist, save_checklist
from mmalign.rewards.sample import Sample
from mmalign.testing.reward_checkpoints import vision_language as tiny


@pytest.fixture
def listed():
    questions = (
        Check(id="body", question="A body?"),
        Check(id="hands", question="Hands?", requires="body"),
        Check(id="fingers", question="Five fingers?", weight=2.0, requires="hands"),
        Check(id="sharp", question="Sharp?", weight=-1.0),
    )
    return Checklist(name="people", intercept=0.25, questions=questions)


def test_masked_questions_count_nothing(listed):
    answers = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, -0.1, 0.5, 0.5], [-0.5, 0.5, 0.5, 0.5]])
    features = listed.features(answers)
    assert features.tolist() == [
        [0.5, 0.5, 0.5, 0.5],
        [0.5, pytest.approx(-0.1), 0.0, 0.5],
        [-0.5, 0.0, 0.0, 0.5],
    ]
    assert listed.score(features).tolist() == pytest.approx([0.75, -0.25, -0.25])


def test_score_of_a_picture_is_the_weighted_sum_of_answers(tmp_path):
    folder = tiny.CHECKPOINTS["checklist"](tmp_path / "w", 4)
    reward = rewards.load("checklist", weights=folder, rows_at_once=2)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    found = reward.score([Sample(prompt="a {cat}", image=image)])
    assert found.outputs == ("score", "hands", "fingers", "shown")
    answers = []
    for text in ("Are there hands?", "Five fingers each?", "Does it show [a {cat}]?"):
        row = reward.model.question(text, [("image", image)])
        inputs = {name: value for name, value in row.items() if name != "attention_mask"}
        logits = reward.model.network(**inputs).logits[0, -1]
        chances = torch.exp(logits) / torch.exp(logits).sum()
        yes, no = (reward.model.tokenizer.encode(word)[0] for word in ("yes", "no"))
        answers.append(float(chances[yes] - chances[no]))
    fingers = answers[1] if answers[0] > 0 else 0.0
    expected = [0.5 + 7 * fingers + 3 * answers[2], answers[0], fingers, answers[2]]
    assert found.values[0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_fit_recovers_the_weights_that_made_the_pairs():
    draw = torch.Generator().manual_seed(5)
    truth = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    left, right = (torch.randn(4000, 3, generator=draw, dtype=torch.float64) for _ in "ab")
    wins = torch.rand(4000, generator=draw, dtype=torch.float64) < torch.sigmoid((left - right) @ truth)
    chosen = torch.where(wins[:, None], left, right)
    rejected = torch.where(wins[:, None], right, left)
    found = fit_weights(chosen, rejected, ridge=1e-6)
    torch.testing.assert_close(found, truth, rtol=0, atol=0.15)


def test_fit_is_the_stationary_point_and_equals_another_solver(draw):
    from sklearn.linear_model import LogisticRegression

    chosen, rejected = draw(53, 3) + 0.3, draw(53, 3)
    found = fit_weights(chosen, rejected, ridge=0.1)
    weights = found.clone().requires_grad_()
    loss = (
        torch.nn.functional.softplus(-((chosen - rejected) @ weights)).mean() + 0.05 * weights.square().sum()
    )
    (slope,) = torch.autograd.grad(loss, weights)
    assert float(slope.abs().max()) < 1e-10
    difference = (chosen - rejected).numpy()
    both = np.concatenate([difference, -difference])
    labels = np.concatenate([np.ones(53), np.zeros(53)])
    other = LogisticRegression(C=1 / (0.1 * 106), fit_intercept=False, tol=1e-10).fit(both, labels)
    assert found.tolist() == pytest.approx(other.coef_[0].tolist(), rel=1e-4, abs=1e-6)


def test_separable_pairs_have_finite_weights():
    found = fit_weights(torch.ones(7, 2), torch.zeros(7, 2), ridge=1e-3)
    assert bool(torch.isfinite(found).all())
    assert float(found.min()) > 1.0


def test_fit_without_ridge_or_pairs_is_refused():
    with pytest.raises(HyperparameterError, match=r"ridge: got 0.0, expected a number above 0"):
        fit_weights(torch.ones(2, 2), torch.zeros(2, 2), ridge=0.0)
    with pytest.raises(ShapeError, match="expected at least one"):
        fit_weights(torch.ones(0, 2), torch.zeros(0, 2))


def test_fitted_checklist_survives_its_file(tmp_path, listed):
    fitted = listed.with_weights([0.0, 0.0, 1.5, math.pi], 0.125)
    save_checklist(fitted, tmp_path / "a.yaml")
    assert load_checklist(tmp_path / "a.yaml") == fitted
    assert fitted.sha256() != listed.sha256()
    with pytest.raises(ShapeError, match="checklist weights: got 1, expected 4, one per question"):
        listed.with_weights([1.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "got 'list', expected a mapping"),
        ("name: a\nquestions: []", "questions: got"),
        ("name: a\nquestions: [{id: x, question: y, wait: 2}]", "questions.0.wait"),
        ("name: a\nquestions: [{id: x, question: y}, {id: x, question: z}]", "expected each id once"),
        ("name: a\nquestions: [{id: score, question: y}]", "expected each id once"),
        ("name: a\nquestions: [{id: x, question: y, requires: z}]", "the id of an earlier question"),
        ("name: [", "a YAML file that can be read"),
    ],
)
def test_wrong_files_are_refused_with_place(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_checklist(path)


def test_missing_questions_are_asked_for(tmp_path):
    folder = tiny.write_chat_model(tmp_path / "w")
    with pytest.raises(ConfigError, match="reward checklist questions: got None, expected a YAML file"):
        rewards.load("checklist", weights=folder)
    with pytest.raises(ConfigError, match=r"checklist .*none.yaml: got 'FileNotFoundError'"):
        rewards.load("checklist", weights=folder, questions=tmp_path / "none.yaml")


def test_answers_must_be_one_token(tmp_path):
    folder = tiny.write_chat_model(tmp_path / "w")
    (folder / "checklist.yaml").write_text("name: a\n'yes': maybe\nquestions: [{id: x, question: y}]\n")
    with pytest.raises(ConfigError, match="token of 'maybe'"):
        rewards.load("checklist", weights=folder)


def test_fields_are_typed():
    with pytest.raises(ValidationError):
        Check(id="not an id", question="x")
