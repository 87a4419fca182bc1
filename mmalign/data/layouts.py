"""What columns mean: roles, the names data sets give them, and recognising a layout from its columns.

A layout is a set of roles. `data.columns` maps roles to columns; what it leaves open is looked up among the
names that public data sets use. An unknown layout is an error that lists the columns found and what each
layout needs.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmalign.data.records import Records
from mmalign.errors import ConfigError, unknown_name

__all__ = ["ALIASES", "CAPTIONED", "LAYOUTS", "PROMPTS", "Layout", "Match", "Structure", "detect"]

Structure = Literal[
    "chosen_rejected",
    "two_candidates",
    "ranking",
    "ranked_items",
    "unpaired",
    "captioned",
    "prompts",
    "dialogue",
]
"""How candidates lie in records: preferred first, two and a label, a list, one each with a rank, single with
a label, single examples to follow; not at all; or as answers of a dialogue (see `dialogues`)."""

ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "caption", "text", "captions", "instruction", "question", "query"),
    "chosen": (
        *(
            "chosen",
            "img_path_win",
            "path_win",
            "image_win",
            "win",
            "winner_image",
            "chosen_image",
            "image_chosen",
        ),
        *(
            "chosen_path",
            "chosen_file_name",
            "chosen_image_path",
            "preferred",
            "preferred_image",
            "video_chosen",
            "audio_chosen",
            "chosen_audio",
            "chosen_audio_path",
            "preferred_audio",
            "chosen_video",
            "chosen_video_path",
            "video_win",
            "preferred_video",
        ),
    ),
    "rejected": (
        *(
            "rejected",
            "reject",
            "img_path_lose",
            "path_lose",
            "image_lose",
            "lose",
            "loser_image",
            "rejected_image",
        ),
        *("image_rejected", "rejected_path", "rejected_file_name", "rejected_image_path", "dispreferred"),
        *("dispreferred_image", "video_rejected", "audio_rejected", "rejected_audio", "rejected_audio_path"),
        *("dispreferred_audio", "rejected_video", "rejected_video_path", "video_lose", "dispreferred_video"),
    ),
    "a": (
        *(
            "jpg_0",
            "image_a",
            "img_a",
            "image_0",
            "image0",
            "img_0",
            "path_a",
            "image_path_a",
            "file_a",
            "left",
        ),
        *("video_a", "audio_a", "audio_0", "audio_path_a", "response_a", "a", "video_0", "video_path_a"),
        *("file_name1", "video1", "left_video"),
    ),
    "b": (
        *(
            "jpg_1",
            "image_b",
            "img_b",
            "image_1",
            "img_1",
            "path_b",
            "image_path_b",
            "file_b",
            "right",
            "video_b",
        ),
        *("audio_b", "audio_1", "audio_path_b", "response_b", "b", "video_1", "video_path_b"),
        *("file_name2", "video2", "right_video"),
    ),
    "label": ("label_0", "label", "preference", "pref", "human_pref", "overall", "vote_type"),
    "signed": (),
    "segment_labels": ("segment_labels",),
    "label_b": ("label_1",),
    "winner": ("winner", "better", "preferred_index", "chosen_index", "best_image_uid"),
    "score_a": ("score_a", "score_0", "reward_a", "reward_0"),
    "score_b": ("score_b", "score_1", "reward_b", "reward_1"),
    "votes_a": (
        *("votes_a", "votes_0", "weighted_results_image1_preference", "weighted_results1_preference"),
    ),
    "votes_b": (
        *("votes_b", "votes_1", "weighted_results_image2_preference", "weighted_results2_preference"),
    ),
    "has_label": ("has_label",),
    "are_different": ("are_different",),
    "id_a": ("image_0_uid", "id_a", "uid_a"),
    "id_b": ("image_1_uid", "id_b", "uid_b"),
    "model_a": ("model_0", "model_a", "a_model", "model1", "left_model"),
    "model_b": ("model_1", "model_b", "b_model", "model2", "right_model"),
    "preference": ("preference", "probability"),
    "score_chosen": ("score_chosen", "reward_chosen", "chosen_score"),
    "score_rejected": ("score_rejected", "reward_rejected", "rejected_score"),
    "prompt_chosen": ("prompt_chosen",),
    "prompt_rejected": ("prompt_rejected",),
    "candidates": (
        *(
            "image_path",
            "images",
            "image_paths",
            "candidates",
            "file_names",
            "generations",
            "paths",
            "responses",
        ),
        *("videos", "image_list", "audios", "audio_paths", "audio_list", "video_paths", "video_list"),
    ),
    "ranks": ("rank", "ranks", "ranking"),
    "scores": ("human_preference", "scores", "rewards", "relevance", "ratings"),
    "candidate": (
        *(
            "image",
            "image_path",
            "file_name",
            "img_path",
            "path",
            "jpg",
            "sample",
            "completion",
            "video",
            "audio",
            "audio_path",
            "location",
            "wav",
            "video_path",
            "clip",
            "clip_path",
        ),
    ),
    "rank": ("rank", "ranking"),
    "score": ("score", "reward", "overall_rating", "rating"),
    "group": ("prompt_id", "group", "group_id", "ranking_id"),
    "desirable": ("label", "desirable", "liked", "is_desirable", "thumbs_up"),
    "weight": ("weight", "sample_weight"),
    "id": ("id", "ranking_id", "uid", "pair_id", "key"),
    "split": ("split",),
}
"""Role to the column names it is recognised by, most specific first; compared without regard to case."""


_CLIPS = ("video", "video_path", "clip", "clip_path")


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay out preference rows.

    Args:
        name: as in `data.source.format`.
        structure: how candidates lie in records.
        required: roles that must be there.
        one_of: alternatives; all roles of at least one must be there.
        optional: roles used when there.
        lists: roles whose column holds a list per record; the other required ones must not.
        exact: only these columns count, no other aliases.
    """

    name: str
    structure: Structure
    required: tuple[str, ...]
    one_of: tuple[tuple[str, ...], ...] = ()
    optional: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    exact: tuple[tuple[str, str], ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role of the layout."""
        return (
            *self.required,
            *(role for group in self.one_of for role in group),
            *self.optional,
            "weight",
            "split",
        )

    def needs(self) -> str:
        """What must be there, in words."""
        parts = list(self.required)
        if self.one_of:
            parts.append("one of (" + " | ".join(" and ".join(group) for group in self.one_of) + ")")
        return ", ".join(parts)


_LABELS = (("label",), ("winner",), ("score_a", "score_b"), ("votes_a", "votes_b"))
_TWO = (
    "has_label",
    "are_different",
    "label_b",
    "id_a",
    "id_b",
    "model_a",
    "model_b",
    "score_a",
    "score_b",
    "id",
)
_PICKAPIC = (("prompt", "caption"), ("a", "jpg_0"), ("b", "jpg_1"), ("label", "label_0"))

_TWO_VIDEOS = (("a", "video_0"), ("b", "video_1"), ("signed", "preference"))
"""Unordered clips: `preference` is 1 where video_0 is better, -1 where video_1 is, 0 for a tie."""

LAYOUTS: tuple[Layout, ...] = (
    Layout("pickapic", "two_candidates", ("prompt", "a", "b", "label"), optional=_TWO, exact=_PICKAPIC),
    Layout(
        "two_videos",
        "two_candidates",
        ("prompt", "a", "b"),
        one_of=(("signed",), ("segment_labels",)),
        optional=_TWO,
        exact=_TWO_VIDEOS,
    ),
    Layout(
        "chosen_rejected",
        "chosen_rejected",
        ("prompt", "chosen", "rejected"),
        optional=(
            *("preference", "score_chosen", "score_rejected", "prompt_chosen", "prompt_rejected", "id"),
        ),
    ),
    Layout("two_images", "two_candidates", ("prompt", "a", "b"), one_of=_LABELS, optional=_TWO),
    Layout(
        "rankings",
        "ranking",
        ("prompt", "candidates"),
        one_of=(("ranks",), ("scores",)),
        optional=("id",),
        lists=("candidates", "ranks", "scores"),
    ),
    Layout(
        "ranked_images",
        "ranked_items",
        ("prompt", "candidate"),
        one_of=(("rank",), ("score",)),
        optional=("group",),
    ),
    Layout("unpaired", "unpaired", ("prompt", "candidate", "desirable"), optional=("score", "id")),
)

CAPTIONED = Layout("captioned", "captioned", ("prompt", "candidate"), optional=("score", "id"))
"""Single candidates without a label, each an example to follow: the rows of supervised training."""

PROMPTS = Layout("prompts", "prompts", ("prompt",), optional=("id",))
"""Prompts alone. Any data set has them, so nothing is ever recognised as this: a method asks for it."""


@dataclass(frozen=True)
class Match:
    """A layout with the column of each of its roles.

    Args:
        layout: the layout.
        columns: role to column, for the roles that are there.
    """

    layout: Layout
    columns: Mapping[str, str]

    def describe(self) -> str:
        """What was recognised, in one line."""
        shown = [role for role in self.layout.roles if role in self.columns]
        roles = ", ".join(dict.fromkeys(f"{role}={self.columns[role]}" for role in shown))
        return f"layout {self.layout.name} ({roles})"


def _check_mapping(columns: Mapping[str, str], records: Records, where: str) -> None:
    for role, column in columns.items():
        if role not in ALIASES:
            raise unknown_name("role in data columns:", role, ALIASES)
        if column not in records.columns:
            near = difflib.get_close_matches(column, records.columns, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            message = (
                f"{where}: columns maps {role} to {column!r}, which is not there.{hint} "
                f"Columns found: {', '.join(records.columns) or 'none'}."
            )
            raise ConfigError(message)


def _fits(role: str, column: str, layout: Layout, records: Records) -> bool:
    """Whether a list stands where a list is due, and nowhere else."""
    if role in layout.lists:
        return records.holds_lists(column)
    return role not in ("candidate", "rank", "score", "label", "desirable") or not records.holds_lists(column)


def _fill(layout: Layout, columns: Mapping[str, str], records: Records) -> dict[str, str]:
    """Role to column, from the mapping first and the known names second."""
    by_name: dict[str, str] = {}
    for name in records.columns:
        by_name.setdefault(name.lower(), name)
    exact = dict(layout.exact)
    found: dict[str, str] = {}
    for role in layout.roles:
        if role in columns:
            found[role] = columns[role]
            continue
        names = (exact[role],) if role in exact else ALIASES[role]
        if role == "candidate":
            # Beside a column of clips, one of pictures holds what the clips go on from.
            names = tuple(sorted(names, key=lambda name: name not in _CLIPS))
        for name in names:
            column = by_name.get(name)
            if column is not None and column not in columns.values() and _fits(role, column, layout, records):
                found[role] = column
                break
    return found


def _missing(layout: Layout, found: Mapping[str, str]) -> list[str]:
    missing = [role for role in layout.required if role not in found]
    if layout.one_of and not any(all(role in found for role in group) for group in layout.one_of):
        missing.append(" or ".join(" and ".join(group) for group in layout.one_of))
    return missing


def detect(
    records: Records, *, format: str, columns: Mapping[str, str], where: str, examples: bool = False
) -> Match:
    """The layout of some records, with the column of each role.

    Args:
        records: raw records.
        format: `auto` or a layout's name.
        columns: role to column, as configured; wins over recognised names.
        where: the data set, for messages.
        examples: whether single candidates without a label will do, where nothing else fits.

    Raises:
        ConfigError: nothing fits; the message lists the columns, what each layout needs, and the nearest
            layout.
        UnknownNameError: no such format, or no such role.
    """
    _check_mapping(columns, records, where)
    known = {layout.name: layout for layout in (*LAYOUTS, CAPTIONED, PROMPTS)}
    if format != "auto" and format not in known:
        raise unknown_name("data format", format, ("auto", *known))
    recognised = (*LAYOUTS, CAPTIONED) if examples else LAYOUTS
    choices: Sequence[Layout] = recognised if format == "auto" else (known[format],)
    tried: list[tuple[int, Layout, list[str]]] = []
    for layout in choices:
        # A role the user names belongs to the layout they mean.
        foreign = [role for role in columns if role not in layout.roles]
        found = _fill(layout, columns, records)
        missing = _missing(layout, found)
        if not missing and not foreign:
            return Match(layout, found)
        tried.append((len(missing) + len(foreign) - len(found) // 2, layout, missing))
    raise ConfigError(_unknown_layout(records, tried, where))


def _unknown_layout(records: Records, tried: list[tuple[int, Layout, list[str]]], where: str) -> str:
    nearest = min(tried, key=lambda item: item[0])
    needs = "\n".join(f"  {layout.name}: {layout.needs()}" for _, layout, _ in tried)
    lacking = ", ".join(nearest[2]) or "nothing, but columns names roles it does not have"
    known = "; ".join(f"{role}: {', '.join(ALIASES[role][:4])} ..." for role in nearest[1].required)
    return (
        f"{where}: the columns fit no layout.\n"
        f"Columns found: {', '.join(records.columns) or 'none'}.\n"
        f"Layouts and the roles they need:\n{needs}\n"
        f"Nearest: {nearest[1].name}; missing: {lacking}. Names that are recognised: {known}\n"
        "Say what the columns are, for example data.source.columns: {prompt: caption, a: left, b: right, "
        "label: preferred}."
    )
