"""`mmalign plan`: what a run needs on a device and how long it takes, and settings with which it fits."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.errors import ConfigError, explain

if TYPE_CHECKING:
    from mmalign.train.config import ResolvedRun
    from mmalign.train.planning.devices import Device
    from mmalign.train.planning.fitting import Fit
    from mmalign.train.planning.launches import Launch
    from mmalign.train.planning.run_plan import RunPlan

__all__ = ["add_command", "fit_text", "main", "nested", "plan_text"]


def add_command(commands: Any, handler: Callable[..., Any]) -> None:  # argparse's type is not public
    """Add `plan` to the parser."""
    parser = commands.add_parser(
        "plan",
        help="memory, time and disk of a run on a device, before anything is loaded",
        description="Count a run on shapes: the highest memory part by part, the time of a step, disk, and "
        "whether a stored reference and a cache pay. The settings of the model are enough, from its "
        "folder (model_index.json) or, of well-known models, from here; nothing is downloaded for models "
        "that denoise. Only of a local source without model_index.json weights are read, and the plan "
        "says so. With --fit, propose settings that fit; exit code 1 when none do.",
    )
    parser.add_argument("config_path", metavar="CONFIG", type=Path, help="YAML file of the run")
    parser.add_argument(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        default=[],
        help="settings that replace the file's",
    )
    parser.add_argument(
        "--device",
        default=None,
        metavar="NAME",
        help="h100, h200, a100-80gb, a100-40gb, 4090, 3090, l40s, cpu (measured), or "
        "NAME=memory:24GB,half:165,full:83,plain:83,bandwidth:1008,link:32,network:12.5 in TFLOP/s (full: "
        "TF32, plain: float32 without) and GB/s (link: to the other cards of a machine, network: of a "
        "machine's network cards together; default: this machine's card if it is in the list, cpu for runs "
        "on the CPU, else h100)",
    )
    parser.add_argument(
        "--launch",
        metavar="NAME",
        help="how processes share the run, as `python -m mmalign.train.launch` names it: single, ddp, fsdp2, "
        "fsdp2_keep, zero1, zero2 or zero3; memory is that of one process (default: ddp where there are "
        "several)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="in all, one per device, 8 on a machine (default: those of this launch, else 1)",
    )
    parser.add_argument(
        "--fit",
        metavar="SIZE",
        help="propose settings that fit so much memory, for example 24GB, and no more than the device has",
    )
    parser.add_argument(
        "--allow-lora",
        action="store_true",
        help="--fit: LoRA may take the place of the whole network, as the last resort",
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="print numbers as JSON")
    parser.set_defaults(handler=handler)


def main(
    config_path: Path,
    overrides: Sequence[str] = (),
    device: str | None = None,
    fit: str | None = None,
    allow_lora: bool = False,
    as_json: bool = False,
    launch: str | None = None,
    processes: int | None = None,
) -> int:
    """Plan a run, or fit it. Returns 1 when it is to fit and does not, else 0.

    Args:
        config_path: YAML file.
        overrides: `section.key=value`.
        device: name of a device, or numbers of one; None: see `--help`.
        fit: size of memory to fit; None: only the plan.
        allow_lora: see `fit_run`.
        as_json: print JSON.
        launch: how processes share the run; None: see `launch_of`.
        processes: how many.

    Raises:
        ConfigError: the file, the size, the device or the launch cannot be used, or the config trains a
            reward.
        UnknownNameError: no such device or launch.
    """
    from mmalign.cli.training import reward_bytes, trains_a_reward, trains_a_step_aware_model

    if trains_a_reward(config_path, overrides) or trains_a_step_aware_model(config_path, overrides):
        message = explain(
            str(config_path),
            got="a config that trains a reward",
            expected="one that trains a policy",
            do="`mmalign train CONFIG --dry-run` describes it.",
        )
        raise ConfigError(message)
    from mmalign.train.config import load_run
    from mmalign.train.planning.devices import parse_bytes
    from mmalign.train.planning.fitting import fit_run
    from mmalign.train.planning.launches import launch_of
    from mmalign.train.planning.run_plan import plan_run

    def variant(changes: Sequence[str]) -> "ResolvedRun":
        return load_run(config_path, [*overrides, *changes])

    shared = launch_of(launch, processes)
    run = variant([])
    limit = None if fit is None else parse_bytes(fit)
    planned = _device(device, run)
    scoring = reward_bytes(run)
    plan = plan_run(run, planned, variant=variant, reward_bytes=scoring, launch=shared)
    if limit is None:
        print(json.dumps(plan.as_dict(), indent=2) if as_json else plan_text(plan))
        return 0
    found = fit_run(
        plan.run,
        planned,
        variant=variant,
        limit=limit,
        allow_lora=allow_lora,
        reward_bytes=scoring,
        on_step=lambda name: print(f"counting: {name}", file=sys.stderr),
        launch=shared,
    )
    print(json.dumps(_fit_dict(plan, found), indent=2) if as_json else fit_text(found, planned))
    return 0 if found.fits else 1


def _device(name: str | None, run: "ResolvedRun") -> "Device":
    """The device that is asked for, this machine's, or an H100."""
    from mmalign.train.planning.devices import DEVICES, device_of

    if name is not None:
        return device_of(name)
    if run.config.train.device == "cpu":
        return device_of("cpu")
    import torch

    if torch.cuda.is_available():
        own = torch.cuda.get_device_name().lower().replace(" ", "-")
        known = next((key for key in DEVICES if all(part in own for part in key.split("-"))), None)
        if known is not None:
            return device_of(known, memory=torch.cuda.get_device_properties(0).total_memory)
    return device_of("h100")


_GIB = 2**30


def _table(rows: Sequence[Sequence[str]], *, right: int = 1) -> list[str]:
    """Rows as lines of columns; the column of this number flush right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if place == right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _size(num_bytes: int) -> str:
    if num_bytes >= 0.01 * _GIB:
        return f"{num_bytes / _GIB:.2f} GiB"
    return f"{num_bytes / 2**20:.2f} MiB"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"


def plan_text(plan: "RunPlan") -> str:
    """What is printed of a plan."""
    method, device, peak = plan.run.method, plan.device, plan.peak
    total = sum(parameter.numel() for parameter in plan.counted.trainables.network.parameters())
    memory = [[item.component, _size(item.num_bytes), item.note] for item in peak.items]
    memory.append(["tensors together", _size(peak.tensors), f"highest at this moment: {peak.stage}"])
    memory.append(["driver, libraries, allocator", _size(peak.margin), "assumed"])
    room = "" if device.memory is None else f"of {_size(device.memory)}: {_verdict(plan)}"
    memory.append(["all", _size(peak.total), room])
    times = [[name, _span(seconds), ""] for name, seconds in plan.time.parts.items()]
    times.append(["optimiser step", _span(plan.time.seconds), f"{plan.time.flops / 1e12:.3g} TFLOP"])
    lines = [
        f"{method.name} on {plan.run.config.model.source}, planned for {device.name}{_shared(plan.launch)}",
        f"trained: {plan.counted.trainables.count:,} of {total:,} weights",
        "",
        "memory, at its highest",
        *_table(memory),
        "",
        f"time of a step of {plan.time.pairs} prompts",
        *_table(times),
        f"  {plan.time.pairs_per_second:.3g} prompts/s" + _whole(plan),
        "",
        "disk",
        *_table([[item.component, _size(item.num_bytes), item.note] for item in plan.disk]),
        "",
        "choices",
        *[
            f"  {choice.about}: {choice.now}; pays: {choice.pays}"
            + (f" ({choice.override})" if choice.override else "")
            + f"\n    {choice.why}"
            for choice in plan.choices
        ],
        "",
        f"assumed: {_rates(device)}",
        *[f"  {note}" for note in plan.notes],
    ]
    return "\n".join(lines)


def _shared(launch: "Launch") -> str:
    return "" if launch.processes == 1 else f": {launch.describe()}"


def _verdict(plan: "RunPlan") -> str:
    return "fits" if plan.fits else "does not fit; try --fit"


def _whole(plan: "RunPlan") -> str:
    if plan.total_seconds is None:
        return "; the number of steps is open: the data cannot be opened here"
    return f", {plan.run.config.train.steps} steps in {_span(plan.total_seconds)}"


def _rates(device: "Device") -> str:
    return (
        f"{device.half / 1e12:.4g} TFLOP/s in half precision, {device.full / 1e12:.4g} in float32, "
        f"{device.bandwidth / 1e9:.4g} GB/s ({device.source}); products reach {device.products:.0%} of it, "
        f"the rest {device.traffic:.0%}; the host takes {device.host_forward * 1e6:.3g} us per operation "
        f"forward, {device.host_backward * 1e6:.3g} us backward"
    )


def nested(overrides: Sequence[str]) -> str:
    """`section.key=value` strings as the YAML of a config."""
    import yaml

    content: dict[str, Any] = {}
    for word in overrides:
        path, _, value = word.partition("=")
        *sections, key = path.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = yaml.safe_load(value)
    return yaml.safe_dump(content, sort_keys=False).rstrip()


def fit_text(fit: "Fit", device: "Device") -> str:
    """What is printed of a fit."""
    lines = [f"as it stands: {_size(fit.before.total)}; wanted: {_size(fit.asked)} on {device.name}"]
    if fit.limit < fit.asked:
        lines.append(f"{device.name} has {_size(fit.limit)}: that is the limit (another device: --device)")
    if fit.steps:
        rows = [["change", "saves", "time per prompt", "result"]]
        rows += [[step.name, _size(step.saved), f"{step.slower:+.0%}", step.remark] for step in fit.steps]
        lines += _table(rows)
    verdict = "fits" if fit.fits else "does not fit: the smallest is"
    lines.append(f"{verdict} {_size(fit.after.total)}, {fit.time.pairs_per_second:.3g} prompts/s")
    if fit.overrides:
        lines += ["", nested(fit.overrides), "", f"# or: {' '.join(fit.overrides)}"]
    if any(step.launch for step in fit.steps):
        name, processes = fit.launch.name, fit.launch.processes
        file = f'"$(python -m mmalign.train.launch {name})"'
        lines += ["", f"# launch: accelerate launch --config_file {file} --num_processes {processes} ..."]
    if not fit.fits:
        rows = [[item.component, _size(item.num_bytes), item.note] for item in fit.after.items]
        lines += ["", "what is left", *_table(rows)]
    lines += [f"not for this run: {name} ({why})" for name, why in fit.refused.items()]
    return "\n".join(lines)


def _fit_dict(plan: "RunPlan", fit: "Fit") -> dict[str, Any]:
    return {
        "fits": fit.fits,
        "limit": fit.limit,
        "asked": fit.asked,
        "before": fit.before.total,
        "after": fit.after.total,
        "components": {item.component: item.num_bytes for item in fit.after.items},
        "pairs_per_second": fit.time.pairs_per_second,
        "steps": [step.as_dict() for step in fit.steps],
        "overrides": fit.overrides,
        "launch": fit.launch.name,
        "refused": fit.refused,
        "plan": plan.as_dict(),
    }
