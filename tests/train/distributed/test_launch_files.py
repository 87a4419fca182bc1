"""Files for launching are read by the programs they are for."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin

from mmalign.errors import UnknownNameError
from mmalign.train.launch import launch_file, launch_files
from mmalign.train.launch.__main__ import main

ACCELERATE = [name for name in launch_files() if name not in ("kubernetes", "slurm")]


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_reads_its_files(name: str) -> None:
    config = load_config_from_file(str(launch_file(name)))
    assert config.num_processes == {"single": 1}.get(name, 64 if name.endswith("_nodes") else 8)
    assert config.num_machines == (8 if name.endswith("_nodes") else 1)
    kinds = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero1": "DEEPSPEED"}
    kinds |= {"zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[name.partition("_")[0]]
    assert bool(getattr(config, "fsdp_config", None)) == name.startswith("fsdp2")
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[4])


@pytest.mark.parametrize(("name", "gives_back"), [("fsdp2", True), ("fsdp2_keep", False)])
def test_accelerates_plugin_is_the_second_version(monkeypatch, launched_with, name, gives_back) -> None:
    for variable, value in launched_with(name).items():
        monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, gives_back)
    assert plugin.transformer_cls_names_to_wrap is None
    assert plugin.cpu_ram_efficient_loading is False


def test_the_job_files_are_well_formed() -> None:
    subprocess.run(["bash", "-n", str(launch_file("slurm"))], check=True)
    service, job = yaml.safe_load_all(launch_file("kubernetes").read_text())
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    command = job["spec"]["template"]["spec"]["containers"][0]["args"][0]
    assert f"{job['metadata']['name']}-0.{service['metadata']['name']}" in command
    assert "--num_processes 16" in command
    assert service["spec"]["publishNotReadyAddresses"] is True


def wait_for(path: Path) -> None:
    """Until a program that was started says that it runs."""
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never appeared"
        time.sleep(0.01)


def put(folder: Path, name: str, script: str) -> None:
    """A program of this name that comes first on PATH."""
    program = folder / name
    program.write_text(f"#!/bin/bash\n{script}")
    program.chmod(0o755)


SAVES_AT_TERM = """
echo "cpus=$SRUN_CPUS_PER_TASK grace=$TORCH_ELASTIC_SHUTDOWN_TIMEOUT arguments=${*: -3}" >> said
save() {
  echo saving >> said; sleep 0.3; echo saved >> said
  [[ -n $LAST ]] && touch training_summary.json
  exit ${CODE:-0}
}
trap save TERM
touch running
[[ -n $FAILS ]] && exit 3
for ((i = 0; i < 1000; i++)); do sleep 0.02; done
"""


@contextlib.contextmanager
def job(folder: Path, command: list[str], **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A job's script, with programs of a cluster that only write down what they were asked."""
    put(folder, "srun", SAVES_AT_TERM)
    put(folder, "accelerate", SAVES_AT_TERM)
    put(folder, "python", "echo launch.yaml")
    put(folder, "scontrol", 'echo "scontrol $*" >> said; [[ $1 == show ]] && echo first && echo second; true')
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "nodes",
        "SLURM_JOB_ID": "17",
        "SLURM_CPUS_PER_TASK": "64",
        "JOB_COMPLETION_INDEX": "1",
        "LAST": "",
        "FAILS": "",
        **settings,
    }
    started = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def test_a_slurm_job_saves_and_is_requeued_before_its_time_is_up(tmp_path: Path) -> None:
    with job(tmp_path, ["bash", str(launch_file("slurm")), "run.yaml"], CODE="15") as script:
        wait_for(tmp_path / "running")
        script.send_signal(signal.SIGTERM)
        assert script.wait(20) == 0
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0] == "scontrol show hostnames nodes"
    assert "cpus=64 grace=150" in said[1]
    assert said[1].endswith("launch.yaml first run.yaml")
    assert said[-3:] == ["saving", "saved", "scontrol requeue 17"]
    asked = [line for line in launch_file("slurm").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --signal=B:TERM@180", "#SBATCH --open-mode=append"} <= set(asked)


def test_a_slurm_job_that_fails_is_not_requeued(tmp_path: Path) -> None:
    with job(tmp_path, ["bash", str(launch_file("slurm")), "run.yaml"], FAILS="1") as script:
        assert script.wait(20) == 3
    assert "requeue" not in (tmp_path / "said").read_text()


@pytest.mark.parametrize(
    ("settings", "code"), [({}, 75), ({"LAST": "1"}, 0), ({"CODE": "4"}, 4), ({"FAILS": "1"}, 3)]
)
def test_a_pod_succeeds_only_when_the_run_is_complete(tmp_path: Path, settings: Any, code: int) -> None:
    _, content = yaml.safe_load_all(launch_file("kubernetes").read_text())
    container = content["spec"]["template"]["spec"]["containers"][0]
    script = container["args"][0].replace("/runs/run/", "")
    grace = {entry["name"]: entry["value"] for entry in container["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert int(grace) < content["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    with job(tmp_path, [*container["command"], script], **settings) as pod:
        wait_for(tmp_path / "running")
        if "FAILS" not in settings:
            pod.send_signal(signal.SIGTERM)
        assert pod.wait(20) == code


def test_a_file_is_found_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fsdp2"]) == 0
    assert capsys.readouterr().out.strip().endswith("fsdp2.yaml")
    assert main([]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(launch_files())
    assert main(["fsdp3"]) == 2
    with pytest.raises(UnknownNameError, match="fsdp3"):
        launch_file("fsdp3")
    assert sys.modules["mmalign.train.launch"].__doc__
