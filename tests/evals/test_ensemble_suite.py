"""A suite names a YAML file of an ensemble like a reward: its value, its members' and their disagreement."""

from pathlib import Path

import pytest
from PIL import Image

from mmalign.errors import ConfigError
from mmalign.evals import harness
from mmalign.evals.suite import ModelSpec, read_suite

HERE = Path(__file__).parent
COUNT = 5
SCALES = {"red": (10.0, 2.0), "words": (0.0, 7.0)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prompts of growing length, and pictures of two painters, the second one redder by 5."""
    monkeypatch.syspath_prepend(str(HERE))
    (tmp_path / "mine.txt").write_text("\n".join("a fox" + "!" * number for number in range(COUNT)))
    for painter, red in (("base", 20), ("tuned", 25)):
        (tmp_path / painter).mkdir()
        for number in range(COUNT):
            Image.new("RGB", (16, 16), (red, 0, 0)).save(tmp_path / painter / f"{number}.png")
    return tmp_path


def run(folder: Path, how: str) -> dict[str, object]:
    rewards = {"red": "toy_rewards:redness", "words": "toy_rewards:picky"}
    members = [
        f"- {{reward: '{rewards[name]}', name: {name}, scale: {{center: {center}, spread: {spread}}}}}"
        for name, (center, spread) in SCALES.items()
    ]
    if how == "mean_win_probability":  # ranks: no scales
        members = [line.split(", scale")[0] + "}" for line in members]
    (folder / "both.yaml").write_text("\n".join([f"how: {how}", "members:", *members, ""]))
    (folder / "suite.yaml").write_text(
        f"name: mine\nprompts: mine.txt\nstatistics: {{resamples: 200}}\n"
        f"rewards: [{{name: '{folder / 'both.yaml'}', title: both}}]\n"
    )
    record = harness.run_suite(
        read_suite(folder / "suite.yaml"),
        [ModelSpec(name=name, source=f"images:{folder / name}") for name in ("base", "tuned")],
        output=folder / "out",
        cache=folder / "store",
        folder=folder,
        device="cpu",
    )
    assert record is not None
    return record


def test_the_weighted_mean_of_the_members_scales_is_a_column_beside_each_member(folder: Path) -> None:
    scores = run(folder, "mean")["scores"]
    assert isinstance(scores, dict)
    length = sum(len("a fox") + number for number in range(COUNT)) / COUNT
    for model, red in (("base", 20.0), ("tuned", 25.0)):
        found = {title: told["mean"]["value"] for title, told in scores[model].items()}
        assert found["both"] == pytest.approx(((red - 10) / 2 + length / 7) / 2)
        assert found["both.red"] == pytest.approx(red)
        assert found["both.words"] == pytest.approx(length)


def test_an_ensemble_of_ranks_among_a_prompt_s_samples_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"depend on the other samples.*Name its members as rewards"):
        run(folder, "mean_win_probability")
