"""The exact judge of the toy world of dialogues as a reward, and online methods that learn from it.

The claim is the one of `test_dialogue_alignment`: the 95 % interval of the change in the share of held-out
descriptions that hallucinate lies below zero, and that of recall above the margin. No answer of the data is
shown to the online run: it has pictures, questions and the judge. Run with -s to see the numbers.
"""

import math
from pathlib import Path

import pytest

from mmalign.data.readers import open_rows
from mmalign.errors import RowError
from mmalign.rewards import load
from mmalign.rewards.on_answers import OnAnswers, answer_sample
from mmalign.toy.demo import fixed_threads, recipe_path
from mmalign.toy.dialogue_answers import describe, judge
from mmalign.toy.dialogue_exam import ExamComparison, draw_exam, take_exam
from mmalign.toy.dialogue_parts import ASSETS
from mmalign.toy.dialogue_reward import score, write_prompts
from mmalign.toy.dialogue_scenes import draw_pictures
from mmalign.train.config import load_run
from mmalign.train.run import train

REWARD = "mmalign.toy.dialogue_reward:score"
SEED, NUM_PICTURES, RECALL_MARGIN = 1, 400, -0.03


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(768, tmp_path_factory.mktemp("prompts") / "prompts.parquet", seed=SEED)


def rows_of(path: Path):
    extra = {"method": "online_dpo", "model": {"source": str(ASSETS)}, "data": {"source": str(path)}}
    run = load_run(recipe_path("vlm/configs/toy/dpo.yaml"), ("rollout.reward=x:y",), extra=extra)
    return open_rows(run.config.data, kind="prompts")


def test_the_reward_is_the_judge(prompts: Path) -> None:
    table, pictures = rows_of(prompts), draw_pictures(5, seed=SEED, held_out=False)
    # The truth, and the truth with what the next picture shows.
    answers = [describe(picture.groups) for picture in pictures[:2]]
    answers += [describe((*pictures[n].groups, *pictures[n + 1].groups)) for n in (2, 3)]
    answers.append("There is nothing.")
    samples = [answer_sample(table[number], answer) for number, answer in enumerate(answers)]
    found = score(samples)
    expected = [
        judge(answer, picture).score for answer, picture in zip(answers[:4], pictures[:4], strict=True)
    ]
    assert found[:4] == expected
    assert expected[:2] == [1.0, 1.0]
    assert 0 < min(expected[2:]) < 1
    assert math.isnan(found[4])  # who names nothing could not be judged
    with pytest.raises(RowError, match=r"no column 'truth'.*expected rows of write_prompts"):
        score([answer_sample(draw_exam(1, seed=SEED).rows()[0], "There is a red circle.")])


@pytest.mark.slow
def test_online_dpo_with_the_exact_judge_hallucinates_less_and_keeps_recall(
    prompts: Path, tmp_path: Path
) -> None:
    extra = {
        "method": "online_dpo",
        "model": {"source": str(ASSETS)},
        "data": {"source": str(prompts)},
        "rollout": {"reward": REWARD, "prompts": 16, "written_together": 64, "max_new_tokens": 48},
        "train": {"output": str(tmp_path / "run"), "seed": SEED, "steps": 48},
    }
    with fixed_threads(1):
        run = load_run(recipe_path("vlm/configs/toy/dpo.yaml"), extra=extra)
        result = train(run, reward=OnAnswers(load(REWARD)))
        exam = draw_exam(NUM_PICTURES, seed=SEED, num_polled=0)
        tuned = take_exam(result.model, exam)
        with result.trainables.disabled():
            comparison = ExamComparison(exam, take_exam(result.model, exam), tuned)
    for axis in ("hallucinated", "recall", "words", "score"):
        (before, after), gain = comparison.means(axis), comparison.gain(axis)
        print(f"{axis} {before:.3f} -> {after:.3f}: {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
    assert comparison.gain("hallucinated").high < -0.05
    assert comparison.gain("recall").low > RECALL_MARGIN
