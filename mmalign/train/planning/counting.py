"""A step of a run played through on shapes: its passes, its encoders, what trains.

One forward and backward pass of the policy, one forward pass of the reference, one encoding by the VAE. What
follows from them, memory and time, is arithmetic on these.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.errors import ConfigError
from mmalign.likelihood.adapters import switched_off
from mmalign.train.adapters import attach
from mmalign.train.config import ResolvedRun
from mmalign.train.parts import DTYPES
from mmalign.train.plan import MemoryItem
from mmalign.train.planning.counted import Counted, Encoding
from mmalign.train.planning.language import RELEASED, count_released
from mmalign.train.planning.outline import Outline, encoding_inputs, outline_of
from mmalign.train.planning.trace import Kernel, trace_pass
from mmalign.train.quantization import frozen_bytes
from mmalign.train.rollout_memory import memory_of_rollouts, rows_with_gradient
from mmalign.train.rollouts import is_online
from mmalign.train.token_plan import OutlinedRun, outline_dialogues
from mmalign.train.token_sections import tokens_of

__all__ = ["Counted", "Encoding", "count", "count_media", "num_candidates", "num_passes"]


def num_candidates(run: ResolvedRun) -> int:
    """Candidates of a prompt that are scored; lists are counted as pairs."""
    return 1 if run.method.data == "unpaired" else 2


def num_passes(run: ResolvedRun, counted: Counted) -> int:
    """Passes with gradients in a micro-step: more than one where the backward pass is split."""
    if not run.config.train.split_backward or counted.encoding is None:
        return 1
    rows = num_candidates(run) * run.config.train.batch_size * run.config.likelihood.draws
    return max(1, -(-rows // counted.rows))


def count(run: ResolvedRun, *, device_type: str, reward_bytes: int | None = None) -> Counted:
    """Play a step of a run through on shapes, whatever its model makes.

    Args:
        run: resolved.
        device_type: whose rules autocast follows: "cuda" or "cpu".
        reward_bytes: of what scores the run's samples; None: none, or not known.

    Raises:
        ConfigError: the model's settings cannot be read, or an adapter fits nothing.
    """
    if tokens_of(run.config) is None:
        return count_media(run, device_type=device_type, reward_bytes=reward_bytes)
    released = RELEASED.get(run.config.model.source)
    if released is None:
        return count_dialogues(run, device_type=device_type)
    try:
        return count_dialogues(run, device_type=device_type)
    except ConfigError:  # neither here nor to be had: its sizes are known all the same
        return count_released(run, released, device_type=device_type)


def count_dialogues(run: ResolvedRun, *, device_type: str) -> Counted:
    """Play a step of a language model through on shapes; arguments and errors as `count`."""
    outlined = outline_dialogues(run)
    network = outlined.trainables.network.to("meta")
    half = DTYPES[run.config.train.mixed_precision]
    autocast = None if half is torch.float32 else half
    policy = trace_pass(
        network,
        outlined.forward,
        autocast=autocast,
        device_type=device_type,
        keeps_casts=not run.config.model.gradient_checkpointing,
    )
    with switched_off(outlined.trainables.layers):
        reference = trace_pass(
            network,
            outlined.forward,
            is_trained=False,
            autocast=autocast,
            device_type=device_type,
            keeps_casts=False,
        )
    head = outlined.outline.network.model.get_output_embeddings().weight
    scored = int(outlined.batch.inputs.place.shape[0])
    narrow = half is not torch.float32
    size = head.numel() * head.element_size()
    logits = Kernel(2 * scored * head.numel(), size, narrow, "forward")
    back = Kernel(2 * scored * head.numel(), size, narrow, "backward")
    # Backward the logits are made again, tile by tile, before their gradient goes on to the states and,
    # where the head trains, to its weights.
    backs = [back] * (3 if head.requires_grad else 2)
    policy = replace(policy, kernels=(*policy.kernels, logits, *backs))
    reference = replace(reference, kernels=(*reference.kernels, logits))
    return Counted(
        trainables=outlined.trainables,
        rows=len(outlined.batch.lengths),
        policy=policy,
        reference=reference,
        encoding=None,
        more=[item for item in outlined.held() if item.num_bytes],
        frozen_bytes=outlined.frozen_bytes,
        once=_tower(outlined, narrow=narrow),
        held_whole=tuple(outlined.read_apart()),
        notes=outlined.notes,
    )


def _tower(outlined: OutlinedRun, *, narrow: bool) -> tuple[Kernel, ...]:
    """The vision tower by its weights: every matrix, once per patch of the micro-batch.

    Several patches become a visual token where the tower merges them at its end.
    """
    traits = outlined.outline.traits
    tokens, part_of = round(outlined.batch.visual * _patches_per_token(traits.config)), traits.part_of
    return tuple(
        Kernel(2 * value.numel() * tokens, value.numel() * value.element_size(), narrow, "forward")
        for name, value in outlined.outline.network.named_parameters()
        if tokens and value.ndim >= 2 and "lora" not in name and part_of(name) == "vision"
    )


def _patches_per_token(config: Any) -> float:
    """How many patches of the tower become one visual token, as configs of transformers say it; else 1."""
    vision: Any = getattr(config, "vision_config", None)
    if hasattr(vision, "spatial_merge_size"):  # Qwen
        return float(vision.spatial_merge_size) ** 2
    if hasattr(config, "scale_factor"):  # SmolVLM
        return float(config.scale_factor) ** 2
    if hasattr(config, "downsample_ratio"):  # InternVL
        return float(config.downsample_ratio) ** -2
    if hasattr(config, "mm_tokens_per_image"):  # Gemma 3
        return float(vision.image_size // vision.patch_size) ** 2 / float(config.mm_tokens_per_image)
    return 1.0


def count_media(run: ResolvedRun, *, device_type: str, reward_bytes: int | None = None) -> Counted:
    """Play a step of a model that denoises through on shapes.

    Args:
        run: resolved.
        device_type: whose rules autocast follows: "cuda" or "cpu".
        reward_bytes: of what scores the run's samples; None: none, or not known.

    Raises:
        ConfigError: the model's settings cannot be read, or an adapter fits nothing.
    """
    outline = outline_of(run, on_cuda=device_type == "cuda")
    model: Any = outline.model
    rows = rows_with_gradient(run)
    inputs = model.meta_inputs(rows)
    trainables = attach(
        outline.network,
        run.config.adapter,
        default_targets=model.adapter_targets,
        seed=run.config.train.seed,
        trains=getattr(model, "trains", None),
    )
    half = DTYPES[run.config.train.mixed_precision]
    autocast = None if half is torch.float32 else half

    def forward(network: nn.Module) -> Tensor:
        predicted: Tensor = model.denoise(*inputs, network=network)
        return predicted

    policy = trace_pass(
        trainables.network,
        forward,
        autocast=autocast,
        device_type=device_type,
        keeps_casts=not run.config.model.gradient_checkpointing,
    )
    with switched_off(trainables.layers):
        reference = trace_pass(
            trainables.network,
            forward,
            is_trained=False,
            autocast=autocast,
            device_type=device_type,
            keeps_casts=False,
        )
    elements, kind = torch.Size(model.latent_shape).numel(), run.config.model.quantization
    more: list[MemoryItem] = []
    if is_online(run):
        conditioning = sum(value.numel() * value.element_size() for value in model.meta_inputs(1)[2].values())
        trained = sum(value.numel() * 4 for value in trainables.parameters.values())
        more = memory_of_rollouts(
            run,
            latent_elements=elements,
            conditioning_bytes=conditioning,
            trained_bytes=trained,
            reward_bytes=reward_bytes,
        )
    return Counted(
        trainables=trainables,
        rows=rows,
        policy=policy,
        reference=reference,
        encoding=_encoding(run, outline),
        more=more,
        frozen_bytes=None if kind is None else frozen_bytes(trainables.network, kind),
        elements=elements,
        notes=[*outline.notes],
    )


def _encoding(run: ResolvedRun, outline: Outline) -> Encoding:
    """Of one call of the VAE, and of one prompt."""
    model: Any = outline.model
    modules: dict[str, nn.Module] = dict(outline.encoders)
    media, at_once = None, 1
    if outline.vae is not None:
        for parameter in outline.vae.parameters():
            parameter.data = parameter.data.to(outline.vae_dtype)
        modules = {"VAE": outline.vae, **modules}
        is_spectrum, is_picture = hasattr(model, "front"), not hasattr(model, "duration")
        at_once = (
            min(4, num_candidates(run) * run.config.train.batch_size) if is_spectrum or is_picture else 1
        )
        inputs = encoding_inputs(model, at_once).to(outline.vae_dtype)
        media = trace_pass(outline.vae, lambda vae: _mean_of(vae, inputs), is_trained=False)
    states = model.meta_inputs(1)[2]
    texts = {name: value for name, value in states.items() if "text" in name or "pooled" in name}
    at_mean = bool(getattr(model, "at_mean", False))
    numbers = getattr(model, "numbers_per_entry", None)
    elements = torch.Size(model.latent_shape).numel()
    return Encoding(
        media=media,
        at_once=at_once,
        text=tuple(kernel for module in outline.encoders.values() for kernel in _text_kernels(module, texts)),
        modules=modules,
        numbers=int(numbers) if numbers is not None else elements * (1 if at_mean else 2),
        text_numbers=sum(value.numel() for value in texts.values()),
    )


def _mean_of(vae: nn.Module, inputs: Tensor) -> Tensor:
    """The mean of the posterior, whatever this VAE calls it."""
    encoded: Any = vae.encode(inputs)  # type: ignore[operator]  # of diffusers' VAEs
    mean: Tensor = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
    return mean


def _text_kernels(encoder: nn.Module, texts: Mapping[str, Tensor]) -> list[Kernel]:
    """An encoder's products by its weights, a matrix at a time; attention of so few tokens is left out."""
    tokens = max((value.shape[1] for value in texts.values() if value.ndim == 3), default=1)
    found = []
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 2 and "embed" not in name and "shared" not in name:
            size = parameter.numel() * parameter.element_size()
            narrow = parameter.dtype in (torch.bfloat16, torch.float16)
            found.append(Kernel(2 * parameter.numel() * tokens, size, narrow, "forward"))
    return found
