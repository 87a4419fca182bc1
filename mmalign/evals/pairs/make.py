"""`mmalign pairs make`: a plan's recipe says whether it makes answers about pictures, sounds or clips."""

from collections.abc import Sequence
from pathlib import Path

from mmalign.audio.pair_making.plan import AUDIO_RECIPES
from mmalign.config_files import read_config
from mmalign.errors import unknown_name
from mmalign.video.pair_making.plan import VIDEO_RECIPES
from mmalign.vlm.pair_making.plan import RECIPES

__all__ = ["run_make"]


def run_make(
    *, plan_path: Path, output: Path, device: str | None = None, overrides: Sequence[str] = ()
) -> int:
    """Make pairs by a plan. Returns 0.

    Raises:
        ConfigError: the plan, its data or a model does not fit.
        UnknownNameError: no such recipe.
    """
    recipe = read_config(plan_path, overrides).content.get("recipe")
    if isinstance(recipe, str) and recipe in AUDIO_RECIPES:
        from mmalign.audio.pair_making import commands

        return commands.run_make(plan_path=plan_path, output=output, device=device, overrides=overrides)
    if isinstance(recipe, str) and recipe in VIDEO_RECIPES:
        from mmalign.video.pair_making import commands as clips

        return clips.run_make(plan_path=plan_path, output=output, device=device, overrides=overrides)
    if recipe is not None and recipe not in RECIPES:
        raise unknown_name("recipe", str(recipe), [*RECIPES, *AUDIO_RECIPES, *VIDEO_RECIPES])
    from mmalign.evals.pairs import painter

    return painter.run_make(plan_path=plan_path, output=output, device=device, overrides=overrides)
