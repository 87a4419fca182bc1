"""Recipes: found in a checkout and in a wheel, copied without overwriting."""

from pathlib import Path

import pytest

from mmalign.cli import recipes
from mmalign.cli.main import main
from mmalign.errors import ConfigError, UnknownNameError


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small recipes root of our own, so that the tests do not depend on what the real one holds."""
    root = tmp_path / "shelf"
    files = {
        "diffusion/train.py": '#!/usr/bin/env python\n"""Train any image family."""\n',
        "diffusion/configs/sdxl/dpo.yaml": "# mmalign train sdxl/dpo.yaml\nmethod: diffusion_dpo\n",
        "diffusion/configs/sd15/dpo.yaml": "method: diffusion_dpo\n",
        "diffusion/configs/sdxl/mapo.yaml": "method: mapo\n",
        "diffusion/__pycache__/train.cpython-311.pyc": "",
        "tests/not_a_recipe.py": "",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(recipes, "recipes_root", lambda: root)
    return root


def test_names_are_the_files_people_run(shelf: Path) -> None:
    assert recipes.recipe_names() == [
        "diffusion/configs/sd15/dpo.yaml",
        "diffusion/configs/sdxl/dpo.yaml",
        "diffusion/configs/sdxl/mapo.yaml",
        "diffusion/train.py",
    ]


@pytest.mark.parametrize("name", ["diffusion/configs/sdxl/mapo.yaml", "sdxl/mapo", "mapo.yaml", "mapo"])
def test_an_ending_that_fits_one_recipe_is_enough(shelf: Path, name: str) -> None:
    assert recipes.find_recipe(name) == shelf / "diffusion/configs/sdxl/mapo.yaml"


def test_an_ending_that_fits_several_lists_them(shelf: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"It fits diffusion/configs/sd15/dpo\.yaml, diffusion/configs/sdxl/dpo\.yaml"
    ):
        recipes.find_recipe("dpo.yaml")


@pytest.mark.parametrize(
    "name", ["diffusion/configs/sdxl/dpp.yaml", "../../etc/passwd", "/etc/passwd", "tests"]
)
def test_what_is_no_recipe_is_refused(shelf: Path, name: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown recipe"):
        recipes.find_recipe(name)


def test_copying_a_file_and_a_folder(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "cp", "sdxl/dpo", str(tmp_path / "new/my.yaml")]) == 0
    assert (tmp_path / "new/my.yaml").read_text().endswith("method: diffusion_dpo\n")
    assert "copied sdxl/dpo to" in capsys.readouterr().out
    assert main(["recipes", "cp", "diffusion", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new/diffusion/configs/sd15/dpo.yaml").is_file()
    assert not (tmp_path / "new/diffusion/__pycache__").exists()


def test_what_exists_is_overwritten_only_by_force(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "my.yaml"
    target.write_text("mine")
    assert main(["recipes", "cp", "mapo", str(target)]) == 2
    assert "got 'a path that exists', expected a new one" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["recipes", "cp", "mapo", str(target), "--force"]) == 0
    assert target.read_text() == "method: mapo\n"


def test_the_list_shows_what_each_recipe_says_about_itself(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert main(["recipes", "list"]) == 0
    assert capsys.readouterr().out == shown
    assert "Train any image family." in shown


def test_a_wheel_s_own_recipes_come_before_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "mmalign"
    (package / "_recipes").mkdir(parents=True)
    monkeypatch.setattr(recipes, "__file__", str(package / "cli" / "recipes.py"))
    assert recipes.recipes_root() == package / "_recipes"


def test_a_package_without_recipes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        recipes, "__file__", str(tmp_path / "site-packages" / "mmalign" / "cli" / "recipes.py")
    )
    with pytest.raises(
        ConfigError, match=r"without its recipes'?, expected an installed wheel or a checkout"
    ):
        recipes.recipes_root()
