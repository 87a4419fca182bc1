"""AudioLDM 2: a UNet over latents of log-mel spectrograms, told what T5 and a language model make of text.

CLAP's state of the prompt and T5's states go through a projection into GPT-2, which continues them by eight
states of its own; the UNet attends to those and to T5's. Everything but the UNet is frozen, so that text
states can be cached. GPT-2 counts padding as places: every prompt is read as if it were alone.

Source: diffusers pipelines/audioldm2; 2308.05734.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.audio.family import AudioFamily
from mmalign.audio.mel import MelFrontEnd
from mmalign.audio.mel_model import MelModel
from mmalign.audio.pipeline_saving import save_pipeline_folder
from mmalign.audio.pipeline_source import AudioPipelineSource, pipeline_opener
from mmalign.batch import Conditioning
from mmalign.diffusion.clip_reader import padded
from mmalign.errors import ConfigError, explain

__all__ = ["FAMILY", "AudioLDM2"]


class AudioLDM2(MelModel):
    """A loaded AudioLDM 2 of sound or music (16 kHz)."""

    family: ClassVar[str] = "audioldm2"
    network_class: ClassVar[str] = "AudioLDM2UNet2DConditionModel"
    text_parts: ClassVar[tuple[tuple[str, str], ...]] = (
        ("tokenizer", "text_encoder"),
        ("tokenizer_2", "text_encoder_2"),
    )
    long_tokenizer: ClassVar[str | None] = "tokenizer_2"
    text_masks: ClassVar[bool] = True
    # FLAN-T5 overflows in float16.
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16

    source: AudioPipelineSource

    @property
    def default_text_length(self) -> int:
        """What T5's tokenizer says; texts are filled up to the longest of their batch and no further."""
        return min(512, int(self.tokenizers[1].model_max_length))

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As the pipeline."""
        return 200, 3.5

    # --- sound ----------------------------------------------------------------------------------------------

    def _load_codec(self) -> None:
        self._check_parts()
        replacement = self.settings.vae
        parts = self.source if replacement is None else _open_source(replacement)
        self.front = MelFrontEnd()
        origin = "the model's own VAE" if replacement is None else f"VAE {replacement}"
        self._open_codec(parts, origin=origin)

    def _check_parts(self) -> None:
        """Refuse models of speech, and vocoders of other spectrograms than AudioLDM's."""
        if (self.source.index.get("text_encoder_2") or ("", ""))[1] == "VitsModel":
            message = explain(
                f"model.source {self.settings.source}",
                got="a model of speech, which reads transcriptions",
                expected="one of sound or music: cvssp/audioldm2, -large, -music",
            )
            raise ConfigError(message)
        vocoder, front = self.source.settings_of("vocoder"), MelFrontEnd()
        rates = vocoder.get("upsample_rates") or ()
        got = (vocoder.get("sampling_rate"), math.prod(rates), vocoder.get("model_in_dim"))
        wanted = (front.sampling_rate, front.hop_length, front.num_mels)
        if got != wanted:
            message = explain(
                f"model.source {self.settings.source}, part vocoder",
                got="{} Hz, hop {}, {} bands".format(*got),
                expected="{} Hz, hop {}, {} bands".format(*wanted),
            )
            raise ConfigError(message)

    def _default_duration(self) -> float:
        """Seconds of the latents that the UNet was trained with: 256 frames, 10.24 s."""
        size = self.source.settings_of("unet")["sample_size"]
        rows = int(size[0] if isinstance(size, list | tuple) else size)
        return rows * self.autoencoder.shrink * self.front.hop_length / self.front.sampling_rate

    def check_network(self, network: Any) -> None:
        """The UNet takes the VAE's latents.

        Raises:
            ConfigError: it does not.
        """
        channels = self.latent_shape[0]
        if network.config.in_channels != channels:
            message = explain(
                f"model.source {self.settings.source}",
                got=f"a UNet of {network.config.in_channels} channels",
                expected=f"{channels}, as the VAE has",
            )
            raise ConfigError(message)

    def _load_network(self, dtype: torch.dtype) -> None:
        """As every family; where activations are recomputed, by the transformers inside the UNet's blocks.

        The blocks themselves, told to do it, hand their transformers the text's mask as that of the sound
        (diffusers 0.42 `CrossAttnDownBlock2D.forward` of this pipeline: arguments off by one).
        """
        super()._load_network(dtype)
        if not self.settings.gradient_checkpointing:
            return
        for block in self.bare_network.modules():
            if hasattr(block, "attentions") and getattr(block, "gradient_checkpointing", False):
                block.gradient_checkpointing = False
        kept = sum(
            bool(getattr(part, "gradient_checkpointing", False)) for part in self.bare_network.modules()
        )
        self.notes.append(f"gradient checkpointing: {kept} transformers and plain blocks of AudioLDM 2 alone")

    # --- text -----------------------------------------------------------------------------------------------

    @property
    def encoders(self) -> list[Any]:
        """CLAP, T5, the projection and the language model, loaded when they are first needed."""
        if self._encoders is None:
            names = (*(name for _, name in self.text_parts), "projection_model", "language_model")
            parts = [self.source.part(name, dtype=self.dtype) for name in names]
            self._encoders = [part.to(self._home) for part in parts]
        return self._encoders

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`generated` [prompt, 8, channel], `text` [prompt, token, channel] of T5, and `text_mask`."""
        heard_ids, heard_mask, ids, mask = tokens
        clap, t5, projection, language = encoders
        heard = clap.get_text_features(heard_ids, attention_mask=heard_mask)
        heard = getattr(heard, "pooler_output", heard)  # transformers 5 wraps it
        states = t5(ids, attention_mask=mask)[0]
        lengths = mask.sum(1)
        generated: list[Tensor] = [states.new_empty(0)] * len(ids)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten()
            own = continued(projection, language, heard[rows], states[rows, :length], mask[rows, :length])
            for row, found in zip(rows.tolist(), own, strict=True):
                generated[row] = found
        return {"generated": torch.stack(generated), "text": states, "text_mask": mask.bool()}

    @torch.no_grad()
    def contrast_conditioning(self, prompts: Sequence[str], negatives: Sequence[str] | None) -> Conditioning:
        """The empty prompt, or the user's, filled up to the length of its prompt, as the pipeline has it.

        The language model counts what fills up as places, so that its states are others than alone.
        """
        rows = []
        for prompt, negative in zip(prompts, negatives or [""] * len(prompts), strict=True):
            length = int(self.reader.tokens([prompt])[3].sum())
            heard_ids, heard_mask = (ids.to(self.device) for ids in self.reader.tokens([negative])[:2])
            filled = self.tokenizers[1](
                [negative], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            ids, mask = (filled[name].to(self.device) for name in ("input_ids", "attention_mask"))
            with self.encoders_ready():
                clap, t5, projection, language = self.encoders
                heard = clap.get_text_features(heard_ids, attention_mask=heard_mask)
                heard = getattr(heard, "pooler_output", heard)
                states = t5(ids, attention_mask=mask)[0]
                generated = continued(projection, language, heard, states, mask)
            rows.append(self._placed({"generated": generated, "text": states, "text_mask": mask.bool()}))
        return Conditioning(shared={**padded(rows), **self._whole_media(len(rows))})

    # --- the network ----------------------------------------------------------------------------------------

    def network_arguments(self, conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
        """The language model's states, all of them seen, and T5's with their mask."""
        return {
            "encoder_hidden_states": conditioning["generated"],
            "encoder_hidden_states_1": conditioning["text"],
            "encoder_attention_mask_1": conditioning["text_mask"],
        }

    def save_model(self, folder: str | Path) -> Path:
        """Write an `AudioLDM2Pipeline` folder, adapters merged in."""
        return save_pipeline_folder(self, folder)


def continued(
    projection: Any,
    language: Any,
    heard: Float[Tensor, "row clap"],
    states: Float[Tensor, "row token text"],
    mask: Bool[Tensor, "row token"] | Tensor,
) -> Float[Tensor, "row new channel"]:
    """What the language model continues CLAP's and T5's states with: eight states, each fed back.

    Args:
        projection: joins both, with learned begin and end tokens around each.
        language: GPT-2, with or without its head.
        heard: CLAP's states.
        states: T5's.
        mask: of T5's tokens.
    """
    body = getattr(language, "transformer", language)
    joined = projection(
        hidden_states=heard.unsqueeze(1),
        hidden_states_1=states,
        attention_mask=mask.new_ones(len(mask), 1),
        attention_mask_1=mask,
    )
    inputs, seen = joined.hidden_states, joined.attention_mask
    count = int(getattr(language.config, "max_new_tokens", None) or 8)
    for _ in range(count):
        output = body(inputs_embeds=inputs, attention_mask=seen, use_cache=False).last_hidden_state
        inputs = torch.cat([inputs, output[:, -1:]], dim=1)
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
    found: Tensor = inputs[:, -count:]
    return found


PIPELINES = ("AudioLDM2Pipeline",)

_open_source = pipeline_opener("audioldm2", PIPELINES, ("unet", AudioLDM2.network_class))

FAMILY = AudioFamily(name="audioldm2", model=AudioLDM2, open_source=_open_source, pipelines=PIPELINES)
