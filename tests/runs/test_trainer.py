"""How many processes there are, and which one this is: what the launcher says, and nobody else."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from llm_entropy.errors import ReportedError
from llm_entropy.runs.trainer import STARTER, make_trainer
from llm_entropy.settings import TrainerSettings

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "entropy",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
LAUNCHERS = {"torchrun": TORCHRUN, "srun": SRUN}
CPU = TrainerSettings(accelerator="cpu")

pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without a launcher, and as the second process, as Lightning finds it in some environments."""
    for name in (*TORCHRUN, STARTER, *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, *environments: dict[str, str]) -> None:
    for environment in environments:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)


# --- what a launcher has started ---------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("wanted", [CPU, TrainerSettings("cpu", 2), TrainerSettings("cpu", "auto", 2)])
def test_the_launchers_count_is_the_count(
    launcher: str, wanted: TrainerSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    set_all(monkeypatch, LAUNCHERS[launcher])
    trainer = make_trainer(wanted, tmp_path)
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size) == (2, 2, 4)
    assert (trainer.global_rank, trainer.local_rank, rank_zero_only.rank) == (3, 1, 3)


def test_torchrun_inside_a_job_of_slurm_is_what_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    set_all(monkeypatch, SRUN, {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, TORCHRUN)
    assert make_trainer(CPU, tmp_path).world_size == 4


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (3, 1), (2, 3)])
def test_what_contradicts_the_launcher_is_refused(
    launcher: str, devices: int, nodes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    set_all(monkeypatch, LAUNCHERS[launcher])
    words = (
        rf"trainer: {devices} devices on \d nodes were asked for, but {launcher} has started 4 processes, 2 of them on"
    )
    with pytest.raises(ReportedError, match=words):
        make_trainer(TrainerSettings("cpu", devices, nodes), tmp_path)


def test_nodes_with_unequal_numbers_of_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    set_all(monkeypatch, SRUN, {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"})
    with pytest.raises(ReportedError, match=r"1 devices on 2 nodes .* srun has started 3 processes, 1 of them"):
        make_trainer(CPU, tmp_path)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_more_processes_than_visible_cards_are_refused(launcher: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    set_all(monkeypatch, LAUNCHERS[launcher], {"CUDA_VISIBLE_DEVICES": "5"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = (
        rf"{launcher} has started 2 processes on this machine, .* sees 1 GPU \(CUDA_VISIBLE_DEVICES is 5\); start one"
    )
    with pytest.raises(ReportedError, match=words):
        make_trainer(TrainerSettings(), tmp_path)
    assert make_trainer(CPU, tmp_path).world_size == 4


def test_half_of_what_torchrun_sets_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ReportedError, match="WORLD_SIZE: got nothing in the environment of a process that torchrun"):
        make_trainer(CPU, tmp_path)


@pytest.mark.parametrize("tasks", [{"SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}])
def test_a_job_without_srun_is_one_process(tasks: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    set_all(monkeypatch, {"SLURM_JOB_NAME": "x", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, tasks)
    with pytest.raises(ReportedError, match="2 devices on 1 nodes were asked for, but 1 processes were started; under"):
        make_trainer(TrainerSettings("cpu", 2), tmp_path)
    assert make_trainer(CPU, tmp_path).world_size == 1


# --- what others have left in the environment --------------------------------------------------------------------


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "1"},
        {"SLURM_PROCID": "2"},
        {"JSM_NAMESPACE_RANK": "1"},
        {name: value for name, value in TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"},
    ],
)
def test_a_single_process_does_all_of_the_work_whatever_rank_is_left_over(
    left: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    set_all(monkeypatch, left)
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(CPU, tmp_path)
    assert (trainer.world_size, trainer.global_rank, rank_zero_only.rank) == (1, 0, 0)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "llm_entropy"]
    assert message.endswith("but neither torchrun nor srun has started this process: it works alone")


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_of_the_tasks_of_an_interactive_job_the_first_works_and_the_others_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    set_all(monkeypatch, SRUN, {"SLURM_JOB_NAME": name})
    words = rf"SLURM_PROCID is 3 and SLURM_JOB_NAME {name}; .* start with: srun env SLURM_JOB_NAME=llm-entropy"
    with pytest.raises(ReportedError, match=words):
        make_trainer(CPU, tmp_path)
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert make_trainer(CPU, tmp_path).world_size == 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_devices_with_a_rank_that_is_left_over_are_refused(
    rank: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("LOCAL_RANK", rank)
    words = (
        rf"LOCAL_RANK is {rank}, so that Lightning would start no processes, and wait for 1 others; unset LOCAL_RANK"
    )
    with pytest.raises(ReportedError, match=words):
        make_trainer(TrainerSettings("cpu", 2), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert make_trainer(TrainerSettings("cpu", 2), tmp_path).global_rank == int(rank)


def test_a_process_that_lightning_has_started_is_refused_where_its_script_asks_for_a_single_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv(STARTER, raising=False)
    make_trainer(TrainerSettings("cpu", 2), tmp_path)
    assert os.environ[STARTER] == str(os.getpid())
    set_all(monkeypatch, {STARTER: str(os.getppid()), "LOCAL_RANK": "1", "WORLD_SIZE": "2"})
    with pytest.raises(ReportedError, match="give all runs of a script the same devices"):
        make_trainer(CPU, tmp_path)
