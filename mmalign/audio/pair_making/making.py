"""Clips of every prompt, made by a model and kept as files; and clips that a data set has already."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mmalign.audio.pair_making.edits import Edit, edits_of, event_bank
from mmalign.audio.pair_making.plan import DATA_SCORE, AudioPairPlan
from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.audio_media import DecodedAudio, audio_ending, decode_audio, encode_audio, read_audio
from mmalign.data.config import DataConfig
from mmalign.data.media import read_media
from mmalign.data.pair_making.output import MadeFiles
from mmalign.data.pair_making.stages import Stages, read_given
from mmalign.errors import ConfigError, RowError, explain

__all__ = ["CLIPS", "ClipMaker", "Group", "Made", "Variant", "existing", "planned", "sampled"]

CLIPS = "clips"
"""Folder of all candidates, under `stages`."""


Made = DecodedAudio | bytes | Path | None
"""A clip, its encoded bytes or its file; None: making it failed."""


@runtime_checkable
class ClipMaker(Protocol):
    """Makes sounds of prompts."""

    def identity(self) -> Mapping[str, Any]:
        """What decides its clips besides prompt, key, seed and steps: JSON values."""
        ...

    def __call__(
        self, prompts: Sequence[str], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Made]:
        """A clip, its encoded bytes or its file per prompt; None where one failed.

        Equal keys start from equal noise under one seed, whatever the prompts.
        """
        ...


@dataclass(frozen=True)
class Variant:
    """One clip that is to be made.

    Args:
        prompt: what the model is asked.
        key: what its noise hangs on.
        num_steps: of the sampler; 0 where nothing is sampled.
        edit: how the prompt was edited, "" where it is the original.
    """

    prompt: str
    key: str
    num_steps: int
    edit: str = ""


@dataclass(frozen=True)
class Group:
    """The clips of one prompt.

    Args:
        row: with the original prompt.
        variants: one per clip.
        files: of each clip, from the folder of stages on; None where there is none.
        scores: of each clip by scorer, under the original prompt; NaN where one failed.
        errors: of each clip, why it or a score is missing.
    """

    row: PreferenceRow
    variants: tuple[Variant, ...]
    files: tuple[str | None, ...] = ()
    scores: tuple[Mapping[str, float], ...] = ()
    errors: tuple[str, ...] = field(default=())


# ------------------------------------------------------------------------------------------------ variants


def planned(rows: Sequence[PreferenceRow], plan: AudioPairPlan, counts: Counter[str]) -> list[Group]:
    """What is to be made of every prompt; prompts that no edit fits are counted as `no_edit`.

    Raises:
        ConfigError: the file of edits lacks what it needs.
    """
    if plan.recipe in ("events", "order"):
        return _edited(rows, plan, counts)
    steps = (
        plan.quality.steps
        if plan.recipe == "quality"
        else (plan.sampling.num_steps,) * plan.sampling.num_samples
    )
    return [
        Group(row, tuple(Variant(row.prompt, f"{row.id}/{n}", count) for n, count in enumerate(steps)))
        for row in rows
    ]


def _edited(rows: Sequence[PreferenceRow], plan: AudioPairPlan, counts: Counter[str]) -> list[Group]:
    settings, steps = plan.edits, plan.sampling.num_steps
    given = _given_edits(settings.file) if settings.file is not None else None
    bank = event_bank([row.prompt for row in rows]) if given is None else []
    groups = []
    for row in rows:
        if given is None:
            edits = edits_of(
                row.prompt, kinds=plan.edit_kinds, count=settings.count, bank=bank, seed=plan.seed, key=row.id
            )
        else:
            found = given.get(row.id) or given.get(row.prompt) or []
            edits = [Edit(text, "given") for text in found if text.strip() and text != row.prompt]
        if not edits:
            counts["no_edit"] += 1
            continue
        own = [Variant(row.prompt, f"{row.id}/{number}", steps) for number in range(settings.originals)]
        others = []
        for number, edit in enumerate(edits[: settings.count]):
            place = number % settings.originals if settings.same_noise else settings.originals + number
            others.append(Variant(edit.text, f"{row.id}/{place}", steps, edit.kind))
        groups.append(Group(row, (*own, *others)))
    return groups


def _given_edits(file: str) -> dict[str, list[str]]:
    """Edits by row id or prompt, of a file that a person or a language model wrote."""
    found: dict[str, list[str]] = {}
    for number, record in enumerate(read_given(file, needs=("edits",)), start=1):
        name = record.get("id", record.get("prompt"))
        edits = record["edits"]
        if name is None or not isinstance(edits, list) or not all(isinstance(text, str) for text in edits):
            shown = json.dumps(record, ensure_ascii=False)[:80]
            message = explain(
                f"{file}:{number}", got=f"[{shown}]", expected="id or prompt, and edits (texts)"
            )
            raise ConfigError(message)
        found.setdefault(str(name), []).extend(edits)
    return found


# ------------------------------------------------------------------------------------------------ sampling


def sampled(groups: Sequence[Group], make: ClipMaker, stages: Stages, plan: AudioPairPlan) -> list[Group]:
    """The groups with a file per clip; those that were made before are not made again.

    A clip that failed, or is no sound, has no file and an error.

    Raises:
        ConfigError: the maker gives another number of clips, or files that were made are gone.
    """
    files = MadeFiles(stages.folder)

    def work(block: Sequence[Group], seed: int) -> list[dict[str, Any]]:
        del seed  # keys decide the noise: other prompts around a prompt change nothing
        made = _made([variant for group in block for variant in group.variants], make, plan)
        kept = iter([_kept(clip, files, plan) for clip in made])
        return [{"clips": [next(kept) for _ in group.variants]} for group in block]

    settings = {"maker": dict(make.identity()), "container": plan.container, "noise_seed": plan.seed}
    records = stages.run(
        CLIPS,
        groups,
        work,
        key=lambda group: group.row.id,
        settings=settings,
        depends=lambda group: [vars(variant) for variant in group.variants],
    )
    found = []
    for group, record in zip(groups, records, strict=True):
        names = tuple(clip["file"] for clip in record["clips"])
        for name in names:
            if name is not None and not (stages.folder / name).is_file():
                do = f"Remove {stages.folder / f'{CLIPS}.jsonl'}; the clips are then made again."
                message = explain(str(stages.folder / name), got="[no such file]", expected="a clip", do=do)
                raise ConfigError(message)
        found.append(replace(group, files=names, errors=tuple(clip["error"] for clip in record["clips"])))
    return found


def _made(variants: Sequence[Variant], make: ClipMaker, plan: AudioPairPlan) -> list[Made]:
    """A clip per variant; one call for all variants of one number of steps."""
    found: dict[int, Made] = {}
    for steps in sorted({variant.num_steps for variant in variants}):
        places = [place for place, variant in enumerate(variants) if variant.num_steps == steps]
        chosen = [variants[place] for place in places]
        clips = make([one.prompt for one in chosen], [one.key for one in chosen], plan.seed, steps)
        if len(clips) != len(chosen):
            got, expected = f"[{len(clips)} clips]", f"{len(chosen)}, one per prompt"
            raise ConfigError(explain("maker", got=got, expected=expected))
        found.update(zip(places, clips, strict=True))
    return [found[place] for place in range(len(variants))]


def _kept(clip: Made, files: MadeFiles, plan: AudioPairPlan) -> dict[str, Any]:
    """The record of a clip, after it was written and read back."""
    if clip is None:
        return {"file": None, "error": "making it failed"}
    try:
        if isinstance(clip, DecodedAudio):
            data = encode_audio(clip.samples, clip.sampling_rate, container=plan.container)
        else:
            media = str(clip) if isinstance(clip, Path) else clip
            data = read_media(media, where="maker", max_bytes=plan.data.audio.max_bytes, kind="audio")
        decode_audio(data, where="maker", limits=plan.data.audio)
    except RowError as error:
        return {"file": None, "error": f"{error.reason}: {error}"}
    return {"file": files.put(CLIPS, data, audio_ending(data)), "error": ""}


# ------------------------------------------------------------------------------------------------ existing


def existing(
    rows: Sequence[PreferenceRow], stages: Stages, data: DataConfig, counts: Counter[str]
) -> list[Group]:
    """The clips of a data set: of rankings and pairs a group per row, of single clips a group per prompt.

    Their own scores stand under `data`. Clips that cannot be read are counted by reason and left out.
    """
    files = MadeFiles(stages.folder)
    gathered: dict[str, tuple[PreferenceRow, list[tuple[Candidate, float]]]] = {}
    for row in rows:
        name = row.id if len(row.candidates) > 1 else f"prompt {row.prompt}"
        held = gathered.setdefault(name, (row, []))[1]
        relevance = row.relevance or tuple(
            float("nan") if one.reward is None else one.reward for one in row.candidates
        )
        held += list(zip(row.candidates, relevance, strict=True))
    groups = []
    for row, held in gathered.values():
        names: list[str] = []
        scores: list[dict[str, float]] = []
        for candidate, score in held:
            try:
                names.append(_copied(candidate, row, files, data))
                scores.append({DATA_SCORE: score})
            except RowError as error:
                counts[error.reason] += 1
        variants = tuple(Variant(row.prompt, f"{row.id}/{number}", 0) for number in range(len(names)))
        groups.append(Group(row, variants, tuple(names), tuple(scores), ("",) * len(names)))
    return groups


def _copied(candidate: Candidate, row: PreferenceRow, files: MadeFiles, data: DataConfig) -> str:
    where = f"{row.source} candidate"
    if candidate.audio is None:
        raise RowError(explain(where, got="[no sound]", expected="a sound"), reason="missing_audio")
    read_audio(candidate.audio, where=where, limits=data.audio)
    sound = read_media(candidate.audio, where=where, max_bytes=data.audio.max_bytes, kind="audio")
    return files.put(CLIPS, sound, audio_ending(sound))
