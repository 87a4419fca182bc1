"""Every recipe of the video folder is a valid run, opens with its commands, says what it costs, and runs."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mmalign import registry
from mmalign.cli.recipes import recipe_names
from mmalign.testing.tiny import write_tiny_sd15
from mmalign.testing.tiny_video.animatediff import write_tiny_motion_adapter
from mmalign.testing.tiny_video.cogvideox import write_tiny_cogvideox
from mmalign.testing.tiny_video.hunyuan_video import write_tiny_hunyuan_video
from mmalign.testing.tiny_video.ltx import write_tiny_ltx
from mmalign.testing.tiny_video.text_to_video import write_tiny_text_to_video
from mmalign.testing.tiny_video.videocrafter import write_tiny_videocrafter
from mmalign.testing.tiny_video.wan import write_tiny_wan
from mmalign.train.config import load_run
from mmalign.train.rollouts import is_online
from mmalign.train.run import describe, train

CONFIGS = Path(__file__).parents[2] / "video" / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in ("pairs", "toy"))
QUICK = ("wan/densedpo", "wan/wan22_low", "cogvideox/5b_i2v_gapo", "ltx/flow_dpo")
WAN = {"i2v_flow_dpo_lora": "i2v", "wan22_high": "a14b", "wan22_low": "a14b", "wan22_5b": "ti2v"}
PIXELS = {"ltx": (17, 64, 96), "hunyuan_video": (5, 32, 48), "wan": (9, 32, 48), "cogvideox": (9, 32, 48)}


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


each_recipe = pytest.mark.parametrize("path", RECIPES, ids=named)


def head_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n\n")[0]


@pytest.fixture(scope="session")
def counted():
    """`benchmarks/video_memory.py`, which is no part of the package."""
    place = Path(__file__).parents[2] / "benchmarks" / "video_memory.py"
    spec = importlib.util.spec_from_file_location("video_memory", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules["video_memory"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["video_memory"]


def test_every_family_has_a_recipe():
    families = {name for name in registry.names("families") if registry.modality(name) == "video"}
    assert {path.parent.name for path in RECIPES} == families


@each_recipe
def test_a_recipe_is_a_valid_run_that_explains_itself(path):
    run, family = load_run(path), path.parent.name
    assert run.config.model.family == family
    assert run.config.train.output == f"runs/{family}-{path.stem}"
    head, text = head_of(path), path.read_text(encoding="utf-8")
    assert f"mmalign train video/configs/{named(path)}.yaml" in head
    for word in ("Data", "Hardware", "Memory", "Time", "Expect", "Source"):
        assert re.search(rf"^# {word}\b", head, flags=re.MULTILINE), word
    assert max(len(line) for line in text.splitlines()) <= 110
    # PyYAML reads 1e-5 as text.
    assert not re.search(r":\s*\d+e-?\d+", text)
    released = [item.setting for item in run.differences if item.mark in ("code", "paper")]
    assert not released or re.search(r"\bours\b", head, flags=re.IGNORECASE), released


def test_videodpo_of_its_own_model_has_the_numbers_of_the_released_code():
    run = load_run(CONFIGS / "videocrafter" / "videodpo.yaml")
    assert not run.differences
    section = run.config.train
    assert run.objective_arguments["beta"] == 5000.0
    assert (section.learning_rate, section.steps, run.config.adapter.kind) == (6e-6, 3000, "none")
    assert (section.batch_size * section.accumulation, run.config.media.prompt_dropout) == (8, 0.2)


def test_densedpo_has_the_numbers_of_the_paper():
    run = load_run(CONFIGS / "wan" / "densedpo.yaml")
    assert [item.setting for item in run.differences] == ["effective batch on one device"]
    section, likelihood = run.config.train, run.config.likelihood
    assert (section.learning_rate, section.steps, section.warmup_ratio) == (1e-5, 1000, 0.25)
    assert (run.config.adapter.rank, run.objective_arguments["beta"]) == (128, 1000.0)
    assert (likelihood.timesteps, likelihood.share_noise) == ("logit_normal", False)


# ------------------------------------------------------------------------------------------------- memory


def test_counts_without_weights_are_those_of_a_dry_run(counted, write_run, load_wan):
    settings = dict(load_wan().bare_network.config)
    tiny = counted.Released(
        "WanTransformer3DModel",
        {name: value for name, value in settings.items() if not name.startswith("_")},
        counted.wan(4, text=24),
        (4, 8),
        (9, 32, 48),
        "a test",
    )
    for split in (False, True):
        train_section = {"split_backward": split, "mixed_precision": "bf16"}
        model = load_run(write_run()).config.model.model_dump() | {"gradient_checkpointing": True}
        run = load_run(write_run(f"plan{split}", model=model, train=train_section))
        planned = describe(run)["memory"]
        found = {item.component: item.num_bytes for item in counted.memory_of(run, tiny)}
        assert set(planned) - set(found) == {"VAE", "text encoder 1"}
        for name, size in found.items():
            assert size == pytest.approx(planned[name], rel=1e-3), name
        assert found["largest recomputed block"] > 0


@pytest.mark.parametrize(
    ("source", "billions"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 1.419),
        ("zai-org/CogVideoX-2b", 1.694),
        ("Lightricks/LTX-Video", 1.923),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 1.277),
        ("ali-vilab/text-to-video-ms-1.7b", 1.411),
    ],
)
def test_networks_have_the_sizes_of_the_released_ones(counted, source, billions):
    network = counted.outline(counted.NETWORKS[source], counted.torch.bfloat16)
    assert sum(value.numel() for value in network.parameters()) / 1e9 == pytest.approx(billions, abs=6e-4)


@pytest.mark.slow
@each_recipe
def test_heads_say_what_is_counted_and_what_holds_it(path, counted):
    total = sum(item.num_bytes for item in counted.memory_of(load_run(path)))
    said = re.search(r"About ([\d.]+) GiB", head_of(path))
    assert said is not None
    assert float(said[1]) == pytest.approx(total / 2**30, abs=0.06)
    assert f"1 GPU with {counted.card_for(total)} GB" in head_of(path)


# ---------------------------------------------------------------------------------------------------- runs


def tiny_model(path: Path, place: Path) -> list[str]:
    """Settings of the `model` and `video` sections for a tiny model of a recipe's family."""
    family, stem = path.parent.name, path.stem
    frames, height, width = PIXELS.get(family, (3, 16, 32))
    writers = {
        "wan": lambda: write_tiny_wan(place, variant=WAN.get(stem, "t2v")),
        "cogvideox": lambda: write_tiny_cogvideox(place, version=stem[:2], from_image="i2v" in stem),
        "ltx": lambda: write_tiny_ltx(place),
        "hunyuan_video": lambda: write_tiny_hunyuan_video(place),
        "animatediff": lambda: write_tiny_sd15(place),
        "text_to_video": lambda: write_tiny_text_to_video(place),
        "videocrafter": lambda: write_tiny_videocrafter(place),
    }
    if WAN.get(stem) == "ti2v":
        height, width = 64, 96
    more = []
    if family == "animatediff":
        more = [f"model.motion_adapter={write_tiny_motion_adapter(place.with_name('motion'))}"]
    sizes = [f"video.num_frames={frames}", f"video.height={height}", f"video.width={width}"]
    # Of LTX-Video more frames than the clips have at 8 per second.
    fps = 25 if family == "ltx" else 8
    return [f"model.source={writers[family]()}", *more, *sizes, f"video.fps={fps}"]


@pytest.fixture
def rows_of(clip_rows):
    """`rows_of(run)`: `data.source` of seven rows with all that the run's method reads."""

    def write(run) -> str:
        source = clip_rows("segments")
        data, lines = run.method.data, []
        for number, line in enumerate(source.read_text().splitlines()):
            row = json.loads(line)
            chosen, rejected = row.pop("chosen"), row.pop("rejected")
            kept = {"prompt": row["prompt"]}
            if data == "unpaired":
                kept |= {"video": chosen, "label": number % 2}
            elif data == "lists":
                kept |= {"candidates": [chosen, rejected], "scores": [1.0, -1.0]}
            else:
                kept |= {**row, "chosen": chosen, "rejected": rejected, "pair_weight": 1.0 + number}
                kept |= {"score_chosen": 60.0 + number, "score_rejected": 40.0}
            lines.append(json.dumps(kept) + "\n")
        path = source.parent / f"for_{run.method.name}.jsonl"
        path.write_text("".join(lines))
        lists = ", lists: keep" if data == "lists" else ""
        return f"data.source={{path: {path}, media: video{lists}}}"

    return write


@pytest.mark.usefixtures("_fresh_accelerator")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=named(path), marks=() if named(path) in QUICK else pytest.mark.slow)
        for path in RECIPES
    ],
)
def test_a_recipe_trains_three_steps(path, rows_of, tmp_path):
    run = load_run(path)
    settings = [
        *tiny_model(path, tmp_path / "model"),
        rows_of(run),
        f"train.output={tmp_path / 'run'}",
        *("train.steps=3", "train.accumulation=1", "train.num_workers=0", "train.device=cpu"),
        *("train.batch_size=2", "train.mixed_precision=no", "samples.prompts=[]"),
        *("log.every=1", "log.trackers=[]", "train.checkpoint_every=1000"),
        *(("rollout.num_steps=2",) if is_online(run) else ()),
    ]
    train(load_run(path, settings))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)


def test_recipes_travel_with_the_package():
    found = recipe_names()
    for name in ("video/README.md", "video/train.py", "video/sample.py", "video/configs/wan/densedpo.yaml"):
        assert name in found
