"""Runs on several processes of this machine, over gloo, without importing everything once for each of them.

The processes are forked from a server that has imported the trainer, so two of them start in well under a
second after the first time.
"""

import contextlib
import multiprocessing
import os
import socket
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["launch_variables", "on_processes", "train_config"]

_SERVER_IMPORTS = [
    "mmalign.train.run",
    "mmalign.diffusion.families.sd15",
    "mmalign.vlm.families.llava",
    # Half of what a process would import by itself: seconds.
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
]
_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def on_processes(
    count: int,
    task: Callable[..., None],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    timeout: float = 240.0,
) -> None:
    """Call `task(*arguments)` in so many processes of one group, as a launcher would start them.

    Args:
        count: processes.
        task: a function of an installed module.
        arguments: of the task, the same in every process.
        environment: variables on top of those that a launcher sets.
        timeout: seconds for all of them together.

    Raises:
        RuntimeError: a process failed or did not end; the message holds what it said.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SERVER_IMPORTS)
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(count):
            variables = {
                **_THREADS,
                **(environment or {}),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "",
            }
            started.append((rank, variables))
        port = str(_free_port())
        processes = [
            context.Process(
                target=_run, args=(task, arguments, {**variables, "MASTER_PORT": port}, folder), daemon=True
            )
            for _, variables in started
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
        late = [process for process in processes if process.is_alive()]
        for process in late:
            process.kill()
        said = [path.read_text() for path in sorted(Path(folder).glob("*.txt"))]
    if late or any(process.exitcode for process in processes):
        codes = [process.exitcode for process in processes]
        message = f"processes ended with {codes}, {len(late)} of them late.\n" + "\n".join(said)
        raise RuntimeError(message)


def launch_variables(name: str) -> dict[str, str]:
    """The variables that `accelerate launch` sets for one of our files; {} for `single` and `ddp`.

    Args:
        name: of the file, such as "fsdp2" or "zero1".
    """
    from mmalign.train.launch import launch_file

    content: dict[str, Any] = yaml.safe_load(launch_file(name).read_text(encoding="utf-8"))
    variables: dict[str, Any] = {}
    if settings := content.get("fsdp_config"):
        variables = {"ACCELERATE_USE_FSDP": True, **{key.upper(): value for key, value in settings.items()}}
    if settings := content.get("deepspeed_config"):
        own = {key.upper().removesuffix("_FLAG"): value for key, value in settings.items()}
        variables = {f"ACCELERATE_DEEPSPEED_{key}": value for key, value in own.items()}
        variables["ACCELERATE_USE_DEEPSPEED"] = True
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in variables.items()
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _run(
    task: Callable[..., None], arguments: tuple[Any, ...], variables: Mapping[str, str], folder: str
) -> None:
    """One process: its place in the group, the task, and what went wrong."""
    os.environ.update(variables)
    import torch

    torch.set_num_threads(1)
    said = Path(folder) / f"{variables['RANK']}.txt"
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            task(*arguments)
        except BaseException:
            said.write_text(f"process {variables['RANK']}:\n{traceback.format_exc()[-6000:]}")
            raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train_config(path: str, overrides: tuple[str, ...] = ()) -> None:
    """Train a configuration file, as `mmalign train` does."""
    from mmalign.train.run import main

    if main(path, overrides):
        message = f"{path}: the run stopped."
        raise RuntimeError(message)
