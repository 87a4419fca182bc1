"""Of several spoilt clips the one is trained on that looks alike and reads differently."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mmalign.batch import Candidate, Labels, PreferenceRow, RowKeys
from mmalign.errors import ConfigError, ShapeError
from mmalign.methods.row import View
from mmalign.testing.vlm_dialogues import load_vlm, photo
from mmalign.train.config import load_run
from mmalign.train.micro_batch import MicroBatch, to_batch
from mmalign.train.run import train
from mmalign.vlm.close_to_far import close_to_far, compared, encode_chosen
from mmalign.vlm.corruptions import corruption
from mmalign.vlm.family import VlmModel
from mmalign.vlm.spoilt_media import SpoiltMedia

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

Folder = Callable[[str], Path]
FAMILIES = ("llava_onevision", "qwen2_5_vl")


def test_the_farthest_of_the_close_ones_is_taken() -> None:
    assert close_to_far([0.9, 0.7, 0.8], [0.1, 0.9, 0.3], similar=0.8) == 2
    assert close_to_far([0.9, 0.7, 0.8], [0.1, 0.9, 0.3], similar=-1.0) == 1
    assert close_to_far([0.9, 0.9], [0.3, 0.3], similar=0.5) == 0
    assert close_to_far([0.9, 0.7], [0.1, 0.9], similar=0.95) is None


def clip_row(number: int, answer: str = "A red circle moves left.") -> PreferenceRow:
    frames = tuple(photo(50 * number + frame) for frame in range(4))
    return PreferenceRow(
        prompt="What happens?",
        candidates=(Candidate(text=answer),),
        kind="chosen",
        videos=(frames,),
        source=f"test:{number}",
        id=str(number),
    )


def reversed_frames(image: Image.Image, seed: int) -> Image.Image:
    del seed
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def unchanged(image: Image.Image, seed: int) -> Image.Image:
    del seed
    return image


def choosing(folder: Path, family: str, *operators: Any, **corrupting: Any) -> VlmModel:
    """A model whose rows are made in one version per operator."""
    settings = {"versions": len(operators), "kinds": ("crop",), **corrupting}
    model = load_vlm(
        family,
        folder,
        tokens={"num_frames": 4, "corruption": settings},
        dtype=torch.float32,
        views=(View(0),),
    )
    model.reader = replace(model.reader, spoilt=SpoiltMedia(operators[0], operators[1:]))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_cosines_and_divergences_are_those_of_each_version_by_itself(
    family: str, tiny_vlm_folder: Folder
) -> None:
    black = corruption("black")
    model = choosing(tiny_vlm_folder(family), family, black, unchanged, reversed_frames)
    example = model.example(clip_row(1), key=3)
    (found,) = compared(model, [example], twin=0, num_versions=3, similar=-1.0)

    def read(place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean feature and next-token probabilities of one answer, alone in its batch."""
        prompt = example["prompts"][example["answers"][place].prompt]
        alone = {**example, "prompts": (prompt,), "answers": (replace(example["answers"][place], prompt=0),)}
        inputs = model.encode_laid_out(model.laid_out([alone], model.mode)).context
        with torch.no_grad():
            states = model.network(inputs)
        (features,) = inputs.features.values()
        return features.values.mean(0), (states @ model.network.head.weight.T).softmax(-1)

    true_feature, true_shares = read(0)
    for place in range(3):
        feature, shares = read(place + 1)
        cosine = torch.cosine_similarity(feature, true_feature, dim=0)
        assert found.cosines[place] == pytest.approx(float(cosine), abs=1e-4)
        mean = (shares + true_shares) / 2
        divergence = sum(
            (side * (side / mean).log()).sum(-1).mean() / 2 for side in (shares, true_shares)
        ) / math.log(2)
        assert found.divergences[place] == pytest.approx(float(divergence), rel=2e-2, abs=1e-7)
    assert found.cosines[1] == pytest.approx(1.0, abs=1e-5)
    assert found.divergences[1] == pytest.approx(0.0, abs=1e-6)
    assert found.place == int(np.argmax(found.divergences))
    assert found.weight == max(found.divergences) > 0


def test_a_step_gets_the_chosen_version_and_its_weight(tiny_vlm_folder: Folder) -> None:
    model = choosing(tiny_vlm_folder("llava_onevision"), "llava_onevision", unchanged, reversed_frames)
    examples = [model.example(clip_row(number), key=number) for number in (1, 2)]
    encoded = model.encode(model.collate(examples))
    assert encoded.clean.shape[:2] == (2, 2)
    assert torch.equal(encoded.clean[:, 0], encoded.clean[:, 1])
    choices = compared(model, examples, twin=0, num_versions=2, similar=-1.0)
    assert [choice.place for choice in choices] == [1, 1]
    assert encoded.weight.tolist() == pytest.approx([choice.weight for choice in choices])
    # Beside the weights of the data.
    numbers = torch.arange(2)
    micro = MicroBatch(
        collated=model.collate(examples),
        labels=Labels.unpaired(torch.tensor([True, True])),
        weight=torch.tensor([1.0, 0.5]),
        valid=torch.tensor([True, True]),
        keys=RowKeys(key=numbers, stratum=torch.zeros(2), num_strata=2),
    )
    batch = to_batch(micro, model, torch.device("cpu"))
    assert batch.weight.tolist() == pytest.approx([choices[0].weight, 0.5 * choices[1].weight])
    # The clips of the step are the true one and the second version, of every row.
    wanted = model.encode_laid_out(
        model.laid_out(
            [
                {
                    **example,
                    "prompts": (example["prompts"][0], example["prompts"][2]),
                    "answers": (example["answers"][0], replace(example["answers"][2], prompt=1)),
                }
                for example in examples
            ],
            model.mode,
        )
    )
    for kind, features in wanted.context.features.items():
        assert torch.equal(encoded.context.features[kind].values, features.values)


def test_a_row_without_a_close_version_weighs_nothing_and_is_counted(tiny_vlm_folder: Folder) -> None:
    folder = tiny_vlm_folder("llava_onevision")
    for weigh, close in ((True, 0.0), (False, 0.0)):
        model = choosing(
            folder,
            "llava_onevision",
            corruption("black"),
            reversed_frames,
            similar=1.0,
            weigh=weigh,
        )
        example = {**model.example(clip_row(1), key=0), "counts": {"cut_answers": 1}}
        assert encode_chosen(model, [example]).weight.tolist() == [close]
        # Reading all versions first counts nothing twice.
        assert +model.counts == {"no_close_version": 1, "cut_answers": 1}
    unweighed = choosing(folder, "llava_onevision", unchanged, reversed_frames, similar=-1.0, weigh=False)
    assert encode_chosen(unweighed, [unweighed.example(clip_row(1), key=0)]).weight.tolist() == [1.0]


def test_the_choice_follows_the_policy_as_it_stands(tiny_vlm_folder: Folder) -> None:
    """Weights that see no picture find no difference."""
    model = choosing(tiny_vlm_folder("llava_onevision"), "llava_onevision", unchanged, reversed_frames)
    example = model.example(clip_row(1), key=0)
    before = encode_chosen(model, [example]).weight
    with torch.no_grad():
        for layer in model.traits.decoder(model.bare_network).layers:
            layer.self_attn.o_proj.weight.zero_()
    assert float(before[0]) > 1e-6
    assert float(encode_chosen(model, [example]).weight[0]) == pytest.approx(0.0, abs=1e-7)


def test_an_answer_that_a_version_cuts_is_refused(tiny_vlm_folder: Folder) -> None:
    model = choosing(tiny_vlm_folder("llava_onevision"), "llava_onevision", unchanged)
    example = model.example(clip_row(1), key=0)
    short = replace(example["answers"][1], ids=example["answers"][1].ids[:-1])
    broken = {**example, "answers": (example["answers"][0], short)}
    with pytest.raises(ShapeError, match="beside spoilt media: got 'other tokens"):
        compared(model, [broken], twin=0, num_versions=1, similar=0.0)


def test_methods_that_show_more_than_one_view_take_one_version(tiny_vlm_folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"tokens.corruption.versions: got 3, expected 1"):
        load_vlm(
            "llava",
            tiny_vlm_folder("llava"),
            tokens={"corruption": {"versions": 3}},
            views=(View(0), View(1)),
        )


# ------------------------------------------------------------------------------------------------- whole runs


def config_of(folder: Path, model: Path, method: str = "vdpo_video", **sections: Any) -> Path:
    """A run of four steps on six answered clips, of a config that says next to nothing."""
    for number in range(6):
        clip = folder / f"clip{number}"
        clip.mkdir(parents=True, exist_ok=True)
        for frame in range(4):
            (clip / f"{frame}.png").write_bytes(photo(10 * number + frame))
    rows = [
        {
            "prompt": "What happens?",
            "completion": f"Circle {number} moves left.",
            "videos": [f"clip{number}"],
        }
        for number in range(6)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "method": method,
        "model": {"family": "llava_onevision", "source": str(model)},
        "data": {"source": {"path": str(folder / "rows.jsonl")}},
        "tokens": {"num_frames": 4},
        "adapter": {"rank": 2, "alpha": 2.0},
        "train": {
            "output": str(folder / "run"),
            "steps": 4,
            "batch_size": 2,
            "num_workers": 0,
            "device": "cpu",
            "checkpoint_every": 2,
            "learning_rate": 1e-3,
        },
        "log": {"every": 1, "trackers": []},
    }
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def test_a_config_that_names_the_method_chooses_among_five_versions(
    tiny_vlm_folder: Folder, tmp_path: Path
) -> None:
    path = config_of(tmp_path, tiny_vlm_folder("llava_onevision"))
    asked = load_run(path).config.tokens.corruption
    assert (asked.versions, asked.similar, asked.weigh) == (5, 0.8, True)
    assert asked.kinds == ("reverse", "shuffle", "clip", "frame_mask", "crop")
    named = load_run(path, ["tokens.corruption.kind=drop"]).config.tokens.corruption
    assert named.kinds == ("drop",)
    train(load_run(path, ["tokens.corruption.similar=-1"]))
    records = metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(record["grad_norm"] > 0 for record in records)


@pytest.mark.slow
def test_a_run_that_stopped_chooses_as_one_that_did_not(tiny_vlm_folder: Folder, tmp_path: Path) -> None:
    folder, wanted = tiny_vlm_folder("llava_onevision"), ["tokens.corruption.similar=-1"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = config_of(tmp_path / "whole", folder)
    train(load_run(whole, wanted))
    cut = config_of(tmp_path / "cut", folder)

    class StoppedError(Exception):
        pass

    original, calls = encode_chosen, []

    def stopping(model: VlmModel, examples: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise StoppedError
        return original(model, examples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.vlm.close_to_far.encode_chosen", stopping)
        with pytest.raises(StoppedError):
            train(load_run(cut, wanted))
    train(load_run(cut, wanted))
    found = [{name: r[name] for name in ("step", "loss", "grad_norm")} for r in metrics(tmp_path / "cut")]
    assert (
        found[-2:]
        == [{name: r[name] for name in ("step", "loss", "grad_norm")} for r in metrics(tmp_path / "whole")][
            -2:
        ]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similar": 0.5, "versions": 1}, r"tokens.corruption.similar: got 0.5, expected nothing"),
        ({"kinds": "crop rotate", "strength": 0.5}, "strength 0.5 means another thing to each"),
    ],
)
def test_settings_of_a_choice_need_one(
    settings: dict[str, Any], message: str, tmp_path: Path, tiny_vlm_folder: Folder
) -> None:
    path = config_of(tmp_path, tiny_vlm_folder("llava_onevision"), tokens={"corruption": settings})
    with pytest.raises(ConfigError, match=message):
        load_run(path)
