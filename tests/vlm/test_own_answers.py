"""POVID's second stage on a model: from a row to the loss, against its own straight-line computation."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mmalign import methods, objectives
from mmalign.batch import Batch
from mmalign.likelihood import AdaptersOff, adapter_toggle
from mmalign.testing.vlm_dialogues import ANSWERS, batch_of, dialogue, load_vlm, with_adapter
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.parts import likelihood_of, make_objective
from mmalign.train.step import StepParts, preference_step
from mmalign.vlm.family import VlmModel

Folder = Callable[[str], Path]
VIEWS = methods.find("povid").views


def _negative(image: Image.Image, seed: int) -> Image.Image:
    """A spoilt image that needs no chance: the same pictures can be given by hand."""
    del seed
    return ImageOps.invert(image)


def _logits(model: VlmModel, batch: Batch) -> Tensor:
    """Logits at every scored token, `[prompt, candidate, token, vocabulary]`, all kept."""
    states = model.policy(model.network)(batch)
    assert batch.context is not None
    logits = states.hidden @ states.head.weight.T
    whole = logits.new_zeros(batch.clean.numel(), logits.shape[-1])
    return whole.index_copy(0, batch.context.place, logits).unflatten(0, batch.clean.shape)


def _straight_sums(model: VlmModel, batch: Batch) -> Tensor:
    """Summed log-probabilities of y_c, y_r and the own answer, one row and one position after another."""
    shares = _logits(model, batch).log_softmax(-1)
    sums = []
    for row in range(batch.clean.shape[0]):
        lengths = [int(n) for n in (batch.element_mask[row] != 0).sum(-1)]  # type: ignore[index]
        written = [
            torch.stack([shares[row, side, t, batch.clean[row, side, t]] for t in range(lengths[side])]).sum()
            for side in (0, 1)
        ]
        said = [int(shares[row, 2, t].detach().argmax()) for t in range(lengths[0])]
        own = torch.stack([shares[row, 0, t, token] for t, token in enumerate(said)]).sum()
        sums.append(torch.stack([*written, own]))
    return torch.stack(sums)


@pytest.mark.parametrize("sharing", ["auto", "off"])
def test_noised_rows_are_read_without_gradient_and_give_the_same_states(
    tiny_vlm_folder: Folder, sharing: str
) -> None:
    tokens = {"share_vision": sharing, "packing": "auto"}
    model = load_vlm("llava", tiny_vlm_folder("llava"), tokens=tokens, views=VIEWS, corrupt=_negative)
    with_adapter(model)
    rows = [dialogue(1), dialogue(2, answers=(ANSWERS[1], "No."))]
    examples = [model.example(row, key=7) for row in rows]
    assert [example["aside"] for example in examples] == [(2,), (2,)]
    parted = model.encode(model.collate(examples))
    whole = model.encode(model.collate([{**example, "aside": ()} for example in examples]))
    assert torch.equal(parted.clean, whole.clean)
    inputs = parted.context
    assert inputs.aside.ids.shape[0] == 2
    found, wanted = model.network(inputs), model.network(whole.context)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    # The noised rows do not move the network: of three answers, the last one's states carry no gradient.
    candidate = whole.context.place // parted.clean.shape[2] % 3
    parameters = [value for value in model.network.parameters() if value.requires_grad]
    for states, moved in ((found, False), (wanted, True)):
        gradients = torch.autograd.grad(states[candidate == 2].sum(), parameters, retain_graph=True)
        assert any(bool(value.any()) for value in gradients) == moved


def test_guided_views_stand_aside_and_candidates_do_not(tiny_vlm_folder: Folder) -> None:
    guided = methods.find("vdpo_guided").views
    model = load_vlm("llava", tiny_vlm_folder("llava"), views=guided)
    assert model.example(dialogue(1), key=0)["aside"] == (2, 3)
    model = load_vlm("llava", tiny_vlm_folder("llava"), views=methods.find("mdpo").views)
    assert model.example(dialogue(1), key=0)["aside"] == ()


def _run(folder: Path) -> ResolvedRun:
    """The run of a config that says no more than the method's name."""
    content = {
        "method": "povid",
        "model": {"family": "llava", "source": str(folder)},
        "data": {"source": str(folder / "rows.parquet")},
        "train": {"output": str(folder / "run")},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return load_run(folder / "run.yaml")


def test_a_config_needs_nothing_but_the_methods_name(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert run.objective_arguments == {"beta": 0.1, "own_share": 0.5}
    corruption = run.config.model_dump(exclude_defaults=True)["tokens"]["corruption"]
    assert corruption == {"kind": "diffusion_noise", "strength": 500.0}


def test_the_step_is_the_written_formula_with_each_models_own_words(
    tiny_vlm_folder: Folder, tmp_path: Path, untyped: contextlib.AbstractContextManager[None]
) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), views=VIEWS, corrupt=_negative)
    trainables = with_adapter(model)
    toggle = adapter_toggle(model.network)
    rows = [dialogue(1), dialogue(2, answers=(ANSWERS[1], "No."))]
    batch = batch_of(model, rows)
    run = _run(tmp_path)
    objective, supply = make_objective(run)
    with untyped:  # a language model has less than the type of all models asks for
        likelihood = likelihood_of(run, model)
    parts = StepParts(
        denoise=model.policy(model.network),
        likelihood=likelihood,
        reference=AdaptersOff(model.policy(model.network), toggle),
        objective=objective,
        state=objectives.ObjectiveState(),
        autocast=contextlib.nullcontext,
        supply=supply,
    )
    loss = preference_step(parts, batch).loss
    names = sorted(trainables.parameters)
    gradients = torch.autograd.grad(loss, [trainables.parameters[name] for name in names])

    policy = _straight_sums(model, batch)
    with torch.no_grad(), toggle():
        reference = _straight_sums(model, batch)
    assert not torch.allclose(policy, reference)
    ratio = policy - reference
    expected = -(
        0.5 * F.logsigmoid(0.1 * (ratio[:, 0] - ratio[:, 1]))
        + 0.5 * F.logsigmoid(0.1 * (ratio[:, 0] - ratio[:, 2]))
    ).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    straight = torch.autograd.grad(expected, [trainables.parameters[name] for name in names])
    largest = max(float(value.abs().max()) for value in straight)
    for found, wanted in zip(gradients, straight, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * largest)
