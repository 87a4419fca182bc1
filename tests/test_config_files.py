"""Configuration files: layers over layers, places of mistakes, and what cannot be read."""

import pytest
from pydantic import BaseModel, ConfigDict

from mmalign.config_files import ConfigFile, read_config, validated
from mmalign.errors import ConfigError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = 1.0
    steps: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: Inner


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return make


def test_a_file_lies_over_its_base_and_the_command_line_over_both(write):
    write("base/one.yaml", "name: base\ninner:\n  rate: 2.0\n  steps: 3\n")
    path = write("two.yaml", "extends: base/one.yaml\ninner:\n  steps: 5\n")
    file = read_config(path, ["--inner.rate=7e-1"], extra={"name": "given"})
    assert file.content == {"name": "given", "inner": {"rate": "7e-1", "steps": 5}}
    assert validated(file, Outer) == Outer(name="given", inner=Inner(rate=0.7, steps=5))


def test_every_mistake_is_named_with_its_own_place(write):
    base = write("base.yaml", "inner:\n  rate: fast\n")
    path = write("top.yaml", "extends: base.yaml\nname: 3\ninner:\n  step: 4\n")
    with pytest.raises(ConfigError) as caught:
        validated(read_config(path, ["inner.speed=1"]), Outer)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert f"{base}:2:3: inner.rate: " in str(caught.value)
    assert f"{path}:2:1: name: Input should be a valid string (got 3)" in lines
    assert f"{path}:4:3: inner.step: unknown key. Did you mean 'steps'?" in lines
    assert f"{path}:3:1: inner.steps: missing; it has no default." in lines
    assert "command line: inner.speed: unknown key." in str(caught.value)


def test_what_a_command_adds_lies_over_the_file_and_under_its_overrides(write):
    path = write("one.yaml", "name: file\ninner:\n  rate: 2.0\n  steps: 3\n")
    extra = {"name": "given", "inner": {"rate": 5.0}}
    file = read_config(path, ["name=typed"], extra=extra)
    assert file.content == {"name": "typed", "inner": {"rate": 5.0, "steps": 3}}


def test_an_override_may_be_empty_text_and_have_space_around_its_key(write):
    file = read_config(write("one.yaml", "name: a\n"), ["name=", " inner.speed =1"])
    assert file.content == {"name": "", "inner": {"speed": 1}}
    assert file.where(("inner", "speed")) == "command line"


def test_an_override_with_dashes_is_a_place_of_its_own(write):
    file = read_config(write("one.yaml", "name: a\n"), ["--inner.speed=1"])
    assert file.where(("inner", "speed")) == "command line"


def test_what_a_file_lacks_stands_at_its_first_line(write):
    path = write("one.yaml", "inner:\n  steps: 3\n")
    with pytest.raises(ConfigError, match=rf"{path}:1:1: name: missing"):
        validated(read_config(path), Outer)


def test_items_of_lists_have_places_of_their_own(write):
    path = write("one.yaml", "items:\n  - steps: 3\n  - steps: 4\n    speed: 5\nnames: [a, b]\n")
    file = read_config(path)
    assert file.where(("items", 1)) == f"{path}:3:5"
    assert file.where(("items", 1, "speed")) == f"{path}:4:5"
    assert file.where(("names", 1)) == f"{path}:5:12"
    assert file.where(("items", 1, "steps", "deeper")) == f"{path}:3:5"


def test_an_unknown_key_near_to_none_is_answered_by_those_of_its_section(write):
    path = write("one.yaml", "name: a\ninner:\n  steps: 3\n  qqq: 1\n")
    with pytest.raises(ConfigError, match=r"inner\.qqq: unknown key\. Known keys: rate, steps\.$"):
        validated(read_config(path), Outer)


def test_files_that_extend_each_other_are_refused_with_the_way_round(write):
    write("one.yaml", "extends: two.yaml\n")
    write("two.yaml", "extends: three.yaml\n")
    path = write("three.yaml", "extends: one.yaml\n")
    with pytest.raises(ConfigError, match=r"circle: .*three\.yaml -> .*one\.yaml -> .*two\.yaml -> .*three"):
        read_config(path)


def test_a_file_that_is_not_there_is_said_without_its_number(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        read_config(tmp_path / "none.yaml")


def test_the_file_s_own_extends_is_no_setting(write):
    write("one.yaml", "name: a\n")
    assert read_config(write("two.yaml", "extends: one.yaml\n")).content == {"name": "a"}


def test_settings_without_a_file_are_named_by_their_key():
    with pytest.raises(ConfigError, match=r"config: inner\.steps: missing"):
        validated(ConfigFile({"name": "x", "inner": {}}), Outer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", r"file\.yaml:2: key 'name' appears twice"),
        ("- 1\n", "expected a mapping of sections"),
        ("name: [\n", "not valid YAML"),
        ("extends: file.yaml\n", "goes round in a circle"),
        ("extends: other.yaml\n", "other.yaml: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(write, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config(write("file.yaml", text))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(path)


@pytest.mark.parametrize("override", ["steps", "=3", "a=[1"])
def test_an_override_that_says_nothing_is_refused(write, override):
    with pytest.raises(ConfigError, match="command line"):
        read_config(write("file.yaml", "name: x\n"), [override])
