"""The plan of a language model's run: counted on shapes, held against what a real step keeps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mmalign.testing.tiny_vlm import tiny_vlm
from mmalign.testing.vlm_dialogues import batch_of, dialogue, load_vlm, photo
from mmalign.train.adapters import attach
from mmalign.train.config import AdapterConfig, resolve
from mmalign.train.run import describe

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "causal_lm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("tiny_vlm")
    return lambda name: root / name if (root / name).exists() else tiny_vlm(name, root / name)


@pytest.fixture
def told(folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., tuple[str, dict[str, Any]]]:
    """`told(family, rows, section={...})`: what a dry run prints, and its numbers."""

    def tell(family: str = "llava", rows: int = 3, **sections: Any) -> tuple[str, dict[str, Any]]:
        source = tmp_path / "rows.jsonl"
        if rows:
            source.write_text("".join(json.dumps(record(number, tmp_path)) + "\n" for number in range(rows)))
        content: dict[str, Any] = {
            "method": sections.pop("method", "dpo"),
            "model": {"family": family, "source": str(folder(family)), **sections.pop("model", {})},
            "data": {"source": {"path": str(source)}},
            "train": {"output": str(tmp_path / "run"), "batch_size": 1, **sections.pop("train", {})},
            "adapter": {"rank": 2, **sections.pop("adapter", {})},
            **sections,
        }
        console = Console(record=True, width=250)
        numbers = describe(resolve(content), console)
        assert not (tmp_path / "run").exists()
        return console.export_text(), numbers

    return tell


def record(number: int, root: Path) -> dict[str, Any]:
    path = root / f"{number}.png"
    path.write_bytes(photo(number))
    return {
        "prompt": f"What is there, number {number}?",
        "chosen": "A red circle." + " Two of them." * number,
        "rejected": "No.",
        "images": [path.name],
    }


def really_kept(family: str, folder: Path) -> int:
    """Bytes that autograd holds after a real forward pass of one pair in float32, weights aside."""
    model = load_vlm(family, folder, dtype=torch.float32)
    attach(model.network, AdapterConfig(rank=2), default_targets=model.adapter_targets, seed=0)
    images = 1 if "image" in model.traits.sees else 0
    batch = batch_of(model, [dialogue(1, images=images)])
    tensors = [*model.network.state_dict(keep_vars=True).values(), *model.network.buffers()]
    own = {value.untyped_storage().data_ptr() for value in tensors}
    held: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.network(batch.context)
    return sum(held.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_counted_on_shapes_are_nearly_those_a_step_keeps(
    family: str, folder: Callable[[str], Path]
) -> None:
    from mmalign import registry
    from mmalign.train.config import ModelConfig
    from mmalign.train.plan import saved_activation_bytes
    from mmalign.train.token_sections import TokensConfig

    outline = registry.find("families", family).outline(
        ModelConfig(family=family, source=str(folder(family))), TokensConfig(), dtype=torch.float32
    )
    images = 1 if "image" in outline.traits.sees else 0
    attach(outline.network, AdapterConfig(rank=2), default_targets=outline.adapter_targets, seed=0)
    batch = outline.batch([dialogue(1, images=images)], 1, made_up=True)
    counted = saved_activation_bytes(outline.network, lambda network: network(batch.inputs))
    # The CPU's attention repeats shared keys and holds the mask, which the plan lists apart.
    assert counted == pytest.approx(really_kept(family, folder(family)), rel=0.15)


def test_a_plan_counts_the_longest_rows_of_the_data_and_its_steps(told) -> None:
    text, numbers = told(rows=3, train={"accumulation": 2, "epochs": 4, "batch_size": 1})
    assert "6 optimiser steps over 3 rows" in text
    assert "the longest of 3 rows of the data" in text
    _, shorter = told(rows=1)
    assert shorter["memory"]["activations of 1 prompts"] < numbers["memory"]["activations of 1 prompts"]


def test_a_plan_without_data_counts_a_made_up_dialogue_and_says_so(told) -> None:
    text, numbers = told(rows=0)
    assert "counted for a made-up dialogue" in text
    assert "the data cannot be opened here" in text
    assert numbers["memory"]["activations of 1 prompts"] > 0


def test_adapters_weights_and_optimiser_are_counted(told, folder: Callable[[str], Path]) -> None:
    model = load_vlm("llava", folder("llava"), dtype=torch.float32)
    weights = sum(parameter.numel() for parameter in model.network.parameters())
    trained = attach(
        model.network, AdapterConfig(rank=2), default_targets=model.adapter_targets, seed=0
    ).count
    text, numbers = told()
    assert numbers["trained"] == trained
    assert numbers["memory"]["network, frozen weights"] == 4 * weights
    assert numbers["memory"]["optimiser state (adamw)"] == 8 * trained
    assert "logits, one tile" in numbers["memory"]
    assert f"trained: {trained:,} of" in text


def test_four_bits_narrow_the_language_model_and_nothing_else(told) -> None:
    _, wide = told(train={"mixed_precision": "bf16"})
    text, narrow = told(train={"mixed_precision": "bf16"}, model={"quantization": "nf4"})
    saved = wide["memory"]["network, frozen weights"] - narrow["memory"]["network, frozen weights"]
    assert 0 < saved < wide["memory"]["network, frozen weights"]
    assert "nf4: the language model's linear layers, nothing else" in text


def test_checkpointing_and_full_tuning_change_what_is_held(told) -> None:
    _, plain = told()
    _, recomputed = told(model={"gradient_checkpointing": True})
    name = "activations of 1 prompts"
    assert recomputed["memory"][name] < plain["memory"][name] / 2
    assert recomputed["memory"]["attention masks"] < plain["memory"]["attention masks"]
    _, full = told(adapter={"kind": "none"})
    assert full["memory"]["reference (frozen)"] > 0
    assert full["memory"]["optimiser state (adamw)"] == 8 * full["trained"]


def test_a_third_candidate_under_another_picture_takes_a_row_of_its_own(told) -> None:
    text, numbers = told(method="mdpo")
    assert "2 rows of" in text
    _, pairs = told()
    assert numbers["memory"]["activations of 1 prompts"] > pairs["memory"]["activations of 1 prompts"]
