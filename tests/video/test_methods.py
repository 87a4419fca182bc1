"""Methods on models of video: numbers of rows, labels on latent frames, shared beginnings, weights, parts."""

import json
from pathlib import Path

import pytest
import torch

from mmalign import methods, objectives, registry
from mmalign.data.segments import FrameGrid
from mmalign.errors import ConfigError, TrainingError
from mmalign.methods import video
from mmalign.train.config import load_run
from mmalign.train.micro_batch import to_batch
from mmalign.train.parts import data_of, load_model, make_likelihood, row_needs
from mmalign.train.run import prepare
from mmalign.train.step import preference_step

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

FAMILIES = [name for name in registry.names("families") if registry.modality(name) == "video"]
EXTRA_COLUMNS = {"videodpo": "pair_weight", "dynamics_boost": "shared_prefix_frames"}


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory, clip_rows):
    """`rows_of("videodpo")`: seven rows with everything that a method reads."""

    def write(method: str) -> Path:
        source = clip_rows("segments")
        path = source.parent / f"of_{method}.jsonl"
        lines = [json.loads(line) for line in source.read_text().splitlines()]
        for number, row in enumerate(lines):
            row |= {"score_chosen": 60.0 + number, "score_rejected": 40.0}
            row |= {"pair_weight": 1.0 + number, "shared_prefix_frames": 5}
            if methods.find(method).data == "unpaired":
                row["video"], row["label"] = row.pop("chosen"), number % 2
                row = {name: row[name] for name in ("prompt", "video", "label")}
            elif methods.find(method).data == "lists":
                row["candidates"] = [row.pop("chosen"), row.pop("rejected")]
                row["scores"] = [row.pop("score_chosen") / 100, row.pop("score_rejected") / 100]
            lines[number] = row
        path.write_text("".join(json.dumps(row) + "\n" for row in lines))
        return path

    return write


def of_video() -> list[str]:
    """Offline methods with numbers for video."""
    return [row.name for row in methods.runs() if "video" in row.defaults and not row.rollout]


@pytest.mark.parametrize("method", of_video())
@pytest.mark.parametrize(
    "family",
    [
        name if name in ("wan", "cogvideox") else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_every_method_of_video_is_complete_for_every_family(method, family, tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"method: {method}\nmodel: {{family: {family}, source: nowhere}}\n"
        f"video: {{}}\ndata: {{source: rows.jsonl}}\ntrain: {{output: {tmp_path}/run}}\n"
    )
    run = load_run(path)
    assert run.config.train.learning_rate
    assert run.config.train.steps
    objectives.build(method if not run.method.objective else run.method.objective, **run.objective_arguments)
    expected = 1000.0 if family in video.FLOWS else 5000.0
    if "beta" in run.objective_arguments and method in ("diffusion_dpo", "videodpo", "gapo_gap_aware"):
        assert run.objective_arguments["beta"] == expected


def test_noise_of_its_own_for_each_side_where_the_paper_has_it(write_run, load_wan) -> None:
    for method, shared in (("flow_dpo", True), ("structural_dpo", False), ("densedpo", False)):
        run = load_run(write_run(method, method=method))
        assert make_likelihood(run.config.likelihood, load_wan()).share_noise is shared
    run = load_run(write_run("densedpo", method="densedpo", likelihood={"share_noise": True}))
    assert make_likelihood(run.config.likelihood, load_wan()).share_noise is True


@pytest.mark.parametrize(
    "method",
    [
        row
        if row in ("videodpo", "dynamics_boost", "densedpo_per_segment")
        else pytest.param(row, marks=pytest.mark.slow)
        for row in (*(row.name for row in video.ROWS), "densedpo", "densedpo_per_segment")
    ],
)
def test_every_row_makes_a_step_whole_and_in_parts(method, write_run, rows_of) -> None:
    source = {"path": str(rows_of(method)), "media": "video"}
    if methods.find(method).data == "lists":
        source["lists"] = "keep"
    found = {}
    for split in (False, True):
        run = load_run(
            write_run(
                f"{method}{split}",
                method=method,
                data={"source": source},
                objective={},
                train={"split_backward": split, "split_size": 1} if split else {},
            )
        )
        loop, loader = prepare(run)
        batch = to_batch(next(iter(loader)), loop.model, torch.device("cpu"))
        output = preference_step(loop.parts, batch, is_record=True)
        output.backward()
        found[split] = (
            output,
            batch,
            [value.grad.clone() for value in loop.trainables.parameters.values()],
        )
    (whole, batch, expected), (parts, _, gradients) = found[False], found[True]
    assert float(parts.loss.detach()) == pytest.approx(float(whole.loss.detach()), rel=1e-5)
    largest = max(float(value.abs().max()) for value in expected)
    assert largest > 0
    for one, other in zip(gradients, expected, strict=True):
        assert float((one - other).abs().max()) < 1e-3 * largest
    if method in EXTRA_COLUMNS:
        # Latents of 9 pictures: 1, 4, 4. Five shared ones leave the last alone.
        mask = batch.element_mask
        assert (mask is None) == (method == "videodpo")
        if mask is not None:
            assert mask[:, :, 0].amax((-1, -2)).tolist() == [[[0.0, 0.0, 1.0]] * 2] * len(mask)


def test_videodpo_weighs_its_pairs_by_the_column_of_the_data(write_run, rows_of) -> None:
    run = load_run(
        write_run("weighed", method="videodpo", data={"source": str(rows_of("videodpo")), "shuffle": False})
    )
    loop, loader = prepare(run)
    batch = to_batch(next(iter(loader)), loop.model, torch.device("cpu"))
    assert batch.recorded["pair_weight"].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    output = preference_step(loop.parts, batch)
    assert float(output.loss.detach()) == pytest.approx(3 * 0.693147, rel=1e-5)


def test_rows_without_what_a_method_reads_are_counted(write_run, clip_rows) -> None:
    run = load_run(write_run("bare", method="videodpo", data={"source": str(clip_rows("pairs"))}))
    _, loader = prepare(run)
    with pytest.raises(TrainingError, match="column 'pair_weight', which this method reads"):
        next(iter(loader))


def test_labels_lie_on_latent_frames_of_unequal_length(write_run) -> None:
    run = load_run(write_run("dense", method="densedpo", kind="segments"))
    model = load_model(run, torch.device("cpu"))
    objective = objectives.build("densedpo", **run.objective_arguments)
    needs = row_needs(run, model, objective, is_online=False)
    assert needs.frames == FrameGrid.of_pictures([range(1), range(1, 5), range(5, 9)], 8.0)
    assert (needs.apart, needs.columns, needs.reward) == (None, frozenset(), False)


def test_pairs_that_tie_as_wholes_stay_where_labels_in_time_are_learnt(write_run, clip_rows) -> None:
    dense, whole = (
        load_run(write_run(method, method=method, kind="segments")) for method in ("densedpo", "flow_dpo")
    )
    assert (data_of(dense).tie_policy, data_of(whole).tie_policy) == ("soft", "drop")
    data = {"source": str(clip_rows("segments")), "tie_policy": "random"}
    given = load_run(write_run("coin", method="densedpo", data=data))
    assert data_of(given).tie_policy == "random"


def test_stored_errors_of_whole_clips_are_refused_before_anything_is_loaded(write_run) -> None:
    for method in ("densedpo", "densedpo_per_segment"):
        path = write_run("stored", method=method, kind="segments", reference={"kind": "stored"})
        refused = (
            r"reference.kind: got 'stored', expected auto, .* compares frames, and what is stored are errors"
        )
        with pytest.raises(ConfigError, match=refused):
            load_run(path)


def test_time_is_counted_from_the_beginning_of_clips(write_run) -> None:
    run = load_run(write_run("middle", method="densedpo", kind="segments", video={"start": "middle"}))
    model = load_model(run, torch.device("cpu"))
    objective = objectives.build("densedpo", **run.objective_arguments)
    with pytest.raises(ConfigError, match=r"video\.start: got 'middle', expected first: method densedpo"):
        row_needs(run, model, objective, is_online=False)
