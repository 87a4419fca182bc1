"""docs/judging.md: its commands run as they stand, on small files of the names it uses."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.cli.main import main
from mmalign.evals.tie_rules import RULE_NAMES


def page(repository: Path) -> str:
    return (repository / "docs" / "judging.md").read_text(encoding="utf-8")


def write_pairs(folder: Path, name: str, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        files = []
        for side in "ab":
            files.append(f"{name}{number}{side}.png")
            colour = tuple(int(value) for value in rng.integers(0, 255, 3))
            Image.new("RGB", (17, 19), colour).save(folder / files[-1])
        label = int(rng.integers(0, 2))
        rows.append({"prompt": f"{name} {number}", "image_a": files[0], "image_b": files[1], "label": label})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


SUITE = """
name: steps
prompts: asked.txt
rewards:
  - {name: "own:red", title: red, role: training}
  - {name: "held:blue", title: blue}
statistics: {resamples: 100}
"""

HELD = """
import numpy as np
from mmalign.rewards.sample import to_image


def blue(samples):
    return [float(np.asarray(to_image(sample.image))[..., 2].mean()) for sample in samples]
"""


def evaluate_steps(folder: Path) -> None:
    """Three runs of `mmalign eval` over pictures that get redder, and no less blue, with every step."""
    (folder / "asked.txt").write_text("".join(f"ask {number}\n" for number in range(5)))
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "held.py").write_text(HELD)
    for step, model in enumerate(("base", "step1", "step2", "step3")):
        (folder / model).mkdir()
        for number in range(5):
            colour = (20 * number + 30 * step, 90, 60 + 10 * (number + step))
            Image.new("RGB", (16, 16), colour).save(folder / model / f"{number}.png")
    for model in ("step1", "step2", "step3"):
        words = ["eval", "suite.yaml", "--model", "base=images:base", "--model", f"{model}=images:{model}"]
        assert main([*words, "--output", f"runs/{model}", "--cache", "store", "--device", "cpu"]) == 0


@pytest.fixture
def folder(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (source,) = re.findall(r"```python\n(.*?)```", page(repository), flags=re.DOTALL)
    (tmp_path / "own.py").write_text(source)
    write_pairs(tmp_path, "test", 13, seed=0)
    write_pairs(tmp_path, "validation", 11, seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    evaluate_steps(tmp_path)
    yield tmp_path
    for name in ("own", "held"):
        sys.modules.pop(name, None)


def test_every_command_of_the_page_runs_as_shown(folder: Path, repository: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", page(repository), flags=re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        assert command[0] == "mmalign"
        assert main(command[1:]) == 0, command
    for written in ("accuracy/accuracy.md", "factors/factors.md", "overoptimisation/overoptimisation.md"):
        assert (folder / written).is_file()
    found = json.loads((folder / "overoptimisation" / "overoptimisation.json").read_text())
    assert found["report"]["checkpoints"] == ["base", "step1", "step2", "step3"]
    assert (folder / "bias" / "bias.json").is_file()
    assert (folder / "arena" / "arena.md").is_file()


def test_the_table_of_rules_has_all_of_them_in_order(repository: Path) -> None:
    assert tuple(re.findall(r"^\| `(\w+)` \|", page(repository), flags=re.MULTILINE)) == RULE_NAMES
