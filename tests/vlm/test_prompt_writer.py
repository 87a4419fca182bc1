"""Prompt writers: rewrites are painted from equal noise, scored for what was asked, paired by a rule."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from mmalign import rewards
from mmalign.batch import ContentItem, Message, PreferenceRow
from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.data.pair_making.stages import Stages
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError, RowError
from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.sample import Sample, to_pixels
from mmalign.toy.images import draw_scene, parse_caption, render
from mmalign.vlm.pair_making.on_policy import OwnAnswers
from mmalign.vlm.pair_making.painters import FunctionPainter, Tools
from mmalign.vlm.pair_making.plan import read_pair_plan
from mmalign.vlm.pair_making.scored_sections import PromptWriterConfig
from mmalign.vlm.prompt_writer import Rewrites, compared, distances, instructed, painted
from mmalign.vlm.rewrite_scores import scored
from mmalign.vlm.rewrite_selection import combined, rewrite_answers, rewrite_pairs

CAPTION = "two blue squares"


def prompt_row(name: str = "a", prompt: str = CAPTION) -> PreferenceRow:
    return PreferenceRow(prompt=prompt, candidates=(), kind="prompts", id=name)


def settings(**given: Any) -> PromptWriterConfig:
    base: dict[str, Any] = {"painter": {"source": "mine:paint"}, "rewards": [{"name": "first"}]}
    return PromptWriterConfig.model_validate(base | given)


def rewrites(*texts: str, **given: Any) -> Rewrites:
    return Rewrites(prompt_row(), CAPTION, texts, media=tuple(("x.png",) for _ in texts), **given)


class Brush:
    """Paints a scene of the caption, framed where the words say so, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []

    def identity(self) -> dict[str, str]:
        return {"brush": "toy"}

    def __call__(self, prompts: Sequence[str], keys: Sequence[str], seed: int) -> list[Image.Image | None]:
        self.asked += [(prompt, key, seed) for prompt, key in zip(prompts, keys, strict=True)]
        return [paint_toy(prompt, key) for prompt, key in zip(prompts, keys, strict=True)]


def paint_toy(prompt: str, key: str) -> Image.Image | None:
    caption, _, manner = prompt.partition(", ")
    facts = parse_caption(caption)
    if facts is None:
        return None
    style = "framed" if manner == "framed" else "plain"
    return render(draw_scene(facts, random.Random(key), style=style))


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(tmp_path / "stages", {"model": "tiny"}, seed=5, block_size=2)


def exact(samples: Sequence[Sample]) -> list[float]:
    from mmalign.toy.reward_functions import reward

    return reward(samples)


# --- painting and scoring -----------------------------------------------------------------------------------


def test_the_writer_is_asked_with_the_instruction_and_sees_what_the_row_shows() -> None:
    shown = Message("user", (ContentItem("image"), ContentItem("text", "a cat")))
    system = Message("system", (ContentItem("text", "Be brief."),))
    row = replace(prompt_row(prompt="a cat"), images=(b"x",), messages=(system, shown))
    config = settings(
        instruction="For {medium}: {prompt} {more}", painter={"source": "m:f", "medium": "videos"}
    )
    asked = instructed(row, config)
    assert asked.prompt == "For videos: a cat {more}"
    assert asked.messages[0] == system
    assert asked.messages[1].content == (ContentItem("image"), ContentItem("text", asked.prompt))


def test_rewrites_of_one_prompt_are_painted_from_equal_noise_and_only_once(stages: Stages) -> None:
    config, brush = settings(copies=2), Brush()
    answers = [OwnAnswers(prompt_row(name), (f"{CAPTION}, framed ", "", CAPTION)) for name in ("a", "b", "c")]
    found = compared(answers, [CAPTION] * 3, original=True)
    assert found[0].texts == (f"{CAPTION}, framed", "", CAPTION, CAPTION)
    assert list(found[0].written) == [0, 1, 2]
    done = painted(found, brush, stages, config)
    assert {key for _, key, _ in brush.asked} == {f"{name}/{copy}" for name in "abc" for copy in (0, 1)}
    assert {seed for _, _, seed in brush.asked} == {5}
    assert len(brush.asked) == 3 * 3 * 2, "an empty rewrite is not painted"
    assert done[0].media[1] == ()
    assert done[0].media[2] == done[0].media[3] != done[1].media[2], "noise hangs on the row"
    again = painted(found, brush, stages, config)
    assert again == done
    assert len(brush.asked) == 18
    other = [replace(found[0], texts=(CAPTION, CAPTION, CAPTION, CAPTION)), *found[1:]]
    painted(other, brush, stages, config)
    assert len(brush.asked) > 18, "other words, other pictures"


def test_rewards_read_what_the_user_asked_unless_told_otherwise(stages: Stages) -> None:
    read: list[str] = []

    def first(samples: Sequence[Sample]) -> list[float]:
        read.extend(sample.prompt for sample in samples)
        return exact([replace(sample, prompt=CAPTION) for sample in samples])

    reward = FunctionReward(first, name="first")
    found = [
        Rewrites(prompt_row(), CAPTION, (f"{CAPTION}, framed", CAPTION, "two red circles", "nonsense", ""))
    ]
    done = painted(found, Brush(), stages, settings())
    (one,) = scored(done, lambda _: reward, stages, settings())
    assert set(read) == {CAPTION}
    framed, plain, wrong, failed, empty = (values[0] for values in one.scores)
    assert framed > plain > wrong
    assert np.isnan([failed, empty]).all()
    assert one.errors[:3] == ("", "", "")
    assert one.errors[3:] == ("painting failed", "nothing was painted")
    scored(done, lambda _: reward, stages, settings(judged_for="rewrite"))
    assert "two red circles" in read


class Away:
    """A reward that cannot be reached until it can; the same reward before and after."""

    waiting = 0

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        if Away.waiting:
            Away.waiting -= 1
            message = "timed out"
            raise TimeoutError(message)
        return [1.0] * len(samples)


def test_scores_that_could_not_be_had_are_asked_for_again(stages: Stages) -> None:
    (done,) = painted([rewrites(CAPTION)], Brush(), stages, settings())
    reward = FunctionReward(Away(), name="first")
    Away.waiting = 2
    (one,) = scored([done], lambda _: reward, stages, settings())
    assert one.errors == ("no answer",)
    assert stages.unanswered.total() == 1
    (one,) = scored([done], lambda _: reward, stages, settings())
    assert (one.scores, one.errors) == (((1.0,),), ("",))


def test_one_picture_that_cannot_be_scored_leaves_its_rewrite_without_a_score(stages: Stages) -> None:
    def picky(samples: Sequence[Sample]) -> list[float]:
        for sample in samples:
            if float(to_pixels(sample.image).mean()) > 0.9:  # type: ignore[arg-type]
                message = "too bright to judge"
                raise RowError(message, reason="bright")
        return [1.0] * len(samples)

    def paint(prompts: Sequence[str], keys: Sequence[str], seed: int) -> list[Image.Image]:
        return [Image.new("RGB", (16, 16), "white" if key.endswith("1") else "black") for key in keys]

    config = settings(copies=2)
    done = painted([Rewrites(prompt_row(), "p", ("q",))], FunctionPainter(paint, "f"), stages, config)
    (one,) = scored(done, lambda _: FunctionReward(picky, name="first"), stages, config)
    assert np.isnan(one.scores[0][0])
    assert "too bright to judge" in one.errors[0]


def test_a_video_of_frames_is_scored_by_a_reward_of_pictures_as_the_mean_over_frames(stages: Stages) -> None:
    def brightness(samples: Sequence[Sample]) -> list[float]:
        return [float(to_pixels(sample.image).mean()) for sample in samples]  # type: ignore[arg-type]

    def clip(prompts: Sequence[str], keys: Sequence[str], seed: int) -> list[list[Image.Image]]:
        return [[Image.new("L", (16, 16), 51 * step) for step in range(5)] for _ in prompts]

    config = settings(rewards=[{"name": "first", "frames": 3}])
    done = painted([Rewrites(prompt_row(), "p", ("q",))], FunctionPainter(clip, "f"), stages, config)
    assert len(done[0].media[0][0]) == 5
    (one,) = scored(done, lambda _: FunctionReward(brightness, name="first"), stages, config)
    assert one.scores[0][0] == pytest.approx((0 + 2 * 51 + 4 * 51) / 3 / 255, abs=1e-3)


class Gives(Brush):
    """Gives what it is told, whatever it is asked."""

    def __init__(self, *made: Any) -> None:
        super().__init__()
        self.made = list(made)

    def __call__(self, prompts: Sequence[str], keys: Sequence[str], seed: int) -> Any:
        return self.made


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ((None,), r"\[1 results\], expected 2"),
        ((None, 4), "got 'int', expected a PIL picture"),
        ((None, ()), "got 'tuple', expected a PIL picture"),
        ((None, Path("none.png")), "no such file"),
    ],
)
def test_a_painter_must_give_one_picture_per_prompt(stages: Stages, made: tuple[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        painted([Rewrites(prompt_row(), "p", ("q", "r"))], Gives(*made), stages, settings())


def test_painters_and_rewards_that_do_not_fit_are_refused_with_a_remedy(stages: Stages) -> None:
    with pytest.raises(ConfigError, match="got 'no_such_module_here', expected a module Python can import"):
        FunctionPainter.load("no_such_module_here:paint")
    with pytest.raises(ConfigError, match="got 'nothing', expected a function of json"):
        FunctionPainter.load("json:nothing")
    config = settings(painter={"source": "owner/model"})
    with pytest.raises(ConfigError, match=r"Image models paint under `mmalign pairs make`"):
        Tools().painter(config.painter, torch.device("cpu"))
    reward = FunctionReward(exact, name="first")
    for output, relative, message in (
        ("colour", False, "'colour', expected score"),
        ("", True, "single pictures"),
    ):
        reward.relative = relative  # type: ignore[attr-defined]
        config = settings(rewards=[{"name": "first", "output": output}])
        with pytest.raises(ConfigError, match=message):
            scored([rewrites("q")], lambda _: reward, stages, config)


def test_distance_is_one_minus_the_cosine_from_the_users_prompt(stages: Stages) -> None:
    cosines = {"same": 1.0, "near": 0.75, "opposite": -1.0}

    def similarity(first: Sequence[str], second: Sequence[str]) -> list[float]:
        assert set(first) == {CAPTION}
        return [cosines[text] for text in second]

    (one,) = distances([rewrites("same", "near", "opposite")], similarity, stages, "encoder")
    assert one.distances == (0.0, 0.25, 2.0)


# --- the rule -----------------------------------------------------------------------------------------------

NAN = float("nan")
FIVE = rewrites("a", "b b", "c", "d", "e", scores=((5.0,), (4.0,), (3.0,), (1.0,), (NAN,)))


def places(one: Rewrites, **given: Any) -> list[str]:
    return [pair.name for pair in rewrite_pairs([one], settings(**given))[0]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["0-3"]),
        ({"against": "all"}, ["0-1", "0-2", "0-3"]),
        ({"winners": 2, "against": "all", "difference": 1.4}, ["0-2", "0-3", "1-3"]),
        ({"winners": 2}, ["0-3", "1-3"]),
        ({"difference": 4.0}, []),
        ({"rewards": [{"name": "first", "least": 4.0}], "winners": 2}, ["0-3"]),
        ({"rewards": [{"name": "first", "least": 5.0}]}, []),
        ({"max_words": 1, "winners": 2}, ["0-3"]),
    ],
)
def test_winners_meet_those_below_them(given: dict[str, Any], expected: list[str]) -> None:
    assert places(FIVE, **given) == expected


def test_several_rewards_count_by_weight_and_may_have_to_agree() -> None:
    two = [{"name": "first"}, {"name": "m:second", "weight": 0.5}]
    one = rewrites("a", "b", "c", scores=((3.0, 0.0), (2.0, 4.0), (1.0, 1.0)))
    assert combined(one, settings(rewards=two)) == [3.0, 4.0, 1.5]
    assert places(one, rewards=two) == ["1-2"]
    assert places(one, rewards=two, against="all") == ["1-0", "1-2"]
    assert places(one, rewards=two, against="all", agree=True) == ["1-2"]
    # Ranks count from the best: the order of a combination by rank is that of the others.
    for combine in ("mean_rank", "mean_z", "mean_minmax", "mean_win_probability"):
        values = combined(one, settings(rewards=two, combine=combine))
        assert values[0] > values[2], combine
        assert values[1] > values[2], combine


def test_a_winner_must_beat_the_users_own_prompt_where_that_is_asked() -> None:
    one = rewrites("a", "b", CAPTION, scores=((3.0,), (1.0,), (2.0,)), original=2)
    (pair,), _ = rewrite_pairs([one], settings(beat_original=True))
    assert (pair.name, pair.columns["score_original"]) == ("0-1", 2.0)
    lost = replace(one, scores=((3.0,), (1.0,), (3.0,)))
    pairs, counts = rewrite_pairs([lost], settings(beat_original=True))
    assert not pairs
    assert counts["not_above_original"] == 1


def test_rows_say_where_they_come_from_and_how_far_they_drifted() -> None:
    one = replace(FIVE, distances=(0.5, 0.25, 0.125, 0.0625, 0.0))
    (pair,), counts = rewrite_pairs([one], settings())
    assert pair.columns == {
        "original_prompt": CAPTION,
        "score_chosen": 5.0,
        "rewards_chosen": {"first": 5.0},
        "painted_chosen": ["stages/painted/x.png"],
        "semantic_distance_chosen": 0.5,
        "score_rejected": 1.0,
        "rewards_rejected": {"first": 1.0},
        "painted_rejected": ["stages/painted/x.png"],
        "semantic_distance_rejected": 0.0625,
    }
    assert counts == {"rows": 1, "not_scored": 1}
    assert places(one, max_distance=0.3, winners=2) == ["1-3"]
    (answer,) = rewrite_answers([one], settings(max_distance=0.3))
    assert answer.scores[1:4] == (4.0, 3.0, 1.0)
    assert np.isnan([answer.scores[0], answer.scores[4]]).all()


@pytest.mark.parametrize("name", ["prompt_writer", "prompt_writer_videos"])
def test_plans_of_prompt_writers_name_rewards_and_outputs_that_exist(name: str) -> None:
    plan = read_pair_plan(Path(__file__).parents[2] / f"vlm/configs/pairs/{name}.yaml")
    assert plan.prompt_writer is not None
    films = plan.prompt_writer.painter.medium == "videos"
    assert films == (name == "prompt_writer_videos")
    for chosen in plan.prompt_writer.rewards:
        card = rewards.card(chosen.name)
        assert card.modality == "image" or (films and card.modality == "video")
        assert not chosen.output or chosen.output in card.outputs


def test_settings_that_contradict_each_other_are_refused() -> None:
    for given, message in (
        ({"instruction": "Write."}, r"instruction with \{prompt\}"),
        ({"rewards": [{"name": "a"}, {"name": "m:a"}]}, "two rewards are called a"),
        ({"max_distance": 0.5, "similarity": None}, "max_distance needs similarity"),
    ):
        with pytest.raises(ValidationError, match=message):
            settings(**given)


# --- the whole way ------------------------------------------------------------------------------------------

BRUSH = """
import random
from mmalign.toy.images import draw_scene, parse_caption, render

def paint(prompts, keys, seed):
    with open("asked.txt", "a") as file:
        file.writelines(prompt + "\\n" for prompt in prompts)
    pictures = []
    for prompt, key in zip(prompts, keys, strict=True):
        caption, _, manner = prompt.partition(", ")
        facts = parse_caption(caption)
        style = "framed" if manner == "framed" else "plain"
        pictures.append(facts and render(draw_scene(facts, random.Random(key), style=style)))
    return pictures
"""


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.slow
def test_a_writer_learns_to_ask_for_what_the_reward_likes(
    tiny_vlm_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imitation of both manners, rewrites of that model, painted and paired, five steps of Sem-DPO."""
    monkeypatch.chdir(tmp_path)
    captions = (CAPTION, "two red circles")
    asked = "Rewrite: {prompt}"
    pairs = [(caption, text) for caption in captions for text in (caption, f"{caption}, framed")]
    write_lines(
        tmp_path / "sft.jsonl",
        [{"prompt": asked.format(prompt=caption), "completion": text} for caption, text in pairs],
    )
    write_lines(tmp_path / "prompts.jsonl", [{"id": caption, "prompt": caption} for caption in captions])
    (tmp_path / "toy_brush.py").write_text(BRUSH)

    def train(method: str, source: Path, rows: str, steps: int, **sections: Any) -> Path:
        config = {
            "method": method,
            "model": {"family": "causal_lm", "source": str(source)},
            "data": {"source": rows},
            "adapter": {"kind": "none"},
            "train": {
                "output": f"runs/{method}",
                "steps": steps,
                "batch_size": 4,
                "learning_rate": 1e-2 if method == "sft" else 2e-4,
                "num_workers": 0,
                "device": "cpu",
            },
            "log": {"every": 1, "trackers": []},
            **sections,
        }
        path = tmp_path / f"{method}.yaml"
        path.write_text(yaml.safe_dump(config))
        assert main(["--debug", "train", str(path)]) == 0
        return tmp_path / "runs" / method

    writer = train("sft", tiny_vlm_folder("causal_lm"), "sft.jsonl", 30) / "model"
    plan = {
        "recipe": "prompt_writer",
        "model": {"family": "causal_lm", "source": str(writer)},
        "data": {"source": {"path": "prompts.jsonl", "media": "dialogue"}},
        "dtype": "float32",
        "sampling": {"num_answers": 7, "max_new_tokens": 24, "temperature": 1.0},
        "prompt_writer": {
            "painter": {"source": "toy_brush:paint"},
            "rewards": [{"name": "mmalign.toy.reward_functions:reward", "title": "exact"}],
            "instruction": asked,
            "against": "all",
            "similarity": str(tiny_vlm_folder("causal_lm")),
        },
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))

    def make(*words: str) -> list[dict[str, Any]]:
        command = ["--debug", "pairs", "make", "plan.yaml", "--output", "out", "--device", "cpu", *words]
        assert main(command) == 0
        return [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]

    rows = make()
    before = (tmp_path / "asked.txt").read_text()
    assert rows
    assert all(one["score_chosen"] > one["score_rejected"] for one in rows)
    assert any(one["chosen"][0]["content"][0]["text"].endswith(", framed") for one in rows)
    assert (rows[0]["made_by"], rows[0]["made_from"]) == ("prompt_writer", rows[0]["original_prompt"])

    trained = train("sem_dpo", writer, "out/rows.jsonl", 5, objective={"beta": 0.1, "alpha": 1.0})
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    logits = [one for one in records if "loss" in one]
    assert len(logits) == 5
    # The weight exp(-distance) is below 1, so the first loss is below DPO's.
    assert 0 < logits[0]["loss"] < np.log(2.0)
    assert logits[-1]["loss"] < logits[0]["loss"]

    best = make("rows=best")
    assert {one["completion"][0]["content"][0]["text"] for one in best} == {
        f"{one}, framed" for one in captions
    }
    marked = make("rows=conditioned", "conditioned.levels=2")
    texts = {(one["mark_exact"], one["completion"][0]["content"][0]["text"]) for one in marked}
    assert (1, f"{CAPTION}, framed") in texts
    assert marked[0]["prompt"][-1]["content"][-1]["text"].endswith(f"exact: {marked[0]['mark_exact']}")
    assert "words: 'exact: 1'" in (tmp_path / "out" / "card.yaml").read_text()
    assert (tmp_path / "asked.txt").read_text() == before, "rewrites, pictures and scores were made once"
    table = open_rows(DataConfig(source="out/rows.jsonl"), kind="chosen")
    assert len(table) == len(marked)
