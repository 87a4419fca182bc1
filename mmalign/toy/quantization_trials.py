"""What quantised frozen weights do to DPO in the toy worlds of images and of dialogues, against float32.

    python -m mmalign.toy.quantization_trials --output docs/measurements/quantization.jsonl \
        --page docs/quantization.md

trains LoRA over every kind of base on every seed, with the same data, order, adapter and noise, and renews
the tables of the page. What is stored is not trained again. `tests/toy/test_quantization.py` holds what they
claim.

A seed of images also measures logits of pairs: policy minus reference, times beta. What the rounding of
weights does to them is compared with what it would do if the reference did not share it.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Batch, Labels, RowKeys
from mmalign.data.readers import open_rows
from mmalign.files import append_json_line, read_json_lines
from mmalign.toy.comparison import Interval, bootstrap_mean
from mmalign.toy.demo import recipe_path
from mmalign.toy.dialogue_claims import Trial
from mmalign.toy.dialogue_claims import World as DialogueWorld
from mmalign.toy.dialogue_exam import ExamComparison
from mmalign.toy.dialogue_parts import ASSETS
from mmalign.toy.guide_tables import renew, table
from mmalign.toy.method_bench import Experiment, Worlds, scores_of
from mmalign.toy.method_settings import BASELINE
from mmalign.train.adapters import Trainables, attach
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.parts import denoiser_of, likelihood_of, load_model
from mmalign.train.quantization import QuantizationReport, report_of
from mmalign.train.run import train

__all__ = ["KINDS", "dialogue_trial", "difference", "image_trial", "main", "margins", "tables"]

KINDS = ("float32", "int8", "fp8", "nf4")
"""Of the frozen linear layers' weights; the first is what the others are compared with."""

World = Literal["images", "dialogues"]
_TRY = 1
"""Beta 1000 at a rate of 0.001, which `mmalign bench methods` chose for DPO on seed 0."""

_NUM_LOGITS = 64


def _experiment(kind: str, seed: int) -> Experiment:
    extra = () if kind == "float32" else (("model.quantization", kind),)
    return Experiment(BASELINE, _TRY, seed, extra=extra)


# --- images -------------------------------------------------------------------------------------------------


def image_trial(
    worlds: Worlds, kind: str, seed: int, *, learnt: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One training and what it gained per held-out caption; returns the record and the adapter.

    Args:
        worlds: data.
        kind: of the base's weights.
        seed: of data, order, adapter, noise and captions.
        learnt: an adapter that was trained over float32 weights, to measure logits with.
    """
    plain = _experiment("float32", seed)
    worlds.prepare(plain)  # by the float32 base, whose pictures everything is compared with
    run = worlds.run(_experiment(kind, seed))
    report = report_of(load_model(run, torch.device("cpu")).network)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = run.config.train.model_copy(update={"output": folder})
        started = time.process_time()
        result = train(replace(run, config=run.config.model_copy(update={"train": settings})))
        seconds = time.process_time() - started
    scores = scores_of(cast("Any", result.model), plain.learns_from.taste, seed)
    gains = [new.total - old.total for new, old in zip(scores, worlds.base(plain), strict=True)]
    learnt = result.trainables.state() if learnt is None else learnt
    record = _record("images", kind, seed, gains, report, seconds)
    return {**record, "margin": margins(worlds, kind, seed, learnt)}, dict(learnt)


def margins(worlds: Worlds, kind: str, seed: int, learnt: Mapping[str, Tensor]) -> dict[str, float]:
    """Logits of the seed's first pairs, in the units of the loss.

    Args:
        worlds: prepared for the seed.
        kind: of the base's weights.
        seed: of the pairs.
        learnt: adapter, put on this base and on float32 weights.

    Returns:
        `start`: the largest logit before training. `spread`: standard deviation of the logits with the
        adapter on float32 weights. `shared`: standard deviation of what this base changes of them, reference
        and policy alike. `apart`: the same before training if the reference had float32 weights.
    """
    score, off, on = _scores(worlds.run(_experiment(kind, seed)), learnt)
    wide, wide_off, wide_on = _scores(worlds.run(_experiment("float32", seed)), learnt)
    exact = wide_on - wide_off
    return {
        "start": float((score - off).abs().max()),
        "spread": float(exact.std()),
        "shared": float((on - off - exact).std()),
        "apart": float((score - wide).std()),
    }


@torch.no_grad()
def _scores(
    run: ResolvedRun, learnt: Mapping[str, Tensor]
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """Beta times (chosen minus rejected score): policy and reference before training, then the adapter."""
    model: Any = load_model(run, torch.device("cpu"))
    trainables: Trainables = attach(
        model.network, run.config.adapter, default_targets=model.adapter_targets, seed=run.config.train.seed
    )
    rows = open_rows(run.config.data)
    examples = [model.example(rows[index], key=index) for index in range(_NUM_LOGITS)]
    keys = RowKeys(key=torch.arange(_NUM_LOGITS), stratum=torch.zeros(_NUM_LOGITS), num_strata=_NUM_LOGITS)
    clean, conditioning = model.encode(model.collate(examples), keys)
    ones = torch.ones(_NUM_LOGITS)
    batch = Batch(clean, conditioning, Labels.pairs(_NUM_LOGITS), ones, ones.bool(), keys)
    likelihood: Any = likelihood_of(run, model)
    draw, denoise = likelihood.draw(batch), denoiser_of(model)(model.network)
    beta = float(run.objective_arguments["beta"])

    def scored() -> Float[Tensor, " prompt"]:
        score: Tensor = likelihood.evaluate(denoise, batch, draw).score
        return beta * (score[:, 0] - score[:, 1])

    start = scored()
    with trainables.disabled():
        reference = scored()
    trainables.load(learnt)
    return start, reference, scored()


# --- dialogues ----------------------------------------------------------------------------------------------


def dialogue_trial(world: DialogueWorld, kind: str) -> dict[str, Any]:
    """One training; the gain is the fall of hallucinating descriptions, per picture.

    Args:
        world: whose base was asked over float32 weights first.
        kind: of the base's weights.
    """
    overrides = () if kind == "float32" else (f"model.quantization={kind}",)
    started = time.process_time()
    base, tuned = world.answers(Trial(f"DPO over {kind}", "dpo", overrides=overrides))
    seconds = time.process_time() - started
    run = load_run(
        recipe_path("vlm/configs/toy/dpo.yaml"), overrides, extra={"model": {"source": str(ASSETS)}}
    )
    report = report_of(load_model(run, torch.device("cpu")).network)
    comparison = ExamComparison(world.exam, base, tuned)
    gains = (-comparison.differences("hallucinated")).tolist()
    record = _record("dialogues", kind, world.seed, gains, report, seconds)
    return {**record, "recall": round(float(comparison.differences("recall").mean()), 4)}


def _record(
    world: World, kind: str, seed: int, gains: Sequence[float], report: QuantizationReport, seconds: float
) -> dict[str, Any]:
    return {
        "world": world,
        "kind": kind,
        "seed": seed,
        "gains": [round(gain, 4) for gain in gains],
        "layers": sum(report.layers.values()),
        "narrow_weights": report.narrow_weights,
        "narrow_bytes": report.narrow_bytes,
        "seconds": round(seconds, 1),
    }


# --- tables -------------------------------------------------------------------------------------------------

Records = Sequence[Mapping[str, Any]]


def _of(records: Records, world: str, kind: str) -> dict[int, Mapping[str, Any]]:
    return {one["seed"]: one for one in records if one["world"] == world and one["kind"] == kind}


def difference(records: Records, world: str, kind: str) -> Interval:
    """Gain over a kind of base minus the gain over float32, paired by seed and caption or picture."""
    own, wide = _of(records, world, kind), _of(records, world, KINDS[0])
    seeds = sorted(own.keys() & wide.keys())
    gaps = [torch.tensor(own[seed]["gains"]) - torch.tensor(wide[seed]["gains"]) for seed in seeds]
    return bootstrap_mean(torch.cat(gaps))


def _gain(found: Mapping[int, Mapping[str, Any]]) -> Interval:
    return bootstrap_mean(torch.cat([torch.tensor(found[seed]["gains"]) for seed in sorted(found)]))


def _said(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


_COLUMNS = (
    ("frozen weights", "---"),
    ("layers", "---:"),
    ("bytes per weight", "---:"),
    ("gain", "---"),
    ("gain minus float32's", "---"),
    ("by seed", "---"),
)
_LOGITS = (
    ("frozen weights", "---"),
    ("largest logit before training", "---:"),
    ("logits after it", "---:"),
    ("error of those", "---:"),
    ("error with a float32 reference", "---:"),
)


def _mean(found: Mapping[int, Mapping[str, Any]], name: str) -> float:
    return sum(float(one["margin"][name]) for one in found.values()) / len(found)


def tables(records: Records) -> dict[str, str]:
    """The page's tables by name: of both worlds, and of logits."""
    made = {}
    for world in ("images", "dialogues"):
        rows = []
        for kind in KINDS:
            found = _of(records, world, kind)
            if not found:
                continue
            one = next(iter(found.values()))
            each = 4.0 if kind == KINDS[0] else one["narrow_bytes"] / one["narrow_weights"]
            against = "" if kind == KINDS[0] else _said(difference(records, world, kind))
            by_seed = ", ".join(
                f"{sum(found[seed]['gains']) / len(found[seed]['gains']):+.3f}" for seed in sorted(found)
            )
            layers = "" if kind == KINDS[0] else str(one["layers"])
            rows.append([kind, layers, f"{each:.2f}", _said(_gain(found)), against, by_seed])
        made[world] = table(_COLUMNS, rows)
    rows = []
    for kind in KINDS[1:]:
        found = _of(records, "images", kind)
        if found:
            names = ("start", "spread", "shared", "apart")
            rows.append([kind, *(f"{_mean(found, name):.3g}" for name in names)])
    return {**made, "logits": table(_LOGITS, rows)}


# --- command ------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: run what is not stored, print the tables, renew the page."""
    parser = argparse.ArgumentParser(
        prog="python -m mmalign.toy.quantization_trials",
        description="Align two toy worlds over quantised frozen weights.",
    )
    parser.add_argument(
        "--worlds", nargs="*", choices=("images", "dialogues"), default=["images", "dialogues"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, required=True, help="one line of JSON per training")
    parser.add_argument("--page", type=Path, help="Markdown whose tables are renewed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known = _stored(options.output)
    for world in options.worlds:
        for seed in options.seeds:
            missing = [kind for kind in KINDS if (world, kind, seed) not in known]
            if missing:
                _run_seed(world, seed, missing, options.output)
    records = list(_stored(options.output).values())
    made = tables(records)
    for name, text in made.items():
        print(f"{name}\n\n{text}\n")
    if options.page is not None:
        renew(options.page, made)


def _stored(path: Path) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    records = read_json_lines(path) if path.exists() else []
    return {(one["world"], one["kind"], one["seed"]): one for one in records}


def _run_seed(world: str, seed: int, missing: Sequence[str], output: Path) -> None:
    """The kinds of a seed that are not stored; float32 comes first, for the others are measured by it."""
    with tempfile.TemporaryDirectory() as folder:
        learnt: dict[str, Tensor] | None = None
        worlds, dialogues = Worlds(Path(folder)), None
        for kind in KINDS:
            if kind not in missing and kind != KINDS[0]:
                continue
            if world == "images":
                record, learnt = image_trial(worlds, kind, seed, learnt=learnt)
            else:
                dialogues = dialogues or DialogueWorld(Path(folder), seed)
                record = dialogue_trial(dialogues, kind)
            if kind in missing:
                append_json_line(output, record)
                print(world, kind, seed, f"{sum(record['gains']) / len(record['gains']):+.3f}", flush=True)


if __name__ == "__main__":
    main()
