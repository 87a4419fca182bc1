"""Files for launching are read by the programs they are for."""

import subprocess
import sys

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
    settings = getattr(config, "fsdp_config", {}) or {}
    assert bool(settings) == name.startswith("fsdp2")
    assert config.distributed_type == ("NO" if name == "single" else "FSDP" if settings else "MULTI_GPU")


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
