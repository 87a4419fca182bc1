"""Weights that a micro-batch has no use for still take part in its backward pass.

A tower that trains is not called for rows without pictures, and layers behind the one whose features are read
never matter. Over several devices every gradient is waited for: one that never comes ends the run. Here such
weights get gradients of zero, on one device too, so that the number of devices changes nothing.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["touching"]


def touching(
    states: Float[Tensor, "scored feature"], parameters: Iterable[nn.Parameter]
) -> Float[Tensor, "scored feature"]:
    """The same states, whose gradient reaches every given parameter, if only as zero.

    Args:
        states: of the forward pass; returned as they are where nothing is differentiated.
        parameters: frozen ones are left out.
    """
    if not torch.is_grad_enabled():
        return states
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return states
    # One element of each: its gradient is a whole tensor of zeros.
    nothing = torch.stack([parameter.flatten()[0].to(states.dtype) for parameter in trained]).sum() * 0.0
    return states + nothing
