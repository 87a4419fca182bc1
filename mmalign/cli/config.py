"""`mmalign config`: what a config may contain, and what one says once its method's row has filled it in."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from mmalign import registry
from mmalign.cli.training import trains_a_reward, trains_a_step_aware_model
from mmalign.methods import Default
from mmalign.methods.rewards import REWARD_ROWS, STEP_AWARE
from mmalign.train.config import RUN_SECTIONS, Difference, ResolvedRun, RunConfig, load_run

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["json_schema", "print_resolved", "print_schema", "resolved_yaml", "settings"]


def settings(config: type[BaseModel] = RunConfig) -> Iterator[tuple[str, str, str, str]]:
    """Every setting of a file as (name, type, default, meaning), in the order of the sections.

    Args:
        config: what the file holds: `RunConfig`, `RewardRunConfig` of mmalign.rewards.training, or
            `StepAwareRunConfig` of mmalign.diffusion.step_aware_config.
    """
    schema = _without_excluded(config.model_json_schema(), config)
    yield from _settings(schema, schema.get("$defs", {}), prefix="")


def _without_excluded(schema: dict[str, Any], config: type[BaseModel]) -> dict[str, Any]:
    """The schema without the fields that are of other kinds of runs, which nobody may set."""
    aside = {name for name, field in config.model_fields.items() if field.exclude}
    return {**schema, "properties": {k: v for k, v in schema["properties"].items() if k not in aside}}


def _settings(
    section: dict[str, Any], sections: dict[str, Any], prefix: str
) -> Iterator[tuple[str, str, str, str]]:
    required = set(section.get("required", ()))
    for name, described in section["properties"].items():
        inner = _section_of(described, sections)
        if inner is not None:
            yield from _settings(inner, sections, prefix=f"{prefix}{name}.")
            continue
        default = "required" if name in required else json.dumps(described.get("default"))
        yield f"{prefix}{name}", _type(described), default, described.get("description", "")


def _section_of(described: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of the section a setting is, None for a plain value."""
    reference = described.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] | None = sections.get(reference)
    return found if found and "properties" in found else None


def _type(described: dict[str, Any]) -> str:
    """A setting's type and range in a few characters: `integer >= 1`, `"a" | "b"`, `number | null`."""
    if "anyOf" in described:
        return " | ".join(_type(option) for option in described["anyOf"])
    if "enum" in described:
        return " | ".join(json.dumps(value) for value in described["enum"])
    if "const" in described:
        return json.dumps(described["const"])
    name = str(described.get("type", "any"))
    if name == "array" and isinstance(described.get("items"), dict):
        return f"list of {_type(described['items'])}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {described[key]:g}" for key, sign in signs.items() if key in described]
    return f"{name} {', '.join(bounds)}" if bounds else name


def json_schema() -> dict[str, Any]:
    """One JSON schema of every file that `mmalign train` takes; method and family say which kind it is."""
    from pydantic.json_schema import models_json_schema

    from mmalign.diffusion.step_aware_config import StepAwareRunConfig
    from mmalign.rewards.training.config import RewardRunConfig

    kinds: list[type[BaseModel]] = [RunConfig, *RUN_SECTIONS.values(), RewardRunConfig, StepAwareRunConfig]
    references, schema = models_json_schema([(kind, "validation") for kind in kinds])
    for model in kinds:
        described = _without_excluded(schema["$defs"][model.__name__], model)
        described["properties"]["extends"] = {
            "type": "string",
            "description": "YAML file that this one is laid over, relative to it",
        }
        schema["$defs"][model.__name__] = described
    found = {kind: references[kind, "validation"] for kind in kinds}
    policy: dict[str, Any] = found[RunConfig]
    for modality, kind in RUN_SECTIONS.items():
        policy = {"if": _of_family(modality), "then": found[kind], "else": policy}
    otherwise = {"if": _named([STEP_AWARE]), "then": found[StepAwareRunConfig], "else": policy}
    return {"if": _named(REWARD_ROWS), "then": found[RewardRunConfig], "else": otherwise, **schema}


def _of_family(modality: str) -> dict[str, Any]:
    """A file whose model is of a family that makes this."""
    names = [name for name in registry.names("families") if registry.modality(name) == modality]
    family = {"properties": {"family": {"enum": names}}, "required": ["family"]}
    return {"properties": {"model": family}, "required": ["model"]}


def _named(methods: Sequence[str]) -> dict[str, Any]:
    return {"properties": {"method": {"enum": list(methods)}}, "required": ["method"]}


def print_schema(as_json: bool = False) -> None:
    """Print every setting of the YAML files of `mmalign train`: runs of a policy, then those of a reward.

    Args:
        as_json: print the JSON schema (point an editor's YAML plug-in at it) instead of tables.
    """
    if as_json:
        print(json.dumps(json_schema(), indent=2))
        return
    from rich.console import Console

    from mmalign.diffusion.step_aware_config import StepAwareRunConfig
    from mmalign.rewards.training.config import RewardRunConfig

    console = Console(highlight=False)
    console.print("[bold]Training a policy[/]: any method of `mmalign methods` but those below\n")
    console.print(_table(RunConfig))
    common = list(settings(RunConfig))
    for modality, kind in RUN_SECTIONS.items():
        aside = [name for name, field in kind.model_fields.items() if field.exclude]
        console.print(f"\n[bold]{_KINDS.get(modality, modality)}[/]: these, and no {', '.join(aside)}\n")
        console.print(_table(kind, known=common))
    console.print(f"\n[bold]Training a reward[/]: method {', '.join(REWARD_ROWS)}\n")
    console.print(_table(RewardRunConfig))
    console.print(f"\n[bold]Training a step-aware preference model[/]: method {STEP_AWARE}\n")
    console.print(_table(StepAwareRunConfig))


_KINDS = {"language": "Language models", "audio": "Models of sound", "video": "Models of video"}


def _table(config: type[BaseModel], *, known: Sequence[tuple[str, str, str, str]] = ()) -> "Table":
    """Settings of a file; those that are known already are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("setting", "type", "default", "meaning"):
        table.add_column(heading, no_wrap=heading == "setting", overflow="fold")
    for row in settings(config):
        if row not in known:
            table.add_row(*(Text(cell) for cell in row))
    return table


def resolved_yaml(run: ResolvedRun) -> str:
    """The resolved config as YAML that can be run as it stands, opened by how it differs from the row."""
    lines = [f"# {run.path or 'config'}, resolved against method {run.method.name}"]
    lines += [f"# differs from the row: {_difference(item)}" for item in run.differences]
    lines += [f"# from the row: {name} = {_evidence(default)}" for name, default in run.filled.items()]
    content = run.config.model_dump(mode="json")
    content["objective"] = dict(run.objective_arguments)
    return "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _difference(item: Difference) -> str:
    return f"{item.setting} = {item.value}, row: {item.row_value} ({item.mark})"


def _evidence(default: Default) -> str:
    return f"{default.value} ({default.mark}{f'; {default.note}' if default.note else ''})"


def print_resolved(config_path: Path, overrides: Sequence[str] = ()) -> None:
    """Print a config merged with its method's row, as YAML.

    Args:
        config_path: YAML file of a run.
        overrides: `section.key=value` words.

    Raises:
        ConfigError: the file cannot be used, with file, line and nearest valid key.
    """
    found: BaseModel | None = None
    if trains_a_step_aware_model(config_path, overrides):
        from mmalign.diffusion.step_aware_config import load_step_aware_run

        found, _ = load_step_aware_run(config_path, overrides)
    elif trains_a_reward(config_path, overrides):
        from mmalign.rewards.training.config import load_reward_run

        found, _ = load_reward_run(config_path, overrides)
    if found is not None:
        print(yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return
    print(resolved_yaml(load_run(config_path, overrides)), end="")
