"""Every recipe of the vlm folder is a valid run, opens with its command, says what it costs, and runs."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmalign import rewards
from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.on_answers import OnAnswers
from mmalign.testing.vlm_dialogues import photo
from mmalign.train.config import load_run
from mmalign.train.run import train

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

CONFIGS = Path(__file__).parents[2] / "vlm" / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in ("pairs", "toy"))
QUICK = {"llava/opa_dpo", "llava/mixed_dpo", "qwen2_5_vl/rrpo"}
"""One with views, weighted tokens and three answers; one that writes its own; one with clips, phrases and a
divergence."""

JUDGED = {"online_dpo", "mixed_dpo"}
WRITTEN = {*JUDGED, "online_bdhs"}

GOOD, BAD = "A red circle left of a small blue square.", "A green circle left of two big blue squares."


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


each_recipe = pytest.mark.parametrize("path", RECIPES, ids=named)


@each_recipe
def test_a_recipe_is_a_valid_run_that_explains_itself(path: Path) -> None:
    run = load_run(path)
    assert run.config.model.family == path.parent.name
    assert run.config.train.output == f"runs/{path.parent.name}-{path.stem}"
    text = path.read_text(encoding="utf-8")
    head = text.split("\n\n")[0]
    assert f"mmalign train vlm/configs/{named(path)}.yaml" in head
    for word in ("Hardware", "Memory", "Time", "Expect", "Source"):
        assert re.search(rf"^# {word}\b", head, flags=re.MULTILINE), word
    assert re.search(r"\((paper|code|ours|recalled)", head), "every number says where it comes from"
    # PyYAML reads 1e-5 as text.
    assert not re.search(r":\s*\d+e-?\d+", text)


@each_recipe
def test_a_recipe_states_the_released_numbers_or_says_that_they_are_ours(path: Path) -> None:
    """What differs from the method's row is named in the head as ours."""
    run = load_run(path)
    released = [item for item in run.differences if item.mark in ("code", "paper")]
    head = " ".join(path.read_text(encoding="utf-8").split("\n\n")[0].replace("#", " ").split())
    assert not released or "ours" in head, [item.setting for item in released]


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem in JUDGED], ids=named)
def test_the_judge_of_a_recipe_exists_and_has_the_options_it_is_given(path: Path) -> None:
    rollout = load_run(path).config.rollout
    assert rollout.reward is not None
    assert set(rollout.reward_options) <= set(rewards.card(rollout.reward).options)
    shipped = Path(rewards.__file__).parent / "rubrics"
    assert (shipped / f"{rollout.reward_options['rubric']}.yaml").is_file()


def test_every_family_of_language_models_has_a_recipe() -> None:
    from mmalign import registry

    families = {name for name in registry.names("families") if registry.modality(name) == "language"}
    assert {path.parent.name for path in RECIPES} == families


def test_every_method_that_stands_on_tokens_alone_has_a_recipe() -> None:
    from mmalign.methods.vlm import ROWS

    used = {load_run(path).method.name for path in RECIPES}
    assert {row.name for row in ROWS if not row.function} <= used


# ---------------------------------------------------------------------------------------------- three steps


def conversation(answer: str, tag: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"{tag}\nWhat is there?"}, {"from": "gpt", "value": answer}]


def frames_of(folder: Path, number: int) -> str:
    clip = folder / f"clip{number}"
    clip.mkdir(exist_ok=True)
    for frame in range(8):
        (clip / f"{frame:02d}.png").write_bytes(photo(10 * number + frame))
    return clip.name


def row_of(kind: str, folder: Path, number: int) -> dict[str, Any]:
    """A record in a data set's own layout."""
    image = f"{number}.png"
    (folder / image).write_bytes(photo(number))
    good, bad, asked = f"{GOOD} Number {number}.", BAD, f"What is there, number {number}?"
    pair = {"chosen": good, "rejected": bad}
    report = {"Sentence 1": {"copied content": BAD, "rewritten content": GOOD, "hallucination": True}}
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "rlaif_v": lambda: {"question": asked, "image": image, **pair},
        "mdpo_pairs": lambda: {"prompt": f"USER: <image>\n{asked} ASSISTANT:", "img_path": image, **pair},
        "rlhf_v": lambda: {"image": image, "text": json.dumps({"question": asked, **pair})},
        "hsa_dpo": lambda: {
            "id": str(number),
            "question": asked,
            "image": image,
            "chosen_score": 1.0,
            "rejected_score": 2.0,
            **pair,
        },
        "mia_dpo": lambda: (
            {"id": str(number), "image": [image, image], "prompt": f"<image><image>{asked}"} | pair
        ),
        "povid": lambda: {
            "id": str(number),
            "image": image,
            "conversations": conversation(good, "<image>"),
            "rejected_conversations": conversation(bad, "<image>"),
        },
        "ha_dpo": lambda: {"image_id": number, "image": image, "question": asked, **pair},
        "opa_dpo": lambda: {
            "queries": asked,
            "image_bytes": base64.b64encode(photo(number)).decode(),
            "standard_response": good,
            "original_generate_response": bad,
            "AI_pseudo_response": GOOD,
            "AI_json_report": json.dumps(report),
        },
        "mm_rlhf": lambda: {"prompt": asked, "image": image, "ls_factor": 1.0, "reward_gap": 1.5} | pair,
        "temple": lambda: {
            "messages": [
                {"role": "user", "content": f"<video>{asked}"},
                {"role": "assistant", "content": good},
            ],
            "rejected_response": bad,
            "videos": [frames_of(folder, number)],
        },
        "rrpo": lambda: {
            "question": f"<image>\n{asked}",
            "answer": good,
            "pred": bad,
            "video": frames_of(folder, number),
        },
        "llava_hound": lambda: {
            "id": str(number),
            "prompt": f"<video>\n{asked}",
            "video": frames_of(folder, number),
            **pair,
        },
        "vlfeedback": lambda: {
            "prompt": asked,
            "img_path": image,
            "completions": [
                {"response": text, "model": "m", "annotations": {"Helpfulness": {"Rating": rating}}}
                for text, rating in ((good, "5"), (bad, "2"))
            ],
        },
        "chexalign": lambda: {
            "prompt": asked,
            "image_path": image,
            **{f"candidate_findings_{n}": f"{good if n == 2 else bad} Report {n}." for n in range(1, 5)},
            **{f"green_scores{n}": 0.9 if n == 2 else n / 10 for n in range(1, 5)},
        },
        "thumbs": lambda: {
            "prompt": asked,
            "completion": good if number % 2 else bad,
            "label": bool(number % 2),
            "images": [image],
        },
        "text": lambda: {
            "prompt": asked,
            "semantic_distance_chosen": 0.1,
            "semantic_distance_rejected": 0.2,
            **pair,
        },
        "clips": lambda: {"prompt": asked, "videos": [frames_of(folder, number)], **pair},
        "trajectories": lambda: {
            "instruction": f"Put block {number} on the plate.",
            "chosen_steps": [{"images": [image], "action": f"{step} 0 {number}"} for step in range(3)],
            "rejected_steps": [{"images": [image], "action": f"9 {step} 9 9"} for step in range(3)],
        },
        "trl": lambda: {"prompt": asked, "images": [image], **pair},
    }
    return made[kind]()


def longest_word(samples: list[Any]) -> list[float]:
    """A judge of answers that needs no weights."""
    return [float(max(map(len, (sample.text or "").split()), default=0)) for sample in samples]


_KINDS = {"kto": "thumbs", "dpo_video": "clips", "vdpo_video": "clips"}


def kind_of(path: Path) -> str:
    run = load_run(path)
    source = run.config.data.source
    if run.config.model.family == "causal_lm":
        return "text"
    named_format = "trl" if source is None or source.format == "auto" else source.format
    return _KINDS.get(path.stem, named_format)


def overrides(path: Path, model: Path, folder: Path) -> list[str]:
    """What makes a recipe a run of three steps of two rows on a tiny model; everything else stands."""
    rows = folder / "rows.jsonl"
    records = [row_of(kind_of(path), folder, number) for number in range(6)]
    rows.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    run = load_run(path)
    clips = ["tokens.num_frames=4", "tokens.fps=null"] if kind_of(path) in _CLIPS else []
    return [
        *(f"model.source={model}", "model.quantization=null", f"data.source.path={rows}"),
        *("data.source.root=null", "tokens.max_length=null", "adapter.rank=2"),
        *("train.steps=3", "train.epochs=null", "train.warmup_steps=0", "train.warmup_ratio=null"),
        *("train.accumulation=1", "train.batch_size=2", "train.num_workers=0", "train.device=cpu"),
        *("train.mixed_precision=no", "train.checkpoint_every=1000", "log.every=1", "log.trackers=[]"),
        *(f"train.output={folder / 'run'}", "answers.prompts=[]"),
        *(["rollout.max_new_tokens=7"] if path.stem in WRITTEN else []),
        *(["rollout.similarity=equal"] if path.stem == "online_bdhs" else []),
        *(["tokens.corruption.similar=-1"] if path.stem == "vdpo_video" else []),
        *(clips if run.config.model.family != "video_llava" else []),
    ]


_CLIPS = {"clips", "temple", "rrpo", "llava_hound"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=named(path), marks=() if named(path) in QUICK else pytest.mark.slow)
        for path in RECIPES
    ],
)
def test_a_recipe_trains_three_steps(
    path: Path, tiny_vlm_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    run = load_run(path, overrides(path, tiny_vlm_folder(path.parent.name), tmp_path))
    judge = OnAnswers(FunctionReward(longest_word, name="longest word")) if path.stem in JUDGED else None
    train(run, reward=judge)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert all(record["grad_norm"] > 0 for record in records)


# ------------------------------------------------------------------------------------------------- the page


def test_the_page_names_every_family_and_every_recipe_with_its_families() -> None:
    text = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    for path in RECIPES:
        assert any(f"`{path.parent.name}`" in line.split("|")[1] for line in lines), path.parent.name
        rows = [line.split("|") for line in lines if f"`{path.stem}`" in line.split("|")[1]]
        assert any(path.parent.name in cells[3] for cells in rows if len(cells) > 4), named(path)


def test_commands_of_the_page_name_files_and_commands_that_exist() -> None:
    from mmalign.cli.main import build_parser

    text = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^mmalign [^\n]+", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        words = re.sub(r'"[^"]*"', "text", command.split("#")[0]).split()[1:]
        _, rest = build_parser().parse_known_args(words)
        assert all("=" in word for word in rest), rest  # overrides may stand behind options
    for name in re.findall(r"vlm/configs/[\w/.]+yaml", text):
        if "RECIPE" not in name:
            assert (CONFIGS.parents[1] / name).is_file(), name
