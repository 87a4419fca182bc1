"""Whether detected objects are what a prompt asked for: counts, colours, places. GenEval's rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.benchmarks._boxes import keep_best, relations
from mmalign.evals.benchmarks._records import Record
from mmalign.evals.detectors import Detection

__all__ = [
    "COLOURS",
    "RELATIONS",
    "Clause",
    "ColourNamer",
    "Scene",
    "Thresholds",
    "Verdict",
    "judge",
    "read_scene",
    "select",
]

RELATIONS = ("left of", "right of", "above", "below")

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""What an object's colour is chosen from."""

ColourNamer = Callable[[Sequence[Detection], str], Sequence[str]]
"""From objects of one picture and the name of their class to one colour each."""


@dataclass(frozen=True)
class Thresholds:
    """Numbers of the released script.

    Args:
        score: lowest confidence of an object that counts (exclusive).
        counting_score: the same for the counting task.
        max_objects: objects of a class at most.
        max_overlap: two objects of a class that overlap this much are one; 1 = never.
        dead_zone: share of both objects' sizes that must lie between their centres (`relations`).
    """

    score: float = 0.3
    counting_score: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    dead_zone: float = 0.1


@dataclass(frozen=True)
class Clause:
    """One demand on a picture.

    Args:
        label: class of the objects.
        count: how many there must be (at least), or may not be (excluded).
        colour: of each of them.
        relation: where each of them lies ...
        target: ... from the objects of which clause.
    """

    label: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int | None = None


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for.

    Args:
        tag: the task it belongs to.
        include: demands that must all hold.
        exclude: counts none of which may be reached.
    """

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    def labels(self) -> frozenset[str]:
        """Classes a detector must know to judge it."""
        return frozenset(clause.label for clause in (*self.include, *self.exclude))


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows the scene, and every demand that fails."""

    correct: bool
    reasons: tuple[str, ...] = ()


def read_scene(record: Record) -> Scene:
    """The scene of an official metadata record.

    Raises:
        RowError: a field is missing or malformed.
    """
    include = _clauses(record, "include")
    if not include:
        raise record.refuse("include", "at least one object")
    for place, clause in enumerate(include):
        if clause.target is not None and not 0 <= clause.target < place:
            inner = f"include[{place}] position"
            expected = f"a clause before this one (0 to {place - 1})" if place else "no position: it is first"
            raise RowError(explain(f"{record.where} {inner}", got=clause.target, expected=expected))
    exclude = _clauses(record, "exclude") if "exclude" in record else ()
    return Scene(record.text("tag"), include, exclude)


def _clauses(record: Record, name: str) -> tuple[Clause, ...]:
    value = record.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise record.refuse(name, "a list of objects with class and count")
    found = []
    for place, part in enumerate(value):
        if not isinstance(part, Mapping):
            raise record.refuse(name, "a list of objects with class and count")
        found.append(_clause(Record(part, f"{record.where} {name}[{place}]")))
    return tuple(found)


def _clause(record: Record) -> Clause:
    count = record.get("count")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise record.refuse("count", "a whole number from 1")
    colour = record.choice("color", COLOURS) if "color" in record else None
    relation, target = None, None
    if "position" in record:
        position = record["position"]
        if (
            not isinstance(position, Sequence)
            or len(position) != 2
            or position[0] not in RELATIONS
            or isinstance(position[1], bool)
            or not isinstance(position[1], int)
        ):
            raise record.refuse("position", f"[one of {', '.join(RELATIONS)}; number of a clause]")
        relation, target = str(position[0]), position[1]
    return Clause(record.text("class"), count, colour, relation, target)


def select(
    detections: Sequence[Detection], tag: str, thresholds: Thresholds | None = None
) -> dict[str, list[Detection]]:
    """Objects by class that count for a task, best first; classes without any are left out.

    Args:
        detections: of one picture, in any order.
        tag: the task; counting asks for more confidence.
        thresholds: as released by default.
    """
    chosen = thresholds or Thresholds()
    by_label: dict[str, list[Detection]] = {}
    for detection in detections:
        by_label.setdefault(detection.label, []).append(detection)
    kept = {
        label: keep_best(
            found,
            threshold=chosen.counting_score if tag == "counting" else chosen.score,
            limit=chosen.max_objects,
            max_overlap=chosen.max_overlap,
        )
        for label, found in by_label.items()
    }
    return {label: found for label, found in kept.items() if found}


def judge(
    objects: Mapping[str, Sequence[Detection]],
    scene: Scene,
    colours: ColourNamer | None = None,
    *,
    dead_zone: float = 0.1,
) -> Verdict:
    """Whether the objects are the scene.

    Every `include` clause needs its count of objects; colours and places are looked at on the first so many
    (the most confident) only, and each of them must have the colour and lie in the relation to every object
    of the target clause. An `exclude` clause fails when its count is reached: that is how surplus objects
    fail a counting task.

    Args:
        objects: by class, best first, as `select` gives them.
        scene: what was asked for.
        colours: names the colour of objects; may be None where no clause has a colour.
        dead_zone: see `mmalign.evals.benchmarks._boxes.relations`.

    Raises:
        ConfigError: a clause has a colour and nobody can name it.

    Source: djghosh13/geneval, evaluation/evaluate_images.py, evaluate.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in scene.include:
        found = objects.get(clause.label, ())[: clause.count]
        failed = _failure(clause, found, groups, colours, dead_zone)
        reasons += failed
        groups.append(None if failed else found)
    for clause in scene.exclude:
        count = len(objects.get(clause.label, ()))
        if count >= clause.count:
            reasons.append(f"{clause.label}: {count} found, fewer than {clause.count} wanted")
    return Verdict(not reasons, tuple(reasons))


def _failure(
    clause: Clause,
    found: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    colours: ColourNamer | None,
    dead_zone: float,
) -> list[str]:
    """Why an `include` clause does not hold; at most one reason, the first that is met."""
    if len(found) < clause.count:
        return [f"{clause.label}: {len(found)} found, {clause.count} wanted"]
    if clause.colour is not None:
        if colours is None:
            message = explain("colours", got=None, expected="a callable that names the colour of objects")
            raise ConfigError(message)
        named = list(colours(found, clause.label))
        if named.count(clause.colour) < clause.count:
            return [f"{clause.label}: {', '.join(named)} found, {clause.colour} wanted"]
    if clause.relation is None or clause.target is None:
        return []
    target = groups[clause.target]
    if target is None:
        return [f"{clause.label}: nothing to be {clause.relation}"]
    for detection in found:
        for other in target:
            holding = relations(detection.box, other.box, dead_zone=dead_zone)
            if clause.relation not in holding:
                seen = " and ".join(sorted(holding)) or "in no relation"
                return [f"{clause.label}: {seen}, {clause.relation} wanted"]
    return []
