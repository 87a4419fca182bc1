"""CLAP score: how well a sound and its prompt fit in the space of one CLAP checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, RowError, explain
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.clap_models import TEXT_LIMIT, ClapEncoder, Windows, clap_weights, load_clap
from mmalign.rewards.sample import Sample
from mmalign.rewards.sounds import Channels, Level, levelled, one_channel, read_sound

__all__ = ["ClapReward", "build"]


class ClapReward(ModelReward):
    """Cosine of a sound and its prompt, averaged over the sound's windows.

    Args:
        card: what it is.
        encoder: of sounds and prompts.
        level: how loud sounds are made.
        channels: how several channels become one.
        device: where the network stands.
        dtype: of the network; cosines are float32.
    """

    def __init__(
        self,
        card: Card,
        encoder: ClapEncoder,
        *,
        level: Level,
        channels: Channels,
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(card, device=device, dtype=dtype)
        self.encoder, self.level, self.channels = encoder, level, channels

    def prepare(self, sample: Sample) -> Prepared:
        """Mel windows of the sound and ids of the prompt.

        Raises:
            MissingExtraError: nothing that decodes sounds is installed.
            RowError: no sound (`missing_audio`), or one that cannot be read.
        """
        where = f"{self.card.name} sample {sample.id!r}"
        if sample.audio is None:
            raise RowError(explain(where, got=None, expected="a sound"), reason="missing_audio")
        sound = read_sound(sample.audio, where=where)
        wave = one_channel(sound, self.encoder.sampling_rate, channels=self.channels)
        ids, mask, cut = self.encoder.tokens(sample.prompt)
        mels = self.encoder.mels(levelled(wave, self.level))
        return Prepared({"mels": mels, "ids": ids, "mask": mask}, truncated=cut)

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """One value per sample."""
        windows = [one.inputs["mels"] for one in batch]
        sounds = self.encoder.sound_features(torch.cat(windows)).split([len(mels) for mels in windows])
        ids, masks = (torch.stack([one.inputs[name] for one in batch]) for name in ("ids", "mask"))
        texts = self.encoder.text_features(ids, masks)
        return torch.stack(
            [(sound @ text).mean(dim=0, keepdim=True) for sound, text in zip(sounds, texts, strict=True)]
        )

    def settings(self) -> Mapping[str, Any]:
        """The encoder's settings, level and channels."""
        return {**self.encoder.settings(), "level": self.level, "channels": self.channels}


def build(
    card: Card,
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    checkpoint: str,
    windows: Windows = "first",
    level: Level = "file",
    channels: Channels = "mean",
) -> ClapReward:
    """CLAP score by one checkpoint; its name says which, by name and digest, and what is heard.

    Raises:
        ConfigError: no such level, channels or windows.
    """
    for name, given, known in (("level", level, Level), ("channels", channels, Channels)):
        if given not in get_args(known):
            message = explain(f"reward {card.name} {name}", got=given, expected=" or ".join(get_args(known)))
            raise ConfigError(message)
    wanted = f"clap[{checkpoint}, {windows}]"
    encoder = load_clap(
        checkpoint, weights=weights, reward=wanted, windows=windows, device=device, dtype=dtype
    )
    heard = f"{windows}{'' if level == 'file' else f', {level}'}"
    named = replace(
        card,
        name=f"clap[{checkpoint} {encoder.mark}, {heard}]",
        weights=(clap_weights(checkpoint),),
        text_limit=TEXT_LIMIT,
    )
    return ClapReward(named, encoder, level=level, channels=channels, device=device, dtype=dtype)
