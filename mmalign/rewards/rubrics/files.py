"""Rubric files: shipped ones by name, others by path; errors name file, line and field."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.rewards.rubrics.rubric import Rubric

__all__ = ["load_rubric", "rubric_names"]

_FOLDER = Path(__file__).parent


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error: the second level 4 would replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            value = self.construct_object(key)
            if value in seen:
                problem = f"key {value!r} stands twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(value)
        return super().construct_mapping(node, deep=deep)


def rubric_names() -> list[str]:
    """Names of the rubrics that come with mmalign, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_rubric(name: str | Path) -> Rubric:
    """A rubric by its name, or from a YAML file (anything that ends in .yaml or .yml).

    Raises:
        UnknownNameError: no such rubric comes with mmalign.
        ConfigError: the file is missing, is no YAML mapping, or a field is unknown or wrong.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = _FOLDER / f"{name}.yaml"
        if str(name) not in rubric_names():
            raise unknown_name("rubric", str(name), rubric_names())
    try:
        text = path.read_text(encoding="utf-8")
        content = _Loader(text).get_single_data()
    except OSError as error:
        message = explain("rubric", got=str(path), expected=f"a file that can be read ({error.strerror})")
        raise ConfigError(message) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(_yaml_problem(path, error)) from error
    if not isinstance(content, dict):
        raise ConfigError(
            explain(str(path), got=type(content).__name__, expected="a mapping of rubric fields")
        )
    try:
        return Rubric(**{str(key): value for key, value in content.items()})
    except ValidationError as error:
        raise ConfigError(_field_problem(path, text, error)) from error


def _yaml_problem(path: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    return explain(where, got=str(getattr(error, "problem", None) or error), expected="YAML")


def _field_problem(path: Path, text: str, error: ValidationError) -> str:
    """The first wrong field, with its line."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    place = _line_of(text, str(first["loc"][0])) if first["loc"] else None
    where = f"{path}:{place} {field}" if place else f"{path} {field}".strip()
    if first["type"] == "extra_forbidden":
        return explain(where, got=field, expected=f"a field of a rubric ({', '.join(Rubric.model_fields)})")
    if first["type"] == "value_error":
        return f"{where}: {first['ctx']['error']}"
    got = "nothing" if first["type"] == "missing" else first["input"]
    return explain(where, got=got, expected=first["msg"])


def _line_of(text: str, key: str) -> int | None:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for found, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if found.value == key:
            return int(found.start_mark.line) + 1
    return None
