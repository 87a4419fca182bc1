"""Collectors whose batches hold the data's prompts or samples, and what earlier policies made beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign.batch import Batch, Conditioning, Labels
from mmalign.files import under
from mmalign.rollout.collectors import Collected, Prompts, Stateless, valid_rows, with_empty_prompt
from mmalign.rollout.items import Items
from mmalign.rollout.replay import ReplayBuffer
from mmalign.seeding import row_uniform

__all__ = ["ExpertStates", "SelfPlay", "Unsampled"]


@dataclass(frozen=True)
class Unsampled(Stateless):
    """Prompts as they are, with the empty prompt beside them: the likelihood itself samples.

    Args:
        empty: conditioning `[1, ...]` of the empty prompt.
    """

    empty: Mapping[str, Tensor]

    def collect(self, batch: Batch) -> Collected:
        """The valid prompts."""
        conditioning = Conditioning(with_empty_prompt(batch, self.empty))
        asked = replace(batch, conditioning=conditioning, labels=Labels())
        return Collected(Items.each(valid_rows(asked, batch.valid)))


@dataclass(frozen=True)
class SelfPlay(Stateless):
    """SePPO: the data's chosen sample against what an earlier checkpoint of the run paints for its prompt.

    Args:
        prompts: the checkpoint that samples, and how.

    Source: 2410.05255.
    """

    prompts: Prompts

    @torch.no_grad()
    def collect(self, batch: Batch) -> Collected:
        """Pairs `[prompt, 2]` of clean latents."""
        batch = valid_rows(batch, batch.valid)
        rows, empty = self.prompts.rows(batch, 1)
        drawn = self.prompts.sampler.sample(
            self.prompts.denoise, batch.keys.key, self.prompts.event, rows, empty
        )
        pairs = torch.cat([batch.clean, drawn.final.unsqueeze(1).to(batch.clean.dtype)], dim=1)
        labels = Labels.pairs(batch.num_prompts, device=pairs.device)
        return Collected(Items.each(replace(batch, clean=pairs, labels=labels, reward=None)))


@dataclass(frozen=True)
class ExpertStates(Stateless):
    """Diffusion-DRO: the data's images against states of trajectories that a snapshot of the policy took.

    Every round samples the prompts of its batch and puts the trajectories, with their images, into a buffer;
    the items come from the buffer. An image and its opponent share prompt and timestep, not the noise.

    Args:
        prompts: the snapshot that samples, and how; deterministic, without guidance as published.
        buffer: recent trajectories.
        shift: largest offset of a row's time grid, in timesteps: states then cover all noise levels.

    Source: basiclab/DiffusionDRO, train.py; 2510.18353.
    """

    prompts: Prompts
    buffer: ReplayBuffer
    shift: int = 0

    @torch.no_grad()
    def collect(self, batch: Batch) -> Collected:
        """Images `[prompt, 1]` with a recorded state, its timestep and the snapshot's prediction there."""
        batch = valid_rows(batch, batch.valid)
        rows, empty = self.prompts.rows(batch, 1)
        sampler = self.prompts.sampler
        if self.shift:
            chance = row_uniform(batch.keys.key, 1, purpose="grid_shift").squeeze(1)
            offset = (chance * (self.shift + 1)).long().clamp(max=self.shift)
            sampler = replace(sampler, grid=sampler.grid.to(offset.device).shifted(offset))
        drawn = sampler.sample(
            self.prompts.denoise,
            batch.keys.key,
            self.prompts.event,
            rows,
            empty,
            keep=("state", "prediction"),
        )
        if drawn.state is None or drawn.prediction is None:
            message = "a trajectory that was asked for its states has them"
            raise AssertionError(message)
        conditioning = {f"conditioning.{name}": value for name, value in batch.conditioning.rows(1).items()}
        self.buffer.add(
            {
                "clean": batch.clean,
                "state": drawn.state,
                "prediction": drawn.prediction,
                "timestep": drawn.timestep,
                **conditioning,
            }
        )
        return Collected(Items.each(self._from_buffer(batch)))

    def _from_buffer(self, batch: Batch) -> Batch:
        steps = ("state", "prediction", "timestep")
        found = self.buffer.draw(batch.keys.key, along=steps, distinct=True)
        return replace(
            batch,
            clean=found["clean"],
            conditioning=Conditioning(under(found, "conditioning.")),
            labels=Labels.pairs(batch.num_prompts, device=batch.clean.device),
            reward=None,  # the data's, of one candidate
            recorded={name: found[name].unsqueeze(1) for name in steps},
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The buffer's trajectories."""
        return self.buffer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the same trajectories."""
        self.buffer.load_state_dict(state)
