"""Generation for grids, comparisons and evaluations: the same noise for the same prompt, whatever the model.

The first noise of an image depends on (seed, prompt number, copy) only, drawn on the CPU: base and tuned
model, batch of one and of sixteen, laptop and server start from the same numbers, so a difference between two
pictures is a difference between two models. The diffusers pipeline does the rest, around our network.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.seeding import generator_for

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.diffusion.family import ImageModel
    from mmalign.diffusion.model import DiffusionModel

__all__ = [
    "SCHEDULERS",
    "evaluating",
    "generate",
    "initial_noise",
    "main",
    "read_prompts",
    "scheduler_for",
    "side_by_side",
]

SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}

_REFINER_STRENGTH = 0.3


def initial_noise(
    shape: tuple[int, ...], *, seed: int, prompt: int | str, copy: int = 0
) -> Float[Tensor, "*event"]:
    """Standard normal float32 noise of one image, on the CPU.

    Args:
        shape: event shape of the latents.
        seed: of the comparison.
        prompt: number of the prompt in its list, or a name it keeps in every list.
        copy: number of the image among those of its prompt.
    """
    return torch.randn(shape, generator=generator_for(seed, "sample", prompt, copy))


def scheduler_for(model: "DiffusionModel", name: str | None = None) -> Any:
    """A sampler with the model's own noise schedule.

    Args:
        model: whose schedule it is.
        name: one of `SCHEDULERS`; None takes the pipeline's own.

    Raises:
        UnknownNameError: no such sampler.
        ConfigError: a sampler of noise-predicting models for a flow-matching one.
    """
    import diffusers

    if name is not None and name not in SCHEDULERS:
        raise unknown_name("sampler", name, SCHEDULERS)
    if name is not None and model.prediction == "flow":
        message = explain(
            "sampler",
            got=f"{name} for a flow-matching model",
            expected=f"none: the pipeline's own {model.scheduler_class}",
        )
        raise ConfigError(message)
    scheduler_class = getattr(diffusers, model.scheduler_class if name is None else SCHEDULERS[name])
    config = {key: value for key, value in model.scheduler_config.items() if not key.startswith("_")}
    accepted = inspect.signature(scheduler_class.__init__).parameters
    if "clip_sample" in accepted:
        # The default clips at 1, right for pixels; latents go far beyond it.
        config.setdefault("clip_sample", False)
    return scheduler_class.from_config({key: value for key, value in config.items() if key in accepted})


def build_pipeline(model: "ImageModel", *, scheduler: str | None = None) -> Any:
    """A diffusers pipeline around the model's parts (not copies), for generation or saving."""
    import diffusers

    pipeline_class = getattr(diffusers, model.generation_pipeline)
    accepted = set(inspect.signature(pipeline_class.__init__).parameters) - {"self"}
    options = {
        name: value
        for name, value in model.source.index.items()
        if name in accepted and not isinstance(value, list) and not name.startswith("_")
    }
    optional = {"safety_checker", "feature_extractor", "image_encoder"}
    absent = dict.fromkeys(accepted & (optional | {name for pair in model.text_parts for name in pair}))
    parts: dict[str, Any] = {
        "vae": model.vae,
        model.network_part: model.bare_network,
        "scheduler": scheduler_for(model, scheduler),
    }
    for (tokenizer_name, encoder_name), tokenizer, encoder in zip(
        model.text_parts_present, model.tokenizers, model.encoders, strict=True
    ):
        parts |= {tokenizer_name: tokenizer, encoder_name: encoder}
    fixed = {"requires_safety_checker": False, "add_watermarker": False}
    keywords = {**absent, **options, **parts, **{name: fixed[name] for name in fixed if name in accepted}}
    pipeline = pipeline_class(**keywords)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def evaluating(network: Any) -> Iterator[None]:
    """A network in evaluation mode meanwhile."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@torch.no_grad()
def generate(
    model: "ImageModel",
    prompts: Sequence[str],
    *,
    seed: int,
    num_steps: int,
    guidance_scale: float,
    scheduler: str | None = None,
    batch_size: int = 4,
    copies: int = 1,
    images: "Sequence[Image] | None" = None,
    strength: float = _REFINER_STRENGTH,
    keys: Sequence[int | str] | None = None,
) -> "list[Image]":
    """PIL images, `copies` per prompt, prompt-major; adapters are used as they stand.

    Args:
        model: loaded model.
        prompts: what to paint.
        seed: of the comparison; see `initial_noise`.
        num_steps: sampler steps.
        guidance_scale: classifier-free guidance, 1 switches it off; what the network is told where guidance
            is one of its inputs.
        scheduler: one of `SCHEDULERS`, or None for the pipeline's own.
        batch_size: images per network call; changes no result beyond rounding.
        copies: images per prompt.
        images: for refiners: one picture per prompt to refine. Without them a refiner starts from pure noise,
            which it was not trained for: fit for comparisons only.
        strength: for refiners with pictures: share of the noise schedule that is used, in (0, 1].
        keys: what each prompt's noise hangs on; its number in the list by default.

    Raises:
        ConfigError: another number of pictures than prompts, or pictures for a model that takes none.
    """
    if images is not None and (not model.paints_over or len(images) != len(prompts)):
        message = explain(
            "images",
            got=f"{len(images)} pictures for {len(prompts)} prompts",
            expected="one per prompt, and a refiner"
            if model.paints_over
            else "none: this model paints from text alone",
        )
        raise ConfigError(message)
    names = range(len(prompts)) if keys is None else keys
    pipeline = build_pipeline(model, scheduler=scheduler)
    jobs = [(number, copy) for number in range(len(prompts)) for copy in range(copies)]
    starts = _starting_latents(model, images)
    pictures: list[Image] = []
    half = model.dtype in (torch.float16, torch.bfloat16)
    with model.encoders_ready(), evaluating(model.bare_network):
        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            drawn = [(names[number], copy) for number, copy in part]
            first = None if starts is None else starts[[number for number, _ in part]]
            inputs = _start(model, drawn, seed=seed, starts=first, strength=strength)
            with torch.autocast(model.device.type, dtype=model.dtype, enabled=half):
                latents = pipeline(
                    prompt=[prompts[number] for number, _ in part],
                    num_inference_steps=num_steps,
                    # Samplers that add noise on the way draw it per image too.
                    generator=[generator_for(seed, "sample_path", *job) for job in drawn],
                    output_type="latent",
                    **model.sampler_options(guidance_scale),
                    **inputs,
                ).images
            pictures += _to_images(model.autoencoder.decode(model.unpack(latents)))
    return pictures


def _starting_latents(model: "ImageModel", images: "Sequence[Image] | None") -> Tensor | None:
    """Scaled latents of pictures to refine."""
    if images is None:
        return None
    size = model.image.resolution
    pixels = torch.stack([_to_pixels(picture.convert("RGB").resize((size, size))) for picture in images])
    return model.autoencoder.scale(model.image_moments(pixels).mean)


def _start(
    model: "ImageModel",
    jobs: Sequence[tuple[int | str, int]],
    *,
    seed: int,
    starts: Tensor | None,
    strength: float,
) -> dict[str, Any]:
    """What the pipeline starts from: our noise, or pictures that it noises with our generators."""
    size = model.image.resolution
    if not model.paints_over:
        noise = torch.stack([initial_noise(model.latent_shape, seed=seed, prompt=n, copy=c) for n, c in jobs])
        latents = model.pack(noise.to(model.device, model.dtype))
        return {"latents": latents, "height": size, "width": size}
    if starts is None:
        empty = torch.zeros(len(jobs), *model.latent_shape, device=model.device, dtype=model.dtype)
        return {"image": empty, "strength": 1.0}
    return {"image": starts.to(model.dtype), "strength": strength}


def _to_images(pixels: Tensor) -> "list[Image]":
    from PIL import Image

    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]


def _to_pixels(picture: "Image") -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def side_by_side(columns: "Mapping[str, Sequence[Image]]", captions: Sequence[str]) -> "Image":
    """One picture: a row per caption, a column per model, with labels.

    Args:
        columns: column title to pictures, all lists of one length.
        captions: one per row.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height = next(iter(columns.values()))[0].size
    header, gap = 24, 6
    font = ImageFont.load_default(size=13)
    total = (width + gap) * len(columns) + gap, header + (height + header + gap) * len(captions) + gap
    canvas = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(canvas)
    for column, (title, pictures) in enumerate(columns.items()):
        left = gap + column * (width + gap)
        draw.text((left, 4), title, fill="black", font=font)
        for row, picture in enumerate(pictures):
            canvas.paste(picture, (left, header + row * (height + header + gap) + header))
    for row, caption in enumerate(captions):
        top = header + row * (height + header + gap)
        draw.text((gap, top + 4), _fit(caption, total[0] - 2 * gap, font), fill="#444444", font=font)
    return canvas


def _fit(text: str, width: int, font: Any) -> str:
    """`text` on one line, cut to `width` pixels."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + " ...") > width:
        line = line[: -max(1, len(line) // 20)]
    return line + " ..."


def read_prompts(prompts: Sequence[str], prompts_file: Path | None) -> list[str]:
    """The prompts of `mmalign sample`: those given, then the lines of a file.

    Raises:
        ConfigError: the file cannot be read, or there are none.
    """
    lines = list(prompts)
    if prompts_file is not None:
        try:
            text = Path(prompts_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            message = f"--prompts-file {prompts_file}: cannot be read ({error})."
            raise ConfigError(message) from error
        lines += [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        message = explain("mmalign sample", got="no prompts", expected="--prompt TEXT or --prompts-file FILE")
        raise ConfigError(message)
    return lines


def main(
    *,
    model: str | None = None,
    run: Path | None = None,
    prompts: Sequence[str] = (),
    prompts_file: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    num_images: int = 1,
    output: Path = Path("samples"),
    device: str | None = None,
) -> int:
    """`mmalign sample`: paint prompts with a base model and, beside it, with what a run trained.

    Returns 0. Writes one PNG per image and model, and `comparison.png`.

    Raises:
        ConfigError: neither a model nor a run is given, or there are no prompts.
    """
    from mmalign.diffusion.trained import load_base, load_trained

    lines = read_prompts(prompts, prompts_file)
    loaded = (
        load_trained(run, source=model, device=device) if run is not None else load_base(model, device=device)
    )
    settings = loaded.sampler_settings(
        seed=seed, steps=steps, guidance_scale=guidance_scale, copies=num_images
    )
    columns = loaded.base_and_tuned(lambda _: generate(loaded.model, lines, **settings))
    output.mkdir(parents=True, exist_ok=True)
    captions = [line for line in lines for _ in range(num_images)]
    for title, pictures in columns.items():
        for number, picture in enumerate(pictures):
            picture.save(output / f"{number:04d}_{title}.png")
    side_by_side(columns, captions).save(output / "comparison.png")
    print(f"{len(captions)} images per model, seed {seed}: {output / 'comparison.png'}")
    return 0
