"""HPDv2's aggregation: chunks, spread, failures, and the harness with a reward."""

import json
import math
import statistics

import numpy as np
import pytest
import torch

from mmalign.errors import ConfigError, RowError
from mmalign.evals.base import Answer
from mmalign.evals.benchmarks import hpdv2
from mmalign.rewards.base import Scored
from mmalign.rewards.card import Card


def test_a_style_is_the_mean_and_population_spread_of_its_chunks():
    values = [1.0, 3.0, 2.0, 6.0, 11.0]
    result = hpdv2.aggregate({"anime": values}, chunk=2)
    style = result.styles["anime"]
    assert style.chunks == (2.0, 4.0, 11.0)
    assert style.mean == pytest.approx(17 / 3)
    assert style.std == pytest.approx(statistics.pstdev([2.0, 4.0, 11.0]))
    assert result.average == pytest.approx(statistics.fmean(values))


def test_the_average_weighs_pictures_and_not_styles():
    result = hpdv2.aggregate({"anime": [1.0], "photo": [2.0, 2.0, 2.0]})
    assert result.average == 1.75


def test_a_failed_picture_keeps_its_place():
    style = hpdv2.aggregate({"anime": [1.0, math.nan, 5.0, 7.0]}, chunk=2).styles["anime"]
    assert style.chunks == (1.0, 6.0)
    assert (style.scored, style.failed) == (3, 1)


def test_nothing_to_average_is_refused():
    with pytest.raises(
        ConfigError, match=r"scores: got \[1 styles, chunks of 80\], expected at least one value"
    ):
        hpdv2.aggregate({"anime": []})
    with pytest.raises(ConfigError, match="chunks of 0"):
        hpdv2.aggregate({"anime": [1.0]}, chunk=0)


class Brightness:
    """A reward: mean brightness of the picture."""

    def __init__(self, name, scale=""):
        self.card = Card(name=name, title="", modality="image", scale=scale)

    def fingerprint(self):
        return "0"

    def provenance(self):
        return {}

    def score(self, samples, *, batch_size=16):
        values = torch.tensor([[float(sample.image.mean()) / 100] for sample in samples], dtype=torch.float64)
        empty = (None,) * len(samples)
        return Scored(values, ("score",), empty, (False,) * len(samples), empty)


@pytest.fixture
def folder(tmp_path):
    for style in hpdv2.STYLES:
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} one", f"{style} two"]))
    return tmp_path


def shade(level):
    return np.full((3, 5, 3), level, dtype=np.uint8)


def test_prompts_are_numbered_within_their_style(folder):
    items = hpdv2.BENCHMARK.items(folder, styles=("photo", "anime"))
    assert [(item.id, item.prompt, item.group) for item in items] == [
        ("hpdv2/photo/00000", "photo one", "photo"),
        ("hpdv2/photo/00001", "photo two", "photo"),
        ("hpdv2/anime/00000", "anime one", "anime"),
        ("hpdv2/anime/00001", "anime two", "anime"),
    ]


def test_hps_is_printed_a_hundredfold_and_other_rewards_in_their_unit(folder):
    items = hpdv2.BENCHMARK.items(folder, styles=("photo",))
    answers = [
        Answer(items[0], media=(shade(20),)),
        Answer(items[0], media=(shade(40),), copy=1),
        Answer(items[1], error="out of memory"),
    ]
    outcome = hpdv2.BENCHMARK.score(answers, reward=Brightness("hpsv21"))
    found = {metric.name: metric for metric in outcome.metrics}
    assert found["hpsv21/average"].value == pytest.approx(30.0)
    assert found["hpsv21/average"].per_item["hpdv2/photo/00000"] == pytest.approx(30.0)
    assert math.isnan(found["hpsv21/photo"].per_item["hpdv2/photo/00001"])
    assert outcome.counts == {"images": 3, "failed": 1}
    other = hpdv2.BENCHMARK.score(answers, reward=Brightness("pickscore_v1", "about 20"))
    assert other.metrics[0].value == pytest.approx(0.3)
    assert (other.metrics[0].name, other.metrics[0].unit) == ("pickscore_v1/average", "about 20")


def test_malformed_prompts_are_refused_with_their_place(tmp_path):
    path = tmp_path / "anime.json"
    path.write_text('["one", ""]')
    with pytest.raises(RowError, match=r"anime\.json\[1\]: got '', expected a prompt"):
        hpdv2.read_prompts(path)
    path.write_text('{"one": 1}')
    with pytest.raises(ConfigError, match=r"anime\.json: got 'dict', expected a list of prompts"):
        hpdv2.read_prompts(path)
