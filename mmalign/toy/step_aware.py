"""The step-aware preference model of the toy world of images, and the command that rebuilds its weights.

    python -m mmalign.toy.step_aware --output DIR

first teaches a CLIP of half a million weights what captions mean, as PickScore knew before SPO began with it:
finished scenes against other captions and against the same scene with one fact broken. Then it runs the
recipe of step-aware models (`mmalign train` of method `reward_step_aware`) on pairs of the toy world, with
estimates of the toy base model.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig

from mmalign.diffusion.step_aware_config import StepAwareRunConfig
from mmalign.diffusion.step_aware_training import StepAwareRun, train_step_aware
from mmalign.files import read_json, save_tensors
from mmalign.rewards.prompt_tokens import PromptTokens
from mmalign.rewards.step_aware import StepAwareClip, step_aware_losses
from mmalign.rewards.step_aware_files import DESCRIPTION_FILE, clip_tokens, new_step_aware, save_step_aware
from mmalign.rewards.step_aware_reward import PICKSCORE, step_aware_pixels
from mmalign.toy.image_pairs import preference_pairs, write_pickapic
from mmalign.toy.image_pipeline import ASSETS as BASE
from mmalign.toy.scenes import (
    CORRUPTIONS,
    STYLES,
    corrupt,
    draw_scene,
    render_array,
    training_facts,
)
from mmalign.toy.tokenizers import MAX_TOKENS, new_tokenizers

__all__ = ["ASSETS", "caption_loss", "new_clip", "teach_captions", "toy_config", "train"]

ASSETS = Path(__file__).parent / "assets" / "step_aware"
"""`rewards.load("step_aware", weights=ASSETS)` is the shipped model."""

_TIME_PARTS = ("adaLN_modulation", "t_embedder")


def new_clip(folder: Path) -> Path:
    """Write `config.json` and the tokenizer of a small CLIP over 64 x 64 pictures. Returns the folder."""
    tokenizer = new_tokenizers()[0]
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    folder.mkdir(parents=True, exist_ok=True)
    CLIPConfig(text_config=text, vision_config=vision, projection_dim=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------- captions


def caption_loss(
    text: Float[Tensor, "scene feature"],
    scenes: Float[Tensor, "scene feature"],
    broken: Float[Tensor, "scene feature"],
    *,
    same: Bool[Tensor, "scene scene"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """CLIP's two cross-entropies, averaged, plus that of every scene against its broken version, in nats.

    Args:
        text: normalised features of the captions.
        scenes: of the scenes they describe.
        broken: of the same scenes with one fact broken.
        same: other scenes with the same caption, which are no negatives.
        scale: factor of the cosines.
    """
    place = torch.arange(len(text))
    hidden = same.float() * -1e4
    between = scale * text @ scenes.T + hidden
    against = scale * text @ broken.T
    over_scenes = F.cross_entropy(torch.cat([between, against + hidden], dim=1), place)
    over_captions = F.cross_entropy(between.T, place)
    pair = torch.stack([between[place, place], against[place, place]], dim=1)
    return (over_scenes + over_captions) / 2 + step_aware_losses(pair, torch.ones(len(text))).mean()


def _scenes(rng: random.Random, count: int) -> tuple[list[str], Float[Tensor, "picture 3 height width"]]:
    """Captions, and the pictures of their scenes followed by those of the broken ones, both in any style."""
    captions, right, wrong = [], [], []
    for _ in range(count):
        facts = training_facts(rng)
        scene = draw_scene(facts, rng, style=rng.choice(STYLES))
        captions.append(facts.caption())
        right.append(render_array(scene))
        wrong.append(render_array(corrupt(scene, facts, rng.choice(CORRUPTIONS), rng)))
    pixels = torch.from_numpy(np.stack(right + wrong)).permute(0, 3, 1, 2).float() / 255
    return captions, step_aware_pixels(pixels, pixels.shape[-1])


def _caption_step(
    network: StepAwareClip, tokens: PromptTokens, rng: random.Random, size: int
) -> Float[Tensor, ""]:
    """The loss of a batch of new scenes, all finished (timestep 0)."""
    captions, pixels = _scenes(rng, size)
    ids, _ = tokens.encode_all(captions)
    pictures = F.normalize(network.image_features(pixels, torch.zeros(2 * size)), dim=-1)
    text = F.normalize(network.text_features(ids), dim=-1)
    same = torch.tensor([[one == other for other in captions] for one in captions])
    log_scale: Any = network.model.logit_scale
    return caption_loss(
        text,
        pictures[:size],
        pictures[size:],
        same=same & ~torch.eye(size, dtype=torch.bool),
        scale=log_scale.exp().clamp(max=100.0),
    )


def teach_captions(folder: Path, *, seed: int, steps: int, size: int = 48, rate: float = 1.5e-3) -> Path:
    """Train a CLIP on finished scenes and write `model.safetensors`, plain CLIP as PickScore is.

    Args:
        folder: with config and tokenizer (`new_clip`). Returned.
        seed: of weights and scenes.
        steps: of AdamW, a hundred of warm-up, then linear to a fiftieth.
        size: scenes per step.
        rate: peak learning rate.
    """
    network = new_step_aware(folder / "config.json", seed=seed)
    tokens, rng = clip_tokens(folder, network), random.Random(f"step-aware captions {seed}")
    named = dict(network.named_parameters())
    trained = [value for name, value in named.items() if not any(part in name for part in _TIME_PARTS)]
    optimiser = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.05)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * max(0.02, 1 - step / steps)
        loss = _caption_step(network, tokens, rng, size)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if step % 100 == 99:
            print(f"captions, step {step + 1}: loss {loss.item():.3f}", flush=True)
    state = {name.removeprefix("model."): value for name, value in network.state_dict().items()}
    plain = {name: value for name, value in state.items() if not any(part in name for part in _TIME_PARTS)}
    save_tensors(folder / PICKSCORE.files[0], plain)
    return folder


# ------------------------------------------------------------------------------------------- preferences


def toy_config(pairs: Path, clip: Path, output: Path, **train: Any) -> StepAwareRunConfig:
    """The settings of a training on a file of toy pairs.

    Args:
        pairs: parquet in Pick-a-Pic's layout.
        clip: folder with the CLIP's weights, config and tokenizer.
        output: run folder.
        train: laid over the `train` section.
    """
    return StepAwareRunConfig.model_validate(
        {
            "method": "reward_step_aware",
            "name": "toy_step_aware",
            "model": {"family": "sdxl", "source": str(BASE)},
            "image": {"resolution": 64, "flip": False},
            "data": {"source": str(pairs)},
            "network": {"start": "pickscore", "weights": str(clip)},
            "estimate": {"guidance_scale": 5.0, "batch_size": 256},
            "train": {
                "output": str(output),
                "steps": 300,
                "batch_size": 32,
                "learning_rate": 3e-4,
                "weight_decay": 0.05,
                "schedule": "linear",
                "warmup_steps": 30,
                "evaluate_every": 150,
                "patience": 100,
                "device": "cpu",
                **train,
            },
            "validation": {"validation_share": 0.03, "test_share": 0.06},
        }
    )


def train(
    output: Path, *, num_pairs: int, seed: int, caption_steps: int = 1200, **settings: Any
) -> StepAwareRun:
    """Teach captions, draw pairs, train, and write the model in half precision. Returns the run.

    Args:
        output: folder of the model.
        num_pairs: of the toy world.
        seed: of the pairs and of both trainings.
        caption_steps: of the first training.
        settings: laid over the recipe's `train` section.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = teach_captions(new_clip(folder / "clip"), seed=seed, steps=caption_steps)
        pairs = write_pickapic(preference_pairs(num_pairs, seed), folder / "pairs.parquet", seed=seed)
        config = toy_config(pairs, clip, folder / "run", seed=seed, **settings)
        run = train_step_aware(config, say=lambda line: print(line, flush=True))
        description = read_json(run.folder / DESCRIPTION_FILE)
        del description["training"]["settings"], description["training"]["seconds"]
        save_step_aware(output, run.network, base=clip, description=description, dtype=torch.float16)
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mmalign.toy.step_aware", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--pairs", type=int, default=3000, help="of the toy world (default: 3000)")
    parser.add_argument("--caption-steps", type=int, default=1200, help="on finished scenes (default: 1200)")
    parser.add_argument("--steps", type=int, default=300, help="on unfinished pairs (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    train(
        given.output,
        num_pairs=given.pairs,
        seed=given.seed,
        caption_steps=given.caption_steps,
        steps=given.steps,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
