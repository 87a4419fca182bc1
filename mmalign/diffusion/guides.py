"""Trained rewards for guidance on disk: a small head, and which states of which model it reads.

A folder holds `guide.safetensors` (the head) and `guide.json`. The backbone is not part of it: that is the
model that is sampled from, whose first layers are read without its adapters.

Source: arXiv 2501.13918, Flow-NRG.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmalign.diffusion.latent_reward import BackboneReward, block_of
from mmalign.diffusion.model import DiffusionModel
from mmalign.diffusion.reward_guidance import Guide
from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.files import read_json, write_json
from mmalign.likelihood.schedules import FlowSchedule

__all__ = [
    "CARD_FILE",
    "HEAD_FILE",
    "guide_schedule",
    "load_guide",
    "make_reward",
    "reading_block",
    "save_guide",
]

HEAD_FILE, CARD_FILE = "guide.safetensors", "guide.json"

_KIND = "flow_nrg"
_LISTS = ("blocks", "transformer_blocks")
_HIGHEST = 0.98
"""Guidance is off above this time: t / (1 - t) grows without bound there."""


def guide_schedule(model: DiffusionModel) -> FlowSchedule:
    """The schedule of a model that can be guided so.

    Raises:
        ConfigError: it predicts no velocity of a flow, for which the formula holds.
    """
    schedule = model.schedule
    if isinstance(schedule, FlowSchedule) and model.prediction == "flow":
        return schedule
    message = explain(
        "reward guidance",
        got=f"family {model.family}, which predicts {model.prediction}",
        expected="a model of rectified flow: the velocity is what the reward's gradient bends",
        do="Of video: wan, ltx, hunyuan_video.",
    )
    raise ConfigError(message)


def reading_block(network: nn.Module) -> str:
    """Name of the block whose states a reward reads by default: the last of the first 6 of 28, in proportion.

    Raises:
        ConfigError: the network has no list of transformer blocks.

    Source: arXiv 2501.13918, Flow-NRG.
    """
    for name in _LISTS:
        blocks = getattr(network, name, None)
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 0:
            return f"{name}.{max(1, round(len(blocks) * 6 / 28)) - 1}"
    message = explain(
        "reward guidance block",
        got=f"a {type(network).__name__} without {' or '.join(_LISTS)}",
        expected="the name of a module that gives [row, token, feature]",
    )
    raise ConfigError(message)


def make_reward(
    model: DiffusionModel,
    *,
    block: str | None = None,
    hidden: int = 256,
    seed: int = 0,
    as_base: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[BackboneReward, str]:
    """An untrained reward on a model's own network, and the name of the block it reads.

    Args:
        model: loaded, its gradients checkpointed nowhere.
        block: module of the network; default `reading_block`.
        hidden: width of the head.
        seed: of the head's weights.
        as_base: takes adapters off meanwhile: the reward knows the states of the base model.

    Raises:
        ConfigError: no such block, or a network that does not say how wide its blocks are.
    """
    network = model.bare_network
    name = reading_block(network) if block is None else block
    config = network.config
    heads, width = (config.get(key) for key in ("num_attention_heads", "attention_head_dim"))
    if heads is None or width is None:
        got = f"a {type(network).__name__} without num_attention_heads and attention_head_dim"
        raise ConfigError(explain("reward guidance", got=got, expected="a transformer"))

    def denoise(
        noised: Float[Tensor, " row *event"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, " row *event"]:
        with as_base():
            return model.denoise(noised, timestep, conditioning, network=network)

    reward = BackboneReward(
        denoise, block_of(network, name), int(heads) * int(width), hidden=hidden, seed=seed
    )
    return reward.to(model.device), name


def save_guide(folder: Path, reward: BackboneReward, model: DiffusionModel, card: Mapping[str, Any]) -> None:
    """Write the head and what `load_guide` needs to know; a card of the same name is replaced.

    Args:
        folder: exists.
        reward: trained.
        model: whose states it reads.
        card: `block` and `hidden`, and whatever else is to be remembered.
    """
    schedule = guide_schedule(model)
    reward.save(folder / HEAD_FILE)
    known = {
        "kind": _KIND,
        "family": model.family,
        "part": model.trained_part,
        "features": reward.features,
        "hidden": reward.hidden,
        "latent_channels": model.latent_shape[0],
        "levels": [float(getattr(schedule, "lowest", 0.0)), float(getattr(schedule, "highest", 1.0))],
    }
    write_json(folder / CARD_FILE, {**card, **known})


def load_guide(
    model: DiffusionModel,
    folder: str | Path,
    weight: float,
    *,
    as_base: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Guide:
    """A trained reward on a loaded model, with the weight it is to have.

    It acts on the noise levels that it was trained on, and nowhere above 0.98.

    Args:
        model: what is sampled from.
        folder: what `mmalign guide` wrote.
        weight: 0 leaves the sampler as it is.
        as_base: takes adapters off meanwhile.

    Raises:
        CheckpointError: there is no such reward, or it is damaged.
        ConfigError: it is one of another model, or the model is none of rectified flow.
        HyperparameterError: the weight is not finite.
    """
    guide_schedule(model)
    card = _card(Path(folder))
    own = {"family": model.family, "part": model.trained_part, "latent_channels": model.latent_shape[0]}
    for name, value in own.items():
        if card[name] != value:
            message = explain(
                f"--guide {folder}", got=f"a reward of {name} {card[name]}", expected=f"one of {value}"
            )
            raise ConfigError(message)
    reward, _ = make_reward(model, block=card["block"], hidden=card["hidden"], as_base=as_base)
    if reward.features != card["features"]:
        got = f"a reward that reads {card['features']} features"
        raise ConfigError(explain(f"--guide {folder}", got=got, expected=f"one that reads {reward.features}"))
    reward.load(Path(folder) / HEAD_FILE)
    reward.requires_grad_(False)
    low, high = card["levels"]
    return Guide(reward.eval(), weight, low=float(low), high=min(float(high), _HIGHEST))


def _card(folder: Path) -> dict[str, Any]:
    path = folder / CARD_FILE
    if not path.is_file() or not (folder / HEAD_FILE).is_file():
        message = explain(
            f"--guide {folder}",
            got="no guide.json and guide.safetensors",
            expected="a folder that `mmalign guide` wrote to its end",
        )
        raise CheckpointError(message)
    card = read_json(path)
    wanted = {"kind", "family", "part", "block", "features", "hidden", "latent_channels", "levels"}
    if not isinstance(card, dict) or card.get("kind") != _KIND or not wanted <= card.keys():
        message = explain(str(path), got="[another file]", expected=f"the card of a reward: {sorted(wanted)}")
        raise CheckpointError(message)
    return card
