"""Plans for clips, and rewards of functions by their titles."""

import json

import pytest

from mmalign.rewards.functions import FunctionReward
from mmalign.testing.clip_pairs import brightness
from mmalign.testing.video_families import moving_clip
from mmalign.video.pair_making.loading import Tools
from mmalign.video.pair_making.plan import VideoPairPlan

PROMPTS = ["a dog runs", "a red boat at sea", "waves on a beach"]


@pytest.fixture
def tools_of():
    """`tools_of(maker, title=function)`: rewards by their titles."""

    def make(maker, **rewards):
        given = {"light": brightness, **rewards}
        return Tools(
            model=lambda plan, device: maker,
            corrupter=lambda plan, device: maker,
            reward=lambda choice, device: FunctionReward(given[choice.column], name=choice.name),
        )

    return make


@pytest.fixture
def plan_of(tmp_path):
    """`plan_of(recipe)`: over three prompts, or three real clips."""

    def make(recipe="groups", prompts=PROMPTS, **settings):
        real = recipe in ("corrupt_and_denoise", "damage")
        data = tmp_path / ("clips.jsonl" if real else "prompts.txt")
        if real:
            for number in range(len(prompts)):
                (tmp_path / f"{number}.png").write_bytes(moving_clip(number, num_frames=11))
            rows = [{"prompt": prompt, "video": f"{number}.png"} for number, prompt in enumerate(prompts)]
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            data.write_text("\n".join(prompts) + "\n")
        content = {"recipe": recipe, "data": {"source": str(data)}, "container": "mkv", "block_rows": 2}
        if recipe in ("groups", "corrupt_and_denoise"):
            content["model"] = {"family": "wan", "source": "x"}
        if recipe in ("groups", "existing_clips"):
            content["scorers"] = [{"name": "own:light", "title": "light"}]
        content |= settings
        return VideoPairPlan.model_validate({k: v for k, v in content.items() if v is not None})

    return make
