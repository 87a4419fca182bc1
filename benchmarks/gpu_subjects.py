"""Networks of published sizes with random weights, for gpu.py: nothing is downloaded, nothing lies on a disk.

A subject is a family's tiny model (tokenizer, schedule, adapter targets) whose network is exchanged for one
of true size, and inputs of true shape: cached latents and text states. With `dry` the tiny network stays.
"""

import gc
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from contestants import one_step, settings
from tiny_models import TINY, sdxl_unet, tango_unet
from torch import Tensor, nn

__all__ = ["DENOISERS", "Denoiser", "Step", "language_steps", "steps_of"]

RANK = 16


@dataclass(frozen=True)
class Step:
    """Something to time.

    Args:
        name: in tables.
        call: one optimiser step.
        gradient: leaves the gradient of the same fixed batch in `parameters`.
        parameters: the adapter's weights by name.
        network: whose blocks may be compiled.
        repeated: FLOPs of the forward pass that checkpointing takes twice: arithmetic of no use.
        dropped: updates dropped so far because they were not finite.
        model: whose network it is; None where nothing is compiled.
    """

    name: str
    call: Callable[[], object]
    gradient: Callable[[], object]
    parameters: Mapping[str, nn.Parameter]
    network: Any
    repeated: Callable[[], int] | None = None
    dropped: Callable[[], float] | None = None
    model: Any = None


@dataclass(frozen=True)
class Denoiser:
    """A denoising network of true size.

    Args:
        tiny: name of the tiny model that lends tokenizer, schedule and targets.
        network: makes the network.
        latent: shape of one candidate.
        text: conditioning that has another shape at true size, by name.
        encoders: makes what the unoptimised step encodes with: a function of the number of pairs.
        pairs: pairs per step to try.
        checkpointing: recompute activations; without it one pair does not fit.
    """

    tiny: str
    network: Callable[[], nn.Module]
    latent: tuple[int, ...]
    text: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    encoders: Callable[[torch.device], Callable[[int], Tensor]] | None = None
    pairs: tuple[int, ...] = (1, 4)
    checkpointing: bool = False


def _sdxl() -> nn.Module:
    return sdxl_unet(320, 2048, 1280, 256, 1024)


def _tango() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(tango_unet(320, 1024))


def _wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)


def _image_encoders(device: torch.device) -> Callable[[int], Tensor]:
    """SDXL's VAE in float32 and its two text encoders in bfloat16, as the common script runs them."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    # Weights are made where they are used: a CPU takes long to draw them.
    with torch.device(device):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            scaling_factor=0.13025,
        )
        texts = [
            CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=width,
                    intermediate_size=4 * width,
                    num_hidden_layers=depth,
                    num_attention_heads=heads,
                )
            )
            for width, depth, heads in ((768, 12, 12), (1280, 32, 20))
        ]
    del vae.decoder
    vae.to(device).requires_grad_(False)
    for text in texts:
        text.to(device, torch.bfloat16).requires_grad_(False)

    @torch.no_grad()
    def encode(pairs: int) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            pictures = torch.zeros(2 * pairs, 3, 1024, 1024, device=device)
            # Eight at once, as the script does: float32 maps of 1024 pixels are half a gigabyte each.
            latents = [vae.encode(part).latent_dist.sample() for part in pictures.split(8)]
            ids = torch.zeros(pairs, 77, dtype=torch.long, device=device)
            for text in texts:
                text(ids, output_hidden_states=True)
            return torch.cat(latents)

    return encode


DENOISERS: dict[str, Denoiser] = {
    "sdxl 1024": Denoiser(
        "sdxl", _sdxl, (4, 128, 128), {"text": (77, 2048), "pooled": (1280,)}, _image_encoders
    ),
    "tango 10 s": Denoiser(
        "audio", _tango, (8, 256, 16), {"text": (77, 1024), "text_mask": (77,)}, pairs=(4, 16)
    ),
    "wan 1.3b 81 frames": Denoiser(
        "video", _wan, (16, 21, 60, 104), {"text": (512, 4096)}, pairs=(1,), checkpointing=True
    ),
}


def _conditioning(subject: Denoiser, model: Any, pairs: int, *, dry: bool) -> Any:
    """Conditioning of `pairs` prompts with true shapes."""
    from mmalign.batch import Conditioning

    shared = dict(model.prompt_conditioning(["a red circle"] * pairs).shared)
    generator = torch.Generator().manual_seed(1)
    for name, shape in () if dry else subject.text.items():
        like = shared[name]
        if like.is_floating_point():
            made = torch.randn(pairs, *shape, generator=generator)
        else:
            made = torch.ones(pairs, *shape)
        shared[name] = made.to(like.device, like.dtype)
    return Conditioning(shared=shared, per_candidate={})


def _batch(subject: Denoiser, model: Any, pairs: int, device: torch.device, *, dry: bool) -> Any:
    from mmalign.batch import Batch, Labels, RowKeys

    shape = tuple(model.latent_shape) if dry else subject.latent
    clean = torch.randn(pairs, 2, *shape, generator=torch.Generator().manual_seed(0))
    keys = RowKeys(torch.arange(pairs), torch.zeros(pairs), pairs)
    return Batch(
        clean=clean.to(device),
        conditioning=_conditioning(subject, model, pairs, dry=dry),
        labels=Labels.pairs(pairs, device=device),
        weight=torch.ones(pairs, device=device),
        valid=torch.ones(pairs, dtype=torch.bool, device=device),
        keys=keys.to(device),
    )


def _loaded(
    subject: Denoiser, folder: Path, device: torch.device, pairs: int, precision: str, *, dry: bool
) -> Any:
    """(run, model with its network of true size, rows)."""
    from mmalign.data.readers import open_rows
    from mmalign.train.config import resolve
    from mmalign.train.parts import load_model

    config = settings(TINY[subject.tiny], folder, name=f"gpu {precision}", pairs=pairs, cached=False)
    config["train"] |= {"device": "cpu" if device.type == "cpu" else "auto", "mixed_precision": precision}
    config["adapter"] = {"rank": RANK}
    # A step of random weights must not be refused or rolled back, only timed.
    config["guard"] = {"action": "off"}
    run = resolve(config)
    model: Any = load_model(run, device)
    if not dry:
        dtype = next(model.network.parameters()).dtype
        with torch.device(device):
            network: Any = subject.network().to(dtype)
        network.requires_grad_(False)
        model.network = model.bare_network = network
    if subject.checkpointing:
        model.network.enable_gradient_checkpointing()
        model.network.train()
    return run, model, open_rows(run.config.data, kind=run.method.data)


def steps_of(
    subject: Denoiser, folder: Path, device: torch.device, *, pairs: int, precision: str = "bf16", dry: bool
) -> Generator[Step, None, None]:
    """Our step, then the unoptimised one on the same weights: made one after the other, as memory allows."""
    import copy

    from vlm_contestants import policy_flops

    from mmalign.testing.accelerator import forget_accelerator
    from mmalign.train.run import prepare
    from mmalign.train.step import preference_step

    forget_accelerator()  # of another precision
    run, model, table = _loaded(subject, folder, device, pairs, precision, dry=dry)
    # Not on the card until its turn comes: it would count as memory of ours.
    plain = copy.deepcopy(model.network).to("cpu") if precision == "bf16" else None
    loop, _ = prepare(run, model=model, table=table)
    batch = _batch(subject, model, pairs, device, dry=dry)
    batches = itertools.repeat(batch)
    parameters = dict(loop.trainables.parameters)

    def gradient() -> None:
        (preference_step(loop.parts, batch).loss / pairs).backward()

    def repeated() -> int:
        return policy_flops(loop, batch)

    yield Step(
        "mmalign",
        lambda: one_step(loop, batches),
        gradient,
        parameters,
        loop.trainables.network,
        repeated if subject.checkpointing else None,
        lambda: float(loop.dropped[0]),
        loop.model,
    )
    if plain is None:
        return
    yield _unoptimised(subject, loop, batch, plain.to(device), dry=dry)


def _unoptimised(subject: Denoiser, loop: Any, batch: Any, copied: Any, *, dry: bool) -> Step:
    """Everything frozen computed at every step, a second network, host reads, torch's default AdamW."""
    network, model, device = loop.trainables.network, loop.model, loop.accelerator.device
    pairs, beta = batch.clean.shape[0], TINY[subject.tiny].objective["beta"]
    encode = None if dry or subject.encoders is None else subject.encoders(device)
    parameters = list(loop.trainables.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    schedule = model.schedule

    def errors(net: Any, noised: Tensor, target: Tensor, time: Tensor) -> Tensor:
        output = model.denoise(noised, time, batch.conditioning.rows(2), network=net)
        return (output.float() - target).square().flatten(1).mean(1).unflatten(0, (-1, 2))

    def loss(draw: Any) -> Tensor:
        noised, target = draw.noised.flatten(0, 1), draw.target.flatten(0, 1)
        time = schedule.network_time(draw.timestep.flatten())
        with loop.accelerator.autocast():
            policy = errors(network, noised, target, time)
            with torch.no_grad():
                reference = errors(copied, noised, target, time)
        gap = policy - reference
        return -torch.nn.functional.logsigmoid(-beta / 2 * (gap[:, 0] - gap[:, 1])).mean()

    def gradient() -> None:
        loss(loop.parts.likelihood.draw(batch)).backward()

    def step() -> None:
        if encode is not None:
            encode(pairs)
        result = loss(loop.parts.likelihood.draw(batch))
        result.item()
        result.backward()
        weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Step("unoptimised", step, gradient, dict(loop.trainables.parameters), network)


# --- language -----------------------------------------------------------------------------------------------

_SEVEN_BILLION = {
    "text_config": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 768,
    },
}


def _write_language(folder: Path, *, dry: bool) -> Path:
    """A LLaVA folder: tokenizer, processor, rows; at true size its config says so, and weights are made."""
    import json

    from vlm_pairs import Shape, write_model, write_pairs

    shape = Shape(64, 2, 64, 2, 512, 56) if dry else Shape(64, 2, 64, 2, 32_064, 336)
    if not (folder / "model").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(shape, folder / "model")
        write_pairs(folder / "model", folder / "pairs.parquet", 16)
        write_pairs(folder / "model", folder / "pairs-16.parquet", 16)
    if not dry:
        path = folder / "model" / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        for part, sizes in _SEVEN_BILLION.items():
            config[part] |= sizes
        path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@contextmanager
def _made_on(device: torch.device) -> Iterator[None]:
    """Weights of language models are made on the device instead of being read, the same in every precision.

    Both classes that read them are patched: ours asks the automatic one, TRL the one that the config names.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration

    def made(source: Any, *_: Any, config: Any = None, dtype: Any = None, **__: Any) -> Any:
        config = config or AutoConfig.from_pretrained(str(source))
        config.name_or_path = str(source)
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        wanted = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
        return model.to(wanted) if isinstance(wanted, torch.dtype) else model

    with (
        mock.patch.object(AutoModelForImageTextToText, "from_pretrained", made),
        mock.patch.object(LlavaForConditionalGeneration, "from_pretrained", made),
    ):
        yield


def language_steps(
    folder: Path, device: torch.device, *, pairs: int, dry: bool
) -> Generator[Step, None, None]:
    """DPO of a LLaVA of seven billion weights: ours with shared prefixes, then TRL's trainer if there."""
    from importlib.util import find_spec

    import vlm_contestants as peers

    from mmalign.testing.accelerator import forget_accelerator

    forget_accelerator()  # of another precision
    home = _write_language(folder, dry=dry)
    on_cpu = device.type == "cpu"
    precision = {"mixed_precision": "bf16", "device": "cpu" if on_cpu else "auto"}
    with nullcontext() if dry else _made_on(device), mock.patch.object(peers, "PAIRS", pairs):
        own = peers.mmalign_contestant(home, stored=False, checkpointing=True, train=precision)
        yield Step(own.name, own.step, own.gradient, own.parameters, None, own.repeated)
        del own  # and its network: the next one is measured alone
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if find_spec("trl") is None:
            return
        trl = peers.trl_contestant(
            home, answers_alone=not on_cpu, checkpointing=True, bf16=True, on_cpu=on_cpu
        )
        yield Step(trl.name, trl.step, trl.gradient, trl.parameters, None)
