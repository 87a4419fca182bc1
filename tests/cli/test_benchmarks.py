"""`mmalign benchmarks` and `mmalign benchmark`: what is listed, and runs as users start them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import registry
from mmalign.cli.main import main
from mmalign.evals import answering, generation
from mmalign.seeding import generator_for
from mmalign.testing.benchmark_examples import EXAMPLES
from mmalign.testing.benchmark_examples.painted import LightDetector
from mmalign.testing.reward_checkpoints import vision_language as tiny


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`folder(name)`: the official files of a benchmark's example; results land beside them."""
    monkeypatch.chdir(tmp_path)

    def write(name):
        folder = tmp_path / "official"
        folder.mkdir()
        EXAMPLES[name].write(folder)
        return folder

    return write


def stored(path, answers):
    rows = [{"id": name, "answer": text} for name, text in answers.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def record(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def values(of_model):
    return {metric["name"]: metric["value"] for metric in of_model["metrics"]}


def printed(capsys):
    return " ".join(capsys.readouterr().out.split())


CAPTIONS = {
    "base": {"1": "a man with a dog near a table", "2": "a dog on a chair", "3": "a dog"},
    "tuned": {"1": "a man with a dog", "2": "an empty chair", "3": "a puppy"},
}


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_names_every_benchmark_with_its_tools(capsys):
    assert main(["benchmarks"]) == 0
    said = printed(capsys)
    assert all(name in said for name in registry.names("benchmarks"))
    assert "geneval_hf 2310.11513 detector, colours" in said
    assert said.index("of answers") < said.index("of pictures") < said.index("of clips")


@pytest.mark.parametrize("name", registry.names("benchmarks"))
def test_one_benchmark_is_told_whole(name, capsys):
    assert main(["benchmarks", name]) == 0
    said = printed(capsys)
    one = registry.find("benchmarks", name)
    for text in (*one.files, *one.files.values(), *one.options, *one.tools, *one.protocol, one.licence):
        assert " ".join(text.split()[:2]) in said, text
    assert f"mmalign benchmark {name} --data DIR" in said


def test_a_plug_in_that_cannot_be_imported_does_not_hide_the_others(monkeypatch, capsys):
    find = registry.find

    def broken(kind, name):
        if name == "pope":
            msg = "no module of that name"
            raise ImportError(msg)
        return find(kind, name)

    monkeypatch.setattr(registry, "find", broken)
    assert main(["benchmarks"]) == 0
    said = printed(capsys)
    assert "pope: cannot be imported (ImportError: no module of that name)" in said
    assert "chair 1809.02156" in said


# ------------------------------------------------------------------------------------------- stored answers


def test_stored_answers_of_two_models_are_scored_and_paired(folder, tmp_path, capsys):
    data = folder("chair")
    words = []
    for name, captions in CAPTIONS.items():
        words += ["--answers", f"{name}={stored(tmp_path / f'{name}.jsonl', captions)}"]
    assert main(["benchmark", "chair", "--data", str(data), *words, "--output", "out", "mode=strict"]) == 0
    found = record("out")
    assert values(found["models"][0])["chair_s"] == pytest.approx(2 / 3)
    assert values(found["models"][1])["chair_s"] == 0.0
    hallucinating = next(one for one in found["comparisons"] if one["metric"] == "chair_s")
    assert hallucinating["wins"] == [2, 1, 0]
    assert hallucinating["difference"]["value"] == pytest.approx(-2 / 3)
    assert found["benchmark"]["options"] == {"mode": "strict"}
    rows = [json.loads(line) for line in Path("out/items.jsonl").read_text().splitlines()]
    assert rows[1]["models"]["base"]["answers"] == [{"text": "a dog on a chair"}]
    assert rows[1]["models"]["base"]["values"]["chair_s"] == 1.0
    said = printed(capsys)
    assert "recall" in said
    assert "chair(strict)" in said
    assert "| chair\\_s |" in Path("out/results.md").read_text()


def test_files_of_one_model_are_joined_and_a_missing_answer_is_told_by_the_exit_code(
    folder, tmp_path, capsys
):
    data = folder("pope")
    words = []
    for split in ("random", "popular"):
        answers = {f"{split}/{n}": "yes" for n in (1, 2, 3)}
        words += ["--answers", f"mine={stored(tmp_path / f'{split}.jsonl', answers)}"]
    assert main(["benchmark", "pope", "--data", str(data), *words]) == 3
    (model,) = record("runs/benchmarks/pope")["models"]
    assert model["counts"]["missing"] == 3
    assert "mine: 3 of 9 answers are missing" in printed(capsys)
    two = ["benchmark", "pope", "--data", str(data), *words, "splits=random,popular"]
    assert main(two) == 0
    assert record("runs/benchmarks/pope")["items"]["groups"] == {"random": 3, "popular": 3}


def test_a_limit_is_written_into_the_results_and_spares_pairs(folder, tmp_path):
    data = folder("videohallucer")
    answers = {f"obj_rel/{n}/{side}": "yes" for n in (0, 1) for side in ("basic", "hallucination")}
    words = ["--answers", f"m={stored(tmp_path / 'm.jsonl', answers)}", "--limit", "3"]
    assert main(["benchmark", "videohallucer", "--data", str(data), *words, "--output", "out"]) == 0
    found = record("out")
    assert found["items"]["count"] == 4
    assert any("Only the first 4 items were asked" in text for text in found["warnings"])


def test_results_of_official_scripts_are_answers(folder):
    data = folder("vbench")
    words = ["--answers", f"one={data / 'results.json'}", "--answers", f"two={data / 'lacking.json'}"]
    assert main(["benchmark", "vbench", "--data", str(data), *words, "--output", "out"]) == 0
    found = record("out")
    assert [model["scored"]["clip values"] for model in found["models"]] == [3, 2]
    assert found["models"][0]["counts"]["answers"] == 0
    assert len(found["models"][0]["provenance"]["files"]) == 1


# -------------------------------------------------------------------------------------------- models, tools


def test_a_chat_model_answers_once_and_its_answers_are_kept(folder, tmp_path, monkeypatch):
    data = folder("pope")
    (data / "images").mkdir()
    Image.fromarray(np.full((40, 50, 3), 90, dtype=np.uint8)).save(data / "images" / "1.jpg")
    chat = tiny.write_chat_model(tmp_path / "chat", 2)
    words = ["benchmark", "pope", "--data", str(data), "--model", f"tiny={chat}", "--max-new-tokens", "3"]
    words += ["--output", "out", "--device", "cpu", "splits=random"]
    assert main(words) == 0
    first = Path("out/items.jsonl").read_text()
    assert record("out")["models"][0]["provenance"]["decoding"] == "greedy"

    def refuse(self, rows, *, max_new_tokens):
        raise AssertionError(rows)

    monkeypatch.setattr("mmalign.rewards.vision_language.ChatModel.write", refuse)
    assert main(words) == 0
    assert Path("out/items.jsonl").read_text() == first


class Judge:
    """Likes dogs."""

    def settings(self):
        return {"weights": "judge"}

    def safe(self, text):
        return text

    def shown(self, media, *, where):
        raise AssertionError(where)

    def question(self, text, shown=()):
        return {"input_ids": torch.tensor([[int("A dog, of course" in text)]])}

    def write(self, rows, *, max_new_tokens):
        return [f"Rating: {1 + 4 * int(row['input_ids'])}" for row in rows]


def test_a_judge_is_named_in_the_results(folder, tmp_path, monkeypatch, capsys):
    data = folder("mmhal")
    answers = {"0": "A dog, of course.", "1": "A cat.", "2": "A cat."}
    words = ["benchmark", "mmhal", "--data", str(data), "--output", "out"]
    words += ["--answers", str(stored(tmp_path / "m.jsonl", answers))]
    assert main(words) == 2
    assert "mmhal tool judge: got [none], expected --tool judge=SOURCE" in capsys.readouterr().err
    monkeypatch.setattr(answering, "load_speaker", lambda source, **options: Judge())
    assert main([*words, "--tool", "judge=some/model", "--device", "cpu"]) == 0
    found = record("out")
    assert values(found["models"][0])["score"] == pytest.approx((5 + 1 + 1) / 3)
    assert found["tools"]["judge"]["name"] == "some/model"
    assert "Judged by some/model" in found["models"][0]["notes"][0]


def test_judgements_that_were_stored_need_no_judge(folder, tmp_path, capsys):
    data = folder("mmhal")
    rows = [{"id": str(n), "answer": "A dog.", "judgement": f"Rating: {n + 3}"} for n in range(3)]
    path = tmp_path / "m.json"
    path.write_text(json.dumps(rows))
    words = ["benchmark", "mmhal", "--data", str(data), "--answers", str(path), "--output", "out"]
    assert main(words) == 0
    assert values(record("out")["models"][0])["score"] == 4.0
    del rows[2]["judgement"]
    path.write_text(json.dumps(rows))
    assert main(words) == 2
    assert "judge: got [an answer without a stored judgement]" in capsys.readouterr().err


def colours(picture, found, name):
    return ["green"] * len(found)


@pytest.fixture
def tools(monkeypatch):
    """Tools that need no weights, in place of the defaults; the list of what was loaded."""
    loaded = []

    def load(name, **options):
        loaded.append((name, options.get("weights")))
        return {"detector": LightDetector(), "colours": colours}[name]

    monkeypatch.setattr("mmalign.evals.tools.load_tool", load)
    return loaded


def test_pictures_of_folders_are_judged_by_tools_that_are_loaded_by_default(folder, tmp_path, tools, capsys):
    data = folder("geneval_hf")
    for name, level in (("dark", 10), ("light", 200)):
        (tmp_path / name).mkdir()
        for place in range(3):
            Image.new("RGB", (8, 8), (level, 0, 0)).save(tmp_path / name / f"{place:05d}.png")
    words = ["--model", f"images:{tmp_path / 'dark'}", "--model", f"l=images:{tmp_path / 'light'}"]
    words += ["--images-per-prompt", "1", "--device", "cpu", "--tool", "detector=some/weights"]
    assert main(["benchmark", "geneval_hf", "--data", str(data), *words, "--output", "out"]) == 0
    found = record("out")
    assert [values(model)["overall"] for model in found["models"]] == [pytest.approx(2 / 3), 1.0]
    assert [model["name"] for model in found["models"]] == ["dark", "l"]
    assert tools == [("detector", "some/weights"), ("colours", None)]
    assert "The protocol has 4 images per prompt; here it is 1." in printed(capsys)


def test_painted_pictures_have_the_noise_of_their_sample_for_every_model(
    folder, tmp_path, tools, monkeypatch
):
    data = folder("geneval_hf")
    painted = []

    class Painting:
        def __init__(self, spec, settings):
            self.spec, self.seed = spec, settings.seed

        def __enter__(self):
            recipe = {"seed": self.seed, "num_steps": 2, "guidance_scale": 1.0, "format": "png"}
            return generation.Painter(self.paint, recipe)

        def __exit__(self, *error):
            return None

        def paint(self, jobs):
            pictures = []
            for job in jobs:
                noise = torch.rand(1, generator=generator_for(self.seed, "noise", job.sample_id))
                painted.append((self.spec.name, job.sample_id, float(noise)))
                pictures.append(Image.new("RGB", (8, 8), (int(255 * noise), 0, 0)))
            return pictures

    monkeypatch.setattr(generation, "_painter", lambda spec, settings, device: Painting(spec, settings))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps({"name": name}))
    words = ["--model", "one", "--model", "two", "--images-per-prompt", "2", "--seed", "5", "--device", "cpu"]
    assert main(["benchmark", "geneval_hf", "--data", str(data), *words, "--output", "out"]) == 0
    noise = {(name, sample): value for name, sample, value in painted}
    assert len(noise) == 12
    assert all(noise["one", sample] == noise["two", sample] for _, sample in noise)
    found = record("out")
    assert [one["difference"]["value"] for one in found["comparisons"]] == [0.0] * len(found["comparisons"])
    assert found["models"][0]["provenance"]["recipe"]["seed"] == 5
    painted.clear()
    assert main(["benchmark", "geneval_hf", "--data", str(data), *words, "--output", "out"]) == 0
    assert painted == []


# ---------------------------------------------------------------------------------------------- refusals


def test_an_option_is_no_tool_and_a_file_may_have_any_name(folder, tmp_path, capsys):
    data = folder("amber")
    path = stored(tmp_path / "run=7.jsonl", {str(n): "No" for n in range(3, 9)})
    words = ["benchmark", "amber", "--data", str(data), "--answers", str(path), "--output", "out"]
    words += ["mode=strict", "nouns=vocabulary", "similarity=equal"]
    assert main([*words, "--tool", "similarity=x"]) == 2
    assert "tools of amber: none" in capsys.readouterr().err
    assert main(words) == 3
    (model,) = record("out")["models"]
    assert (model["name"], model["counts"]["missing"]) == ("run=7", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"mmalign benchmark: got [no model], expected --answers or --model. `mmalign benchmarks chair`"),
        (["--answers", "gone.jsonl"], "--answers gone.jsonl: got 'gone.jsonl', expected a file of answers"),
        (["--model", "a/b", "--model", "c/b"], "--model: got 'b', expected a name of its own"),
        (["--model", "x", "--tool", "oven=y"], "tool: got 'oven', expected tools of chair: none"),
        (["--model", "x", "--tool", "oven"], "--tool: got 'oven', expected TOOL=SOURCE"),
        (["--model", "x", "--limit", "0"], "limit: Input should be greater than or equal to 1 (got 0)"),
        (["--model", "x", "colour=red"], "option of chair: got 'colour', expected one of images, mode"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(folder, words, message, capsys, monkeypatch):
    data = folder("chair")
    monkeypatch.setattr(answering, "load_speaker", lambda source, **options: pytest.fail("loaded"))
    assert main(["benchmark", "chair", "--data", str(data), *words]) == 2
    assert message in capsys.readouterr().err


def test_clips_are_not_painted_here(folder, capsys):
    data = folder("vbench")
    assert main(["benchmark", "vbench", "--data", str(data), "--model", "x"]) == 2
    assert (
        "--model x: got 'x', expected --answers (of a suite: answers:FILE) with *_eval_results.json"
        in capsys.readouterr().err
    )


def test_a_reward_has_no_default(folder, tmp_path, capsys):
    data = folder("hpdv2")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "00000.png")
    words = ["--model", f"images:{tmp_path / 'pictures'}", "--device", "cpu"]
    assert main(["benchmark", "hpdv2", "--data", str(data), *words]) == 2
    assert "hpdv2 tool reward: got [none], expected --tool reward=SOURCE" in capsys.readouterr().err


def test_the_way_out_is_named_where_a_default_tool_is_not_on_the_machine(folder, tmp_path, capsys):
    data = folder("geneval_hf")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "00000.png")
    words = ["--model", f"images:{tmp_path / 'pictures'}", "--device", "cpu"]
    assert main(["benchmark", "geneval_hf", "--data", str(data), *words]) == 2
    said = capsys.readouterr().err
    assert "--tool detector=FOLDER" in said
    assert "--tool detector=none" in said


def test_a_judge_that_will_be_needed_is_asked_for_before_the_model(folder, capsys, monkeypatch):
    data = folder("mmhal")
    monkeypatch.setattr(answering, "load_speaker", lambda source, **options: pytest.fail("loaded"))
    assert main(["benchmark", "mmhal", "--data", str(data), "--model", "x"]) == 2
    assert "mmhal tool judge: got [none]" in capsys.readouterr().err
