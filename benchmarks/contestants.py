"""Trainers that take the same Diffusion-DPO step of one model, and what each of them is.

    mmalign           our trainer as `mmalign train` builds it: latents and text states cached, the reference
                      is the same network with its adapters off
    mmalign, stored   the same with reference errors computed before training: one forward, one backward
    bare              a loop written by hand for one model: noise, reference, policy, squared errors,
                      log-sigmoid, backward, clip, fused AdamW. It keeps no metrics, drops no bad row,
                      survives no crash. Latents and text states lie ready in memory
    unoptimised       the common training script restated: pictures and prompts are encoded at every step,
                      the reference is a second copy of the network, the loss is read at every step,
                      parameters are listed again for clipping, AdamW is torch's default

All get the same rows; `largest_difference` of vlm_contestants.py says whether they compute one gradient.
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny_models import TINY, TinyModel
from torch import Tensor
from vlm_contestants import Contestant, _by_layer

__all__ = ["MAKERS", "TOLERANCE", "bare", "encoded_cache", "mmalign", "one_step", "settings", "unoptimised"]

LEARNING_RATE, RANK = 1e-5, 16
TOLERANCE = 2e-3
"""Of gradients: encoders give other last bits in other batch sizes, which beta multiplies by a thousand."""


def settings(
    model: TinyModel, folder: Path, *, name: str, pairs: int, cached: bool = True, **sections: Any
) -> dict[str, Any]:
    """A run's configuration for a tiny model; `sections` are laid over it."""
    source, rows = model.files(folder, 4 * pairs)
    media = {key: dict(value) for key, value in model.media.items()}
    result: dict[str, Any] = {
        "method": model.method,
        "model": {"family": model.family, "source": str(source)},
        **media,
        "data": {"source": str(rows), "shuffle": False},
        "objective": dict(model.objective),
        "adapter": {"rank": RANK},
        "train": {
            "output": str(folder / f"{name}, {pairs}"),
            "steps": 10**6,
            "batch_size": pairs,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 0,
            "optimizer": "adamw",
            "num_workers": 0,
            "device": "cpu",
            "checkpoint_every": 10**6,
        },
        "log": {"every": 10, "trackers": []},
    }
    for key, section in sections.items():
        result[key] = {**result.get(key, {}), **section}
    if cached and media:
        [medium] = media
        result[medium]["cache"] = str(encoded_cache(result, folder / f"cache-{4 * pairs}"))
    return result


def encoded_cache(config: Mapping[str, Any], folder: Path) -> Path:
    """The folder that `mmalign data cache` fills for a run, filled once."""
    if not folder.exists():
        from mmalign.cli.encoding import encode_run

        path = folder.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        encode_run(path, output=str(folder), dtype="float32")
    return folder


def _prepared(config: Mapping[str, Any]) -> tuple[Any, Any]:
    from mmalign.train.config import resolve
    from mmalign.train.run import prepare

    return prepare(resolve(dict(config)))


def one_step(loop: Any, batches: Any) -> None:
    """What the loop does between two steps, less the checkpoint."""
    is_record = (loop.progress.step + 1) % loop.run.config.log.every == 0
    loop._update(batches, is_record=is_record)
    loop.progress.step += 1
    loop.tracking.advance()
    if is_record:
        loop._record(1.0)


def mmalign(name: str, folder: Path, *, pairs: int, stored: bool = False, **sections: Any) -> Contestant:
    """Our trainer on one micro-batch that is ready in memory."""
    from mmalign.train.step import preference_step

    model = TINY[name]
    title = "mmalign, stored" if stored else "mmalign"
    reference = {"kind": "stored", "draws_per_row": 1} if stored else {"kind": "adapters_off"}
    if stored and model.family == "llava":
        del reference["draws_per_row"]
    config = settings(model, folder, name=title, pairs=pairs, **{"reference": reference, **sections})
    loop, loader = _prepared(config)
    # One micro-batch for ever: no contestant pays for the loader.
    batches = loop._batches(itertools.repeat(next(iter(loader))))

    def gradient() -> None:
        (preference_step(loop.parts, next(batches)).loss / pairs).backward()

    return Contestant(title, _by_layer(loop.trainables.network), gradient, lambda: one_step(loop, batches))


class _Network:
    """A network of a family called by hand: packing, time and arguments are worked out beforehand."""

    def __init__(self, model: Any, network: Any, conditioning: Any, width: int) -> None:
        self.network, self.pack, self.unpack, self.width = network, model.pack, model.unpack, width
        self.time = model.network_time
        self.prediction, self.schedule = model.prediction, model.schedule
        self.arguments = model.network_arguments(conditioning.rows(2))
        flow = self.prediction == "flow"
        self.tables = None if flow else self.schedule.coefficients(torch.arange(1000))

    def times(self, pairs: int) -> Tensor:
        """A random timestep per pair."""
        return torch.rand(pairs) if self.tables is None else torch.randint(0, 1000, (pairs,))

    def mixed(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(noised, target, time as the network takes it) of rows."""
        shape = (-1,) + (1,) * (latents.ndim - 1)
        if self.tables is None:
            sigma = timestep.view(shape)
            return (1 - sigma) * latents + sigma * noise, noise - latents, timestep * 1000
        alpha, sigma = (table[timestep].view(shape) for table in self.tables)
        noised = alpha * latents + sigma * noise
        target = noise if self.prediction == "epsilon" else alpha * noise - sigma * latents
        return noised, target, timestep

    def errors(self, noised: Tensor, target: Tensor, time: Tensor, network: Any = None) -> Tensor:
        """Mean squared error `[pair, candidate]`."""
        output = (network or self.network)(
            self.pack(noised), timestep=self.time(time), return_dict=False, **self.arguments
        )[0]
        prediction = self.unpack(output)[:, : self.width]
        return (prediction - target).square().flatten(1).mean(1).unflatten(0, (-1, 2))


def _paired(value: Tensor) -> Tensor:
    """Both rows of a pair get the same."""
    return value.repeat_interleave(2, 0)


def _loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    gap = policy - reference
    return -torch.nn.functional.logsigmoid(-beta / 2 * (gap[:, 0] - gap[:, 1])).mean()


def bare(name: str, folder: Path, *, pairs: int, compares: bool = True, **sections: Any) -> Contestant:
    """The loop written by hand, on a model of its own.

    Args:
        name: of a tiny model.
        folder: holds model, rows and cache.
        pairs: per step.
        compares: with a reference; without, a step is the least arithmetic there is: reference errors known.
        sections: laid over the configuration.
    """
    from mmalign.train.micro_batch import to_batch

    loop, loader = _prepared(settings(TINY[name], folder, name="bare", pairs=pairs, **sections))
    micro, model, beta = next(iter(loader)), loop.model, TINY[name].objective["beta"]
    batch = to_batch(micro, model, torch.device("cpu"))
    mean, std = (micro.collated[key].float() for key in ("latent_mean", "latent_std"))
    event = mean.shape[2:]
    network = _Network(model, loop.trainables.network, batch.conditioning, event[0])
    parameters = list(loop.trainables.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    layers, at_mean, scale = loop.trainables.layers, model.at_mean, model.autoencoder.scale

    def loss(latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        noised, target, time = network.mixed(latents, _paired(noise), _paired(timestep))
        if not compares:
            return _loss(network.errors(noised, target, time), torch.zeros(pairs, 2), beta)
        # Past `nn.Module.__setattr__`, as the trainer does: the leanest loop is what it is held against.
        for layer in layers:
            object.__setattr__(layer, "_disable_adapters", True)
        with torch.no_grad():
            reference = network.errors(noised, target, time)
        for layer in layers:
            object.__setattr__(layer, "_disable_adapters", False)
        return _loss(network.errors(noised, target, time), reference, beta)

    def gradient() -> None:
        draw = loop.parts.likelihood.draw(batch)
        loss(batch.clean.flatten(0, 1), draw.noise[:, 0], draw.timestep[:, 0]).backward()

    def step() -> None:
        latents = scale(mean if at_mean else mean + std * torch.randn(pairs, 1, *event)).flatten(0, 1)
        loss(latents, torch.randn(pairs, *event), network.times(pairs)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    title = "bare" if compares else "bare, no reference"
    return Contestant(title, _by_layer(loop.trainables.network), gradient, step)


def unoptimised(name: str, folder: Path, *, pairs: int, **sections: Any) -> Contestant:
    """The common script's step: everything frozen is computed again, the reference is a second network."""
    from mmalign.batch import RowKeys
    from mmalign.train.parts import load_model

    config = settings(TINY[name], folder, name="unoptimised", pairs=pairs, cached=False, **sections)
    loop, loader = _prepared(config)
    micro, model, beta = next(iter(loader)), loop.model, TINY[name].objective["beta"]
    trained = loop.trainables.network
    copied: Any = load_model(loop.run, torch.device("cpu")).network
    copied.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in trained.parameters() if parameter.requires_grad],
        lr=LEARNING_RATE,
        weight_decay=0.01,
    )
    seen: list[float] = []

    def loss(draw_of: Callable[[Any], tuple[Tensor, Tensor]], keys: RowKeys) -> tuple[Tensor, Tensor]:
        clean, conditioning = model.encode(micro.collated, keys)
        latents = clean.flatten(0, 1)
        network = _Network(model, loop.accelerator.unwrap_model(trained), conditioning, latents.shape[1])
        noise, timestep = draw_of(network)
        noised, target, time = network.mixed(latents, _paired(noise), _paired(timestep))
        policy = network.errors(noised, target, time)
        with torch.no_grad():
            reference = network.errors(noised, target, time, copied)
        correct = ((policy - reference)[:, 0] < (policy - reference)[:, 1]).float().mean()
        return _loss(policy, reference, beta), correct

    def gradient() -> None:
        from mmalign.train.micro_batch import to_batch

        draw = loop.parts.likelihood.draw(to_batch(micro, model, torch.device("cpu")))
        loss(lambda _: (draw.noise[:, 0], draw.timestep[:, 0]), micro.keys)[0].backward()

    def step() -> None:
        trained.train()
        shape = (pairs, *model.latent_shape)
        result, correct = loss(lambda network: (torch.randn(shape), network.times(pairs)), micro.keys)
        seen[:] = [result.item(), correct.item()]
        result.backward()
        weights = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        trained.eval()

    return Contestant("unoptimised", _by_layer(trained), gradient, step)


MAKERS: dict[str, Callable[..., Contestant]] = {
    "mmalign": mmalign,
    "mmalign, stored": lambda *args, **kwargs: mmalign(*args, stored=True, **kwargs),
    "bare": bare,
    "unoptimised": unoptimised,
}
