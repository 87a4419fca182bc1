"""The rules by which `mmalign data derive` makes rows of others, and their settings."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mmalign.batch import PreferenceRow
from mmalign.data import conditioning
from mmalign.data.chains import ranked_chains
from mmalign.data.conditioning import Conditioned
from mmalign.data.crossing import Compared, cross_validation
from mmalign.data.curation import keep_lowest
from mmalign.data.curriculum import curriculum_stages
from mmalign.data.pairing import Pairing, cap_per_prompt, make_pairs
from mmalign.data.rarity import with_pair_weights
from mmalign.data.rows import FieldError
from mmalign.errors import ConfigError, explain, unknown_name

__all__ = ["DeriveSettings", "How", "apply_rule"]

How = Literal[
    "all_pairs",
    "best_worst",
    "adjacent",
    "best_vs_rest",
    "curriculum",
    "reward_augmented",
    "directional",
    "few_shot",
    "keep_lowest",
    "ranked_chains",
    "cross_validation",
    "rarity",
]
"""The rules; the first four need rankings, `directional` too, the others take pairs or make pairs of them;
`ranked_chains` makes rankings of pairs."""


@dataclass(frozen=True)
class DeriveSettings:
    """The rule and its numbers; a rule reads those it needs.

    Args:
        how: the rule.
        pairs: how rankings become pairs where the rule needs pairs.
        min_gap: pairs of rankings with a smaller difference of scores are left out.
        max_per_prompt: pairs of one prompt that are kept, those with the widest gap first; None keeps all.
        stages: of the curriculum.
        scope: of the curriculum, see `curriculum_stages`.
        objectives: columns of rewards for `directional`.
        keep: what `directional` keeps, see there.
        scale: whether `directional` standardises objectives.
        directions: directions per list.
        max_angle: degrees between a direction and the first objective.
        user_column: column of the user for `few_shot`.
        shots: examples for `few_shot`.
        show: responses shown in an example.
        score_column: column that `keep_lowest` sorts by, for example CHES.
        share: part of the rows that `keep_lowest` keeps.
        max_length: images of a chain for `ranked_chains`.
        group_column: column of what contrasts for `cross_validation`.
        compare: what meets in `cross_validation`.
        exponent: of `rarity`; 0 weighs all pairs alike.
        bin_width: of `rarity`: scores nearer than this count as one.
        template: words around prompt and condition; None takes the rule's own.
        seed: of everything that is drawn.
    """

    how: How
    pairs: Pairing = "best_vs_rest"
    min_gap: float = 0.0
    max_per_prompt: int | None = None
    stages: int = 3
    scope: Literal["prompt", "dataset"] = "prompt"
    objectives: tuple[str, ...] = ()
    keep: Literal["best", "pairs"] = "best"
    scale: Literal["standard", "none"] = "standard"
    directions: int = 1
    max_angle: float = 45.0
    user_column: str = "user_id"
    shots: int = 4
    show: Literal["both", "chosen"] = "both"
    score_column: str = "ches"
    share: float = 0.5
    max_length: int = 8
    group_column: str = "contrast"
    compare: Compared = "both"
    exponent: float = 0.72
    bin_width: float = 0.01
    template: str | None = None
    seed: int = 0


def apply_rule(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    """The rows that the rule of the settings makes, and what it left out.

    Raises:
        ConfigError: settings out of range.
        RowError: a row lacks what the rule needs (scores, rewards, texts).
    """
    return _RULES.get(settings.how, _pair_rule)(rows, settings)


def _as_pairs(rows: Sequence[PreferenceRow], settings: DeriveSettings, how: Pairing) -> Conditioned:
    """Pairs of rankings; rows that are pairs already stay."""
    found = Conditioned()
    for row in rows:
        pairs = make_pairs(row, how=how, min_gap=settings.min_gap) if row.kind == "lists" else [row]
        found.dropped["no_gap"] += not pairs
        found.rows += pairs
    found.dropped += Counter()  # forgets a reason that never occurred
    return _capped(found, settings)


def _capped(found: Conditioned, settings: DeriveSettings) -> Conditioned:
    if settings.max_per_prompt is not None:
        kept = cap_per_prompt(found.rows, settings.max_per_prompt, seed=settings.seed)
        if len(kept) < len(found.rows):
            found.dropped["over_max_per_prompt"] += len(found.rows) - len(kept)
        found.rows = kept
    return found


def _pair_rule(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    """all_pairs, best_worst, adjacent, best_vs_rest: of rankings only."""
    how = settings.how
    if rows and rows[0].kind != "lists":
        message = explain(
            f"data derive --how {how}",
            got=f"{rows[0].kind} rows",
            expected="rankings (lists)",
            do="Give candidates with ranks or scores; pairs are pairs already.",
        )
        raise ConfigError(message)
    if how not in get_args(Pairing):
        raise unknown_name("rule for pairs", how, get_args(Pairing))
    return _as_pairs(rows, settings, how)  # type: ignore[arg-type]


def _curriculum(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    found = _as_pairs(rows, settings, settings.pairs)
    if not found.rows:
        return found
    stages = curriculum_stages(found.rows, num_stages=settings.stages, scope=settings.scope)
    found.rows = [
        replace(row, extras={**row.extras, "split": f"stage_{number}"})
        for number, stage in enumerate(stages, 1)
        for row in stage
    ]
    return found


def _reward_augmented(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    pairs = _as_pairs(rows, settings, settings.pairs)
    template = settings.template or conditioning.GOAL_TEMPLATE
    return _after(pairs, conditioning.reward_augmented(pairs.rows, template=template))


def _directional(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    return conditioning.directional(
        rows,
        objectives=settings.objectives,
        keep=settings.keep,
        scale=settings.scale,
        per_row=settings.directions,
        max_angle=settings.max_angle,
        template=settings.template or conditioning.DIRECTION_TEMPLATE,
        seed=settings.seed,
    )


def _few_shot(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    pairs = _as_pairs(rows, settings, settings.pairs)
    if pairs.rows and not any(settings.user_column in row.extras for row in pairs.rows):
        known = ", ".join(sorted(pairs.rows[0].extras)) or "none"
        message = explain(
            "--user-column",
            got=settings.user_column,
            expected="a column of the data set that tells users apart",
            do=f"Extra columns found: {known}.",
        )
        raise ConfigError(message)
    found = conditioning.few_shot(
        pairs.rows,
        user_column=settings.user_column,
        num_shots=settings.shots,
        show=settings.show,
        template=settings.template or conditioning.EXAMPLES_TEMPLATE,
        seed=settings.seed,
    )
    return _after(pairs, found)


def _keep_lowest(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    scores = []
    for row in rows:
        value = row.extras.get(settings.score_column)
        if isinstance(value, bool) or not isinstance(value, int | float):
            message = explain(
                f"{row.source} {settings.score_column}",
                got=value,
                expected="a number",
                do=f"Extra columns: {', '.join(sorted(row.extras)) or 'none'}; --score-column names one.",
            )
            raise FieldError(message, "missing_score", settings.score_column)
        scores.append(float(value))
    kept = keep_lowest(scores, settings.share) if scores else []
    found = Conditioned(rows=[rows[number] for number in kept])
    if len(kept) < len(rows):
        found.dropped["high_score"] = len(rows) - len(kept)
    return found


def _ranked_chains(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    return ranked_chains(rows, max_length=settings.max_length)


def _cross_validation(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    return cross_validation(rows, group_column=settings.group_column, compare=settings.compare)


def _rarity(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    pairs = _as_pairs(rows, settings, settings.pairs)
    pairs.rows = with_pair_weights(pairs.rows, exponent=settings.exponent, width=settings.bin_width)
    return pairs


def _after(before: Conditioned, found: Conditioned) -> Conditioned:
    """The second step's rows with the reasons of both."""
    found.dropped = before.dropped + found.dropped
    return found


_RULES: Mapping[str, Callable[[Sequence[PreferenceRow], DeriveSettings], Conditioned]] = {
    "curriculum": _curriculum,
    "reward_augmented": _reward_augmented,
    "directional": _directional,
    "few_shot": _few_shot,
    "keep_lowest": _keep_lowest,
    "ranked_chains": _ranked_chains,
    "cross_validation": _cross_validation,
    "rarity": _rarity,
}
