"""Cross-validation pairs: who meets whom, what is left out, and what a file of them reads back as."""

import json

import pytest

from mmalign.batch import Candidate, PreferenceRow
from mmalign.cli.main import main
from mmalign.data import open_rows
from mmalign.data.crossing import cross_validation
from mmalign.errors import ConfigError, RowError, UnknownNameError


def liked(prompt, image, *, group="g", desirable=True, kind="unpaired"):
    return PreferenceRow(
        prompt=prompt,
        candidates=(Candidate(image=image, reward=2.0),),
        kind=kind,
        desirable=desirable,
        id=image,
        extras={"contrast": group},
    )


def crossed(rows, **more):
    return cross_validation(rows, group_column="contrast", **more)


def sides(row):
    return [(candidate.image, candidate.prompt) for candidate in row.candidates]


def test_two_contrasting_images_give_four_pairs():
    found = crossed([liked("y1", "x1"), liked("y2", "x2")])
    assert [sides(row) for row in found.rows] == [
        [("x1", "y1"), ("x2", "y1")],
        [("x1", "y1"), ("x1", "y2")],
        [("x2", "y2"), ("x1", "y2")],
        [("x2", "y2"), ("x2", "y1")],
    ]
    assert [row.prompt for row in found.rows] == ["y1", "y1", "y2", "y2"]
    assert {(row.kind, row.preference) for row in found.rows} == {("pairs", 1.0)}
    assert len({row.id for row in found.rows}) == 4


@pytest.mark.parametrize(("compare", "same_image"), [("images", False), ("prompts", True)])
def test_one_of_the_two_comparisons_can_be_had_alone(compare, same_image):
    found = crossed([liked("y1", "x1"), liked("y2", "x2")], compare=compare)
    assert len(found.rows) == 2
    assert all((sides(row)[0][0] == sides(row)[1][0]) == same_image for row in found.rows)


def test_what_does_not_contrast_is_counted():
    rows = [
        *(liked("y1", "x1"), liked("y1", "x2"), liked("y3", "x3", group="h")),
        *(liked("y4", "x4", desirable=False), liked("y5", "x5", group=None)),
    ]
    found = crossed(rows)
    assert found.rows == []
    assert found.dropped == {"same_prompt": 1, "alone": 1, "disliked": 1, "no_group": 1}


def test_the_column_and_the_comparison_have_to_exist(untyped):
    with pytest.raises(ConfigError, match=r"--group-column: got 'topic'.* Extra columns found: contrast"):
        cross_validation([liked("y", "x")], group_column="topic")
    with untyped, pytest.raises(UnknownNameError, match="unknown comparison 'texts'"):
        crossed([], compare="texts")
    with pytest.raises(ConfigError, match="got 'rankings'"):
        crossed([liked("y", "x", kind="lists")])


@pytest.fixture
def crossed_folder(encoded, write_lines, tmp_path):
    """What the command writes for two contrasting images."""
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    records = [
        {"prompt": f"y{number}", "image": f"{number}.png", "label": True, "contrast": "k"}
        for number in (1, 2)
    ]
    path, output = write_lines(records), tmp_path / "out"
    options = ["--how", "cross_validation", "--output", str(output)]
    assert main(["data", "derive", str(path), "--root", str(tmp_path), *options]) == 0
    return output


def test_the_files_read_back_with_a_prompt_for_each_candidate(crossed_folder, config_of):
    rows = list(open_rows(config_of(crossed_folder)))
    assert [[candidate.prompt for candidate in row.candidates] for row in rows] == [
        ["y1", "y1"],
        ["y1", "y2"],
        ["y2", "y2"],
        ["y2", "y1"],
    ]
    # One image under two prompts is no pair of twice the same.
    assert rows[1].candidates[0].image == rows[1].candidates[1].image
    assert open_rows(config_of(crossed_folder)).prompts() == ["y1", "y2"]


def test_as_thumbs_every_image_has_the_prompt_it_was_compared_under(crossed_folder, config_of):
    rows = list(open_rows(config_of(crossed_folder), kind="unpaired"))
    assert [(row.prompt, row.desirable) for row in rows[2:4]] == [("y1", True), ("y2", False)]
    assert all(row.candidates[0].prompt is None for row in rows)


def test_an_empty_prompt_of_a_candidate_is_a_bad_row(crossed_folder, config_of):
    path = crossed_folder / "rows.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"prompt_rejected": " "}), *lines[1:]]))
    with pytest.raises(RowError, match="prompt_rejected: got ' ', expected a prompt"):
        open_rows(config_of(crossed_folder))[0]
    accepted = open_rows(config_of(crossed_folder, allow_empty_prompt=True))[0]
    assert [candidate.prompt for candidate in accepted.candidates] == ["y1", " "]
