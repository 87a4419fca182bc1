"""Plans for sounds, carried out with makers and rewards that are functions: rows that training reads."""

import hashlib
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmalign.audio.pair_making.commands import make_pairs
from mmalign.audio.pair_making.loading import Tools
from mmalign.audio.pair_making.plan import AudioPairPlan
from mmalign.cli.main import main
from mmalign.data.audio_media import DecodedAudio, encode_audio, read_audio
from mmalign.data.check import check
from mmalign.data.config import AudioLimits, DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError
from mmalign.rewards.functions import FunctionReward

RATE = 8_000
PROMPTS = [
    "A man speaks followed by a dog barking",
    "Rain falls while birds chirp",
    "A bell rings, then a train passes, then a horn honks",
]


def clip(prompt: str, key: str, seed: int, steps: int) -> torch.Tensor:
    """A tone whose pitch says the prompt and whose level says the key: other inputs, other bytes."""
    digest = hashlib.sha256(f"{prompt}|{key}|{seed}|{steps}".encode()).digest()
    time = torch.arange(RATE // 5) / RATE
    return (0.1 + digest[0] / 512) * torch.sin(2 * math.pi * (100 + 4 * digest[1]) * time)[None]


class Maker:
    """Counts its calls, and may be killed at one."""

    def __init__(self, killed_at: int = -1, fails: Sequence[str] = ()) -> None:
        self.calls: list[tuple[list[str], list[str], int]] = []
        self.killed_at, self.fails = killed_at, fails

    def identity(self) -> dict[str, Any]:
        return {"model": "stub@1"}

    def __call__(self, prompts, keys, seed, num_steps):
        if len(self.calls) == self.killed_at:
            raise KeyboardInterrupt
        self.calls.append((list(prompts), list(keys), num_steps))
        return [
            None if key in self.fails else DecodedAudio(clip(prompt, key, seed, num_steps), RATE)
            for prompt, key in zip(prompts, keys, strict=True)
        ]


def loudness(samples) -> list[float]:
    """A reward of sounds: their level."""
    return [float(heard(sample.audio).abs().max()) for sample in samples]


SCORED: list[int] = []


def counted(samples) -> list[float]:
    """The same, with a note of how many it was asked for."""
    SCORED.append(len(samples))
    return loudness(samples)


def heard(media) -> torch.Tensor:
    return read_audio(str(media), where="x", limits=AudioLimits()).samples


def tools(make: Maker, **rewards: Any) -> Tools:
    given = {"level": loudness, **rewards}
    return Tools(
        model=lambda plan, device: make,
        reward=lambda choice, device: FunctionReward(given[choice.column], name=choice.name),
    )


@pytest.fixture
def plan_of(tmp_path):
    def make(recipe: str = "seeds", prompts: Sequence[str] = PROMPTS, **settings: Any) -> AudioPairPlan:
        path = tmp_path / "prompts.txt"
        path.write_text("\n".join(prompts) + "\n")
        content: dict[str, Any] = {
            "recipe": recipe,
            "model": {"family": "tango", "source": "x"},
            "data": {"source": str(path)},
            "scorers": [{"name": "own:level", "title": "level"}],
            "block_rows": 2,
            **settings,
        }
        return AudioPairPlan.model_validate({k: v for k, v in content.items() if v is not None})

    return make


def read(rows: Path):
    return list(open_rows(DataConfig(source=str(rows)), kind="pairs"))


def records(rows: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ recipes


def test_several_seeds_give_best_against_worst_as_training_reads_them(plan_of, tmp_path):
    make = Maker()
    rows, counts = make_pairs(plan_of(), tmp_path / "out", device="cpu", tools=tools(make))
    assert counts["rows"] == 3
    assert counts["clips"] == 12
    pairs = read(rows)
    assert [row.prompt for row in pairs] == PROMPTS
    for row in pairs:
        better, worse = row.candidates
        levels = sorted(
            float(clip(row.prompt, f"{row.extras['made_from']}/{n}", 0, 50).abs().max()) for n in range(4)
        )
        assert float(heard(better.audio).max()) == pytest.approx(levels[-1], abs=1e-3)
        assert (better.reward, worse.reward) == pytest.approx((levels[-1], levels[0]), abs=1e-3)
        assert row.extras["gap"] == pytest.approx(better.reward - worse.reward)
        assert row.extras["level_chosen"] == better.reward
        assert row.extras["strategy"] == row.extras["made_by"] == "seeds"
        assert row.extras["made_model"] == "stub@1"
    # Only clips that a row uses lie beside the rows.
    assert len(list((tmp_path / "out/audio").iterdir())) == 6
    assert len(list((tmp_path / "out/stages/clips").iterdir())) == 12
    card = yaml.safe_load((tmp_path / "out/card.yaml").read_text())
    assert card["scores"]["level"]["gap"] == pytest.approx(
        sum(row.extras["gap"] for row in pairs) / 3, abs=1e-5
    )
    assert check(DataConfig(source=str(rows)), decode="all").ok


def test_every_sample_of_every_prompt_has_its_own_noise(plan_of, tmp_path):
    make = Maker()
    make_pairs(plan_of(), tmp_path, device="cpu", tools=tools(make))
    keys = [key for _, block, _ in make.calls for key in block]
    assert len(set(keys)) == len(keys) == 12


def test_quality_compares_numbers_of_steps(plan_of, tmp_path):
    make = Maker()
    settings = {"quality": {"steps": [5, 25]}, "selection": {"rule": "best_rest"}}
    rows, _ = make_pairs(plan_of("quality", **settings), tmp_path, device="cpu", tools=tools(make))
    assert [(len(prompts), steps) for prompts, _, steps in make.calls] == [(2, 5), (2, 25), (1, 5), (1, 25)]
    assert all({record["steps_chosen"], record["steps_rejected"]} == {5, 25} for record in records(rows))


@pytest.mark.parametrize("recipe", ["events", "order"])
def test_edited_prompts_lose_and_are_scored_under_the_original(plan_of, tmp_path, recipe):
    asked: list[str] = []

    def score(samples):
        asked.extend(sample.prompt for sample in samples)
        return loudness(samples)

    plan = plan_of(recipe, **{recipe: {"count": 7, "originals": 2}})
    rows, counts = make_pairs(plan, tmp_path, device="cpu", tools=tools(Maker(), level=score))
    assert set(asked) == set(PROMPTS)
    made = records(rows)
    assert made
    assert counts["clips"] == len(asked)
    kinds = {"events": {"drop", "add", "replace"}, "order": {"swap", "reverse", "together", "apart"}}[recipe]
    assert {record["edit"] for record in made} <= kinds
    for record in made:
        assert record["edited_prompt"] != record["prompt"]
        assert record["prompt"] in PROMPTS
        assert record["score_chosen"] > record["score_rejected"]
        assert int(record["id"].split("-")[-2]) < 2  # one of the two clips of the prompt itself
        # The file is the clip of the edited prompt.
        place = int(record["id"].split("-")[-1])
        expected = clip(record["edited_prompt"], f"{record['made_from']}/{place}", 0, 50)
        torch.testing.assert_close(heard(tmp_path / record["rejected"]), expected, atol=1e-4, rtol=0)


def test_held_out_prompts_never_enter(plan_of, tmp_path):
    held_out = tmp_path / "test.jsonl"
    held_out.write_text(json.dumps({"captions": f"  {PROMPTS[1].upper()}.", "location": "x.wav"}))
    make = Maker()
    rows, counts = make_pairs(
        plan_of(exclude=[str(held_out)]), tmp_path / "out", device="cpu", tools=tools(make)
    )
    assert counts["held_out"] == 1
    assert {record["prompt"] for record in records(rows)} == {PROMPTS[0], PROMPTS[2]}
    assert all(PROMPTS[1] not in prompts for prompts, _, _ in make.calls)


def test_prompts_that_no_edit_fits_are_counted(plan_of, tmp_path):
    plan = plan_of("order", prompts=[*PROMPTS, "A duck quacks"])
    _, counts = make_pairs(plan, tmp_path, device="cpu", tools=tools(Maker()))
    assert counts["no_edit"] == 1


def test_edits_may_come_from_a_file_and_start_from_equal_noise(plan_of, tmp_path):
    path = tmp_path / "edits.jsonl"
    lines = [{"prompt": PROMPTS[0], "edits": ["A cat", PROMPTS[0], " "]}, {"id": "none", "edits": ["x"]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    make = Maker()
    plan = plan_of("events", events={"file": str(path), "same_noise": True})
    _, counts = make_pairs(plan, tmp_path / "out", device="cpu", tools=tools(make))
    assert counts["no_edit"] == 2
    assert make.calls == [([PROMPTS[0], "A cat"], [make.calls[0][1][0]] * 2, 50)]
    path.write_text(json.dumps({"edits": "x"}))
    with pytest.raises(ConfigError, match=r"edits.jsonl:1: .* expected id or prompt, and edits"):
        make_pairs(plan, tmp_path / "out", device="cpu", tools=tools(make))


def test_existing_clips_are_scored_and_paired(plan_of, tmp_path):
    names = []
    for number in range(5):
        name = f"{number}.wav"
        (tmp_path / name).write_bytes(encode_audio(clip("x", str(number), 0, 1), RATE, container="wav"))
        names.append(name)
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    lines = [
        {
            "prompt": "one",
            "samples": [{"audio": name, "score": n} for n, name in enumerate([*names[:3], "broken.wav"])],
        },
        {"prompt": "two", "samples": [{"audio": name, "score": 3} for name in names[3:]]},
    ]
    path = tmp_path / "groups.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    settings: dict[str, Any] = {
        "model": None,
        "data": {"source": str(path)},
        "selection": {"rule": "best_rest"},
    }
    rows, counts = make_pairs(plan_of("candidates", scorers=[], **settings), tmp_path / "own", device="cpu")
    assert [(record["data_chosen"], record["data_rejected"]) for record in records(rows)] == [
        (2.0, 0.0),
        (2.0, 1.0),
    ]
    assert counts["not_audio"] == counts["tie"] == counts["tie_for_best"] == 1
    # Scored anew, the data's own numbers count no more.
    again, _ = make_pairs(
        plan_of("candidates", **settings), tmp_path / "new", device="cpu", tools=tools(Maker())
    )
    assert {record["prompt"] for record in records(again)} == {"one", "two"}
    assert all("data_chosen" not in record for record in records(again))


def test_rankings_hold_all_scored_clips_best_first(plan_of, tmp_path):
    plan = plan_of(make="rankings", sampling={"num_samples": 3})
    rows, counts = make_pairs(plan, tmp_path, device="cpu", tools=tools(Maker()))
    assert counts["rows"] == 3
    for row in open_rows(DataConfig(source=str(rows))):
        assert row.kind == "lists"
        assert len(row.candidates) == 3
        assert list(row.relevance) == sorted(row.relevance, reverse=True)
        assert [float(heard(one.audio).abs().max()) for one in row.candidates] == pytest.approx(row.relevance)


# ------------------------------------------------------------------------------------------------ scores


def test_several_scorers_must_agree_within_their_bounds(plan_of, tmp_path):
    def quiet(samples):
        return [-value for value in loudness(samples)]

    scorers = [{"name": "own:level", "title": "level"}, {"name": "own:quiet", "title": "quiet"}]
    bounds = {"quiet": {"winner": [None, 0.0]}}
    plan = plan_of(scorers=scorers, selection={"bounds": bounds})
    rows, counts = make_pairs(plan, tmp_path, device="cpu", tools=tools(Maker(), quiet=quiet))
    assert (counts["rows"], counts["disagrees[quiet]"]) == (0, 3)
    assert records(rows) == []


def test_failed_clips_and_scores_are_left_out_and_explained(plan_of, tmp_path):
    def score(samples):
        values = loudness(samples)
        return [math.nan if number == 0 else value for number, value in enumerate(values)]

    plan = plan_of(prompts=PROMPTS[:1])
    row_id = make_row_id(plan)
    make = Maker(fails=(f"{row_id}/2",))
    rows, counts = make_pairs(plan, tmp_path, device="cpu", tools=tools(make, level=score))
    assert (counts["failed_clips"], counts["clips"], counts["not_scored"]) == (1, 3, 2)
    card = yaml.safe_load((tmp_path / "card.yaml").read_text())
    assert f"{row_id}: making it failed" in card["first_errors"]
    assert len(records(rows)) == 1


def make_row_id(plan: AudioPairPlan) -> str:
    return next(iter(open_rows(plan.data, kind="prompts"))).id


def test_clips_that_are_no_numbers_are_failures(plan_of, tmp_path):
    class Broken(Maker):
        def __call__(self, prompts, keys, seed, num_steps):
            made = super().__call__(prompts, keys, seed, num_steps)
            return [
                DecodedAudio(one.samples / 0.0, RATE) if key.endswith("/1") else one
                for one, key in zip(made, keys, strict=True)
            ]

    _, counts = make_pairs(plan_of(), tmp_path, device="cpu", tools=tools(Broken()))
    assert counts["failed_clips"] == 3


def test_a_maker_that_loses_clips_is_refused(plan_of, tmp_path):
    class Short(Maker):
        def __call__(self, prompts, keys, seed, num_steps):
            return super().__call__(prompts, keys, seed, num_steps)[1:]

    with pytest.raises(ConfigError, match=r"maker: got \[7 clips\], expected 8, one per prompt"):
        make_pairs(plan_of(), tmp_path, device="cpu", tools=tools(Short()))


def test_rewards_of_pictures_do_not_score_sounds(plan_of, tmp_path):
    plan = plan_of(scorers=[{"name": "pickscore_v1", "title": "level"}])
    with pytest.raises(
        ConfigError, match=r"scorer pickscore_v1: got \[a reward of image\], expected one of audio"
    ):
        make_pairs(plan, tmp_path, device="cpu", tools=tools(Maker()))
    plan = plan_of(scorers=[{"name": "own:level", "title": "level", "output": "beauty"}])
    with pytest.raises(ConfigError, match="output: got 'beauty', expected score"):
        make_pairs(plan, tmp_path, device="cpu", tools=tools(Maker()))


# ------------------------------------------------------------------------------------------------ resuming


def test_a_killed_run_goes_on_and_ends_like_another(plan_of, tmp_path):
    whole, _ = make_pairs(plan_of(), tmp_path / "whole", device="cpu", tools=tools(Maker()))
    with pytest.raises(KeyboardInterrupt):
        make_pairs(plan_of(), tmp_path / "cut", device="cpu", tools=tools(Maker(killed_at=1)))
    assert not (tmp_path / "cut/rows.jsonl").exists()
    again = Maker()
    rows, _ = make_pairs(plan_of(), tmp_path / "cut", device="cpu", tools=tools(again))
    assert [len(prompts) for prompts, _, _ in again.calls] == [4]
    assert rows.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in (tmp_path / "cut/audio").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole/audio").iterdir()
    )


class Away:
    """A reward that cannot be reached for one sound; the same reward when it can."""

    prompt: str | None = None

    def __call__(self, samples) -> list[float]:
        if any(sample.prompt == Away.prompt for sample in samples):
            message = "no route"
            raise ConnectionError(message)
        return counted(samples)


def test_a_reward_that_was_away_is_asked_again_for_what_it_did_not_answer(plan_of, tmp_path):
    Away.prompt = PROMPTS[1]
    rows, counts = make_pairs(plan_of(), tmp_path, device="cpu", tools=tools(Maker(), level=Away()))
    assert (len(records(rows)), counts["unanswered"]) == (2, 1)
    card = yaml.safe_load((tmp_path / "card.yaml").read_text())
    assert list(card["unanswered"].values()) == [1]
    assert any("ConnectionError: no route" in text for text in card["first_errors"])
    Away.prompt = None
    SCORED.clear()
    rows, counts = make_pairs(plan_of(), tmp_path, device="cpu", tools=tools(Maker(), level=Away()))
    assert (len(records(rows)), counts["unanswered"], SCORED) == (3, 0, [4])


def test_another_selection_makes_no_clip_and_no_score_again(plan_of, tmp_path):
    SCORED.clear()
    make_pairs(plan_of(), tmp_path, device="cpu", tools=tools(Maker(), level=counted))
    again = Maker()
    plan = plan_of(selection={"rule": "all_pairs"})
    rows, _ = make_pairs(plan, tmp_path, device="cpu", tools=tools(again, level=counted))
    assert (again.calls, SCORED, len(records(rows)) > 3) == ([], [8, 4], True)


def test_another_seed_or_sampler_makes_other_clips(plan_of, tmp_path):
    make_pairs(plan_of(), tmp_path, device="cpu", tools=tools(Maker()))
    for settings in ({"seed": 3}, {"sampling": {"num_steps": 7}}, {"container": "wav"}):
        again = Maker()
        make_pairs(plan_of(**settings), tmp_path, device="cpu", tools=tools(again))
        assert len(again.calls) == 2


def test_a_clip_that_was_deleted_is_said(plan_of, tmp_path):
    make_pairs(plan_of(), tmp_path, device="cpu", tools=tools(Maker()))
    next((tmp_path / "stages/clips").iterdir()).unlink()
    with pytest.raises(ConfigError, match=r"no such file\].*Remove .*clips.jsonl"):
        make_pairs(plan_of(), tmp_path, device="cpu", tools=tools(Maker()))


# ------------------------------------------------------------------------------------------------ plans


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "recipe seeds needs model or maker, got neither"),
        ({"maker": "a:b"}, "got model and maker"),
        ({"recipe": "candidates"}, "needs none of model and maker, got model"),
        ({"model": None, "maker": "a:b", "adapter": "x"}, "adapter is put on a model"),
        ({"quality": {"steps": [1, 2]}}, "got settings of quality, expected those of recipe seeds"),
        ({"recipe": "order", "order": {"kinds": ["drop"]}}, "order.kinds: got drop, expected some of swap"),
        ({"selection": {"rule": "perturbed_prompt"}}, "recipe seeds does not make"),
        ({"scorers": []}, "scorers: got none"),
        ({"scorers": [{"name": "clap"}, {"name": "clap"}]}, "two scorers are called clap"),
        ({"selection": {"decides": "clap"}}, r"selection: got clap, expected a scorer \(level\)"),
        ({"sampling": {"steps": 3}}, "steps"),
    ],
)
def test_plans_that_make_no_sense_are_refused(plan_of, settings, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**settings)


def test_clips_of_edited_prompts_may_win_only_where_a_rule_is_named(plan_of):
    assert plan_of("events").chosen_by.rule == "perturbed_prompt"
    assert plan_of("events", selection={"rule": "best_rest"}).chosen_by.rule == "best_rest"
    assert plan_of("events", selection={"min_gap": 0.5}).chosen_by.min_gap == 0.5


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A module of a user's, with a maker and a reward."""
    (tmp_path / "own_sounds.py").write_text(
        "import torch\n"
        "def make(prompts, keys, seed, num_steps):\n"
        "    wave = torch.linspace(-1, 1, 2000)[None]\n"
        "    return [(wave / (1 + int(key[-1])), 8000) for key in keys]\n"
        "def level(samples):\n"
        "    import soundfile\n"
        "    return [float(abs(soundfile.read(s.audio)[0]).max()) for s in samples]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_sounds"
    sys.modules.pop("own_sounds", None)


def test_the_command_makes_pairs_with_functions_of_a_users_own(stub, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    plan = {
        "recipe": "seeds",
        "maker": f"{stub}:make",
        "data": {"source": "prompts.txt"},
        "scorers": [{"name": f"{stub}:level"}],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert main(["pairs", "make", "plan.yaml", "limit=2", "--output", "out", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"out/rows.jsonl: 2 rows, 8 clips \(nothing left out\), card.yaml", shown)
    assert main(["data", "check", "out/rows.jsonl"]) == 0
    card = yaml.safe_load((tmp_path / "out/card.yaml").read_text())
    assert card["model"] == f"{stub}:make"
    assert card["scores"]["level"]["gap"] > 0


def test_mistakes_in_plans_are_said_without_traceback(stub, tmp_path, capsys):
    base = {"recipe": "seeds", "data": {"source": "prompts.txt"}, "scorers": [{"name": f"{stub}:level"}]}
    (tmp_path / "prompts.txt").write_text("x\n")
    for change, message in (
        ({"maker": "no_module_here:make"}, "no_module_here"),
        ({"maker": f"{stub}:nothing"}, "expected a function of own_sounds"),
        ({"recipe": "seed"}, "unknown recipe 'seed'. Did you mean seeds"),
        ({"maker": f"{stub}:make", "sampler": 1}, "sampler"),
        ({"model": {"family": "sdxl", "source": "x"}}, "expected a family of audio models"),
    ):
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(base | change))
        assert main(["pairs", "make", "plan.yaml", "--output", "out", "--device", "cpu"]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert "Traceback" not in shown
