"""Tables: what `mmalign methods` and `mmalign families` print."""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mmalign import methods, objectives, registry
from mmalign.cli.catalogue import hyperparameters, page
from mmalign.cli.inputs import EXTRAS, inputs, legend, needs_relevance
from mmalign.cli.main import main
from mmalign.errors import ConfigError
from mmalign.testing.objective_examples import built_of, candidates_of, example


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


def test_a_source_outside_arxiv_is_linked(capsys: pytest.CaptureFixture[str]) -> None:
    assert "[2023](https://ericmitchell.ai/cdpo.pdf)" in page([objectives.row("cdpo")])
    assert main(["methods", "gapo_semantic"]) == 0
    assert "https://openreview.net/forum?id=N2sN3LESoW (2024)" in capsys.readouterr().out


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
    assert main(["methods", "wpo"]) == 0
    assert "; 0.01 released. [required; official code]" in " ".join(capsys.readouterr().out.split())
    assert main(["methods", "orpo"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "elbo refused: odds need a probability of a finite vocabulary" in shown
    assert "in logic W & ~L vs L & ~W" in shown
    assert "fixes memory and time of a reference model" in shown


def test_nothing_is_cut_in_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    shown = {line.split()[0]: line.split() for line in lines[1:] if line}
    for row in methods.rows():
        assert shown[row.name] == [
            row.name,
            row.paper or str(row.year),
            row.data,
            row.reference,
            row.status,
        ]


def test_an_objective_shows_its_inputs_and_the_legend_of_its_logic(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods", "wpo"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Scores.policy [prompt, candidate] or [prompt, candidate, inner]: scores" in shown
    assert (
        'Scores.extras["log_sum_squares"] [prompt, candidate, inner] or [prompt, candidate]: log sum' in shown
    )
    assert "`mmalign.likelihood.log_sum_squares`" in shown
    assert main(["methods", "dpo"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "in logic" in shown
    assert "W and L: the policy gives the chosen and the rejected answer" in shown
    assert main(["methods", "kto"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Labels.unpaired(desirable) [prompt]: True = thumb up" in shown
    assert "link((-z))" not in shown
    assert main(["methods", "mdpo"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "candidates 3: 0 = (m, y_c), 1 = (m, y_r), 2 = (m-, y_c), m- a corrupted image" in shown
    assert main(["methods", "nash_md"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "arguments policy, reference, win_probability, mask" in shown
    assert "fixes learning from the policy's own samples" in shown


@pytest.mark.parametrize("name", objectives.names())
def test_every_row_lists_what_it_is_handed_with_the_shape_it_has(name: str) -> None:
    """Shapes are those the conformance suite calls the row with; grades are named where it asks for them."""
    registered = objectives.registered(name)
    listed = {what: (shape, meaning) for what, shape, meaning in inputs(registered.row)}
    scores, _ = example(registered, inner=3)
    axes = {1: "[prompt]", 2: "[prompt, candidate]", 3: "[prompt, candidate, inner]"}
    for extra, value in scores.extras.items():
        shape, meaning = listed[f'Scores.extras["{extra}"]']
        assert meaning
        assert axes[value.ndim] in shape or shape in ("[prompt, 1]", "the reward's shape", "[any number]")
    if registered.row.data == "lists":
        try:
            built_of(registered)(scores, objectives.Labels())
            grades = False
        except ConfigError as error:
            grades = "relevance" in str(error)
        assert needs_relevance(registered.row) == grades
    assert (
        bool(legend(registered.row))
        or max(candidates_of(registered), 2) == 2
        or registered.row.data == "lists"
    )


def test_inputs_of_arguments_beside_the_sample_are_explained_too() -> None:
    given = {extra for name in objectives.names() for extra in objectives.row(name).needs}
    assert given - {"reference", "length", "kl", "reward"} <= set(EXTRAS)
    orpo = {what: meaning for what, _, meaning in inputs(objectives.row("orpo"))}
    assert orpo['Scores.extras["whole_length"]'].startswith("for some arguments: tokens of prompt")
    documented = {
        name
        for row in objectives.names()
        for name in re.findall(r'extras\["(\w+)"\]', inspect.getdoc(objectives.registered(row).builder) or "")
    }
    assert documented <= set(EXTRAS)


def test_the_page_puts_functions_under_what_they_fix_and_names_grades() -> None:
    text = page()
    table = text.partition("## Learning from the policy's own samples")[2].partition("\n## ")[0]
    assert "[`nash_md`](#nash_md)" in table
    assert "| logits |" in text
    line = next(line for line in text.splitlines() if line.startswith("| [`lipo_lambda`]"))
    assert "| reference, Labels.relevance |" in line
    assert text.partition("### orpo\n")[2].partition("\n### ")[0].count("refused on") == 1


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
