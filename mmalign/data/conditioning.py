"""Prompts that say what is wanted: a score to reach, a direction among rewards, a user's other choices.

Each function takes rows and returns rows whose prompt carries the condition; at inference the same words
steer the model. The words are templates with `{prompt}` and `{goal}` (or `{examples}`), filled by plain
replacement, so braces in a prompt mean nothing.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmalign.batch import PreferenceRow
from mmalign.data.pairing import follow, score_gap, turned
from mmalign.data.rows import FieldError
from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.seeding import derive_seed

__all__ = [
    "DIRECTION_TEMPLATE",
    "EXAMPLES_TEMPLATE",
    "GOAL_TEMPLATE",
    "Conditioned",
    "directional",
    "few_shot",
    "objective_values",
    "reward_augmented",
    "sample_directions",
]

GOAL_TEMPLATE = "Answer so that the score of the answer is {goal}.\n\n{prompt}"
DIRECTION_TEMPLATE = "Weigh the qualities of the answer like this: {goal}.\n\n{prompt}"
EXAMPLES_TEMPLATE = "Choices of one person:\n\n{examples}\n\nAnswer the way this person prefers.\n\n{prompt}"

Matrix = NDArray[np.float64]


@dataclass
class Conditioned:
    """Derived rows, and what became of the rest.

    Args:
        rows: rows with a condition in the prompt.
        dropped: rows left out, by reason.
    """

    rows: list[PreferenceRow] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def _fill(template: str, **values: str) -> str:
    """`{name}` replaced once and for all: what is filled in is not looked at again."""
    parts = [template]
    for name, value in values.items():
        mark = "{" + name + "}"
        pieces: list[str] = []
        for number, part in enumerate(parts):
            if number % 2:
                pieces.append(part)
                continue
            for place, piece in enumerate(part.split(mark)):
                pieces += [value, piece] if place else [piece]
        parts = pieces
    return "".join(parts)


def _check_template(template: str, *names: str) -> None:
    missing = ["{" + name + "}" for name in names if "{" + name + "}" not in template]
    if missing:
        message = explain(
            "template",
            got=template,
            expected=f"a text with {' and '.join('{' + name + '}' for name in names)}",
            do=f"Add {' and '.join(missing)}.",
        )
        raise ConfigError(message)


def _require_pair(row: PreferenceRow, what: str) -> None:
    if row.kind != "pairs":
        message = explain(
            f"{row.source or row.id} kind",
            got=row.kind,
            expected=f"pairs for {what}",
            do="Make pairs of rankings first, for example best_vs_rest.",
        )
        raise FieldError(message, "not_a_pair")


def _number(value: float, digits: int = 2) -> str:
    """A score in words: 8, not 8.0; never -0."""
    rounded = round(value, digits)
    return str(int(rounded)) if rounded == int(rounded) else f"{rounded:g}"


# ------------------------------------------------------------------------------------------------ rewards


def reward_augmented(
    rows: Sequence[PreferenceRow], *, template: str = GOAL_TEMPLATE, digits: int = 2
) -> Conditioned:
    """Two goal-conditioned pairs of every pair: the rejected response is the right one of its own goal.

    (goal = score of chosen: chosen over rejected) and (goal = score of rejected: rejected over chosen).

    Without this, training unlearns good responses that merely stood beside a better one, and never learns
    what a score means. At inference the best score is asked for.

    Left out, because both goals would say the same or the labels contradict the scores: ties, pairs with
    equal scores (also when only rounding makes them equal) and pairs whose rejected candidate has the higher
    score.

    Args:
        rows: pairs whose two candidates have a reward.
        template: words around `{goal}` and `{prompt}`.
        digits: decimals of the goal; whole numbers are written without any.

    Returns:
        Rows `ID/high` and `ID/low`, next to each other; preference and weight are those of the pair.

    Raises:
        ConfigError: a template without `{goal}` or `{prompt}`.
        RowError: a row that is no pair, or one without scores.

    Source: arXiv 2410.08067; shenao-zhang/reward-augmented-preference scripts/reward_augmentation.py (goals
    in the system prompt, on a scale of 1 to 10; rows with the higher score on the rejected side left out).
    """
    _check_template(template, "goal", "prompt")
    found = Conditioned()
    for row in rows:
        _require_pair(row, "reward-augmented relabelling")
        gap = score_gap(row)
        goals = [_number(candidate.reward or 0.0, digits) for candidate in row.candidates]
        if row.preference == 0.5:
            found.dropped["tie"] += 1
        elif gap < 0:
            found.dropped["score_contradicts_label"] += 1
        elif goals[0] == goals[1]:
            found.dropped["equal_scores"] += 1
        else:
            high, low = (_fill(template, goal=goal, prompt=row.prompt) for goal in goals)
            other = replace(row, candidates=row.candidates[::-1], extras=turned(row.extras))
            found.rows.append(replace(row, prompt=high, id=f"{row.id}/high"))
            found.rows.append(replace(other, prompt=low, id=f"{row.id}/low"))
    return found


# ------------------------------------------------------------------------------------------------ directions


def objective_values(row: PreferenceRow, objectives: Sequence[str]) -> Matrix:
    """One row per candidate and one column per objective, from the row's extra columns.

    Args:
        row: a list whose extra columns hold one number per candidate.
        objectives: column names; `relevance` means the ranking's own numbers.

    Raises:
        RowError: reason `missing_objective`: no such column, or not one number per candidate.
    """
    count = len(row.candidates)
    columns = []
    for name in objectives:
        given = row.relevance if name == "relevance" else row.extras.get(name)
        try:
            values = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.zeros(0)
        if values.shape != (count,) or not np.isfinite(values).all():
            known = ", ".join(sorted(row.extras)) or "none"
            message = explain(
                f"{row.source or row.id} {name}",
                got=given,
                expected=f"a list of {count} numbers, one per candidate",
                do=f"Extra columns of this row: {known}; `relevance` is the ranking itself.",
            )
            raise FieldError(message, "missing_objective", name)
        columns.append(values)
    return np.stack(columns, axis=1)


def sample_directions(
    count: int, num_objectives: int, *, max_angle: float, seed: int, key: str = ""
) -> Matrix:
    """Unit vectors spread evenly over a cone around the first objective.

    Args:
        count: how many.
        num_objectives: >= 2.
        max_angle: degrees between a vector and the first objective, in (0, 180]; at 45 a user may trade the
            first objective for others but never turn against it.
        seed: seed.
        key: what the vectors are for (a row's id): each key has vectors of its own.

    Raises:
        ConfigError: fewer than two objectives, or an angle out of range.
    """
    if num_objectives < 2:
        message = explain("objectives", got=num_objectives, expected="two or more; one has no direction")
        raise ConfigError(message)
    if not 0 < max_angle <= 180:
        raise ConfigError(explain("max_angle", got=max_angle, expected="degrees in (0, 180]"))
    generator = np.random.default_rng(derive_seed(seed, "direction", key))
    angles = _cone_angles(generator, count, num_objectives, math.radians(max_angle))
    sideways = generator.standard_normal((count, num_objectives - 1))
    sideways /= np.linalg.norm(sideways, axis=1, keepdims=True)
    return np.concatenate([np.cos(angles)[:, None], np.sin(angles)[:, None] * sideways], axis=1)


def _cone_angles(generator: np.random.Generator, count: int, dimensions: int, widest: float) -> Matrix:
    """Angles to the axis of points spread evenly over a cap: density sin(angle)^(dimensions - 2)."""
    grid = np.linspace(0.0, widest, 2049)
    density = np.sin(grid) ** (dimensions - 2)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.asarray(np.interp(generator.random(count) * mass[-1], mass, grid))


def directional(
    rows: Sequence[PreferenceRow],
    *,
    objectives: Sequence[str],
    keep: Literal["best", "pairs"],
    scale: Literal["standard", "none"] = "standard",
    directions: Sequence[Sequence[float]] | None = None,
    per_row: int = 1,
    max_angle: float = 45.0,
    template: str = DIRECTION_TEMPLATE,
    seed: int = 0,
) -> Conditioned:
    """Lists whose prompt names a unit vector v over several rewards, with the candidate best along it.

    score of a candidate = v . r,  r = its rewards

    Args:
        rows: lists with one extra column per objective, each holding one number per candidate.
        objectives: the columns; the first one is the axis of the cone.
        keep: `best`: only the best candidate, as a liked row, for supervised training on it (rejection
            sampling, the paper's method). `pairs`: the best over the worst candidate along v, which the paper
            does not do, for preference losses.
        scale: `standard` divides each objective by its standard deviation over the data set after subtracting
            its mean; `none` takes numbers as they are, which is right when all objectives share one scale.
        directions: vectors to use in turn, of any length but 0; None draws them from the cone.
        per_row: directions per list, >= 1.
        max_angle: half-angle of the cone in degrees.
        template: words around `{goal}` (for example `helpfulness 0.8, verbosity -0.6`) and `{prompt}`.
        seed: seed; with the row's id it decides the directions of a row.

    Returns:
        Rows `ID/v0`, `ID/v1`, ...; candidates carry v . r as reward. Lists whose candidates are all equal
        along v are dropped as `tie`.

    Raises:
        ConfigError: objectives, directions, angle or template are unusable.
        RowError: a row that is no list, or one without numbers for an objective.
        UnknownNameError: another `keep` or `scale`.

    Status: directions in the prompt and training on the best of n along them are the paper's. The cone of 45
    degrees, standardising and the words of the template are ours: the paper's own have not been verified.

    Source: arXiv 2402.18571, abstract.
    """
    _check_template(template, "goal", "prompt")
    if keep not in ("best", "pairs"):
        raise unknown_name("kept candidates", keep, ("best", "pairs"))
    if scale not in ("standard", "none"):
        raise unknown_name("scale of objectives", scale, ("standard", "none"))
    if per_row < 1:
        raise ConfigError(explain("directions per row", got=per_row, expected="at least 1"))
    fixed = None if directions is None else _unit_vectors(directions, len(objectives))
    found = Conditioned()
    values = [_listed_values(row, objectives) for row in rows]
    center, width = _scales(values, len(objectives), scale)
    for number, (row, given) in enumerate(zip(rows, values, strict=True)):
        if fixed is None:
            vectors = sample_directions(per_row, len(objectives), max_angle=max_angle, seed=seed, key=row.id)
        else:
            vectors = fixed[[(number * per_row + place) % len(fixed) for place in range(per_row)]]
        for place, vector in enumerate(vectors):
            along = (given - center) / width @ vector
            best, worst = int(np.argmax(along)), int(np.argmin(along))
            if along[best] == along[worst]:
                found.dropped["tie"] += 1
                continue
            goal = ", ".join(
                f"{name} {_number(float(part))}" for name, part in zip(objectives, vector, strict=True)
            )
            prompt = _fill(template, goal=goal, prompt=row.prompt)
            chosen, rejected = (
                replace(row.candidates[which], reward=float(along[which])) for which in (best, worst)
            )
            common = replace(row, prompt=prompt, relevance=None, id=f"{row.id}/v{place}")
            if keep == "best":
                extras = follow(row.extras, (best,), len(row.candidates))
                kept = replace(common, candidates=(chosen,), kind="unpaired", desirable=True, extras=extras)
            else:
                extras = follow(row.extras, (best, worst), len(row.candidates))
                both = (chosen, rejected)
                kept = replace(common, candidates=both, kind="pairs", preference=1.0, extras=extras)
            found.rows.append(kept)
    return found


def _listed_values(row: PreferenceRow, objectives: Sequence[str]) -> Matrix:
    if row.kind != "lists":
        message = explain(
            f"{row.source or row.id} kind",
            got=row.kind,
            expected="lists for directional conditioning",
            do="Give several candidates per prompt, with one list of numbers per objective.",
        )
        raise FieldError(message, "not_a_list")
    return objective_values(row, objectives)


def _unit_vectors(directions: Sequence[Sequence[float]], num_objectives: int) -> Matrix:
    vectors = []
    for direction in directions:
        vector = np.asarray(direction, dtype=np.float64)
        norm = float(np.linalg.norm(vector)) if vector.shape == (num_objectives,) else 0.0
        if not 0 < norm < math.inf:
            message = explain(
                "direction", got=list(direction), expected=f"{num_objectives} numbers, not all 0"
            )
            raise ConfigError(message)
        vectors.append(vector / norm)
    if not vectors:
        raise ConfigError(explain("directions", got=[], expected="one vector or more"))
    return np.stack(vectors)


def _scales(values: Sequence[Matrix], num_objectives: int, scale: str) -> tuple[Matrix, Matrix]:
    if num_objectives < 2:
        message = explain("objectives", got=num_objectives, expected="two or more; one has no direction")
        raise ConfigError(message)
    if scale == "none" or not values:
        return np.zeros(num_objectives), np.ones(num_objectives)
    together = np.concatenate(list(values))
    width = together.std(axis=0)
    # An objective that never varies says nothing in any direction.
    return together.mean(axis=0), np.where(width > 0, width, 1.0)


# ------------------------------------------------------------------------------------------------ users


def few_shot(
    rows: Sequence[PreferenceRow],
    *,
    user_column: str,
    num_shots: int,
    pool: Sequence[PreferenceRow] | None = None,
    show: Literal["both", "chosen"] = "both",
    template: str = EXAMPLES_TEMPLATE,
    seed: int = 0,
) -> Conditioned:
    """Pairs whose prompt shows other choices of the same user: personal alignment by plain losses.

    Nothing leaks: an example never has the row's prompt, nor any of the row's two responses, whatever ids
    say. Examples have different prompts. Which ones a row gets depends on the seed and its id.

    Args:
        rows: pairs of texts with the user in an extra column.
        user_column: that column.
        num_shots: >= 1 examples; the paper uses 4 and 8.
        pool: pairs to take examples from, None for the rows themselves. For held-out rows give the training
            rows here, so that no evaluation pair is shown.
        show: `both` responses of each example, or only the `chosen` one.
        template: words around `{examples}` and `{prompt}`.
        seed: seed.

    Returns:
        One row per row; those without a user (`no_user`) or with fewer than `num_shots` usable examples
        (`too_few_examples`) are dropped. Ties are no examples, and are kept as rows.

    Raises:
        ConfigError: no shots, or a template without `{examples}` or `{prompt}`.
        RowError: a row that is no pair, or one whose candidates are no texts.
        UnknownNameError: another `show`.

    Source: arXiv 2502.19312 (FSPO); Asap7772/fewshot-preference-optimization preference_datasets.py (examples
    of one user, sampled without replacement, before the question).
    """
    _check_template(template, "examples", "prompt")
    if num_shots < 1:
        raise ConfigError(explain("shots", got=num_shots, expected="at least 1"))
    if show not in ("both", "chosen"):
        raise unknown_name("shown responses", show, ("both", "chosen"))
    by_user: dict[str, list[PreferenceRow]] = defaultdict(list)
    for example in rows if pool is None else pool:
        user = _user(example, user_column)
        if user is not None and example.preference != 0.5:
            by_user[user].append(example)
    found = Conditioned()
    for row in rows:
        texts = _texts(row)
        user = _user(row, user_column)
        if user is None:
            found.dropped["no_user"] += 1
            continue
        usable = _without_leaks(row.prompt, texts, by_user[user])
        generator = np.random.default_rng(derive_seed(seed, "few_shot", row.id))
        order = generator.permutation(len(usable))
        # One example of each prompt: pairs of one ranking repeat themselves.
        by_prompt = {usable[int(place)].prompt: usable[int(place)] for place in order}
        taken = list(by_prompt.values())[:num_shots]
        if len(taken) < num_shots:
            found.dropped["too_few_examples"] += 1
            continue
        examples = "\n\n".join(_example(number, example, show) for number, example in enumerate(taken, 1))
        prompt = _fill(template, examples=examples, prompt=row.prompt)
        found.rows.append(replace(row, prompt=prompt))
    return found


def _user(row: PreferenceRow, column: str) -> str | None:
    value = row.extras.get(column)
    return None if value is None or value != value or str(value) == "" else str(value)


def _texts(row: PreferenceRow) -> tuple[str, str]:
    _require_pair(row, "few-shot conditioning")
    first, second = (candidate.text for candidate in row.candidates)
    if first is None or second is None:
        message = explain(
            f"{row.source or row.id} candidates",
            got="media",
            expected="texts, which can stand in a prompt",
            do="Read the data set as texts (--media text), or condition on captions of the images.",
        )
        raise FieldError(message, "not_a_text")
    return first, second


def _without_leaks(
    prompt: str, texts: tuple[str, str], examples: Sequence[PreferenceRow]
) -> list[PreferenceRow]:
    """Examples about something else."""
    own, same = set(texts), prompt.strip()
    return [
        example
        for example in examples
        if example.prompt.strip() != same and not own.intersection(_texts(example))
    ]


def _example(number: int, row: PreferenceRow, show: str) -> str:
    chosen, rejected = _texts(row)
    lines = [f"Example {number}", f"Question: {row.prompt}", f"Preferred: {chosen}"]
    return "\n".join([*lines, f"Not preferred: {rejected}"] if show == "both" else lines)
