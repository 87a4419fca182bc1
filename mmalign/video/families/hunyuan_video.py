"""HunyuanVideo: a flow-matching transformer over clips and the tokens of a LLaMA, with CLIP's pooled state.

The LLaMA reads the prompt inside an instruction, whose 95 tokens are cut off; its third state from the end
speaks for the prompt. Guidance is an input of the network (distilled: one call per step): training tells it
one fixed value, `model.guidance`, policy and reference the same; samples are told what they are asked for.
Checkpoints that go on from a picture (token replacement, concatenation) are other families' work.

Source: diffusers pipelines/hunyuan_video; 2412.03603.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmalign.diffusion.guided import Guide
from mmalign.diffusion.pipeline_parts import SettingsSource, pipeline_opener
from mmalign.errors import ConfigError, explain
from mmalign.video.clips import VideoReader
from mmalign.video.family import VideoFamily, VideoModel
from mmalign.video.hunyuan_names import joined, split

__all__ = ["FAMILY", "GUIDANCE", "HunyuanVideo", "HunyuanVideoSource", "Templated"]

GUIDANCE = 6.0
"""What the network is told unless the run says otherwise. Source: the pipeline's default."""

_STATE = -3
"""Which of the LLaMA's hidden states speaks for the prompt."""


def _template() -> tuple[str, int]:
    """The instruction around a prompt, and how many of its tokens come before the prompt."""
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video

    found = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE
    return str(found["template"]), int(found["crop_start"])


@dataclass(frozen=True)
class Templated:
    """A tokenizer of prompts inside an instruction.

    Args:
        tokenizer: of the instruction with its prompt.
        template: the instruction, `{}` where the prompt goes.
        before: tokens before the prompt, which come on top of the length that is asked for.
    """

    tokenizer: Any
    template: str
    before: int

    @property
    def model_max_length(self) -> int:
        """Tokens that a prompt may have."""
        return int(self.tokenizer.model_max_length) - self.before

    def __call__(self, texts: Sequence[str], *, max_length: int, **settings: Any) -> Any:
        """Tokens of the instruction and of each prompt in it."""
        whole = [self.template.format(text) for text in texts]
        return self.tokenizer(whole, max_length=max_length + self.before, **settings)


class HunyuanVideoSource(SettingsSource):
    """A pipeline folder whose LLaMA tokens are read as `tokenizer.json` has them.

    Published folders name `LlamaTokenizerFast`. In transformers 5 a class of this name makes words of its own
    from their byte-level vocabulary, loses blanks and line ends, and fills up on the left.
    """

    def _part_of_folder(self, name: str, dtype: torch.dtype | None) -> Any:
        if name != "tokenizer":
            return super()._part_of_folder(name, dtype)
        written, self.index[name] = self.index[name], ["transformers", "PreTrainedTokenizerFast"]
        try:
            tokenizer = super()._part_of_folder(name, dtype)
        finally:
            self.index[name] = written
        tokenizer.padding_side = "right"  # the instruction is cut off on the left
        return tokenizer


class HunyuanVideo(VideoModel):
    """A loaded HunyuanVideo."""

    family: ClassVar[str] = "hunyuan_video"
    network_class: ClassVar[str] = "HunyuanVideoTransformer3DModel"
    patch: ClassVar[int] = 2
    text_parts: ClassVar[tuple[tuple[str, str], ...]] = (
        ("tokenizer", "text_encoder"),
        ("tokenizer_2", "text_encoder_2"),
    )
    long_tokenizer: ClassVar[str | None] = "tokenizer"
    text_masks: ClassVar[bool] = True
    default_num_frames: ClassVar[int] = 129
    default_size: ClassVar[tuple[int, int]] = (720, 1280)
    default_fps: ClassVar[float] = 24.0
    # Attention of both kinds of blocks, and what single blocks have in the place of a feed-forward part; not
    # the refiner of the text, whose layers have the same names.
    adapter_targets: str = (
        r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out)"
    )

    _samples: bool = False
    _told: float | None = None

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As the pipeline."""
        return 50, GUIDANCE

    @property
    def suggested_timesteps(self) -> dict[str, Any]:
        """Logit-normal, before the schedule's shift. Source: 2412.03603, section 4.4."""
        return {"timesteps": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0}

    @property
    def default_text_length(self) -> int:
        """The pipeline's, the instruction not counted."""
        return 256

    @property
    def adapter_pipeline(self) -> str | None:
        """What users put adapters on."""
        return "HunyuanVideoPipeline"

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """(4, 8)."""
        return int(config["temporal_compression_ratio"]), int(config["spatial_compression_ratio"])

    def _make_reader(self) -> VideoReader:
        reader = super()._make_reader()
        template, before = _template()
        return replace(
            reader, tokenizers=(Templated(reader.tokenizers[0], template, before), *reader.tokenizers[1:])
        )

    def check_network(self, network: Any) -> None:
        """The transformer takes the VAE's latents and nothing beside them.

        Raises:
            ConfigError: it does not, `model.guidance` is set and it has no such input, or attention is to run
                on a kernel that knows no masks.
        """
        config, channels = network.config, self.latent_shape[0]
        if config.in_channels != channels or config.image_condition_type is not None:
            message = explain(
                f"model.source {self.settings.source}",
                got=f"{config.in_channels} channels, pictures by {config.image_condition_type}",
                expected=f"{channels} channels and no pictures: HunyuanVideo from text",
            )
            raise ConfigError(message)
        if self.settings.attention == "flash":
            expected = "sdpa or xformers: its attention is masked, for which torch's flash kernel is not made"
            raise ConfigError(explain("model.attention", got="flash", expected=expected))
        self.embeds_guidance = bool(config.guidance_embeds)
        if self.settings.guidance is not None and not self.embeds_guidance:
            expected = "nothing: this network has no guidance input"
            raise ConfigError(explain("model.guidance", got=self.settings.guidance, expected=expected))
        if self.embeds_guidance:
            self.notes.append(f"guidance: the network is told {self.guidance} (model.guidance)")

    @property
    def guidance(self) -> float:
        """What the network is told: while training the run's, while sampling what is asked for."""
        if self._told is not None:
            return self._told
        return GUIDANCE if self.settings.guidance is None else self.settings.guidance

    # --- text, network --------------------------------------------------------------------------------------

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` and `text_mask` [prompt, token, ...] of the prompt alone, `pooled` [prompt, channel]."""
        ids, mask, words, _ = tokens
        _, before = _template()
        states = encoders[0](ids, attention_mask=mask, output_hidden_states=True).hidden_states[_STATE]
        return {
            "text": states[:, before:],
            "text_mask": mask[:, before:].bool(),
            "pooled": encoders[1](words).pooler_output,
        }

    def network_arguments(self, conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
        """Text states, their mask, pooled text and guidance."""
        text, guidance = conditioning["text"], None
        if self.embeds_guidance:
            guidance = text.new_full(text.shape[:1], self.guidance) * 1000.0
        return {
            "encoder_hidden_states": text,
            "encoder_attention_mask": conditioning["text_mask"],
            "pooled_projections": conditioning["pooled"],
            "guidance": guidance,
        }

    # --- sampling -------------------------------------------------------------------------------------------

    def set_steps(self, scheduler: Any, num_steps: int) -> None:
        """Noise levels 1, 1 - 1/n, ..., 1/n, before the shift."""
        if self.prediction != "flow":
            super().set_steps(scheduler, num_steps)
            return
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_steps + 1)[:-1], device=self.device)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The network is told the sample's guidance meanwhile."""
        self._samples = True
        try:
            with super().sampling():
                yield
        finally:
            self._samples, self._told = False, None

    def guide(self, scale: float) -> Guide:
        """Plain guidance; a network that takes it is told the scale instead, while clips are sampled."""
        if self.embeds_guidance and self._samples:
            self._told = scale
        return super().guide(scale)

    # --- files ----------------------------------------------------------------------------------------------

    def joined_layers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """An adapter under the names of HunyuanVideo's own code."""
        return joined(tensors, self.bare_network)

    def split_layers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """What `joined_layers` gave, under diffusers' names again."""
        return split(tensors, self.bare_network)


PIPELINES = ("HunyuanVideoPipeline",)

FAMILY = VideoFamily(
    name="hunyuan_video",
    model=HunyuanVideo,
    open_source=pipeline_opener(
        "hunyuan_video",
        PIPELINES,
        (HunyuanVideo.network_part, HunyuanVideo.network_class),
        source_class=HunyuanVideoSource,
    ),
    pipelines=PIPELINES,
)
