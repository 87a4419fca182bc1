"""PAL-B heads as the official text-to-image training saves them.

Source: RamyaLab/pluralistic-alignment, src/pal_rm_b_t2i.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mmalign.errors import CheckpointError, explain
from mmalign.rewards.checkpoints import fill
from mmalign.rewards.ideal_point_models import PalHead, PalSettings

__all__ = ["read_official_b"]


def read_official_b(
    state: Mapping[str, Tensor],
    *,
    where: str,
    activation: Literal["relu", "gelu", "linear"] = "relu",
    residual: bool = True,
    unit_inputs: bool = True,
) -> PalHead:
    """A head of form b from the state dict of the official text-to-image training.

    Keys: `[preference_learner.]item_learner.projector.mlp.layers.N.*`, `user_learner.projectors.K.mlp.*`,
    `user_learner.W.<user>` and `logit_scale`; old files say `m` for `mlp`. The same tensors under
    `projector_f` are the item projector again. What the keys do not say is asked for; the defaults are those
    of the published configuration (mlp2-relu-dropout5-residual).

    Args:
        state: tensors by name, as `read_state` gives them.
        where: file, for messages.
        activation: between layers.
        residual: the projections are added to their input.
        unit_inputs: what the training's embeddings were; the configuration does not say.

    Raises:
        CheckpointError: other keys, or sizes that do not fit one another.
    """
    spellings = ((r"^(preference_learner|prefLearner)\.", ""), (r"\.m\.", ".mlp."))
    named = dict(state)
    for pattern, replacement in spellings:
        named = {re.sub(pattern, replacement, name): value for name, value in named.items()}
    first = "item_learner.projector.mlp.layers.0.weight"
    users = [name.removeprefix("user_learner.W.") for name in named if name.startswith("user_learner.W.")]
    groups = {name.split(".")[2] for name in named if name.startswith("user_learner.projectors.")}
    if first not in named or not users or not groups:
        expected = "item_learner.projector, user_learner.projectors and user_learner.W of PAL-B for pictures"
        raise CheckpointError(explain(where, got=f"[{len(named)} other keys]", expected=expected))
    layers = len([name for name in named if re.match(r"item_learner\.projector\..*\.weight$", name)])
    temperature = named.get("softmax_w.temperature", torch.ones(1))
    settings = PalSettings(
        form="b",
        input=int(named[first].shape[1]),
        width=int(named[first].shape[0]),
        prototypes=len(groups),
        hidden=layers - 1,
        activation=activation,
        residual=residual,
        unit_inputs=unit_inputs,
        temperature=float(temperature.reshape(-1)[0]),
    )
    head = PalHead(settings, users)
    rows = torch.stack([named.pop(f"user_learner.W.{user}") for user in users])
    ignored = ("projector_f.*", "softmax_w.temperature", "user_learner.softmax.temperature")
    fill(head, {**named, "logits": rows}, where=where, ignored=ignored, rename=_own_name)
    return head.eval()


def _own_name(name: str) -> str:
    """The name of an official parameter here."""
    name = name.replace("item_learner.projector.mlp.", "projector.")
    name = re.sub(r"^user_learner\.projectors\.(\d+)\.mlp\.", r"prompt_projectors.\1.", name)
    return "log_scale" if name == "logit_scale" else name
