"""A tuned model beside the one it was tuned from, as two denoisers that take the same inputs.

What can be tuned: a run of mmalign or one of its checkpoints, a folder or hub id that holds a network alone
(as `mhdang/dpo-*` do), a whole pipeline, of which the network counts, and a folder with an adapter file.
"""

import contextlib
import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from torch import Tensor, nn

from mmalign.diffusion.adapter_files import LORA_FILE, PEFT_FILE, load_adapter
from mmalign.diffusion.autoencoder import weight_digest
from mmalign.diffusion.family import ImageModel
from mmalign.diffusion.trained import TrainedModel, load_base, load_trained
from mmalign.errors import ConfigError, explain
from mmalign.evals.model_identity import run_of
from mmalign.files import fingerprint
from mmalign.likelihood import Denoiser, Elbo, adapters_off
from mmalign.train.config import LikelihoodConfig
from mmalign.train.model import PreferenceModel
from mmalign.train.parts import make_likelihood

__all__ = ["ComparedModels", "load_compared"]


@dataclass(frozen=True)
class ComparedModels:
    """Policy and base.

    Args:
        model: encodes pictures and prompts for both.
        policy: the tuned network.
        base: the network before, or what the policy is held against.
        likelihood: which errors are compared; its timesteps are stratified over the draws of a pair.
        beta: of the run's objective, None where it is not known.
        identity: what the errors depend on, in JSON types.
        title: of the policy, for reports.
    """

    model: ImageModel
    policy: Denoiser
    base: Denoiser
    likelihood: Elbo
    beta: float | None
    identity: Mapping[str, Any]
    title: str

    @property
    def loadable(self) -> PreferenceModel:
        """The model as loaders see it."""
        return cast("PreferenceModel", self.model)


def load_compared(
    source: str,
    base: str | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    resolution: int | None = None,
    vae: str | None = None,
) -> ComparedModels:
    """Load a tuned model and its base.

    Args:
        source: run folder, one of its checkpoints, folder or hub id of a network or pipeline, adapter folder.
        base: of a run: where its base model lies now, if it has moved; of all else: what it was tuned from.
        device: where both go.
        dtype: of both; default: half precision on CUDA (of runs, where they trained in it), else float32.
        resolution: of pictures; not for runs, which know theirs.
        vae: replacement VAE; not for runs.

    Raises:
        ConfigError: there is no base, an option that a run decides, a model that is not there or of another
            architecture.
        CheckpointError: a run without a complete checkpoint.
    """
    if run_of(source) is not None:
        if resolution is not None or vae is not None:
            got = f"--resolution {resolution}" if resolution is not None else f"--vae {vae}"
            message = explain(f"--model {source}", got=got, expected="neither: a run knows both")
            raise ConfigError(message)
        return _of_run(load_trained(source, source=base, device=device, dtype=dtype), source)
    if base is None:
        message = explain(
            f"--model {source}",
            got="no --base",
            expected="the model it was tuned from",
            do="Only a run folder of mmalign knows its own. Example: --base stabilityai/stable-diffusion-xl-"
            "base-1.0",
        )
        raise ConfigError(message)
    loaded = load_base(base, device=device, dtype=dtype, resolution=resolution, vae=vae)
    model, likelihood = loaded.model, LikelihoodConfig()
    digest = weight_digest(model.bare_network)
    if adapter := _adapter_file(Path(source)):
        load_adapter(model, Path(source), adapter)
        without = lambda: adapters_off(model.bare_network)  # noqa: E731
        return _compared(model, likelihood, source, digest, base=_denoiser(model, within=without))
    network = _load_network(source, model)
    policy = _denoiser(model, network=network)
    return _compared(model, likelihood, source, digest, policy=policy, network=network)


def _of_run(trained: TrainedModel, source: str) -> ComparedModels:
    model, config = trained.model, trained.config
    if config is None or trained.trainables is None:
        raise ConfigError(explain(f"--model {source}", got="a base model", expected="a run"))
    # Training's augmentations are no part of the question.
    model.image = model.image.model_copy(update={"prompt_dropout": 0.0, "flip": False, "crop": "center"})
    model.reader = replace(model.reader, images=replace(model.reader.images, crop="center", flip=False))
    beta = config.objective.get("beta")
    known = float(beta) if isinstance(beta, int | float) else None
    if trained.trainables.lora is not None:
        base = _denoiser(model, within=trained.base_weights)
        return _compared(model, config.likelihood, source, None, base=base, beta=known)
    with trained.base_weights():
        untrained = copy.deepcopy(model.bare_network)
    digest = weight_digest(untrained)
    base = _denoiser(model, network=untrained)
    return _compared(model, config.likelihood, source, digest, base=base, beta=known)


def _compared(
    model: ImageModel,
    settings: LikelihoodConfig,
    source: str,
    base_digest: list[float] | None,
    *,
    policy: Denoiser | None = None,
    base: Denoiser | None = None,
    network: nn.Module | None = None,
    beta: float | None = None,
) -> ComparedModels:
    """Both denoisers with the plain bound: other ways to noise a sample are ways to train, not to judge."""
    plain = LikelihoodConfig(
        **settings.model_dump(
            include={"timesteps", "low", "high", "values", "logit_mean", "logit_std", "error_space"}
        ),
        kind="elbo",
        stratified=True,
    )
    model.at_mean = True  # a pair's margin is then the same, whichever picture stands first
    likelihood = make_likelihood(plain, cast("PreferenceModel", model))
    identity = {
        "policy": fingerprint(weight_digest(network if network is not None else model.bare_network)),
        "base": fingerprint(base_digest),
        "vae": model.vae_fingerprint(),
        "text": model.text_fingerprint(),
        "resolution": model.image.resolution,
        "micro_conditioning": model.image.micro_conditioning,
        "dtype": str(model.dtype),
        "likelihood": likelihood.describe(),
    }
    return ComparedModels(
        model=model,
        policy=policy or _denoiser(model),
        base=base or _denoiser(model),
        likelihood=likelihood,
        beta=beta,
        identity=identity,
        title=Path(source).name or source,
    )


def _denoiser(
    model: ImageModel,
    *,
    network: nn.Module | None = None,
    within: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Denoiser:
    """The model's prediction by a network, inside a context that decides its weights."""

    def denoise(noised: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        with within():
            return model.denoise(noised, timestep, conditioning, network=network)

    return denoise


def _adapter_file(folder: Path) -> str | None:
    """The adapter's file name in a folder that holds one, else None."""
    return next((name for name in (LORA_FILE, PEFT_FILE) if (folder / name).is_file()), None)


def _load_network(source: str, model: ImageModel) -> nn.Module:
    """The trained network alone, of the base's class and in its dtype.

    Raises:
        ConfigError: it is not there, not safetensors, or of another architecture.
    """
    network_class = getattr(diffusers, model.network_class)
    path = Path(source)
    where: dict[str, Any] = {"subfolder": model.network_part}
    if path.is_dir() and not (path / model.network_part).is_dir():
        where = {}
    try:
        network: nn.Module = network_class.from_pretrained(
            source, dtype=model.dtype, use_safetensors=True, **where
        )
    except (OSError, ValueError, RuntimeError) as error:
        message = explain(
            f"--model {source}",
            got=str(error).strip().splitlines()[0],
            expected=f"a run, a folder or hub id with {model.network_part}/ or a network itself, in "
            f"safetensors, or a folder with {LORA_FILE}",
        )
        raise ConfigError(message) from error
    _require_like(network, model, source)
    network.requires_grad_(False)
    return network.eval().to(model.device)


def _require_like(network: nn.Module, model: ImageModel, source: str) -> None:
    def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in module.named_parameters()}

    got, expected = shapes(network), shapes(model.bare_network)
    if got != expected:
        names = sorted(got.keys() | expected.keys())
        different = [name for name in names if got.get(name) != expected.get(name)]
        message = explain(
            f"--model {source}",
            got=f"a network whose {different[0]} is {got.get(different[0], 'missing')}",
            expected=f"{expected.get(different[0], 'no such weight')}, as the base has it",
            do="--base must be the model it was tuned from.",
        )
        raise ConfigError(message)
