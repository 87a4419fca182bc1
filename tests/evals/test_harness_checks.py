"""What can only fail fails before anything is painted; processes share work and wait for none."""

from pathlib import Path

import pytest
import torch

from mmalign.errors import CheckpointError, ConfigError, UnknownNameError
from mmalign.evals import generation, harness, suite_rewards
from mmalign.evals.suite import ModelSpec, read_suite
from mmalign.rewards.base import Scored
from mmalign.rewards.card import Card

HERE = Path(__file__).parent
PROMPTS = ["a fox", "a heron", "two boats", "a pier", "a red roof", "an owl", "a kite"]


@pytest.fixture
def painter(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    from fake_painter import FakePainter

    fake = FakePainter()
    monkeypatch.setattr(generation, "_painter", fake.load)
    return fake


def suite_of(tmp_path, rewards: str, prompts: list[str] | None = None):
    (tmp_path / "mine.txt").write_text("\n".join(prompts or PROMPTS))
    (tmp_path / "suite.yaml").write_text(
        "name: mine\nprompts: mine.txt\ngeneration: {batch_size: 3}\nstatistics: {resamples: 100}\n"
        f"rewards: {rewards}\n"
    )
    return read_suite(tmp_path / "suite.yaml")


def run(suite, tmp_path, **options):
    specs = [ModelSpec(name=name, source=f"hub/{name}") for name in ("base", "tuned")]
    return harness.run_suite(
        suite,
        options.pop("specs", specs),
        output=tmp_path / "out",
        cache=tmp_path / "store",
        folder=tmp_path,
        **{"device": "cpu", **options},
    )


@pytest.mark.parametrize(
    ("reward", "error", "says"),
    [
        ("pickscore_v9", UnknownNameError, "pickscore_v1"),
        ("{name: hpsv2, options: {nonsense: 1}}", ConfigError, "got 'nonsense', expected one of its options"),
        ("{name: hpsv2, weights: /nowhere}", ConfigError, "/nowhere lacks"),
        ('"toy_rewards:rednes"', ConfigError, "expected a function of toy_rewards"),
        ('{name: "toy_rewards:redness", dtype: bfloat16}', ConfigError, "got 'dtype', expected neither"),
        ('{name: "toy_rewards:redness", options: {scael: x}}', ConfigError, "got 'scael'"),
        ("unifiedreward_video", (ConfigError, CheckpointError), "."),
    ],
)
def test_a_reward_that_cannot_be_loaded_stops_the_run_before_it_paints(
    painter, tmp_path, reward, error, says
):
    suite = suite_of(tmp_path, f'["toy_rewards:picky", {reward}]')
    with pytest.raises(error, match=says):
        run(suite, tmp_path)
    assert painter.painted == []


def test_the_generate_stage_alone_needs_no_weights_but_knows_names(painter, tmp_path):
    run(suite_of(tmp_path, "[{name: hpsv2, weights: /nowhere}]"), tmp_path, stages=("generate",))
    assert len(painter.painted) == 2 * len(PROMPTS)
    with pytest.raises(UnknownNameError, match="hpsv21"):
        run(suite_of(tmp_path, "[hpsv22]"), tmp_path, stages=("generate",))


def test_no_two_rewards_are_in_memory_together_nor_any_while_a_model_paints(painter, tmp_path, monkeypatch):
    import mmalign.rewards as rewards

    alive: list[str] = []
    together: list[int] = []
    load = rewards.load

    class Held:
        def __init__(self, inner):
            self.inner = inner
            self.itself = self  # networks are full of cycles: only a collection frees them
            alive.append(inner.card.name)
            together.append(len(alive))

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __del__(self):
            alive.remove(self.inner.card.name)

    monkeypatch.setattr(rewards, "load", lambda name, **options: Held(load(name, **options)))
    picture = painter.picture
    monkeypatch.setattr(painter, "picture", lambda *given: (together.append(len(alive)), picture(*given))[1])
    run(suite_of(tmp_path, '["toy_rewards:redness", "toy_rewards:picky"]'), tmp_path)
    assert max(together) == 1
    assert together.count(0) == 2 * len(PROMPTS)


def test_a_reward_with_nothing_to_score_is_looked_at_once_and_not_loaded_again(
    painter, tmp_path, monkeypatch
):
    suite = suite_of(tmp_path, '["toy_rewards:redness"]')
    run(suite, tmp_path)
    loads: list[str] = []
    import mmalign.rewards as rewards

    load = rewards.load
    monkeypatch.setattr(
        rewards, "load", lambda name, **options: (loads.append(name), load(name, **options))[1]
    )
    run(suite, tmp_path)
    assert loads == ["toy_rewards:redness"]


def test_a_reward_that_changed_while_models_painted_is_refused(painter, tmp_path, monkeypatch):
    import toy_rewards

    from mmalign.rewards.functions import FunctionReward

    made: list[FunctionReward] = []

    def load(name, **options):
        made.append(FunctionReward(toy_rewards.redness, name=f"{name}{len(made)}"))
        return made[-1]

    monkeypatch.setattr("mmalign.rewards.load", load)
    with pytest.raises(ConfigError, match="as before painting"):
        run(suite_of(tmp_path, '["toy_rewards:redness"]'), tmp_path)


def test_every_shard_paints_and_scores_its_part_in_one_go(painter, tmp_path):
    suite = suite_of(tmp_path, '["toy_rewards:redness"]')
    for number in (2, 0, 1):
        assert run(suite, tmp_path, stages=("generate", "score"), shard=(number, 3)) is None
    record = run(suite, tmp_path, stages=("report",))
    assert record["scores"]["base"]["toy_rewards:redness"]["n"] == len(PROMPTS)
    assert len(painter.painted) == 2 * len(PROMPTS)


def test_a_report_of_one_shard_is_refused(painter, tmp_path):
    with pytest.raises(ConfigError, match="Run --stage report without --shard"):
        run(suite_of(tmp_path, '["toy_rewards:redness"]'), tmp_path, shard=(0, 2))
    with pytest.raises(ConfigError, match="Run --stage report without --shard"):
        harness.main(
            suite=tmp_path / "suite.yaml",
            models=[f"images:{tmp_path}"],
            stage="report",
            shard="0/2",
            cache=tmp_path / "store",
        )


def test_all_models_are_looked_for_before_the_first_one_paints(painter, tmp_path):
    suite = suite_of(tmp_path, '["toy_rewards:redness"]')
    base = ModelSpec(name="base", source="hub/base")
    for source, says in (
        ("images:nowhere", "expected a folder of pictures"),
        ("./runs/none", "run folder or .safetensors file that is there"),
        (str(tmp_path / "none"), "run folder or .safetensors file that is there"),
    ):
        with pytest.raises(ConfigError, match=rf"--model tuned: got .*{says}"):
            run(suite, tmp_path, specs=[base, ModelSpec(name="tuned", source=source)])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mmalign_config.yaml").write_text("model: {source: hub/base}\n")
    with pytest.raises(CheckpointError, match="without a complete checkpoint yet"):
        run(suite, tmp_path, specs=[base, ModelSpec(name="tuned", source=str(tmp_path / "run"))])
    assert painter.painted == []
    with pytest.raises(ConfigError, match=r"--model base: got 'hub/base', expected a folder or file"):
        harness.main(suite=tmp_path / "suite.yaml", models=["base=hub/base"], cache=tmp_path / "store")


class Several:
    """A reward of two outputs, the second of which has one hole; lower is better."""

    card = Card("several", "two numbers", "image", outputs=("score", "style"), higher_is_better=False)

    def fingerprint(self):
        return "several"

    def provenance(self):
        return {"name": "several"}

    def score(self, samples, *, batch_size=16):
        values = torch.tensor(
            [[float(len(s.prompt)), float("inf") if s.prompt == "a fox" else 1.0] for s in samples]
        )
        errors = tuple("no style" if s.prompt == "a fox" else None for s in samples)
        plain = (None,) * len(samples)
        return Scored(values.double(), self.card.outputs, errors, (False,) * len(samples), plain)


def test_an_output_that_has_a_value_has_not_failed_with_the_others(painter, tmp_path, monkeypatch):
    monkeypatch.setattr("mmalign.rewards.load", lambda name, **options: Several())
    record = run(suite_of(tmp_path, '["toy_rewards:redness"]'), tmp_path)
    first, second = (record["scores"]["base"][f"toy_rewards:redness{end}"] for end in ("", ".style"))
    assert (first["n"], first["failed"], second["n"], second["failed"]) == (7, 0, 6, 1)
    assert [reward["failed"] for reward in record["rewards"]] == [0, 2]
    assert second["mean"]["value"] == 1.0


def test_columns_of_one_title_are_refused(painter, tmp_path, monkeypatch):
    monkeypatch.setattr("mmalign.rewards.load", lambda name, **options: Several())
    rewards = '[{name: "a:b", title: x}, {name: "a:c", title: x.style}]'
    with pytest.raises(ConfigError, match=r"two columns called x\.style"):
        run(suite_of(tmp_path, rewards), tmp_path)


@pytest.mark.parametrize("reward", ["nothing", "picky"])
def test_one_prompt_and_no_score_at_all_still_make_a_report(painter, tmp_path, reward, monkeypatch):
    import toy_rewards

    monkeypatch.setattr(toy_rewards, "nothing", lambda batch: [None for _ in batch], raising=False)
    suite = suite_of(tmp_path, f'["toy_rewards:{reward}"]', ["a [/b] \N{FOX FACE} قطة"])
    specs = [ModelSpec(name=name, source="hub/any") for name in ("[/base]", "tuned")]
    record = run(suite, tmp_path, specs=specs)
    assert record["scores"]["tuned"][f"toy_rewards:{reward}"]["n"] == (0 if reward == "nothing" else 1)
    assert (tmp_path / "out/report.html").is_file()


def test_looking_at_rewards_leaves_only_columns(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    suite = suite_of(tmp_path, '["toy_rewards:redness", {name: "toy_rewards:picky", title: p}]')
    columns = suite_rewards.columns_of(suite, [], device="cpu")
    assert [[column.title for column in entries] for entries in columns] == [["toy_rewards:redness"], ["p"]]


def test_pictures_that_were_deleted_are_named_before_they_are_scored_as_failures(painter, tmp_path):
    suite = suite_of(tmp_path, '["toy_rewards:redness"]')
    run(suite, tmp_path, stages=("generate",))
    gone = next(iter(generation.pictures_table(tmp_path / "store").read()))  # of base, the first that paints
    (tmp_path / "store" / gone["path"]).unlink()
    with pytest.raises(CheckpointError, match=r"1 pictures of base were painted and are gone, first media/"):
        run(suite, tmp_path, stages=("score",))
