"""A run's model as shapes: the network on the meta device, what stands beside it, and what each is fed.

For families whose checkpoints are pipeline folders, settings are enough: a folder's, or those of a released
model. The rest is loaded as a run would load it, and its shapes are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign import registry
from mmalign.errors import ConfigError, explain
from mmalign.train.config import ResolvedRun
from mmalign.train.model import PreferenceModel
from mmalign.train.parts import DTYPES, load_model
from mmalign.train.planning.meta_source import MetaSource
from mmalign.train.planning.published import STANDS_FOR, published
from mmalign.train.planning.shapes_only import meta_copy
from mmalign.train.quantization import quantize

__all__ = ["TYPICAL_WORDS", "Outline", "encoding_inputs", "outline_of"]

TYPICAL_WORDS = 48
"""Tokens of a prompt where texts are filled up to the longest of their micro-batch and no further."""


@dataclass(eq=False)
class Outline:
    """A diffusion model as shapes.

    Args:
        model: of the family; its network is on the meta device.
        network: the trained one, nothing attached yet.
        vae: that encodes media, on the meta device.
        encoders: text encoders by name, on the meta device.
        vae_dtype: in which the VAE works on the planned device.
        notes: what was assumed.
    """

    model: PreferenceModel
    network: nn.Module
    vae: nn.Module | None
    encoders: Mapping[str, nn.Module]
    vae_dtype: torch.dtype
    notes: list[str] = field(default_factory=list)


def outline_of(run: ResolvedRun, *, on_cuda: bool) -> Outline:
    """The run's model without its weights.

    Args:
        run: of a model that denoises.
        on_cuda: whether it will run there; decides in what some VAEs work.

    Raises:
        ConfigError: no settings are known of a source that is not here, or a local one cannot be read.
    """
    family = registry.find("families", run.config.model.family)
    source, notes = _source_of(run, family)
    kind = run.config.model.quantization
    model: Any = _on_meta(run, family, source) if source is not None else _loaded(run)
    if source is None:
        notes.append(
            f"{run.config.model.source} was read with its weights: there are no settings alone of it "
            "(no model_index.json)"
        )
    vae = getattr(model, "vae", None)
    encoders = {
        f"text encoder {number + 1}": encoder if source is not None else meta_copy(encoder)
        for number, encoder in enumerate(model.encoders)
    }
    network = model.network if source is not None else meta_copy(model.network)
    if source is None and kind is not None:
        quantize(network, kind, dtype=DTYPES[run.config.train.mixed_precision])
    if kind is not None:
        notes.append(f"{kind}: linear layers of the network's blocks, nothing else")
    outlined = Outline(
        model=model,
        network=network,
        vae=vae if vae is None or source is not None else meta_copy(vae),
        encoders=encoders,
        vae_dtype=_vae_dtype(run, model, on_cuda=on_cuda),
        notes=notes,
    )
    for module in (outlined.vae, *outlined.encoders.values()):
        if module is not None:
            module.requires_grad_(False)
    return outlined


def _loaded(run: ResolvedRun) -> Any:
    """The run's model with its weights, all of them wide: shapes are taken of those."""
    settings = run.config.model.model_copy(update={"quantization": None})
    config = run.config.model_copy(update={"model": settings})
    return load_model(replace(run, config=config), torch.device("cpu"))


def _source_of(run: ResolvedRun, family: Any) -> tuple[MetaSource | None, list[str]]:
    """Settings of the run's source, and what stands for it; None where it has to be loaded."""
    settings = run.config.model
    pipelines = tuple(getattr(family, "pipelines", ()))
    for place in (settings.source, settings.config_source):
        folder = None if place is None else Path(place)
        if folder is not None and (folder / "model_index.json").is_file():
            found = MetaSource.of_folder(folder)
            _require_family(run, found, pipelines)
            return found, []
    if Path(settings.source).is_dir():  # of its own kind: weights and settings are read together
        return None, []
    known = published(settings.source)
    if known is not None:
        return MetaSource.of_published(settings.source, known), [
            f"settings of {settings.source} as released ({known.source}); no file of it was read"
        ]
    stand_in = STANDS_FOR.get(settings.family)
    pipeline = None if stand_in is None else published(stand_in)
    if stand_in is None or pipeline is None:
        if not Path(settings.source).exists():
            raise _unknown(settings.source, settings.family)
        return None, []
    note = f"no settings of {settings.source} here: counted as {stand_in}, the same family"
    return MetaSource.of_published(stand_in, pipeline), [note]


def _unknown(source: str, family: str) -> ConfigError:
    """A source that would have to be downloaded with its weights to be counted."""
    message = explain(
        f"model.source {source}",
        got=f"no folder or file here, and no settings of family {family} are known",
        expected=f"a local source, or a family of {', '.join(STANDS_FOR)}",
        do="A plan downloads nothing. Fetch the model's folder without its weights (model_index.json, and "
        "config.json and tokenizer files of every part), and give that folder as model.source.",
    )
    return ConfigError(message)


def _require_family(run: ResolvedRun, source: MetaSource, pipelines: tuple[str, ...]) -> None:
    if pipelines and source.pipeline_class not in pipelines:
        message = explain(
            f"model.source {run.config.model.source}",
            got=source.pipeline_class,
            expected=f"one of {', '.join(pipelines)} (family {run.config.model.family})",
            do="`mmalign families` lists what can be trained.",
        )
        raise ConfigError(message)


def _on_meta(run: ResolvedRun, family: Any, source: MetaSource) -> Any:
    """The family's own model class over parts of the meta device."""
    config = run.config
    plain = {"vae": None, "offload_encoders": False, "attention": "sdpa"}
    settings = config.model.model_copy(update=plain)
    media = config.media.model_copy(update={"cache": None})
    model = family.model(
        source,
        settings,
        media,
        device="meta",
        dtype=DTYPES[config.train.mixed_precision],
        network_dtype=torch.float32 if config.adapter.kind == "none" else None,
    )
    model._empty_text = _text_shapes(model)  # of the encoders, which are not run
    return model


def _vae_dtype(run: ResolvedRun, model: Any, *, on_cuda: bool) -> torch.dtype:
    """As the codec of the family chooses it on the planned device."""
    half = DTYPES[run.config.train.mixed_precision] is not torch.float32
    is_picture = hasattr(model, "vae_overflows")
    if not (half and on_cuda and is_picture):
        return torch.float32
    config = model.autoencoder.config
    fixed = "fp16" in (run.config.model.vae or "")
    overflows = bool(model.vae_overflows) and bool(config.get("force_upcast", True)) and not fixed
    return torch.float32 if overflows else torch.float16


class _States:
    """What a text encoder returns, as shapes: states per token, and one state where it projects them."""

    def __init__(self, encoder: nn.Module, ids: Tensor) -> None:
        config: Any = encoder.config
        width = int(getattr(config, "hidden_size", None) or config.d_model)
        dtype = next(encoder.parameters()).dtype
        self.last_hidden_state = ids.new_empty(*ids.shape, width, dtype=dtype)
        self.hidden_states = [self.last_hidden_state] * (int(config.num_hidden_layers) + 1)
        projects = "text_projection" in dict(encoder.named_children())
        pooled = int(config.projection_dim) if projects else width
        self.pooler_output = ids.new_empty(ids.shape[0], pooled, dtype=dtype)
        self._first = self.pooler_output if projects else self.last_hidden_state

    def __getitem__(self, number: int) -> Tensor:
        if number != 0:
            raise IndexError(number)
        return self._first


def _text_shapes(model: Any) -> dict[str, Tensor]:
    """Conditioning of one prompt, by the family's own rule from states that its encoders would give."""
    lengths = model._token_lengths()
    tokens: list[Tensor] = []
    encoders = []
    for number, encoder in enumerate(model.encoders):
        own = int(model.tokenizers[number].model_max_length)
        length = lengths[number]
        if length is None:
            length = min(own, 512)
        elif registry.modality(model.family) == "audio":
            length = min(length, TYPICAL_WORDS)
        ids = torch.zeros(1, length, dtype=torch.int64, device="meta")
        tokens.append(ids)
        if model.text_masks:
            tokens.append(ids)
        encoders.append(_encoding(encoder))
    states: dict[str, Tensor] = model.text_from_tokens(tokens, encoders)
    return states


def _encoding(encoder: nn.Module) -> Any:
    def call(ids: Tensor, **_: object) -> _States:
        return _States(encoder, ids)

    return call


def encoding_inputs(model: Any, num_media: int) -> Tensor:
    """Media of a micro-batch as the VAE takes them, on the meta device.

    Args:
        model: of the family.
        num_media: candidates that are encoded together.
    """
    if hasattr(model, "front"):  # sound by way of a spectrogram
        return torch.empty(num_media, 1, model.autoencoder.num_frames, model.front.num_mels, device="meta")
    if hasattr(model, "num_samples"):
        return torch.empty(num_media, model.channels, model.num_samples, device="meta")
    if hasattr(model, "num_frames"):
        return torch.empty(num_media, 3, model.num_frames, *model.size, device="meta")
    size = model.image.resolution
    return torch.empty(num_media, 3, size, size, device="meta")
