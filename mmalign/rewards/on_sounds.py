"""Any reward of sounds as a function of waveforms: what an online run of a model of sound scores with."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.audio_media import encode_audio
from mmalign.rewards.base import Reward
from mmalign.rewards.sample import Sample

__all__ = ["OnSounds"]


class OnSounds:
    """A reward over batches of waveforms.

    Args:
        reward: any reward of sounds.
        batch_size: sounds that it hears together; changes no value.

    Attributes:
        name: of the reward.
    """

    def __init__(self, reward: Reward, *, batch_size: int = 16) -> None:
        self.reward, self.batch_size, self.name = reward, batch_size, reward.card.name

    def score_waves(
        self, waves: Float[Tensor, "row channel sample"], sampling_rate: int, prompts: Sequence[str]
    ) -> Float[Tensor, " row"]:
        """The reward's first output per row, on the waves' device; NaN where it failed.

        Args:
            waves: in [-1, 1].
            sampling_rate: Hz.
            prompts: one per row.
        """
        samples = [
            Sample(
                prompt=prompt,
                audio=encode_audio(
                    wave.detach().float().cpu(), sampling_rate, container="wav", coding="FLOAT"
                ),
            )
            for prompt, wave in zip(prompts, waves, strict=True)
        ]
        values = self.reward.score(samples, batch_size=self.batch_size).first()
        return values.to(waves.device, torch.float32)
