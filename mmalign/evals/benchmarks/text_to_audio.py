"""Text to audio: FAD, FD, KL, IS and KID as audioldm_eval has them, and CLAP score, over one list of prompts.

Frechet distances need the references of the prompts, KL one of each. Every metric's name says what listened;
clips that cannot be heard are counted, never replaced.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.evals.adopted_pictures import is_sound
from mmalign.evals.audio.listeners import Heard, Listener, Loading
from mmalign.evals.base import Answer, Benchmark, Item, Metric, Outcome
from mmalign.evals.benchmarks._background_sounds import Background, hear_background, read_background
from mmalign.evals.benchmarks._harness import metric, official_file
from mmalign.evals.benchmarks._listened import Listened, file_of, listen
from mmalign.evals.benchmarks._records import mean
from mmalign.evals.class_scores import Over, class_divergence, inception_score
from mmalign.evals.prompts import read_prompts
from mmalign.evals.set_distances import frechet_distance, kernel_distance
from mmalign.rewards.base import Reward
from mmalign.rewards.sample import Sample, media_hash

__all__ = ["BENCHMARK", "read_items"]

_PROMPT_FILES = tuple(
    f"prompts{ending}" for ending in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
)
_AUDIOCAPS = "test_audiocaps_subset.json"
_NAMED = ("reference", "location", "audio", "file_name", "file", "youtube_id")
"""Fields of a prompt's record that may name its reference."""

_SEED, _SUBSETS, _SUBSET = 2020, 100, 1000
"""Of the released inception score and kernel distance."""

_FEW = 2000


def read_items(folder: Path, *, prompts: str = "", references: str = "references") -> list[Item]:
    """Prompts with their references.

    Args:
        folder: with the prompts and a folder of references.
        prompts: name of the file; without it `prompts.*`, or Tango's `test_audiocaps_subset.json`.
        references: folder of reference clips, relative to `folder`; "none" for prompts without.

    Raises:
        ConfigError: a file is not there, or prompts have no reference; says how many and which name it
            would have.
    """
    path = official_file(folder, *((prompts,) if prompts else (*_PROMPT_FILES, _AUDIOCAPS)))
    found = read_prompts(str(path))
    if references == "none":
        return [Item(item.id, item.prompt, (), item.group, _asked(item)) for item in found]
    root = folder / references
    files: dict[str, Path] = {}
    for file in sorted(root.rglob("*")) if root.is_dir() else ():
        if is_sound(file):
            # By its name without ending; the folder's own files before those of its sub-folders.
            files.setdefault(file.relative_to(root).with_suffix("").as_posix(), file)
            files.setdefault(file.stem, file)
    places = [
        next((files[name] for name in _names(item, number) if name in files), None)
        for number, item in enumerate(found)
    ]
    lacking = [number for number, place in enumerate(places) if place is None]
    if lacking:
        names = list(_names(found[lacking[0]], lacking[0]))
        message = explain(
            str(root),
            got=f"[no reference of {len(lacking)} of {len(found)} prompts]",
            expected=f"one of each, the first under a name like {', '.join(names[:4])} (.wav, .flac, ...)",
            do="Give references=none to leave out what needs them.",
        )
        raise ConfigError(message)
    return [
        Item(
            item.id,
            item.prompt,
            (place,),
            item.group,
            {"reference": place.name, "sha256": media_hash(place), **_asked(item)},
        )
        for item, place in zip(found, places, strict=True)
        if place is not None
    ]


def _asked(item: Item) -> dict[str, Any]:
    """How long the clip is to be, where the prompt's record says so."""
    given = item.expected.get("duration")
    return {} if given in (None, "") else {"duration": given}


def _names(item: Item, number: int) -> Iterator[str]:
    """Names a reference may go by, without ending: what its record says, its id, its number."""
    for name in _NAMED:
        given = item.expected.get(name)
        if isinstance(given, str) and given:
            stem = Path(given).with_suffix("") if is_sound(given) else Path(given)
            yield from (stem.as_posix(), stem.name, f"Y{stem.name}")
    short = item.id.partition("/")[2]
    yield from (short, short.lstrip("0") or "0", f"output_{number}", f"{number:05d}", str(number))


# ------------------------------------------------------------------------------------------------- scoring


def _distances(
    title: str,
    listener: Listener,
    listened: Listened,
    behind: Background | None,
    loading: Loading,
    lost: dict[str, int],
    references: bool,
) -> Iterator[Metric]:
    """From the references and from a background set, of which `lost` counts what could not be heard."""
    clips, others = listened.pooled()
    if references:
        yield from _distance(f"{title} ({listener.name})", clips, others)
    if behind is not None:
        features, problems = hear_background(listener, behind, loading)
        lost[f"background clips {listener.name} could not hear"] = len(problems)
        yield from _distance(f"{title} ({listener.name}, background {behind.name})", clips, features)


def _distance(name: str, clips: Tensor, references: Tensor) -> Iterator[Metric]:
    """Frechet distance; NaN where there are fewer than two on a side."""
    known = len(clips) > 1 and len(references) > 1
    value = float(frechet_distance(clips, references)) if known else math.nan
    unit = f"Frechet distance of {len(clips)} and {len(references)} features, lower is better"
    yield metric(name, value, unit, higher_is_better=False)


def _verdicts(
    name: str, listened: Listened, answers: Sequence[Answer], splits: int, *, references: bool
) -> Iterator[Metric]:
    """What a classifier's verdicts say: KL against references, inception score, kernel distance."""
    if references:
        yield from _divergences(name, listened, answers)
    logits = [one.logits for one in listened.clips if one is not None and one.logits is not None]
    sure = inception_score(torch.stack(logits), splits=splits, seed=_SEED) if len(logits) >= splits else None
    unit = f"exp(mean KL to the mean verdict), {splits} splits of {len(logits)} clips, higher is better"
    value, spread = (math.nan, math.nan) if sure is None else (sure.value, sure.spread)
    yield metric(f"IS ({name})", value, unit)
    yield metric(f"IS spread ({name})", spread, "standard deviation over splits", higher_is_better=None)
    if not references:
        return
    clips, others = listened.pooled()
    known = len(clips) > 1 and len(others) > 1
    kernel = (
        kernel_distance(clips, others, subset_size=_SUBSET, num_subsets=_SUBSETS, seed=_SEED, released=True)
        if known
        else None
    )
    size = 0 if kernel is None else kernel.subset_size
    unit = f"squared maximum mean discrepancy, {_SUBSETS} subsets of {size}, lower is better"
    yield metric(f"KID ({name})", math.nan if kernel is None else kernel.value, unit, higher_is_better=False)


def _divergences(name: str, listened: Listened, answers: Sequence[Answer]) -> Iterator[Metric]:
    """KL of each clip from its reference, over softmax and over sigmoids."""
    places = listened.paired()
    target, found = (_logits(heard, places) for heard in (listened.references, listened.clips))
    ways: tuple[tuple[str, Over], ...] = (("KL", "softmax"), ("KL sigmoid", "sigmoid"))
    for title, over in ways:
        values = [math.nan] * len(answers)
        if places:
            each = class_divergence(target, found, over=over)
            for place, value in zip(places, each.tolist(), strict=True):
                values[place] = value
        pairs = [(answer.item.id, value) for answer, value in zip(answers, values, strict=True)]
        unit = f"nats, sum p log(p / q) over {over}, reference to clip, lower is better"
        yield metric(f"{title} ({name})", mean(values), unit, higher_is_better=False, per_item=pairs)


def _logits(heard: Sequence[Heard | None], places: Sequence[int]) -> Tensor:
    kept = (heard[place] for place in places)
    found = [one.logits for one in kept if one is not None and one.logits is not None]
    return torch.stack(found) if found else torch.zeros(0, 0)


def _texts(clap: Reward, answers: Sequence[Answer]) -> Metric:
    """CLAP score; NaN of clips it could not score."""
    made = [place for place, answer in enumerate(answers) if answer.error is None and answer.media]
    samples = [Sample(answers[place].item.prompt, audio=file_of(answers[place].media[0])) for place in made]
    values = [math.nan] * len(answers)
    for place, value in zip(made, clap.score(samples).first().tolist(), strict=True):
        values[place] = value
    pairs = [(answer.item.id, value) for answer, value in zip(answers, values, strict=True)]
    title = clap.card.name.removeprefix("clap").strip("[]") or clap.card.name
    return metric(f"CLAP ({title})", mean(values), clap.card.scale or "cosine", per_item=pairs)


def _score(
    answers: Sequence[Answer],
    *,
    vggish: Listener | None = None,
    panns: Listener | None = None,
    clap: Reward | None = None,
    clap_sounds: Listener | None = None,
    loading: Loading = "clean",
    splits: int = 10,
    background: str = "",
) -> Outcome:
    if loading not in get_args(Loading):
        raise ConfigError(explain("loading", got=loading, expected=" or ".join(get_args(Loading))))
    if vggish is None and panns is None and clap is None and clap_sounds is None:
        raise ConfigError(explain("tools", got="[none]", expected="one of vggish, panns, clap, clap_sounds"))
    ordered = sorted(answers, key=lambda answer: (answer.item.id, answer.copy))
    references = any(answer.item.media for answer in ordered)
    heard = {
        listener.name: listen(listener, ordered, loading)
        for listener in (vggish, panns, clap_sounds)
        if listener is not None
    }
    metrics: list[Metric] = []
    behind = read_background(background) if background else None
    lost: dict[str, int] = {}
    for listener, title in ((vggish, "FAD"), (panns, "FD"), (clap_sounds, "FD")):
        if listener is not None:
            metrics += _distances(title, listener, heard[listener.name], behind, loading, lost, references)
    if panns is not None:
        metrics += _verdicts(panns.name, heard[panns.name], ordered, splits, references=references)
    if clap is not None:
        metrics.append(_texts(clap, ordered))
    if not metrics:
        do = "Or give options.background, a folder of sounds."
        message = explain("metrics", got="[no references]", expected="panns or clap, which need none", do=do)
        raise ConfigError(message)
    counts = _counts(ordered, heard, metrics[-1] if clap is not None else None, references=references)
    counts |= lost
    distances = references or behind is not None
    notes = _notes(heard, counts["clips"], loading, references=distances)
    return Outcome(tuple(metrics), counts, tuple(notes))


def _counts(
    answers: Sequence[Answer], heard: Mapping[str, Listened], texts: Metric | None, *, references: bool
) -> dict[str, int]:
    """Clips that every network heard and all others, and what each could not hear."""
    made = [answer.error is None and bool(answer.media) for answer in answers]
    whole = list(made)
    found: dict[str, int] = {}
    for name, listened in heard.items():
        deaf = [one is None for one in listened.clips]
        whole = [one and not lost for one, lost in zip(whole, deaf, strict=True)]
        found[f"clips {name} could not hear"] = sum(deaf) - made.count(False)
        found[f"references {name} could not hear"] = (
            sum(one is None for one in listened.of_items) if references else 0
        )
    if texts is not None:
        unscored = [math.isnan(texts.per_item[answer.item.id]) for answer in answers]
        whole = [one and not lost for one, lost in zip(whole, unscored, strict=True)]
    return {"clips": sum(whole), "failed": len(whole) - sum(whole), **found}


def _notes(heard: Mapping[str, Listened], count: int, loading: Loading, *, references: bool) -> Iterator[str]:
    if references and count < _FEW:
        yield (
            f"Frechet distances are biased upwards with few clips; compare sets of {count} clips with such "
            "sets alone."
        )
    if loading == "released":
        yield "Files of 32 and 48 kHz were read with audioldm_eval's defects (loading: released)."
    for name, found in heard.items():
        yield from (f"{name}: {problem}" for problem in found.problems[:3])


BENCHMARK = Benchmark(
    name="text_to_audio",
    title="Text to audio: FAD (VGGish), FD, KL, IS and KID (PANNs), CLAP score",
    produces="audio",
    read=read_items,
    score=_score,
    files={
        "prompts.jsonl (or .json, .csv, .txt, ...)": "captions of yours, of AudioCaps or of MusicCaps; or "
        "test_audiocaps_subset.json of declare-lab/tango",
        "references/": "a clip of each prompt under the name its record gives, its id or its number",
    },
    tools=("vggish", "panns", "clap", "clap_sounds"),
    options={
        "prompts": "name of the file of prompts",
        "references": "folder of reference clips; none leaves out FAD, FD, KL and KID",
        "loading": "clean resamples properly; released drops samples of 32 and 48 kHz files, as released",
        "splits": "of the inception score; 10 in the released code",
        "background": "folder of sounds that have nothing to do with the prompts: FAD and FD from it, under "
        "its name and the digest of its files; from the current folder",
    },
    protocol={
        "images per prompt": 1,
        "FAD": "VGGish at 16 kHz, before the last rectifier, no PCA, all windows pooled",
        "FD, KL, IS, KID": "PANNs Cnn14, first channel, whole clip",
        "KL": "reference || generated, 1e-6 added to the generated side",
        "IS and KID": "numpy RandomState(2020), clips in the order of their ids",
        "references": "of the same prompts, matched by name",
        "background": "none; of a set that is given the metric bears name and digest",
    },
    paper="2301.12503",
    official_code="haoheliu/audioldm_eval",
    licence="of the prompts and references: their own",
    departures=(
        "A prompt without a reference is an error, one without a clip a count; the released code then "
        "reports a KL of -1.",
        "Files that cannot be read are counted; the released code takes the next file, or silence.",
        "Files of 32 and 48 kHz are resampled; the released code drops samples, twice at 32 kHz "
        "(loading: released).",
        "VGGish's files are resampled by a windowed sinc; the released code uses resampy.",
        "Clips are shuffled for IS in the order of their ids; the released code has the order of file names.",
    ),
)
