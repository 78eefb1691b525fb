"""The Lightning Trainer of a run, and the guards against the ways in which it would lose data unseen."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Optional

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only

from llm_entropy.errors import ReportedError
from llm_entropy.settings import RANKS, TrainerSettings, to_plain
from llm_entropy.store.manifest import CHECKPOINTS

log = logging.getLogger("llm_entropy")

STEP_TASKS, STEP_NODES = "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"
"""What srun tells the processes that it starts; a batch script without srun has only what the job may start."""
UNSEEN_JOBS = ("bash", "interactive")
"""Names of jobs of SLURM in which Lightning takes every process for the only one."""
STARTER = "LLM_ENTROPY_STARTER"
"""The process that has Lightning start others, so that these know it."""


class Started(NamedTuple):
    """The processes that a launcher has started."""

    by: str
    """`torchrun` or `srun`."""
    num_processes: int
    """On all machines."""
    num_local: int
    """On this machine."""
    num_nodes: int
    """How many machines."""


def make_trainer(wanted: TrainerSettings, root: Path) -> L.Trainer:
    """Return a Trainer that only predicts: no checkpoints, no logger, no sampler of its own.

    From here on Lightning too believes what rank this process has.

    Args:
        wanted: Devices, nodes, strategy. Where torchrun or srun has started this process, what is left out is theirs.
        root: The folder in which Lightning looks for checkpoints; it need not be there.

    Raises:
        ReportedError: Lightning cannot have what is wanted; or not as many processes were started as it believes, so
            that a part of the corpus would be left out; or there is a checkpoint that it would load over the weights.
    """
    started = _started()
    if started is not None:
        wanted = _as_started(wanted, started)
    # torchrun works inside a job of SLURM too, and then it is what numbers the processes.
    by_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    try:
        trainer = L.Trainer(
            accelerator=wanted.accelerator,
            devices=wanted.devices,
            num_nodes=wanted.num_nodes,
            strategy=wanted.strategy,
            plugins=[_Srun(auto_requeue=False)] if by_slurm else None,
            default_root_dir=root,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        got = ", ".join(f"{name} {value!r}" for name, value in to_plain(wanted).items())
        raise ReportedError(
            f"trainer: got {got}; {str(error).rstrip('.!')}; change the setting that does not fit, or leave it out"
        ) from error
    num_asked = trainer.num_devices * trainer.num_nodes
    if started is not None and num_asked != started.num_processes:
        raise ReportedError(
            f"trainer: {trainer.num_devices} devices on {trainer.num_nodes} nodes were asked for, but {started.by} has "
            f"started {started.num_processes} processes, {started.num_local} of them on this machine; leave "
            "trainer.devices and trainer.num_nodes out, or start as many"
        )
    if trainer.world_size != num_asked:  # a job may have room for them, but would wait for ever
        raise ReportedError(
            f"trainer: {trainer.num_devices} devices on {trainer.num_nodes} nodes were asked for, but "
            f"{trainer.world_size} processes were started; under SLURM start with srun, one task for each device"
        )
    if started is None:
        _refuse_or_ignore_ranks(trainer)
    for checkpoint in Path(trainer.default_root_dir).glob(CHECKPOINTS):
        raise ReportedError(f"{checkpoint}: Lightning would load it over the models' weights; remove it")
    rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]
    return trainer


class _Srun(SLURMEnvironment):
    """Counts the tasks of the step, not those that the job has room for; `make_trainer` checks whether they fit."""

    @staticmethod
    def _validate_srun_variables() -> None:
        """Let any way in which srun was told the number of tasks be right."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Leave it to `make_trainer`."""

    def world_size(self) -> int:
        """Return how many tasks the step has; a batch script without srun is one."""
        return _number(STEP_TASKS, "srun", 1)


def _started() -> Optional[Started]:
    """Return what a launcher has started, if this process is one of it."""
    if TorchElasticEnvironment.detect():
        num_processes, num_local = (_number(name, "torchrun") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Started("torchrun", num_processes, num_local, num_processes // num_local)
    if SLURMEnvironment.detect() and STEP_TASKS in os.environ:
        num_processes, num_nodes = _number(STEP_TASKS, "srun"), _number(STEP_NODES, "srun", 1)
        return Started("srun", num_processes, num_processes // num_nodes, num_nodes)
    return None


def _number(name: str, launcher: str, default: Optional[int] = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal() or int(text) == 0:
        raise ReportedError(
            f"{name}: got {text or 'nothing'} in the environment of a process that {launcher} seems to have started; "
            f"expected a number; start anew with {launcher}, or in another shell"
        )
    return int(text)


def _as_started(wanted: TrainerSettings, started: Started) -> TrainerSettings:
    """Return the settings with what is left out in them as the launcher has it."""
    if wanted.devices == "auto":
        num_cards = torch.cuda.device_count()
        if wanted.accelerator in ("auto", "gpu", "cuda") and 0 < num_cards < started.num_local:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible})"
            raise ReportedError(
                f"trainer: {started.by} has started {started.num_local} processes on this machine, but this one sees "
                f"{num_cards} GPU{hidden}; start one process for each GPU, all of which every process can see, or give "
                "--trainer.accelerator cpu"
            )
        wanted = replace(wanted, devices=started.num_local)
    if wanted.num_nodes == 1:
        wanted = replace(wanted, num_nodes=started.num_nodes)
    return wanted


def _refuse_or_ignore_ranks(trainer: L.Trainer) -> None:
    """Make sure that what other programs have left in the environment is not taken for this process's number."""
    rank = next((f"{name} is {os.environ[name]}" for name in RANKS if os.environ.get(name, "0") != "0"), None)
    if trainer.world_size > 1:
        _refuse_half_a_launch(trainer)
    elif os.environ.get(STARTER) == str(os.getppid()):
        raise ReportedError(
            "trainer.devices: this process was started for a run on several devices, and its script asks for a run on "
            "one; give all runs of a script the same devices"
        )
    elif os.environ.get("SLURM_PROCID", "0") != "0" and os.environ.get("SLURM_JOB_NAME") in UNSEEN_JOBS:
        raise ReportedError(
            f"trainer: SLURM_PROCID is {os.environ['SLURM_PROCID']} and SLURM_JOB_NAME {os.environ['SLURM_JOB_NAME']}; "
            "the tasks of a job of that name do not know each other; start with: srun env SLURM_JOB_NAME=llm-entropy "
            "llm-entropy ..., or where this is the only process, unset SLURM_PROCID"
        )
    elif rank is not None:
        log.warning("%s, but neither torchrun nor srun has started this process: it works alone", rank)


def _refuse_half_a_launch(trainer: L.Trainer) -> None:
    """Make sure that Lightning can start the other processes, or has, or that somebody says that they were started."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, LightningEnvironment) or torch.distributed.is_initialized():
        return
    if not environment.creates_processes_externally:
        os.environ[STARTER] = str(os.getpid())
    elif os.environ.get("WORLD_SIZE") != str(trainer.world_size):
        raise ReportedError(
            f"trainer: LOCAL_RANK is {os.environ['LOCAL_RANK']}, so that Lightning would start no processes, and wait "
            f"for {trainer.world_size - 1} others; unset LOCAL_RANK, or start them with torchrun, or set WORLD_SIZE to "
            f"{trainer.world_size} where you have started them"
        )
