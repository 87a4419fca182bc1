"""The row of a method: everything that says how a published method is put together, as data.

One row answers five questions (data, likelihood, reference, objective, defaults per family) and carries the
evidence: paper, official code, departures from it, parity cases. A new paper is a new row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from mmalign.batch import DataKind
from mmalign.errors import ConfigError, explain

__all__ = ["Default", "Mark", "Method", "Status", "Taxonomy"]

Mark = Literal["paper", "code", "ours"]
"""Where a number comes from: the paper's text, the official code, or us."""

Status = Literal["parity", "world", "trained", "experimental"]
"""parity: equals official numbers; world: also improves its toy world; trained: also a real model;
experimental: some formula or constant could not be verified."""


@dataclass(frozen=True, slots=True)
class Default:
    """One recommended value with its evidence."""

    value: float | int | str | bool
    mark: Mark
    note: str = ""


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """The survey's four axes (data, learning framework, constraint, model property)."""

    data: str = "offline"
    framework: str = "pairwise"
    constraint: str = "reference"
    model_property: str = "likelihood"


@dataclass(frozen=True)
class Method:
    """One published method.

    Args:
        name: unique, qualified where the literature collides.
        title: the paper's title.
        paper: arXiv id, or "" when there is none.
        year: of the first version.
        objective: name in the objective registry.
        likelihood: "elbo", "tokens", "transition", "inversion"; "" for a bare text objective usable with any.
        reference: "adapters_off | frozen | ..." default kind, or "none".
        data: pairs, lists or unpaired.
        rollout: where candidates come from, "" for offline data.
        objective_arguments: arguments of the builder that define the method (not defaults to tune).
        defaults: family name to (setting to `Default`); "*" holds for every family. Settings are the run
            config's
            keys: `beta`, `effective_batch`, `learning_rate` (effective), `steps`, `warmup_steps`,
                `optimizer`, ...
        formula: plain text.
        departures: what we do differently from the official code, and why.
        couples_rows: the loss of a row depends on its batch mates (KTO's zero point, pooled lambda).
        needs: what the objective reads: "reference", "reward", "kl", "length", "prediction".
        parity: names of parity cases that pin it.
        official_code: repository and commit.
        status: how far it is proven.
        taxonomy: the survey's axes.
    """

    name: str
    title: str
    paper: str
    year: int
    objective: str
    likelihood: str = ""
    reference: str = "frozen"
    data: DataKind = "pairs"
    rollout: str = ""
    objective_arguments: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    defaults: Mapping[str, Mapping[str, Default]] = field(default_factory=dict)
    formula: str = ""
    departures: tuple[str, ...] = ()
    couples_rows: bool = False
    needs: frozenset[str] = frozenset()
    parity: tuple[str, ...] = ()
    official_code: str = ""
    status: Status = "experimental"
    taxonomy: Taxonomy = field(default_factory=Taxonomy)

    def __post_init__(self) -> None:
        """Freeze the mappings and check what can be checked without importing anything."""
        if not self.name.isidentifier():
            message = explain("method name", got=self.name, expected="a Python identifier")
            raise ConfigError(message)
        if self.status in ("parity",) and not self.parity:
            message = explain(
                f"method {self.name}", got="status parity and no case", expected="the name of a parity case"
            )
            raise ConfigError(message)
        object.__setattr__(self, "objective_arguments", MappingProxyType(dict(self.objective_arguments)))
        frozen = {family: MappingProxyType(dict(values)) for family, values in self.defaults.items()}
        object.__setattr__(self, "defaults", MappingProxyType(frozen))

    def defaults_for(self, family: str) -> dict[str, Default]:
        """Recommended settings for one family: the row's "*" overlaid by the family's own."""
        return {**self.defaults.get("*", {}), **self.defaults.get(family, {})}
