"""The README: what it shows of the losses runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
PROMPTS, POSITIONS, VOCABULARY = 8, 11, 13


def blocks(after: str, before: str) -> list[str]:
    """The Python blocks between two lines."""
    text = README.read_text(encoding="utf-8").partition(after)[2].partition(before)[0]
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def prelude() -> dict[str, object]:
    """What a training script has at hand: logits and labels of pairs, scores of single answers and lists."""
    generator = torch.Generator().manual_seed(5)

    def draw(*size: int, gradient: bool = False) -> torch.Tensor:
        return torch.randn(*size, generator=generator).requires_grad_(gradient)

    labels = torch.randint(VOCABULARY, (2 * PROMPTS, POSITIONS), generator=generator)
    labels[:, :3] = -100  # the prompt
    labels[2:4] = -100  # a pair that could not be read
    return {
        "logits": draw(2 * PROMPTS, POSITIONS, VOCABULARY, gradient=True),
        "reference_logits": draw(2 * PROMPTS, POSITIONS, VOCABULARY),
        "labels": labels,
        "policy": draw(PROMPTS, 2, gradient=True),
        "reference": draw(PROMPTS, 2),
        "liked": draw(3, 1, gradient=True),
        "liked_before": draw(3, 1),
        "listed": draw(1, 3, gradient=True),
        "listed_before": draw(1, 3),
    }


def test_the_losses_alone_run_as_shown(prelude: dict[str, object]) -> None:
    (block,) = blocks("The losses are usable alone", "A whole training script around it")
    exec(compile(block, "README.md", "exec"), prelude)
    policy = prelude["policy"]
    assert isinstance(policy, torch.Tensor)
    assert policy.grad is not None


def test_scores_labels_and_state_run_as_shown(prelude: dict[str, object]) -> None:
    shown = blocks("### Scores, labels, state\n", "\n## ")
    assert len(shown) == 4
    exec(compile(shown[0], "README.md", "exec"), prelude)
    logits, out = prelude["logits"], prelude["out"]
    assert isinstance(logits, torch.Tensor)
    assert logits.grad is not None
    assert logits.grad[2:4].abs().sum() == 0, "the pair that could not be read teaches nothing"
    assert out.valid.tolist() == [True, False, *[True] * (PROMPTS - 2)]  # type: ignore[attr-defined]
    for block in shown[1:]:
        exec(compile(block, "README.md", "exec"), prelude)
    for name in ("kto", "ranked", "out"):
        assert torch.isfinite(prelude[name].loss).all()  # type: ignore[attr-defined]
    assert prelude["saved"], "the state has learned something"


def test_importing_the_losses_loads_torch_and_jaxtyping_as_it_says() -> None:
    assert "importing them loads torch and jaxtyping:" in README.read_text(encoding="utf-8")
    code = (
        "import sys, torch, jaxtyping\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "from mmalign import objectives\n"
        "after = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(after - before - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['mmalign']"
