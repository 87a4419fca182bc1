"""Tables: what `mmalign methods` and `mmalign families` print."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmalign import methods, objectives, registry
from mmalign.cli.catalogue import hyperparameters, page
from mmalign.cli.main import main


def test_one_method_whole_shows_every_part_of_its_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # so that no cell is wrapped
    assert main(["methods", "diffusion_dpo"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    row = methods.find("diffusion_dpo")
    marks = {"paper": "paper", "code": "official code", "ours": "ours"}
    assert row.title in shown
    assert "https://arxiv.org/abs/2311.12908 (2023)" in shown
    assert "SalesforceAIResearch/DiffusionDPO 5233e75" in shown
    for line in (*row.formula.splitlines(), *row.departures):
        assert " ".join(line.split()) in shown
    for family in ("sd15", "sdxl"):
        assert f"defaults for {family}" in shown
        for setting, default in row.defaults_for(family).items():
            assert f"{setting} {default.value} {marks[default.mark]}" in shown
    assert "beta 2000 paper main result; the launcher has 5000" in shown
    assert "parity cases: diffusion_dpo" in shown


def test_the_page_says_how_far_a_row_is_proven_before_its_golden_cases() -> None:
    proven = page([objectives.row("dpo")])
    assert f"| parity, {len(objectives.row('dpo').parity)} case" in proven
    partly = replace(objectives.row("dpo"), status="formula", parity=("one",))
    assert "| formula; 1 parity case |" in page([partly])
    doubtful = replace(partly, status="experimental", unverified="a constant", parity=("one", "two"))
    assert "| experimental: a constant; 2 parity cases |" in page([doubtful])


def test_the_table_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in methods.names() if name not in shown] == []


def test_markdown_has_one_line_per_method_and_links_papers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(methods.names())
    assert {line.count("|") for line in lines} == {len(methods.headings()) + 1}
    assert any(
        line.startswith("| `mapo` | [2406.06424](https://arxiv.org/abs/2406.06424) |") for line in lines
    )


def test_an_unknown_method_is_a_message_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "difusion_dpo"]) == 2
    assert "mmalign: unknown method 'difusion_dpo'. Did you mean diffusion_dpo" in capsys.readouterr().err


def test_a_row_that_couples_its_batch_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "diffusion_kto"]) == 0
    assert "depends on the rows beside it" in " ".join(capsys.readouterr().out.split())


def test_families_are_listed_without_importing_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families"]) == 0
    shown = capsys.readouterr().out
    assert registry.names("families")
    assert [name for name in registry.names("families") if name not in shown] == []


def test_one_family_shows_its_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "sdxl"]) == 0
    assert len(capsys.readouterr().out) > 80
    assert main(["families", "sdx"]) == 2
    assert "unknown family 'sdx'. Did you mean sdxl" in capsys.readouterr().err


def test_the_table_of_a_file_is_renewed_between_its_markers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- methods:begin -->\nold\n<!-- methods:end -->\nafter\n", encoding="utf-8")
    assert main(["methods", "--update", str(page)]) == 0
    renewed = page.read_text(encoding="utf-8")
    assert renewed == (
        f"before\n<!-- methods:begin -->\n{methods.markdown(methods.runs())}\n<!-- methods:end -->\nafter\n"
    )
    assert main(["methods", "--update", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == renewed


def test_a_file_without_markers_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- methods:end -->\n<!-- methods:begin -->\n", encoding="utf-8")
    assert main(["methods", "--update", str(page)]) == 2
    assert (
        "got 'a file without markers', expected the lines <!-- methods:begin -->" in capsys.readouterr().err
    )
    assert page.read_text(encoding="utf-8") == "<!-- methods:end -->\n<!-- methods:begin -->\n"
    assert main(["methods", "--update", str(tmp_path / "none.md")]) == 2
    assert "none.md cannot be read (No such file or directory)." in capsys.readouterr().err


def test_an_objective_shows_parts_hyperparameters_and_where_it_makes_sense(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods", "orpo"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "structure Pair" in shown
    assert "shape odds" in shown
    assert "coefficient 0.1" in shown
    assert ">= 0, weight of the ratio term (0.05 to 0.1 in official runs). [required; released: 0.1" in shown
    assert "elbo refused: odds need a probability: an error has none" in shown
    assert "in logic W & ~L vs L & ~W" in shown
    assert "fixes memory and time of a reference model" in shown


@pytest.mark.parametrize("name", objectives.names())
def test_every_hyperparameter_of_every_row_is_documented(name: str) -> None:
    lines = hyperparameters(objectives.row(name))
    assert [line[0] for line in lines] == list(objectives.signature(name).parameters)
    assert [line[0] for line in lines if not line[3]] == []


@pytest.mark.parametrize("name", objectives.names())
def test_released_values_and_samples_name_hyperparameters(name: str) -> None:
    known = set(objectives.signature(name).parameters)
    assert set(objectives.row(name).published) <= known
    assert set(objectives.registered(name).sample) <= known


def test_the_page_has_every_objective_once_in_a_table_and_once_whole() -> None:
    text = page()
    for name in objectives.names():
        assert text.count(f"\n| [`{name}`](#{name}) |") == 1
        assert text.count(f"\n### {name}\n") == 1
