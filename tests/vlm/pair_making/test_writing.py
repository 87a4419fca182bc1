"""A loaded model writes, judges and looks as pair makers ask."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import registry
from mmalign.batch import ContentItem, Message
from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.data.pair_making.weights import weights_digest
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError
from mmalign.train.sections import ModelConfig
from mmalign.train.token_sections import TokensConfig
from mmalign.vlm.pair_making.embedding import SentenceSimilarity
from mmalign.vlm.pair_making.following import VlmFollowUps, differing_span
from mmalign.vlm.pair_making.looking import VlmLooker
from mmalign.vlm.pair_making.plan import RECIPES, read_pair_plan
from mmalign.vlm.pair_making.requests import Request, Sampling
from mmalign.vlm.pair_making.writing import VlmWriter, VlmYesNo, begin, first_sentence, model_inputs
from mmalign.vlm.prompts import render

CONFIGS = Path(__file__).parents[3] / "vlm" / "configs" / "pairs"
GREEDY = Sampling(max_new_tokens=7, temperature=0.0)
COLOURS = ("red", "blue", "green", "yellow", "purple")


@pytest.fixture(scope="module")
def load(tiny_vlm_folder):
    loaded = {}

    def of(name: str):
        if name not in loaded:
            config = ModelConfig(family=name, source=str(tiny_vlm_folder(name)))
            family = registry.find("families", name)
            loaded[name] = family.load(config, TokensConfig(), device="cpu", dtype=torch.float32)
        return loaded[name]

    return of


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_plain_requests_are_written_as_the_model_does(load, row, name: str) -> None:
    model = load(name)
    rows = [row("a", "what is red"), row("b", "what shape is in the picture and where", colour="blue")]
    written = VlmWriter(model, 2)([Request(one) for one in rows], GREEDY, 0)
    assert written == model.generate(rows, max_new_tokens=7)
    drawn = replace(GREEDY, temperature=1.0)
    again = [VlmWriter(model, 2)([Request(one) for one in rows], drawn, seed) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_an_image_that_is_hidden_changes_nothing_and_one_that_is_seen_does(load, row, name: str) -> None:
    model = load(name)
    logits = {}
    for hidden in (0.0, 1.0):
        for colour in ("red", "blue"):
            begun = begin(model, Request(row("a", colour=colour), prefix="it is", hidden=hidden))
            with torch.no_grad():
                logits[hidden, colour] = model.bare_network(**model_inputs(model, [begun])).logits[0, -1]
    assert torch.equal(logits[1.0, "red"], logits[1.0, "blue"])
    assert not torch.allclose(logits[0.0, "red"], logits[0.0, "blue"], atol=1e-4)
    assert not torch.allclose(logits[0.0, "red"], logits[1.0, "red"], atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_hidden_tokens_keep_their_places(load, row, name: str) -> None:
    """Told positions are those that the model counts itself where nothing is hidden."""
    model = load(name)
    begun = begin(model, Request(row("a"), prefix="it is"))
    inputs = model_inputs(model, [begun])
    places = begun.positions.unsqueeze(1)
    with torch.no_grad():
        counted = model.bare_network(**inputs).logits
        told = model.bare_network(**inputs, position_ids=places[0] if len(places) == 1 else places).logits
    assert torch.allclose(counted, told, atol=1e-5)


def test_one_in_a_hundred_visual_tokens_stays_visible(load, row) -> None:
    model = load("llava")
    shares = []
    for seed in range(200):
        begun = begin(model, Request(row("a"), hidden=0.99), seed)
        visual = begun.kinds > 0
        assert begun.visible[~visual].all()
        shares.append(begun.visible[visual].float().mean().item())
    assert 0.004 < np.mean(shares) < 0.02


def test_what_is_written_ends_at_a_full_stop_where_asked() -> None:
    assert first_sentence("A 3.5 m tall cat. It sits.") == "A 3.5 m tall cat."
    assert first_sentence("no end") == "no end"


def test_yes_and_no_do_not_depend_on_who_is_asked_together(load, row) -> None:
    model = load("llava")
    rows = [row("a", "is it red"), row("b", "is the shape in the picture blue or is it not", colour="blue")]
    together, alone = VlmYesNo(model, 2)(rows), VlmYesNo(model, 1)(rows)
    assert np.array(together) == pytest.approx(np.array(alone), abs=1e-5)
    assert all(0 < value < 1 for pair in together for value in pair)


def test_attention_is_found_for_every_image_and_sums_below_one(load, row) -> None:
    model = load("llava")
    two = replace(row("a"), images=(*row("a").images, *row("b", colour="blue").images))
    (looked,) = VlmLooker(model, layer=1, max_new_tokens=5)([two], 0)
    assert looked.answer == model.generate([two], max_new_tokens=5)[0]
    assert [values.shape for values in looked.attention] == [(16,), (16,)]
    assert 0 < sum(values.sum() for values in looked.attention) < 1
    assert all(0 < value <= 1 for value in looked.certainty)
    assert model.bare_network.config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match="attention layer: got 99"):
        VlmLooker(model, layer=99, max_new_tokens=5)([two], 0)


def test_the_digest_changes_with_any_small_tensor(load) -> None:
    model = torch.nn.Linear(5, 3)
    before = weights_digest(model)
    assert weights_digest(model) == before
    with torch.no_grad():
        model.bias[1] += 1e-3
    assert weights_digest(model) != before


def test_sentences_are_compared_by_their_mean_states(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "a", "cat", "dog", "sits"))}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        BertModel(config).save_pretrained(tmp_path)
    similarity = SentenceSimilarity.load(str(tmp_path))
    same, other = similarity(["a cat sits", "a cat"], ["a cat sits", "dog dog dog"])
    assert same == pytest.approx(1.0, abs=1e-6)
    assert other < 0.99
    # Padding beside a longer sentence changes nothing.
    assert similarity(["a cat"], ["dog dog dog"])[0] == pytest.approx(other, abs=1e-6)
    with pytest.raises(ConfigError, match="a folder or hub id of a sentence encoder"):
        SentenceSimilarity.load(str(tmp_path / "none"))


def test_a_follow_up_is_found_in_the_tokens_of_a_dialogue() -> None:
    assert differing_span(torch.tensor([1, 2, 7, 8, 3, 4]), torch.tensor([1, 2, 5, 3, 4])) == (2, 4)
    assert differing_span(torch.tensor([1, 1, 1]), torch.tensor([1, 1])) == (2, 3)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_follow_up_is_scored_as_the_model_does(load, row, name: str) -> None:
    model = load(name)
    (score,) = VlmFollowUps(model)([row("a")], ["a red circle"], "where is it")
    prompt = render(
        model.traits.processor,
        [
            Message("user", (ContentItem("image"), ContentItem("text", "what is it?"))),
            Message("assistant", (ContentItem("text", "a red circle"),)),
            Message("user", (ContentItem("text", "where is it"),)),
        ],
    )
    picture = Image.open(io.BytesIO(row("a").images[0]))
    inputs = model.traits.processor(text=[prompt], images=[picture], return_tensors="pt")
    with torch.no_grad():
        shares = model.bare_network(**inputs).logits[0].log_softmax(dim=-1)
    ids = inputs["input_ids"][0]
    words = model.traits.tokenizer.decode(ids)
    assert words.count("where is it") == 1
    ends = [len(model.traits.tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
    begin_at = words.index("where is it")
    inside = [
        n for n in range(1, len(ids)) if ends[n] > begin_at and ends[n - 1] < begin_at + len("where is it")
    ]
    mean = torch.stack([shares[n - 1, ids[n]] for n in inside]).mean().item()
    assert score == pytest.approx(mean, abs=1e-4)


# --- commands -----------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path, tiny_vlm_folder: Callable[[str], Path]) -> Callable[..., tuple[Path, Path]]:
    """Writes rows and a plan of a recipe."""
    rows = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{number}.png")
        answer = {"completion": "Yes, a circle is red. It is small."}
        rows.append({"id": f"r{number}", "images": [f"{number}.png"], "prompt": "what is it"} | answer)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))

    def written(recipe: str) -> tuple[Path, Path]:
        path = tmp_path / "plan.yaml"
        source = tmp_path / "data.jsonl"
        path.write_text(
            f"recipe: {recipe}\nmodel: {{family: llava, source: {tiny_vlm_folder('llava')}}}\n"
            f"data: {{source: {{path: {source}, media: dialogue}}}}\ndtype: float32\nblock_rows: 2\n"
            "sampling: {num_answers: 3, max_new_tokens: 6, temperature: 1.0}\n"
        )
        return path, tmp_path / "out"

    return written


def run(plan: Path, output: Path, *words: str) -> int:
    return main(["--debug", "pairs", "make", str(plan), "--output", str(output), "--device", "cpu", *words])


def test_scored_answers_become_rows_that_training_reads(plan, tmp_path: Path, capsys) -> None:
    path, output = plan("score")
    assert run(path, output) == 0
    assert "write a JSONL file for score.file" in capsys.readouterr().out
    answers = [json.loads(line) for line in (output / "stages" / "answers.jsonl").read_text().splitlines()]
    scores = [{"id": one["key"], "scores": [len(text) for text in one["answers"]]} for one in answers]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(one) + "\n" for one in scores))
    assert run(path, output, f"score.file={tmp_path / 'scores.jsonl'}") == 0
    table = open_rows(DataConfig(source=str(output / "rows.jsonl")), kind="pairs")
    for row in table:
        chosen, rejected = row.candidates
        assert chosen.reward > rejected.reward
        assert Path(row.images[0]).is_file()
    first = json.loads((output / "rows.jsonl").read_text().splitlines()[0])
    assert first["made_by"] == "score"
    assert first["made_from"] in {one["key"] for one in answers}
    assert first["made_model"].startswith("llava:")
    card = (output / "card.yaml").read_text()
    assert "recipe: score" in card
    assert first["made_model"] in card


def test_a_run_again_writes_the_same_rows(plan) -> None:
    path, output = plan("mistakes")
    assert run(path, output) == 0
    before = (output / "rows.jsonl").read_bytes()
    stages = {file.name: file.read_bytes() for file in (output / "stages").iterdir()}
    assert run(path, output) == 0
    assert (output / "rows.jsonl").read_bytes() == before
    assert {file.name: file.read_bytes() for file in (output / "stages").iterdir()} == stages


def test_corrections_with_reports_are_read_as_rows_of_opa_dpo(plan, tmp_path: Path) -> None:
    path, output = plan("correct")
    assert run(path, output, "sampling.temperature=0.0") == 0
    answers = [json.loads(line) for line in (output / "stages" / "answers.jsonl").read_text().splitlines()]
    given = [
        {
            "id": one["key"],
            "revised": "A red circle.",
            "standard": "There is a red circle.",
            "report": {
                "S1": {
                    "copied content": one["answers"][0].strip(),
                    "rewritten content": "A red circle.",
                    "score": 1,
                }
            },
        }
        for one in answers
        if one["answers"][0].strip()
    ]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(one) + "\n" for one in given))
    words = ("sampling.temperature=0.0", f"correct.file={tmp_path / 'given.jsonl'}")
    assert run(path, output, *words) == 0
    table = open_rows(DataConfig(source=str(output / "rows.jsonl")), kind="pairs")
    assert len(table) == len(given) > 0
    row = table[0]
    assert row.candidates[0].text == "There is a red circle."
    assert row.extras["revised"]["text"] == "A red circle."
    assert row.extras["token_severity"][1][0][2] == 2.5


def test_unreadable_images_are_left_out_or_end_the_run_when_they_are_many(
    plan, tmp_path: Path, capsys
) -> None:
    path, output = plan("mistakes")
    (tmp_path / "2.png").write_bytes(b"not a picture")
    assert main(["pairs", "make", str(path), "--output", str(output), "--device", "cpu"]) == 2
    assert "1 of 5 unusable" in capsys.readouterr().err
    assert run(path, output, "data.max_bad_share=0.5") == 0
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    assert "r2" not in {one["made_from"] for one in rows}


def test_settings_of_another_recipe_are_refused(plan) -> None:
    path, _ = plan("mistakes")
    with pytest.raises(ConfigError, match="got settings of claims, expected those of recipe mistakes"):
        read_pair_plan(path, ["claims.difference=2"])


def test_every_recipe_has_a_config_that_parses() -> None:
    found = {path.stem: read_pair_plan(path).recipe for path in CONFIGS.glob("*.yaml")}
    assert set(found.values()) == set(RECIPES)
    assert {name: recipe for name, recipe in found.items() if name != recipe} == {
        "prompt_writer_videos": "prompt_writer"
    }
