"""Names to objects: built-ins by file name, third parties by entry point, clashes refused."""

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest

from mmalign import registry
from mmalign.errors import ConfigError, UnknownNameError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package with two plug-in modules, standing in for one of ours."""
    package = tmp_path / "zoo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "cat.py").write_text("ANIMAL = 'a cat'\n")
    (package / "dog.py").write_text("raise RuntimeError('imported')\n")
    (package / "base.py").write_text("")
    (package / "_private.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.KINDS, "animals", registry.Kind(packages=("zoo",), attribute="ANIMAL"))
    monkeypatch.setattr(registry, "_package_folder", lambda name: package if name == "zoo" else None)
    registry._builtins.cache_clear()
    yield package
    registry._builtins.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "zoo"]:
        del sys.modules[name]


@pytest.fixture
def plug_in(monkeypatch):
    """`plug_in(name, value)`: an entry point of an installed plug-in package."""

    def install(name, value):
        point = importlib.metadata.EntryPoint(name=name, value=value, group="mmalign.animals")
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group: [point] if group == "mmalign.animals" else []
        )

    return install


def test_listing_imports_nothing(folder):
    assert registry.names("animals") == ["cat", "dog"]
    assert "zoo.cat" not in sys.modules


def test_finding_imports_that_module_alone(folder):
    assert registry.find("animals", "cat") == "a cat"
    assert registry.location("animals", "dog") == "zoo.dog:ANIMAL"
    assert "zoo.dog" not in sys.modules


def test_plug_in_is_found_beside_the_built_ins(folder, plug_in):
    plug_in("bird", "string:ascii_lowercase")
    assert registry.names("animals") == ["bird", "cat", "dog"]
    assert registry.find("animals", "bird").startswith("abc")


def test_plug_in_attribute_may_be_dotted(folder, plug_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "aviary", SimpleNamespace(big=SimpleNamespace(eagle="an eagle")))
    plug_in("eagle", "aviary:big.eagle")
    assert registry.find("animals", "eagle") == "an eagle"


def test_name_of_both_is_refused_and_names_the_plug_in(folder, plug_in):
    plug_in("cat", "string:ascii_lowercase")
    with pytest.raises(ConfigError, match=r"'cat' is built in and also .*'string:ascii_lowercase'"):
        registry.find("animals", "cat")


def test_unknown_name_lists_near_and_all(folder):
    with pytest.raises(UnknownNameError, match=r"unknown animal 'cta'\. Did you mean cat\? Known: cat, dog"):
        registry.find("animals", "cta")


def test_family_is_singular_in_messages():
    with pytest.raises(UnknownNameError, match="unknown family 'sdxxl'"):
        registry.find("families", "sdxxl")


@pytest.mark.parametrize("ask", [registry.names, lambda kind: registry.find(kind, "x")])
def test_unknown_kind_is_refused(ask):
    with pytest.raises(UnknownNameError, match=r"unknown kind of plug-in 'famlies'.*families"):
        ask("famlies")


def test_package_that_does_not_exist_yet_has_no_names(monkeypatch):
    monkeypatch.setitem(
        registry.KINDS, "nothing", registry.Kind(packages=("mmalign.nothing",), attribute="NOTHING")
    )
    assert registry.names("nothing") == []


@pytest.mark.parametrize(
    ("family", "expected"), [("sdxl", "image"), ("tango", "audio"), ("qwen2_vl", "language")]
)
def test_a_family_says_what_it_makes_without_being_imported(family, expected):
    before = set(sys.modules)
    assert registry.modality(family) == expected
    assert not [name for name in set(sys.modules) - before if name.endswith(f"families.{family}")]


def test_functions_of_a_users_own_come_with_the_text_of_their_file(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_tools.py").write_text("def make():\n    return 3\n\n\nnumber = 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    function, text = registry.own_function("own_tools:make", what="maker")
    assert function() == 3
    assert text.startswith("def make")
    with pytest.raises(
        ConfigError, match=r"maker own_tools:number: got 'number', expected a function .*make"
    ):
        registry.own_function("own_tools:number", what="maker")
    with pytest.raises(ConfigError, match=r"painter no_tools:x: got 'no_tools', expected a module"):
        registry.own_function("no_tools:x", what="painter")
