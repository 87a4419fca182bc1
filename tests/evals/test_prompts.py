import json

import pytest

from mmalign.errors import ConfigError, RowError, UnknownNameError
from mmalign.evals.prompts import PUBLIC_SETS, prompts_hash, read_prompts


def test_lines_of_a_text_file_are_prompts_with_stable_ids(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("a fox\n\n  a heron \na line\u2028separator stays in\n", encoding="utf-8")
    items = read_prompts(str(file))
    assert [item.id for item in items] == ["mine/00000", "mine/00001", "mine/00002"]
    assert [item.prompt for item in items] == ["a fox", "a heron", "a line\u2028separator stays in"]
    assert [item.id for item in read_prompts(str(file), limit=2)] == ["mine/00000", "mine/00001"]


def test_a_table_keeps_ids_groups_and_everything_else(tmp_path):
    file = tmp_path / "parti.tsv"
    file.write_text("Prompt\tCategory\tid\tNote\na fox\tAnimals\tx7\tshort\n", encoding="utf-8")
    (item,) = read_prompts(str(file))
    assert (item.id, item.prompt, item.group) == ("parti/x7", "a fox", "Animals")
    assert dict(item.expected) == {"Note": "short"}


def test_a_json_object_maps_groups_to_prompts(tmp_path):
    file = tmp_path / "hpd.json"
    file.write_text(json.dumps({"anime": ["a cat", "a dog"], "photo": ["a pier"]}), encoding="utf-8")
    items = read_prompts(str(file))
    assert [(item.group, item.prompt) for item in items] == [
        ("anime", "a cat"),
        ("anime", "a dog"),
        ("photo", "a pier"),
    ]
    assert len({item.id for item in items}) == 3


def test_parquet_rows_leave_their_pictures_alone(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "pick.parquet"
    pq.write_table(pa.table({"caption": ["a fox"], "jpg_0": [b"bytes"], "user_id": [7]}), file)
    (item,) = read_prompts(str(file))
    assert item.prompt == "a fox"
    assert dict(item.expected) == {"user_id": 7}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.jsonl", '{"prompt": "a"}\n{"picture": "b"}\n', r"row 2: got \[columns picture\]"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt"\n', r"x\.jsonl:2: not JSON"),
        (
            "x.jsonl",
            '{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n',
            "rows 1 and 2 have the same id 1",
        ),
        ("x.txt", "\n\n", "got 'no prompts'"),
        ("x.json", "{", "not JSON"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_the_row(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RowError, match=says):
        read_prompts(str(tmp_path / name))


def test_unknown_sets_and_missing_files_are_told_apart(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean partiprompts"):
        read_prompts("partiprompt")
    with pytest.raises(ConfigError, match="a file that is there"):
        read_prompts(str(tmp_path / "none.txt"))


def test_public_sets_that_are_not_here_say_what_to_do(monkeypatch):
    import datasets

    def unreachable(*_args, **_options):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConfigError, match="Give the prompts as a file"):
        read_prompts("drawbench")


def test_public_tables_are_read_by_their_columns(monkeypatch):
    import datasets

    table = datasets.Dataset.from_dict({"caption": ["a fox", "a heron", "a fox"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda repository, split: table)
    items = read_prompts("pickapic_test")
    assert [item.prompt for item in items] == ["a fox", "a heron"]
    assert all(known.repository.count("/") == 1 for known in PUBLIC_SETS.values())


def test_equal_hashes_mean_equal_lists(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("two\none\n")
    first, other = (read_prompts(str(tmp_path / name), name="set") for name in ("a.txt", "b.txt"))
    assert prompts_hash(first) == prompts_hash(read_prompts(str(tmp_path / "a.txt"), name="set"))
    assert prompts_hash(first) != prompts_hash(other)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"prompt": "a fox \\ud83e"}', "row 1: got .half a surrogate pair"),
        ("a.txt", b"caf\xe9", r"a\.txt: got .byte 3 that is no UTF-8"),
        ("a.json", b'{"prompts": "a fox"}', "groups with lists of prompts"),
        ("a.json", b'"a fox"', "a list of prompts"),
    ],
)
def test_a_file_that_would_fail_or_be_misread_later_is_refused_at_once(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RowError, match=says):
        read_prompts(str(tmp_path / name))


def test_columns_that_were_not_used_stay_for_the_rewards(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "question": "q", "tag": "t", "group": "g", "id": 3}')
    (item,) = read_prompts(str(tmp_path / "a.jsonl"))
    assert (item.id, item.group, dict(item.expected)) == ("a/3", "g", {"question": "q", "tag": "t"})
