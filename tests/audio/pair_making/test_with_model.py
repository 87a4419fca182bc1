"""Pairs made by a model and scored by CLAP, both tiny and in the layouts of the real ones."""

import json

import pytest
import torch
import yaml

from mmalign.audio.pair_making.loading import ModelMaker
from mmalign.audio.pair_making.plan import AudioPairPlan
from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError
from mmalign.testing.reward_checkpoints.clap import write_clap
from mmalign.testing.tiny_audio import DURATION, write_tiny_tango

PROMPTS = ["a dog barks before a bell rings", "rain falls, then thunder rumbles"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tango")
    write_tiny_tango(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


@pytest.fixture
def plan_of(folder):
    def make(**settings):
        content = {
            "recipe": "seeds",
            "model": {"family": "tango", "source": str(folder / "model")},
            "data": {"source": str(folder / "prompts.txt")},
            "scorers": [{"name": "clap"}],
            "sampling": {"duration": DURATION, "num_steps": 2, "num_samples": 3},
        }
        return content | settings

    return make


def maker(content):
    return ModelMaker(AudioPairPlan.model_validate(content), torch.device("cpu"))


def test_the_command_samples_scores_and_writes_rows(plan_of, tmp_path, capsys):
    weights = write_clap(tmp_path / "clap")
    plan = plan_of(scorers=[{"name": "clap", "weights": str(weights)}])
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = [
        "pairs",
        "make",
        str(tmp_path / "plan.yaml"),
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    assert "2 rows, 6 clips (nothing left out)" in capsys.readouterr().out
    rows = list(open_rows(DataConfig(source=str(tmp_path / "out/rows.jsonl")), kind="pairs"))
    assert [row.prompt for row in rows] == PROMPTS
    assert all(row.candidates[0].reward > row.candidates[1].reward for row in rows)
    assert all(row.extras["made_model"].startswith("tango:") for row in rows)
    record = json.loads((tmp_path / "out/rows.jsonl").read_text().splitlines()[0])
    assert record["clap_chosen"] == record["score_chosen"]


def test_clips_depend_on_key_and_seed_and_not_on_their_neighbours(plan_of):
    make = maker(plan_of())
    alone = make([PROMPTS[1]], ["b"], 0, 2)[0]
    first, second = make(PROMPTS, ["a", "b"], 0, 2)
    torch.testing.assert_close(second.samples, alone.samples, atol=1e-4, rtol=0)
    assert alone.samples.shape == (1, round(DURATION * 16_000))
    other = make([PROMPTS[1]], ["a"], 0, 2)[0]
    assert not torch.allclose(other.samples, alone.samples, atol=1e-3)
    assert not torch.allclose(make([PROMPTS[1]], ["b"], 3, 2)[0].samples, alone.samples, atol=1e-3)
    assert not torch.allclose(first.samples, other.samples, atol=1e-4)


def test_an_adapter_is_another_maker(plan_of, tmp_path):
    from peft import LoraConfig

    plain = maker(plan_of())
    model = plain._model()
    model.bare_network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    with torch.no_grad():
        for name, value in model.bare_network.named_parameters():
            if "lora_B" in name:
                value.fill_(0.5)
    model.save_adapter(tmp_path / "adapter")
    trained = plain(PROMPTS[:1], ["a"], 0, 2)[0]
    base, put_on = maker(plan_of()), maker(plan_of(adapter=str(tmp_path / "adapter")))
    assert base.identity()["model"] != put_on.identity()["model"]
    torch.testing.assert_close(put_on(PROMPTS[:1], ["a"], 0, 2)[0].samples, trained.samples)
    assert not torch.allclose(base(PROMPTS[:1], ["a"], 0, 2)[0].samples, trained.samples, atol=1e-3)


def test_an_adapter_that_is_not_there_is_said(plan_of, tmp_path):
    with pytest.raises(ConfigError, match=r"adapter: got .* expected a folder with pytorch_lora_weights"):
        maker(plan_of(adapter=str(tmp_path))).identity()
