"""`mmalign data check | convert` on dialogues: what people see, and what other frameworks read."""

import json

import datasets
import pytest

from mmalign.batch import ContentItem
from mmalign.cli.main import main
from mmalign.data import open_rows
from mmalign.data.check import check
from mmalign.data.convert import convert
from mmalign.errors import ConfigError
from mmalign.evals.pairs.relabel import RelabelSettings, relabel

GOOD = {"question": "What is it?", "chosen": "A red cup.", "rejected": "A cat.", "image": "a.png"}


@pytest.fixture
def pairs(write_lines):
    """Five usable pairs, one repeated; equal answers, an empty one, a missing file, two tags."""
    records = [GOOD | {"question": f"What is {number}?"} for number in range(3)]
    records += [GOOD, GOOD | {"chosen": "A cat.", "rejected": "A red cup."}]
    records += [
        GOOD | {"rejected": GOOD["chosen"]},
        GOOD | {"chosen": " "},
        GOOD | {"image": "gone.png"},
        GOOD | {"question": "<image><image>?"},
    ]
    return write_lines(records, images=("a.png",))


def test_check_counts_dialogues_by_reason(pairs, config_of):
    found = check(config_of(pairs), decode="all")
    assert (found.kind, found.rows) == ("pairs", 7)
    assert found.read.dropped == {"identical_candidates": 1}
    assert found.read.bad == {"empty_answer": 1, "missing_file": 1, "image_count": 1}
    assert (found.read.read, found.read.kept) == (9, 5)
    assert found.duplicates == {"repeated_rows": 1, "images_used_more_than_once": 1}
    assert found.prompts["unique"] == 4
    assert found.images["height"] == [32, 32, 32]
    assert found.shown == {"rows with one image": 5}
    assert found.answers["chosen_longer"].startswith("0.800")
    assert found.answers["longest_words"] == 3
    assert not found.ok


def test_check_warns_of_answers_preferred_for_their_length(write_lines, config_of):
    records = [GOOD | {"question": f"What is {number}?", "chosen": "A red cup." * 2} for number in range(23)]
    found = check(config_of(write_lines(records, images=("a.png",))))
    assert any("longer one in 1.00" in line for line in found.advice)
    turned = [record | {"chosen": record["rejected"], "rejected": record["chosen"]} for record in records]
    assert not check(config_of(write_lines(turned))).advice


def test_check_looks_at_videos_and_turns(write_lines, config_of, tmp_path, encoded):
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encoded(number, format="PNG"))
    (tmp_path / "empty.mp4").write_bytes(b"")
    before = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"}]
    messages = [*before, {"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "A cup."}]
    record = {"messages": messages, "rejected_response": "A cat.", "videos": ["clip"]}
    lines = [record, record | {"videos": ["gone.mp4"]}, record | {"videos": ["empty.mp4"]}]
    found = check(config_of(write_lines(lines)))
    assert found.read.bad == {"missing_file": 1, "empty_file": 1}
    assert found.shown == {
        "rows with video": 1,
        "frames per video": [3, 3, 3],
        "turns before the answer": [3, 3, 3],
    }


def test_the_commands_show_lengths_and_pictures(pairs, capsys, tmp_path):
    page = tmp_path / "page.html"
    assert main(["data", "check", str(pairs), "--decode", "all", "--html", str(page)]) == 1
    shown = capsys.readouterr().out
    assert "layout rlaif_v" in shown
    assert "chosen answer is the longer one, share" in shown
    assert "bad: image_count" in shown
    written = page.read_text()
    assert '<div class="answer">A red cup.</div>' in written
    assert written.count('<div class="shown"><img') == 5
    assert main(["data", "check", str(pairs), "--max-bad-share", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shown"] == {"rows with one image": 5}


def test_the_commands_choose_an_aspect_and_a_gap(write_lines, capsys):
    def rated(text, first, second):
        notes = {"Helpfulness": {"Rating": first}, "Ethics": {"Rating": second}}
        return {"annotations": notes, "response": text}

    completions = [rated("one", "5", "1"), rated("two", "3", "4"), rated("three", "2", "5")]
    path = write_lines([{"prompt": "q", "img_path": "a.png", "completions": completions}], images=("a.png",))
    options = ["--aspect", "Helpfulness", "--min-rating-gap", "2", "--json"]
    assert main(["data", "check", str(path), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 2
    assert found["read"]["dropped"] == {"small_gap": 1}


@pytest.fixture
def dialogues(write_lines):
    """Two pairs with turns, several images, scores and a weight."""
    before = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First <image> then"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "<image>What is it? “ü”"},
    ]
    first = {
        "messages": [*before, {"role": "assistant", "content": "A red cup."}],
        "rejected_response": "A cat.",
        "images": ["a.png", "b.png"],
        "id": "one",
        "weight": 0.5,
    }
    second = {
        "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
        "rejected_response": "No.",
        "images": ["b.png"],
        "score_chosen": 2.0,
        "score_rejected": -1.0,
    }
    return write_lines([first, second], images=("a.png", "b.png"))


def same(row, other):
    """Whether two rows say and show the same."""
    assert other.messages == row.messages
    assert (other.prompt, other.kind, other.weight) == (row.prompt, row.kind, row.weight)
    for one, two in zip(row.candidates, other.candidates, strict=True):
        assert (two.text, two.reward) == (one.text, one.reward)
    for path, written in zip(row.images, other.images, strict=True):
        with open(path, "rb") as first, open(written, "rb") as second:
            assert first.read() == second.read()


@pytest.mark.parametrize("to", ["trl-jsonl", "ms-swift", "llama-factory"])
def test_what_is_written_reads_as_the_same_rows(dialogues, config_of, tmp_path, to):
    report = convert(config_of(dialogues), tmp_path / "out", to=to)
    assert (report.read, report.kept) == (2, 2)
    for row, other in zip(
        open_rows(config_of(dialogues)), open_rows(config_of(tmp_path / "out")), strict=True
    ):
        same(row, other)


def test_thumbs_and_examples_survive_too(write_lines, config_of, tmp_path):
    liked = {"prompt": "q", "completion": "a b", "label": True, "images": ["a.png"]}
    thumbs = write_lines([liked, liked | {"label": False}], name="thumbs.jsonl", images=("a.png",))
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a b"}]
    examples = write_lines([{"messages": messages, "images": ["a.png"]}], name="examples.jsonl")
    for path in (thumbs, examples):
        for to in ("trl-jsonl", "ms-swift", "llama-factory"):
            folder = tmp_path / f"{path.stem}_{to}"
            convert(config_of(path), folder, to=to)
            given, back = open_rows(config_of(path)), open_rows(config_of(folder))
            assert back.kind == given.kind
            assert [row.desirable for row in back] == [row.desirable for row in given]
            same(given[0], back[0])


def test_trl_rows_load_as_an_image_folder_with_decoded_images(dialogues, config_of, tmp_path):
    convert(config_of(dialogues), tmp_path / "out", to="trl-jsonl")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    record = loaded[0]
    assert [image.size for image in record["images"]] == [(40, 32), (40, 32)]
    assert [item["type"] for item in record["prompt"][1]["content"]] == ["text", "image", "text"]
    assert record["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "A red cup."}]}]


def test_llama_factory_finds_its_columns_in_dataset_info(dialogues, config_of, tmp_path):
    convert(config_of(dialogues), tmp_path / "out", to="llama-factory")
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["preferences"]
    rows = json.loads((tmp_path / "out" / info["file_name"]).read_text())
    assert (info["formatting"], info["ranking"]) == ("sharegpt", True)
    assert all(column in row for row in rows for column in info["columns"].values())
    for row in rows:
        assert len(row["conversations"]) % 2 == 1
        tags = sum(turn["value"].count("<image>") for turn in row["conversations"])
        assert tags == len(row["images"])
    assert rows[0]["system"] == "Be brief."
    assert rows[0]["chosen"] == {"from": "gpt", "value": "A red cup."}


def test_videos_and_images_of_one_side_go_to_ms_swift(write_lines, config_of, tmp_path, encoded):
    (tmp_path / "clip").mkdir()
    for number in range(2):
        (tmp_path / "clip" / f"{number}.png").write_bytes(encoded(number, format="PNG"))
    (tmp_path / "film.mp4").write_bytes(b"film")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a b"}]
    clip = {"messages": messages, "rejected_response": "c", "videos": ["clip", "film.mp4"]}
    corrupted = {
        "messages": messages,
        "rejected_response": "a b",
        "images": ["a.png"],
        "rejected_images": ["b.png"],
    }
    path = write_lines([clip, corrupted], images=("a.png", "b.png"))
    convert(config_of(path), tmp_path / "out", to="ms-swift")
    first, second = open_rows(config_of(tmp_path / "out"))
    assert [ContentItem("video")] * 2 == list(first.messages[0].content[:2])
    assert [len(frame) > 0 for frame in first.videos[0]] == [True, True]
    assert first.videos[1].endswith("videos/0000000_1.mp4")
    assert second.candidates[1].images[0].endswith("0000001_rejected_0.png")
    for to in ("trl-jsonl", "llama-factory"):
        with pytest.raises(ConfigError, match="cannot hold"):
            convert(config_of(path), tmp_path / to, to=to)
        assert not (tmp_path / to).exists()


def test_dialogues_and_pictures_have_their_own_layouts(
    pairs, config_of, pickapic_records, write_parquet, tmp_path
):
    with pytest.raises(ConfigError, match="got dialogues, expected pictures or texts for folders"):
        convert(config_of(pairs), tmp_path / "out", to="folders")
    pictures = write_parquet(pickapic_records([1.0]))
    with pytest.raises(ConfigError, match="got no dialogues, expected dialogues for ms-swift"):
        convert(config_of(pictures), tmp_path / "out", to="ms-swift")


def test_commands_that_would_lose_the_pictures_refuse_dialogues(write_lines, config_of, tmp_path, capsys):
    path = write_lines([GOOD | {"question": f"What is {number}?"} for number in range(3)], images=("a.png",))
    out = tmp_path / "out"
    assert main(["data", "derive", str(path), "--how", "best_worst", "--output", str(out)]) == 2
    assert "data derive: got dialogues about images or videos (rlaif_v)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="data relabel: got dialogues"):
        relabel(config_of(path), out, {}, RelabelSettings(), store=tmp_path / "store")
    assert not out.exists()


def test_unusable_dialogues_are_counted_and_left_out(pairs, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--to", "ms-swift", "--max-bad-share", "0.5"]
    assert main(["data", "convert", str(pairs), str(out), *options]) == 0
    assert "5 kept" in capsys.readouterr().out
    assert len((out / "rows.jsonl").read_text().splitlines()) == 5


def test_soft_labels_have_no_place_in_other_frameworks(write_lines, config_of, tmp_path):
    note = [{"annotations": {"H": {"Rating": 3}}, "response": f"answer {side}"} for side in "ab"]
    path = write_lines([{"prompt": "q", "img_path": "a.png", "completions": note}], images=("a.png",))
    with pytest.raises(ConfigError, match=r"preference 0\.5.*Use --ties drop or random"):
        convert(config_of(path, tie_policy="soft"), tmp_path / "out", to="ms-swift")
