"""Text to video: rewards, the dimensions of VBench that need no exotic weights, motion beside all of them.

Clips that hardly move look better: every number of quality stands with the measures of motion, and without
any of those nothing is scored. Clips that cannot be seen are counted, never replaced.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign.errors import ConfigError, explain
from mmalign.evals.base import Answer, Benchmark, Item, Metric, Outcome
from mmalign.evals.benchmarks._harness import metric, official_file
from mmalign.evals.benchmarks._records import mean
from mmalign.evals.benchmarks.vbench import DIMENSIONS
from mmalign.evals.benchmarks.vbench import read_items as read_vbench
from mmalign.evals.prompts import read_prompts
from mmalign.evals.video.dimensions import MEASURED, require_dimensions
from mmalign.evals.video.footage import file_of
from mmalign.evals.video.quality import ClipRewards, outputs_of
from mmalign.evals.video.style import Styles
from mmalign.evals.video.watching import Watched, Watcher
from mmalign.rewards.sample import Sample

__all__ = ["BENCHMARK", "read_items"]

_PROMPT_FILES = tuple(
    f"prompts{ending}" for ending in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
)
_VBENCH = "VBench_full_info.json"
_STYLE = "appearance_style"
_KEPT = ("image", _STYLE)
"""Fields of a prompt's record that are read: the picture a clip goes on from, the words of its style."""


def read_items(folder: Path, *, prompts: str = "") -> list[Item]:
    """Prompts of a file, or those of VBench with the dimensions each of them is for.

    Args:
        folder: with the prompts.
        prompts: name of the file; without it `prompts.*`, or VBench's `VBench_full_info.json`.

    Raises:
        ConfigError: the file is not there.
        RowError: a record is malformed; names record and field.
    """
    path = official_file(folder, *((prompts,) if prompts else (*_PROMPT_FILES, _VBENCH)))
    if path.name == _VBENCH:
        return read_vbench(path.parent)
    return [
        Item(
            item.id,
            item.prompt,
            (),
            item.group,
            {name: item.expected[name] for name in _KEPT if item.expected.get(name)},
        )
        for item in read_prompts(str(path))
    ]


# ------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True)
class _Seen:
    """What one watcher saw of every answer; None where nothing."""

    name: str
    answers: Sequence[Answer]
    found: Sequence[Watched | None]
    problems: tuple[str, ...]

    def values(self, read: Callable[[Watched], float], dimension: str = "") -> list[tuple[str, float]]:
        """(Item, value) of every clip that counts for a dimension of VBench; NaN where nothing was seen."""
        return [
            (answer.item.id, math.nan if seen is None else read(seen))
            for answer, seen in zip(self.answers, self.found, strict=True)
            if _counts(answer, dimension)
        ]


def _counts(answer: Answer, dimension: str) -> bool:
    """Whether a clip counts for a dimension: of VBench's own prompts those that are for it, else all."""
    listed = answer.item.expected.get("dimensions")
    return not dimension or listed is None or dimension.replace(" ", "_") in listed


def _look(name: str, watcher_of: Callable[[Answer], Watcher | None], answers: Sequence[Answer]) -> _Seen:
    """What is seen of every clip; nothing at all, {}, where no watcher is meant for it."""
    found: list[Watched | None] = []
    problems: dict[str, None] = {}
    for answer in answers:
        watcher, seen = watcher_of(answer), None
        if answer.error is None and answer.media:
            seen = {} if watcher is None else watcher.see(file_of(answer.media))
        if isinstance(seen, str):
            problems[seen] = None
            seen = None
        found.append(seen)
    return _Seen(name, answers, found, tuple(problems))


def _looked(tool: Watcher | Styles, answers: Sequence[Answer]) -> _Seen:
    """What a tool sees: one of styles has a watcher for every style, and none where a prompt has no style."""
    if isinstance(tool, Watcher):
        return _look(tool.name, lambda _: tool, answers)
    styles = {style: tool.of(style) for style in sorted({_style(one) for one in answers} - {""})}
    return _look(tool.name, lambda answer: styles.get(_style(answer)), answers)


def _style(answer: Answer) -> str:
    """The words of the style that a clip was asked for in; "" where there are none."""
    return str(answer.item.expected.get(_STYLE) or "")


def _average(
    name: str,
    values: Sequence[tuple[str, float]],
    unit: str,
    *,
    rises: bool | None = True,
    beside: tuple[str, ...] = (),
) -> Metric:
    """A mean over clips."""
    value = mean([one for _, one in values])
    return metric(name, value, unit, higher_is_better=rises, per_item=values, beside=beside)


def _likeness(title: str, seen: _Seen, beside: tuple[str, ...]) -> Iterator[Metric]:
    """A consistency of VBench, over all frames of all clips, and the mean cosine of neighbours."""
    clips = [
        found["consistency"]
        for answer, found in zip(seen.answers, seen.found, strict=True)
        if found is not None and _counts(answer, title)
    ]
    frames = [value for clip in clips for value in clip]
    parts = seen.values(lambda found: math.fsum(found["consistency"]) / len(found["consistency"]), title)
    unit = "0 to 1, VBench's, mean over all frames of all clips"
    yield metric(f"{title} ({seen.name})", mean(frames), unit, per_item=parts, beside=beside)
    near = seen.values(lambda found: found["neighbours"])
    name = f"temporal consistency ({seen.name})"
    yield _average(name, near, "mean cosine of neighbouring frames, 1 is still", beside=beside)


def _styled(seen: _Seen, beside: tuple[str, ...]) -> Metric:
    """VBench's appearance style, over all frames of all clips that were asked for in a style."""
    title = "appearance style"
    clips = [
        (answer.item.id, None if found is None else found["style"])
        for answer, found in zip(seen.answers, seen.found, strict=True)
        if _style(answer) and _counts(answer, title)
    ]
    frames = [value for _, clip in clips if clip is not None for value in clip]
    parts = [(item, math.nan if clip is None else math.fsum(clip) / len(clip)) for item, clip in clips]
    unit = "mean cosine of a frame and the words of its style, over all frames of all clips"
    return metric(f"{title} ({seen.name})", mean(frames), unit, per_item=parts, beside=beside)


def _motion(flow: _Seen | None, pixels: _Seen | None) -> list[Metric]:
    """The measures of motion; the first name of each is what stands beside quality."""
    found: list[Metric] = []
    if flow is not None:
        moving = flow.values(lambda one: float(one["dynamic"]), "dynamic degree")
        unit = "share of clips that move, VBench's rule"
        found.append(_average(f"dynamic degree ({flow.name})", moving, unit))
        lengths = flow.values(lambda one: one["mean"])
        unit = "pixels between frames about 1/8 s apart, mean over all pixels"
        found.append(_average(f"mean flow ({flow.name})", lengths, unit, rises=None))
        tops = flow.values(lambda one: one["top"])
        unit = "the same, mean over the fastest 5 % of pixels"
        found.append(_average(f"top flow ({flow.name})", tops, unit, rises=None))
    if pixels is not None:
        changes = pixels.values(lambda one: one["difference"])
        unit = "8-bit values per frame, 0 is still; no optical flow"
        found.append(_average("mean frame difference", changes, unit, rises=None))
    beside = tuple(one.name for one in found if not one.name.startswith("top flow"))
    return [
        metric(
            one.name,
            one.value,
            one.unit,
            higher_is_better=one.higher_is_better,
            per_item=one.per_item,
            beside=tuple(name for name in beside if name != one.name) if one.higher_is_better else (),
        )
        for one in found
    ]


def _rated(rewards: ClipRewards, answers: Sequence[Answer], beside: tuple[str, ...]) -> Iterator[Metric]:
    """Every output of every reward; NaN of clips it could not score."""
    made = [place for place, answer in enumerate(answers) if answer.error is None and answer.media]
    samples = [Sample(answers[place].item.prompt, video=_path(answers[place])) for place in made]
    scored = {name: reward.score(samples, batch_size=4) for name, reward in rewards.rewards.items()}
    for title, name, output in outputs_of(rewards):
        values = [math.nan] * len(answers)
        column = scored[name].values[:, scored[name].outputs.index(output)]
        for place, value in zip(made, column.tolist(), strict=True):
            values[place] = value
        pairs = [(answer.item.id, value) for answer, value in zip(answers, values, strict=True)]
        card = rewards.rewards[name].card
        unit = card.scale or "the reward's own unit"
        yield _average(title, pairs, unit, rises=card.higher_is_better, beside=beside)


def _path(answer: Answer) -> Path:
    """The file of a clip, which is what rewards read.

    Raises:
        ConfigError: it is bytes.
    """
    found = file_of(answer.media)
    if isinstance(found, bytes):
        raise ConfigError(explain("answer", got="[bytes]", expected="a file: rewards of clips read files"))
    return Path(found)


def _score(
    answers: Sequence[Answer],
    *,
    pixels: Watcher | None = None,
    flow: Watcher | None = None,
    subject: Watcher | None = None,
    background: Watcher | None = None,
    aesthetic: Watcher | None = None,
    style: Styles | None = None,
    rewards: ClipRewards | None = None,
    dimensions: str = "",
) -> Outcome:
    tools: dict[str, Watcher | Styles | None] = {
        "pixels": pixels,
        "flow": flow,
        "subject": subject,
        "background": background,
        "aesthetic": aesthetic,
        "style": style,
    }
    if pixels is None and flow is None:
        do = "Quality without motion is not printed: clips that stand still have more of it."
        raise ConfigError(explain("tools", got="pixels=none, flow=none", expected="one of them", do=do))
    there = [name for name, tool in tools.items() if tool is not None]
    require_dimensions([one for one in dimensions.split(",") if one.strip()], there)
    ordered = sorted(answers, key=lambda answer: (answer.item.id, answer.copy))
    seen = {name: _looked(tool, ordered) for name, tool in tools.items() if tool is not None}
    motion = _motion(seen.get("flow"), seen.get("pixels"))
    beside = tuple(one.name for one in motion if not one.name.startswith("top flow"))
    metrics: list[Metric] = [] if rewards is None else list(_rated(rewards, ordered, beside))
    for name, title in (("subject", "subject consistency"), ("background", "background consistency")):
        if name in seen:
            metrics += _likeness(title, seen[name], beside)
    if "aesthetic" in seen:
        looks = seen["aesthetic"].values(lambda one: one["aesthetic"], "aesthetic quality")
        title = f"aesthetic quality ({seen['aesthetic'].name})"
        metrics.append(_average(title, looks, "VBench's, about 0.1 to 1", beside=beside))
    if "style" in seen:
        metrics.append(_styled(seen["style"], beside))
    if "pixels" in seen:
        steady = seen["pixels"].values(lambda one: one["flickering"], "temporal flickering")
        unit = "0 to 1, VBench's, meant for static scenes, 1 is still"
        metrics.append(_average("temporal flickering", steady, unit, beside=beside))
    metrics += motion
    counts = _counted(ordered, seen, metrics if rewards is not None else (), rewards)
    notes = [*_notes(seen, there, ordered), *(() if rewards is None else rewards.notes)]
    return Outcome(tuple(metrics), counts, tuple(notes))


def _counted(
    answers: Sequence[Answer],
    seen: Mapping[str, _Seen],
    metrics: Sequence[Metric],
    rewards: ClipRewards | None,
) -> dict[str, int]:
    """Clips that everybody saw and all others, and what each could not see."""
    made = [answer.error is None and bool(answer.media) for answer in answers]
    whole = list(made)
    found: dict[str, int] = {}
    for name, one in seen.items():
        blind = [value is None for value in one.found]
        whole = [good and not lost for good, lost in zip(whole, blind, strict=True)]
        found[f"clips {name} could not see"] = sum(blind) - made.count(False)
    titles = {title for title, *_ in outputs_of(rewards)} if rewards is not None else set()
    for rated in (one for one in metrics if one.name in titles):
        unscored = [math.isnan(rated.per_item[answer.item.id]) for answer in answers]
        whole = [good and not lost for good, lost in zip(whole, unscored, strict=True)]
        lost = sum(bad and there for bad, there in zip(unscored, made, strict=True))
        if lost:
            found[f"clips {rated.name} could not score"] = lost
    return {"clips": sum(whole), "failed": len(whole) - sum(whole), **found}


def _notes(seen: Mapping[str, _Seen], there: Sequence[str], answers: Sequence[Answer]) -> Iterator[str]:
    measured = [name for name, tool in MEASURED.items() if tool in there]
    yield (
        f"{len(measured)} of VBench's {len(DIMENSIONS)} dimensions are measured here "
        f"({', '.join(measured)}): that is no VBench total, which the benchmark vbench computes from the "
        "official package's results."
    )
    styled = sum(bool(_style(answer)) for answer in answers)
    if styled and "style" not in there:
        yield f"{styled} clips were asked for in a style: tools.style=vit-b-32 measures appearance style."
    for name, found in seen.items():
        yield from (f"{name}: {problem}" for problem in found.problems[:3])


BENCHMARK = Benchmark(
    name="text_to_video",
    title="Text to video: rewards of frames and clips, VBench's light dimensions, motion beside all of them",
    produces="video",
    read=read_items,
    score=_score,
    files={
        "prompts.jsonl (or .json, .csv, .txt, ...)": "prompts of yours; or VBench_full_info.json of "
        "Vchitect/VBench",
    },
    tools=("rewards", "subject", "background", "aesthetic", "flow", "pixels"),
    options={
        "prompts": "name of the file of prompts",
        "dimensions": "of VBench that must be measured, with commas; what one of them lacks is said",
    },
    protocol={
        "images per prompt": 1,
        "subject consistency": "DINO ViT-B/16, whole frames; background: CLIP ViT-B/32, centre",
        "dynamic degree": "RAFT (things), 20 updates, every round(fps / 8)th frame",
        "aesthetic quality": "LAION v1 on CLIP ViT-L/14, all frames, / 10",
        "appearance style": "CLIP ViT-B/32 (tools.style), all frames, by Pillow; prompts with a style alone",
        "temporal flickering": "all clips, unless the prompts are VBench's",
        "clips": "mp4 as they are stored; frames, size, rate and sampler are in every model's recipe",
    },
    paper="2311.17982",
    official_code="Vchitect/VBench",
    licence="of the prompts: their own",
    departures=(
        "RAFT's weights are torchvision's port of the authors' (C_T_V1).",
        "DINO's position embeddings are brought to other frame shapes by transformers' interpolation, which "
        "differs from torch.hub's in the last digits; square frames do not need it.",
        "A clip too small for RAFT (128 pixels) or of one frame is counted as failed; the released code ends "
        "or scores it.",
        "Temporal flickering takes all clips of other prompts; the official package first drops clips that "
        "move.",
    ),
)
