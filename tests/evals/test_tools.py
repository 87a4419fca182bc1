"""Real tools in benchmarks: tiny networks from disk judge pictures from end to end."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from mmalign import registry
from mmalign.errors import UnknownNameError
from mmalign.evals.base import Answer, Benchmark, Item
from mmalign.evals.tools import TOOLS, load_tool
from mmalign.testing.reward_checkpoints.clip import write_clip_folder

NAMES = ("compbench", "dpg", "dpg_fixed", "geneval", "geneval_hf", "hpdv2", "vbench")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_folder(tmp_path_factory.mktemp("clip"), seed=5)


@pytest.fixture(scope="module")
def base32(tmp_path_factory):
    return write_clip_folder(tmp_path_factory.mktemp("b32"), seed=7, weight_file="pytorch_model.bin")


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_found_by_its_name_and_says_what_it_needs(name):
    benchmark = registry.find("benchmarks", name)
    assert isinstance(benchmark, Benchmark)
    assert benchmark.name == name
    assert benchmark.files
    assert benchmark.departures
    assert set(benchmark.tools) <= {*TOOLS, "reward"}


def test_similarity_is_the_cosine_of_both_embeddings(base32):
    similarity = load_tool("similarity", weights=base32)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    model, tokenizer = CLIPModel.from_pretrained(base32).eval(), CLIPTokenizer.from_pretrained(base32)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    pixels = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - mean) / std
    with torch.inference_mode():
        out = model(pixel_values=pixels[None], **tokenizer("a dog runs", return_tensors="pt"))
    expected = float(out.image_embeds[0] @ out.text_embeds[0])
    assert similarity(image, "a dog runs") == pytest.approx(expected, rel=1e-4)
    assert "pytorch_model.bin" in similarity.provenance()["weights"]


def test_colours_and_similarity_judge_pictures_in_their_benchmarks(folder, base32):
    from mmalign.evals.detectors import Detection

    class Whole:
        name = "whole"
        labels = ("dog",)
        calibrated_for = ()

        def detect(self, images):
            return [[Detection("dog", 0.9, (0.0, 0.0, 70.0, 50.0))] for _ in images]

        def provenance(self):
            return {}

    colours = load_tool("colours", weights=folder)
    image = picture(3)
    (seen,) = colours(image, Whole().detect([image])[0], "dog")
    judged = {}
    for colour in ("red", seen):
        metadata = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": colour}]}
        answer = Answer(Item("geneval/00000", "a dog", expected=metadata), media=(image,))
        benchmark = registry.find("benchmarks", "geneval_hf")
        judged[colour] = benchmark.score([answer], detector=Whole(), colours=colours).metrics[0].value
    assert judged[seen] == 1.0
    assert seen == "red" or judged["red"] == 0.0
    item = Item(
        "compbench/non_spatial/00000", "a dog runs", group="non_spatial", expected={"text": "a dog runs"}
    )
    similarity = load_tool("similarity", weights=base32)
    outcome = registry.find("benchmarks", "compbench").score(
        [Answer(item, media=(image,))], similarity=similarity
    )
    assert outcome.metrics[0].value == similarity(image, "a dog runs")
    assert math.isfinite(outcome.metrics[0].value)


def test_an_unknown_tool_is_refused():
    with pytest.raises(UnknownNameError, match=r"unknown tool 'detektor'\. Did you mean detector"):
        load_tool("detektor")
