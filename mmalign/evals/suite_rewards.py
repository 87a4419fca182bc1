"""Rewards of a suite: all are loaded once before anything is painted, and never two at a time after that.

What would fail after hours of painting (weights that are not here, an option nobody knows, a server that
does not answer) fails in the first minute. What stays of a reward is its columns: a few hashes.
"""

import contextlib
import gc
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mmalign.errors import ConfigError, MissingExtraError, UnknownNameError, explain
from mmalign.evals.base import Item
from mmalign.evals.results import Column
from mmalign.evals.suite import RewardSpec, Suite

if TYPE_CHECKING:
    from mmalign.rewards.base import Reward

__all__ = ["beside", "columns_of", "load_reward", "made_for", "release", "require_names"]

_ENSEMBLE = (".yaml", ".yml")

_READERS = {"clips": ("av", "PyAV", "video"), "sounds": ("soundfile", "soundfile", "audio")}
"""What models make, to the module, package and extra that reads its files."""

_SCORED = {"pictures": ("image",), "clips": ("image", "video"), "sounds": ("audio",)}
"""What models make, to the modalities of rewards that score it."""


def columns_of(
    suite: Suite,
    items: Sequence[Item],
    *,
    device: str,
    folder: Path | None = None,
    media: str = "pictures",
) -> list[list[Column]]:
    """The columns of every reward of a suite; each reward is loaded, asked and released in turn.

    Args:
        suite: which rewards.
        items: what they score.
        device: where they stand meanwhile.
        folder: of the suite's file, for relative files of ensembles.
        media: what the models make: `pictures`, `clips` or `sounds`.

    Raises:
        ConfigError: a reward that cannot score this suite, or two columns of one title.
        MissingExtraError: clips or sounds, and nothing that reads them.
        CheckpointError: weights are missing or do not fit.
        UnknownNameError: nobody provides a reward.
    """
    require_names(suite)
    module, package, extra = _READERS.get(media, ("", "", ""))
    if module and find_spec(module) is None:
        do = f"pip install 'mmalign[{extra}]'"
        got = f"[{package} is not installed]"
        raise MissingExtraError(explain(media, got=got, expected="it, to read files", do=do))
    found: list[list[Column]] = []
    for spec in suite.rewards:
        found.append(_looked_at(spec, items, device, folder, media))
        release()  # only now: no frame holds the reward any more
    titles = [column.title for columns in found for column in columns]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        message = explain("suite rewards", got=f"two columns called {twice[0]}", expected="different titles")
        raise ConfigError(message)
    return found


def require_names(suite: Suite) -> None:
    """Refuse rewards nobody provides and settings they do not have, without loading any.

    Raises:
        UnknownNameError: nobody provides a reward.
        ConfigError: an option, weights or a dtype that would be ignored.
    """
    from mmalign.rewards import card

    for spec in suite.rewards:
        title = f"reward {spec.name}"
        if ":" in spec.name:
            ignored = sorted({"weights", "dtype"} & spec.model_fields_set)
            if ignored:
                expected = "neither weights nor dtype: a function or a server has its own"
                raise ConfigError(explain(title, got=ignored[0], expected=expected))
        elif not spec.name.endswith(_ENSEMBLE):
            known = card(spec.name).options
            unknown = sorted(set(spec.options) - set(known))
            if unknown:
                expected = f"one of its options ({', '.join(known) or 'none'})"
                raise ConfigError(explain(f"{title} option", got=unknown[0], expected=expected))


def made_for(suite: Suite) -> str:
    """What models of a suite make, by its first reward that says it: `sounds`, `clips`, else `pictures`."""
    from mmalign.rewards import card

    for spec in suite.rewards:
        if ":" not in spec.name and not spec.name.endswith(_ENSEMBLE):
            with contextlib.suppress(UnknownNameError):  # stored scores outlive the plug-in that gave them
                modality = card(spec.name).modality
                return {"audio": "sounds", "video": "clips"}.get(modality, "pictures")
    return "pictures"


def beside(name: str, folder: Path | None) -> str:
    """A file that a suite names: as written where that is there, else beside the suite's own file."""
    if folder is not None and not Path(name).exists() and (folder / name).exists():
        return str(folder / name)
    return name


def load_reward(
    spec: RewardSpec, device: str, *, folder: Path | None = None, media: str = "pictures"
) -> "Reward":
    """A reward as a suite asks for it. Who drops it calls `release` before the next one.

    Args:
        spec: which one.
        device: where it stands.
        folder: of the suite's file.
        media: of clips a reward of pictures reads the frames that `spec` says.
    """
    from mmalign.rewards import load

    options = dict(spec.options)
    if ":" not in spec.name:
        options |= {"weights": spec.weights, "device": device, "dtype": spec.dtype}
    name = beside(spec.name, folder) if spec.name.endswith(_ENSEMBLE) else spec.name
    reward = load(name, **options)
    if media == "clips" and spec.frames and reward.card.modality == "image":
        from mmalign.rewards.frame_mean import FrameMean

        return FrameMean(reward, spec.frames)
    return reward


def release() -> None:
    """Give the memory of what was deleted back to the device: networks hold themselves in cycles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _require_fit(spec: RewardSpec, reward: "Reward", items: Sequence[Item], media: str) -> None:
    """Refuse what could only fail on every picture or clip of the suite."""
    from mmalign.rewards.ensemble import is_relative
    from mmalign.rewards.frame_mean import FrameMean
    from mmalign.rewards.functions import FunctionReward

    title = f"reward {spec.name}"
    if is_relative(reward.reward if isinstance(reward, FrameMean) else reward):
        message = explain(
            title,
            got="an ensemble whose values depend on the other samples of a prompt",
            expected="a reward of single samples",
            do="Name its members as rewards of the suite; the report has their macro average.",
        )
        raise ConfigError(message)
    # A function of the user's says nothing of what it takes.
    of_user = media == "sounds" and isinstance(reward, FunctionReward)
    if reward.card.modality not in _SCORED[media] and not of_user:
        raise ConfigError(explain(title, got=f"a reward of {reward.card.modality}", expected=f"of {media}"))
    if "other" in reward.card.needs and not any("other" in item.expected for item in items):
        message = explain(
            title,
            got="a judge of pairs, and no prompt with a picture to compare with (other)",
            expected="a reward of single pictures",
        )
        raise ConfigError(message)


def _looked_at(
    spec: RewardSpec, items: Sequence[Item], device: str, folder: Path | None, media: str
) -> list[Column]:
    """One column per output; the first has the reward's own title."""
    reward = load_reward(spec, device, folder=folder, media=media)
    _require_fit(spec, reward, items, media)
    title = spec.title or spec.name
    fingerprint, provenance = reward.fingerprint(), reward.provenance()
    return [
        Column(
            title if number == 0 else f"{title}.{output}", spec, reward.card, output, fingerprint, provenance
        )
        for number, output in enumerate(reward.card.outputs)
    ]
