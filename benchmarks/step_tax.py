"""Our optimiser step against a bare loop that does the same forward and backward passes on the same model.

The bare loop is what somebody would write by hand for one model: noise, reference with adapters off, policy,
squared errors, log-sigmoid, backward, clip, AdamW. It keeps no metrics, drops no bad row, survives no crash.
Both get the same latents and text states; rounds are interleaved and the tax is the median of paired ratios.
"""

import contextlib
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.train.config import ResolvedRun, resolve

BETA = 2000.0
PAIRS = 8  # per step: below that, the host is the limit on any GPU


def write_inputs(folder: Path) -> Path:
    """A parquet file of toy pairs in the Pick-a-Pic layout."""
    from mmalign.toy.images import preference_pairs, write_pickapic

    path = folder / "pairs.parquet"
    if not path.exists():
        write_pickapic(preference_pairs(64, seed=0), path)
    return path


def resolved_run(folder: Path, *, device: torch.device, output: str) -> ResolvedRun:
    """The run both loops stand for: LoRA Diffusion-DPO on the shipped toy model."""
    from mmalign.toy.image_pipeline import ASSETS

    return resolve(
        {
            "method": "diffusion_dpo",
            "model": {"family": "sdxl", "source": str(ASSETS)},
            "image": {"resolution": 64, "flip": False},
            "data": {"source": str(write_inputs(folder))},
            "objective": {"beta": BETA},
            "adapter": {"rank": 8},
            "train": {
                "output": str(folder / output),
                "steps": 10**6,
                "batch_size": PAIRS,
                "learning_rate": 1e-5,
                "warmup_steps": 0,
                "optimizer": "adamw",
                "num_workers": 0,
                "device": "cpu" if device.type == "cpu" else "auto",
            },
            "log": {"every": 10, "trackers": []},
        }
    )


def mmalign_step(folder: Path, device: torch.device) -> tuple[Callable[[], None], Any]:
    """A function that does one optimiser step of ours, and the loop behind it."""
    from mmalign.train.run import prepare

    loop, loader = prepare(resolved_run(folder, device=device, output="ours"))
    # One micro-batch for ever: neither loop pays for the loader.
    batches = loop._batches(itertools.repeat(_with_latents(next(iter(loader)), loop.model)))

    def step() -> None:
        is_record = (loop.progress.step + 1) % loop.run.config.log.every == 0
        loop._update(batches, is_record=is_record)
        loop.progress.step += 1
        if is_record:
            loop.meter.read(lambda sums: sums)

    return step, loop


def _with_latents(micro: Any, model: Any) -> Any:
    """The micro-batch with cached latents and text states, as `mmalign data cache` would give them."""
    from dataclasses import replace

    collated = dict(micro.collated)
    pixels = collated.pop("pixels")
    moments = model.image_moments(pixels.flatten(0, 1))
    collated["latent_mean"] = moments.mean.unflatten(0, pixels.shape[:2]).cpu()
    collated["latent_std"] = moments.std.unflatten(0, pixels.shape[:2]).cpu()
    tokens = [collated.pop(name) for name in sorted(collated) if name.startswith("tokens_")]
    states = model._states_of(tokens)
    collated |= {f"text.{name}": value.cpu() for name, value in states.items()}
    return replace(micro, collated=collated)


def bare_step(folder: Path, device: torch.device) -> Callable[[], None]:
    """The hand-written loop on a model of its own."""
    from mmalign.train.run import prepare

    loop, loader = prepare(resolved_run(folder, device=device, output="bare"))
    model, network = loop.model, loop.trainables.network
    micro = _with_latents(next(iter(loader)), model)
    clean, conditioning = model.encode(
        {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in micro.collated.items()
        },
        micro.keys.to(device),
    )
    rows = conditioning.rows(2)
    added = {"text_embeds": rows["pooled"], "time_ids": rows["time_ids"]}
    latents = clean.flatten(0, 1)
    alphas = model.schedule.coefficients(torch.arange(1000, device=device))
    parameters = list(loop.trainables.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    layers = loop.trainables.layers

    def predict(noised: Tensor, timestep: Tensor) -> Tensor:
        result: Tensor = network(
            noised,
            timestep,
            encoder_hidden_states=rows["text"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return result

    def step() -> None:
        noise = torch.randn(PAIRS, *latents.shape[1:], device=device).repeat_interleave(2, 0)
        timestep = torch.randint(0, 1000, (PAIRS,), device=device).repeat_interleave(2, 0)
        alpha, sigma = (table[timestep].view(-1, 1, 1, 1) for table in alphas)
        noised = alpha * latents + sigma * noise
        for layer in layers:
            layer._disable_adapters = True
        with torch.no_grad():
            reference = (predict(noised, timestep) - noise).square().mean((1, 2, 3)).unflatten(0, (-1, 2))
        for layer in layers:
            layer._disable_adapters = False
        policy = (predict(noised, timestep) - noise).square().mean((1, 2, 3)).unflatten(0, (-1, 2))
        gap = (policy - reference)[:, 0] - (policy - reference)[:, 1]
        loss = -torch.nn.functional.logsigmoid(-BETA / 2 * gap).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _seconds(step: Callable[[], None], steps: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    # On the CPU, time of this process: other processes on the machine do not count.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - started) / steps


def measure(folder: Path, *, device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Pairs per second of both, and the tax: median over rounds of (our time / bare time) - 1."""
    ours, _ = mmalign_step(folder, device)
    bare = bare_step(folder, device)
    for warm_up in (ours, bare):
        _seconds(warm_up, steps, device)
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(rounds):
        order = (("ours", ours), ("bare", bare)) if number % 2 else (("bare", bare), ("ours", ours))
        for name, step in order:
            times[name].append(_seconds(step, steps, device))
    ratios = sorted(a / b for a, b in zip(times["ours"], times["bare"], strict=True))
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "pairs_per_step": PAIRS,
        "mmalign_pairs_per_second": PAIRS / statistics.median(times["ours"]),
        "bare_pairs_per_second": PAIRS / statistics.median(times["bare"]),
        "tax": statistics.median(ratios) - 1.0,
        "tax_quartiles": [quartiles[0] - 1.0, quartiles[2] - 1.0],
        "rounds": rounds,
    }


def peak_memory_in_process(kind: str, *, device: str) -> float:
    """Peak MiB of one of the two loops in a process of its own."""
    command = [sys.executable, __file__, kind, device]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    peak: float = json.loads(finished.stdout.strip().splitlines()[-1])["peak_mib"]
    return peak


def _peak(kind: str, device: torch.device) -> float:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        step = mmalign_step(Path(folder), device)[0] if kind == "mmalign" else bare_step(Path(folder), device)
        for _ in range(3):
            step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    print(json.dumps({"peak_mib": _peak(sys.argv[1], torch.device(sys.argv[2]))}))
