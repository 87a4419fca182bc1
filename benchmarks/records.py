"""Results of benchmarks as JSON lines: one record per measurement, with all that is needed to judge it.

A record holds `id` (what was measured, such as `step.sdxl`), `values` (numbers by name), and where they come
from: machine, cores, versions, commit, seed, profile. `compare` puts two files side by side.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["append", "compare", "flat", "latest", "machine", "read", "record"]

PACKAGES = ("mmalign", "torch", "diffusers", "transformers", "peft", "accelerate", "trl")
SEED = 0


def _processor() -> str:
    """The CPU's name as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _commit() -> str:
    """Of the checkout; with `+` where tracked files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit or 'unknown'}{'+' if changed else ''}"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where and with what something was measured."""
    gpu = torch.cuda.get_device_name(0) if device.startswith("cuda") else None
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
        "seed": SEED,
    }


def record(name: str, values: Mapping[str, Any], *, profile: str, where: Mapping[str, Any]) -> dict[str, Any]:
    """One measurement."""
    return {"id": name, "profile": profile, "values": dict(values), "machine": dict(where)}


def append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records to a file."""
    from mmalign.files import append_json_line

    path.parent.mkdir(parents=True, exist_ok=True)
    for each in records:
        append_json_line(path, dict(each))


def read(path: Path) -> list[dict[str, Any]]:
    """Records of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def latest(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last record of every id."""
    return {str(each["id"]): dict(each) for each in records}


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """Numbers of nested values by dotted names."""
    found: dict[str, float] = {}
    for name, value in values.items():
        path = f"{before}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{path}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[path] = float(value)
    return found


def compare(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """(measurement, value of the first file, of the second, second over first), of what both have.

    Raises:
        ValueError: the files share no measurement.
    """
    old, new = latest(first), latest(second)
    rows = []
    for name in (name for name in new if name in old):
        before, after = flat(old[name]["values"]), flat(new[name]["values"])
        for key in (key for key in after if key in before):
            ratio = f"{after[key] / before[key]:.3f}" if before[key] else ""
            rows.append((f"{name}: {key}", f"{before[key]:.6g}", f"{after[key]:.6g}", ratio))
    if not rows:
        message = f"nothing to compare: the files hold {sorted(old)} and {sorted(new)}"
        raise ValueError(message)
    return rows


def other_machine(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What differs between the places of two records, in words."""
    found = []
    for key in ("cpu", "cores", "threads", "gpu", "versions"):
        old, new = first["machine"].get(key), second["machine"].get(key)
        if old != new:
            found.append(f"{key}: {old} and {new}")
    return found
