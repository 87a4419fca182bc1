"""The layouts of public vision-language preference data: which columns mean what, and how one is recognised.

Formats are tried in the order of `FORMATS`, most particular first. A data set that fits none is read by a
mapping, `data.source.columns: {question: ..., chosen: ..., rejected: ..., images: ...}`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mmalign.data.dialogues import special
from mmalign.data.dialogues.fields import Fields
from mmalign.data.dialogues.reading import Dialogue, read_dialogue
from mmalign.data.dialogues.steps import read_trajectories

__all__ = ["FORMATS", "MAPPED", "ROLES", "DialogueFormat", "format_named"]

_IMAGES = (
    "images",
    "image",
    "images_file_names",
    "image_file_names",
    "img_path",
    "image_path",
    "image_paths",
    "img",
)
_VIDEOS = ("videos", "video", "video_path", "media_path")

_COMMON: Mapping[str, tuple[str, ...]] = {
    "images": _IMAGES,
    "videos": _VIDEOS,
    "rejected_images": ("rejected_images", "rejected_images_file_names"),
    "rejected_videos": ("rejected_videos",),
    "system": ("system",),
    "id": ("id", "sample_id", "uid", "question_id"),
    "weight": ("weight", "sample_weight"),
    "split": ("split",),
    "score_chosen": ("score_chosen", "reward_chosen", "chosen_score", "chosen_reward"),
    "score_rejected": ("score_rejected", "reward_rejected", "rejected_score", "rejected_reward"),
    "margin": ("margin",),
    "reward_gap": ("reward_gap", "score_gap"),
    "temperature_factor": ("temperature_factor", "ls_factor"),
    "reference_chosen": ("reference_chosen", "reference_chosen_logp", "ref_chosen_logps", "ref_win_logp"),
    "reference_rejected": (
        "reference_rejected",
        "reference_rejected_logp",
        "ref_rejected_logps",
        "ref_rej_logp",
    ),
    "reference_tokens_chosen": ("reference_tokens_chosen", "ref_win_per_token_logp"),
    "reference_tokens_rejected": ("reference_tokens_rejected", "ref_rej_per_token_logp"),
    "severity_chosen": ("severity_chosen",),
    "severity_rejected": ("severity_rejected",),
    "spans_chosen": ("spans_chosen",),
    "spans_rejected": ("spans_rejected",),
}
"""Roles that any format may have, and the columns they are recognised by."""

_PAIR: Mapping[str, tuple[str, ...]] = {"chosen": ("chosen",), "rejected": ("rejected",)}


@dataclass(frozen=True)
class DialogueFormat:
    """One layout of dialogues.

    Args:
        name: as in `data.source.format`.
        about: the data sets that use it.
        columns: role to the columns it is recognised by, most particular first.
        required: roles that must be there.
        one_of: alternatives; all roles of at least one must be there.
        read: makes a dialogue of a record.
        words: role whose first value must be words (or messages), not the path of an image.
        shape: what the first value at `words` must be, where only that tells formats apart.
    """

    name: str
    about: str
    columns: Mapping[str, tuple[str, ...]]
    required: tuple[str, ...]
    one_of: tuple[tuple[str, ...], ...] = ()
    read: Callable[[Fields], Dialogue] = read_dialogue
    words: str = "chosen"
    shape: tuple[type, ...] = (str, list, dict)
    _all: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_all", {**_COMMON, **self.columns})

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """Every role, with the common ones."""
        return self._all

    def needs(self) -> str:
        """What must be there, in words."""
        parts = [f"{role} ({' | '.join(self.roles[role][:3])})" for role in self.required]
        if self.one_of:
            parts.append("one of (" + " | ".join(" and ".join(group) for group in self.one_of) + ")")
        return ", ".join(parts)


_SEEN = (("images",), ("videos",))

FORMATS: tuple[DialogueFormat, ...] = (
    DialogueFormat(
        "trajectories",
        "windows of two attempts at one task, as steps of pictures and an action (GRAPE)",
        {
            "question": ("instruction", "prompt", "task"),
            "chosen": ("chosen_steps",),
            "rejected": ("rejected_steps",),
        },
        ("question", "chosen", "rejected"),
        read=read_trajectories,
        shape=(list,),
    ),
    DialogueFormat(
        "opa_dpo",
        "OPA-DPO rows with true, own and revised answers",
        {
            "question": ("queries", "query"),
            "images": ("image_bytes", *_IMAGES),
            "chosen": ("standard_response",),
            "rejected": ("original_generate_response",),
            "revised": ("AI_pseudo_response",),
            "report": ("AI_json_report",),
        },
        ("question", "images", "chosen", "rejected"),
        read=special.read_opa_dpo,
    ),
    DialogueFormat(
        "vlfeedback",
        "MMInstruction/VLFeedback",
        {"question": ("prompt", "question"), "ratings": ("completions",), "images": ("img_path", *_IMAGES)},
        ("question", "ratings", "images"),
        read=special.read_vlfeedback,
        words="ratings",
        shape=(list, dict),
    ),
    DialogueFormat(
        "rrpo",
        "pritamqu/self-alignment",
        {
            "question": ("question",),
            "chosen": ("answer",),
            "rejected": ("pred",),
            "chosen_marked": ("answer_masked",),
            "rejected_marked": ("pred_masked",),
        },
        ("question", "chosen", "rejected"),
        (("videos",), ("images", "chosen_marked")),
        read=special.read_rrpo,
    ),
    DialogueFormat(
        "ms_swift",
        "ms-swift rows",
        {
            "messages": ("messages",),
            "rejected": ("rejected_response",),
            "rejected_messages": ("rejected_messages",),
            "desirable": ("label",),
        },
        ("messages",),
        (("rejected",), ("rejected_messages",), *_SEEN),
        words="messages",
        shape=(list, dict),
    ),
    DialogueFormat(
        "temple",
        "TEMPLE rows (ms-swift rows about videos)",
        {"messages": ("messages",), "rejected": ("rejected_response",)},
        ("messages", "rejected", "videos"),
        words="messages",
        shape=(list, dict),
    ),
    DialogueFormat(
        "povid",
        "POVID",
        {"messages": ("conversations",), "rejected_messages": ("rejected_conversations",)},
        ("messages", "rejected_messages"),
        read=special.read_povid,
        words="messages",
        shape=(list, dict),
    ),
    DialogueFormat(
        "rlhf_v",
        "openbmb/RLHF-V-Dataset",
        {"text": ("text",), "chosen": (), "rejected": (), "id": ("idx", "id")},
        ("text", "images"),
        read=special.read_rlhf_v,
        words="text",
        shape=(str, dict),
    ),
    DialogueFormat(
        "ha_dpo",
        "juliozhao/hadpo-data",
        {
            "chosen": ("chosen",),
            "rejected": ("rejected", "reject"),
            "question": ("question",),
            "image_id": ("image_id", "id"),
            "right": ("correct",),
            "images": ("image", "image_path"),
            "id": ("id", "image_id"),
        },
        ("chosen", "rejected", "image_id"),
        read=special.read_ha_dpo,
    ),
    DialogueFormat(
        "mllm_dpo",
        "alexshengzhili/llava-preference-dpo",
        {
            **_PAIR,
            "question": ("question", "conversations"),
            "reference_chosen": ("ref_win_logp",),
            "reference_rejected": ("ref_rej_logp",),
        },
        ("chosen", "rejected", "images", "reference_chosen"),
    ),
    DialogueFormat(
        "hsa_dpo",
        "HSA-DPO",
        {
            **_PAIR,
            "question": ("question",),
            "severity_chosen": ("chosen_score",),
            "severity_rejected": ("rejected_score",),
            "score_chosen": (),
            "score_rejected": (),
        },
        ("question", "chosen", "rejected", "severity_rejected"),
        _SEEN,
    ),
    DialogueFormat(
        "rlaif_v",
        "openbmb/RLAIF-V-Dataset",
        {**_PAIR, "question": ("question",), "logps": ("logps",), "id": ("idx", "id")},
        ("question", "chosen", "rejected", "images"),
        read=special.read_rlaif_v,
    ),
    DialogueFormat(
        "chexalign",
        "CheXalign",
        {
            **_PAIR,
            "question": ("prompt", "query"),
            "completion": ("completion",),
            "desirable": ("label",),
            "images": ("image_path", *_IMAGES),
            **{f"answer_{number}": (f"candidate_findings_{number}",) for number in range(1, 5)},
            **{f"rating_{number}": (f"green_scores{number}",) for number in range(1, 5)},
        },
        ("question",),
        (
            ("chosen", "rejected", "score_chosen", "score_rejected"),
            ("answer_1", "rating_1"),
            ("completion", "desirable"),
        ),
        read=special.read_chexalign,
    ),
    DialogueFormat(
        "mm_rlhf",
        "yifanzhang114/MM-RLHF",
        {**_PAIR, "question": ("prompt",), "reward_gap": ("reward_gap", "score_gap", "margin")},
        ("question", "chosen", "rejected"),
        (
            ("images", "videos"),
            ("images", "temperature_factor"),
            ("videos", "temperature_factor"),
            ("images", "reference_chosen"),
            ("videos", "reference_chosen"),
        ),
        shape=(str,),
    ),
    DialogueFormat(
        "llava_hound",
        "ShareGPTVideo/train_video_and_instruction",
        {**_PAIR, "question": ("prompt",), "videos": ("video",)},
        ("question", "chosen", "rejected", "videos"),
        read=special.read_llava_hound,
        shape=(str,),
    ),
    DialogueFormat(
        "mdpo_pairs",
        "fwnlp/mDPO-preference-data",
        {**_PAIR, "question": ("prompt",), "images": ("img_path",)},
        ("question", "chosen", "rejected", "images"),
        read=special.read_mdpo,
        shape=(str,),
    ),
    DialogueFormat(
        "mia_dpo",
        "laolao77/MIA-DPO",
        {**_PAIR, "question": ("prompt",), "images": ("image",)},
        ("question", "chosen", "rejected", "images"),
        shape=(str,),
    ),
    DialogueFormat(
        "llama_factory",
        "LLaMA-Factory rows (sharegpt or alpaca; llamafactory/RLHF-V, Zhihui/VLFeedback)",
        {
            **_PAIR,
            "messages": ("conversations", "messages"),
            "question": ("instruction",),
            "input": ("input",),
            "history": ("history",),
            "completion": ("output",),
            "desirable": ("kto_tag",),
        },
        (),
        (
            ("messages", "chosen", "rejected"),
            ("question", "chosen", "rejected"),
            ("question", "completion"),
            ("messages",),
        ),
    ),
    DialogueFormat(
        "trl",
        "TRL rows, conversational or plain, with or without a prompt",
        {**_PAIR, "question": ("prompt",), "completion": ("completion",), "desirable": ("label",)},
        (),
        (("chosen", "rejected"), ("question", "completion")),
    ),
)
"""Known layouts, most particular first."""

MAPPED = DialogueFormat(
    "mapped",
    "any data set, by data.source.columns",
    {
        **_PAIR,
        "question": ("question", "prompt", "instruction"),
        "messages": ("messages", "conversations"),
        "rejected_messages": ("rejected_messages", "rejected_response"),
        "completion": ("completion", "answer", "response"),
        "desirable": ("label", "desirable"),
        "score": ("score", "reward"),
        "input": (),
        "history": (),
    },
    (),
    (
        ("chosen", "rejected"),
        ("messages", "rejected_messages"),
        ("question", "completion"),
        ("messages",),
        ("question",),
    ),
)
"""What a mapping of the user's is read as, and prompts with media but no answers."""

_BY_NAME = {entry.name: entry for entry in (*FORMATS, MAPPED)}

ROLES: frozenset[str] = frozenset(role for entry in _BY_NAME.values() for role in entry.roles)
"""Every role of dialogues, for `data.source.columns`."""


def format_named(name: str) -> DialogueFormat | None:
    """The format of that name, or None."""
    return _BY_NAME.get(name)
