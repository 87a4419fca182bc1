"""`mmalign data check | convert`: what people see, and exit codes."""

import json
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmalign.batch import Candidate, PreferenceRow
from mmalign.cli.main import main
from mmalign.data import open_rows
from mmalign.data.check import check, estimated_tokens
from mmalign.data.convert import convert, write_pickapic
from mmalign.errors import ConfigError


@pytest.fixture
def mixed(pickapic_records, write_parquet):
    """Seven usable pairs, a tie, a pair without label, a truncated image, an empty prompt."""
    records = pickapic_records([1.0, 0.0] * 3 + [1.0, 0.5, 1.0, 1.0, 1.0])
    records[8]["has_label"] = False
    records[9]["jpg_1"] = records[9]["jpg_1"][:-300]
    records[10]["caption"] = " "
    return write_parquet(records)


def test_check_counts_everything_by_reason(mixed, config_of):
    found = check(config_of(mixed), decode="all")
    assert found.kind == "pairs"
    assert found.rows == 9
    assert found.read.dropped == {"tie": 1, "no_label": 1}
    assert found.read.bad == {"truncated_image": 1, "empty_prompt": 1}
    assert (found.read.read, found.read.kept) == (11, 7)
    assert found.prompts["unique"] == 9
    assert found.prompts["empty"] == 1
    assert found.images["height"] == [32, 32, 32]
    assert found.images["width"] == [40, 40, 40]
    assert not found.ok
    assert "2 of 9 rows (22.2 %) cannot be used" in found.verdict


def test_check_without_decoding_does_not_see_damage_inside_images(mixed, config_of):
    assert check(config_of(mixed), decode="none").read.bad == {"empty_prompt": 1}


def test_check_finds_repeated_rows_and_images(pickapic_records, write_parquet, config_of):
    records = pickapic_records([1.0, 1.0, 1.0])
    records[1] |= {"caption": "prompt 0", "jpg_0": records[0]["jpg_1"], "jpg_1": records[0]["jpg_0"]}
    found = check(config_of(write_parquet(records)))
    assert found.duplicates == {"repeated_rows": 1, "images_used_more_than_once": 2}
    assert found.ok
    assert found.verdict == "Ready: 3 pairs; media of every row looked at, 0 bad."


def test_check_exits_with_one_above_the_tolerated_share(mixed, capsys):
    assert main(["data", "check", str(mixed), "--decode", "all"]) == 1
    shown = capsys.readouterr().out
    assert "bad: truncated_image" in shown
    assert "not usable as it is" in shown
    assert main(["data", "check", str(mixed), "--decode", "all", "--max-bad-share", "0.5"]) == 0


def test_check_prints_json(mixed, capsys):
    main(["data", "check", str(mixed), "--decode", "all", "--json", "--ties", "soft"])
    found = json.loads(capsys.readouterr().out)
    assert found["read"]["dropped"] == {"no_label": 1}
    assert found["read"]["kept"] == 8
    assert found["ok"] is False


def test_check_takes_columns_from_the_command_line(write_lines, capsys):
    path = write_lines(
        [{"words": "x", "one": "1.png", "two": "2.png", "won": "b"}], images=("1.png", "2.png")
    )
    columns = ["--columns", "prompt=words", "a=one", "b=two", "winner=won"]
    assert main(["data", "check", str(path), *columns]) == 0
    assert main(["data", "check", str(path), "--columns", "prompt"]) == 2
    assert "got 'prompt', expected role=column" in capsys.readouterr().err


def test_check_of_nothing_is_an_error_without_traceback(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "no.csv")]) == 2
    shown = capsys.readouterr().err
    assert "no such file or folder" in shown
    assert "Traceback" not in shown


def test_the_page_is_self_contained_and_shows_prompts_labels_and_problems(
    pickapic_records, write_parquet, tmp_path
):
    records = pickapic_records([1.0, 1.0, 1.0])
    records[0]["caption"] = "<script>alert(1)</script> 🐈" + " word" * 2000
    records[2]["jpg_0"] = b"no image"
    page = tmp_path / "page.html"
    assert main(["data", "check", str(write_parquet(records)), "--html", str(page)]) == 1
    text = page.read_text()
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>" not in text
    assert "🐈" in text
    assert text.count('src="data:image/jpeg;base64,') == 5
    assert not re.search(r'(src|href)="http', text)
    assert 'name="viewport"' in text
    assert "chosen" in text
    assert "starts with b&#x27;no image&#x27;" in text


def test_the_parser_of_the_data_commands_imports_nothing_heavy():
    code = (
        "import sys; from mmalign.cli.main import build_parser; build_parser().parse_args(['data', "
        "'check', 'x']);"
        "heavy = {'torch', 'pyarrow', 'PIL', 'numpy', 'datasets', 'pydantic', 'rich'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("prompt", "low", "high"), [("", 2, 2), ("a cat", 4, 4), ("word, " * 40, 80, 84)])
def test_tokens_are_estimated_from_words_and_marks(prompt, low, high):
    assert low <= estimated_tokens(prompt) <= high


# --- convert


@pytest.mark.parametrize("to", ["pickapic", "jsonl", "folders"])
def test_converted_rows_are_the_same_rows(mixed, config_of, tmp_path, to):
    source = config_of(mixed, max_bad_share=0.5)
    output = tmp_path / ("out.parquet" if to == "pickapic" else "out")
    report = convert(source, output, to=to)
    # Converting copies bytes and decodes nothing: the truncated image is still there.
    assert report.kept == 8
    assert report.bad == {"empty_prompt": 1}
    assert report.dropped == {"tie": 1, "no_label": 1}
    before, after = rows_of(source), rows_of(config_of(output))
    assert [row.prompt for row in after] == [row.prompt for row in before]
    assert [images_of(row) for row in after] == [images_of(row) for row in before]


def rows_of(config):
    table = open_rows(config)
    return [table[index] for index in range(8)]  # the ninth has an empty prompt


def images_of(row):
    return [
        candidate.image if isinstance(candidate.image, bytes) else open(candidate.image, "rb").read()
        for candidate in row.candidates
    ]


def test_soft_labels_and_lists_survive_json_lines(
    write_lines, config_of, tmp_path, pickapic_records, write_parquet
):
    convert(
        config_of(write_parquet(pickapic_records([0.25, 0.5])), tie_policy="soft"),
        tmp_path / "soft",
        to="jsonl",
    )
    assert [row.preference for row in open_rows(config_of(tmp_path / "soft"), kind="pairs")] == [0.75]
    soft = open_rows(config_of(tmp_path / "soft", tie_policy="soft"))
    assert [row.preference for row in soft] == [0.75, 0.5]


def test_lists_survive_json_lines(write_lines, config_of, tmp_path):
    names = ("a.png", "b.png", "c.png")
    ranked = write_lines([{"prompt": "x", "image_path": list(names), "rank": [2, 1, 3]}], images=names)
    convert(config_of(ranked), tmp_path / "lists", to="jsonl")
    assert open_rows(config_of(tmp_path / "lists"))[0].relevance == (-2.0, -1.0, -3.0)


def test_folders_refuse_ties_and_leave_nothing_behind(pickapic_records, write_parquet, config_of, tmp_path):
    path = write_parquet(pickapic_records([1.0, 0.5]))
    with pytest.raises(ConfigError, match=r"two folders cannot say that a pair is a tie"):
        convert(config_of(path, tie_policy="soft"), tmp_path / "out", to="folders")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["pairs.parquet"]


def test_an_existing_output_is_not_replaced_unless_forced(mixed, config_of, tmp_path):
    output = tmp_path / "out.parquet"
    output.write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"exists. Give another name, or --force"):
        convert(config_of(mixed), output, to="pickapic")
    assert output.read_bytes() == b"precious"
    convert(config_of(mixed), output, to="pickapic", force=True)
    assert pq.ParquetFile(output).metadata.num_rows == 8


def test_lists_do_not_fit_pairs(write_lines, config_of, tmp_path):
    path = write_lines([{"prompt": "x", "image_path": ["a.png", "b.png"], "rank": [1, 2]}])
    with pytest.raises(ConfigError, match=r"got lists rows, expected pairs for pickapic.*--lists pairs"):
        convert(config_of(path), tmp_path / "out.parquet", to="pickapic")


def test_row_groups_are_small_enough_for_random_reading(tmp_path):
    rows = (
        PreferenceRow("x", (Candidate(image=bytes(2**20)), Candidate(image=bytes(2**20))), id=str(n))
        for n in range(9)
    )
    path = write_pickapic(tmp_path / "out.parquet", rows)
    assert pq.ParquetFile(path).metadata.num_row_groups == 5


def test_an_interrupted_conversion_leaves_nothing_behind(tmp_path):
    def rows():
        yield PreferenceRow("x", (Candidate(image=b"1"), Candidate(image=b"2")))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pickapic(tmp_path / "out.parquet", rows())
    assert list(tmp_path.iterdir()) == []


def test_convert_prints_what_it_wrote(mixed, tmp_path, capsys):
    assert (
        main(["data", "convert", str(mixed), str(tmp_path / "o"), "--to", "jsonl", "--max-bad-share", "1"])
        == 0
    )
    assert "8 kept; dropped 1 no_label, 1 tie; bad 1 empty_prompt" in capsys.readouterr().out


# --- photographs


def test_photo_pairs_are_real_images_in_the_pickapic_layout(repository, tmp_path, config_of):
    output = tmp_path / "photos.parquet"
    script = str(repository / "benchmarks" / "make_photo_pairs.py")
    subprocess.run(
        [sys.executable, script, "--num", "24", "--size", "64", "--output", str(output)], check=True
    )
    found = check(config_of(output), decode="all")
    assert found.ok
    assert found.read.read == 24
    assert found.read.bad.total() == 0
    assert found.read.dropped["tie"] + found.read.dropped["no_label"] > 0
    first = open_rows(config_of(output))[0].candidates[0]
    assert first.model == "photograph"
    assert first.image.startswith(b"\xff\xd8\xff")
    assert Image.MAX_IMAGE_PIXELS is not None  # no global guard was switched off
