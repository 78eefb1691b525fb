"""Lightning's Trainer, set up to predict alone, and the guards against the ways in which it would lose data unseen."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from llm_entropy.errors import ReportedError
from llm_entropy.manifest import CHECKPOINTS
from llm_entropy.settings import TrainerSettings, to_plain

STEP_TASKS = "SLURM_STEP_NUM_TASKS"
"""What srun tells the processes that it starts; a batch script without srun has only what the job may start."""


def make_trainer(wanted: TrainerSettings, root: Path) -> L.Trainer:
    """Return a Trainer that only predicts: no checkpoints, no logger, no sampler of its own.

    Args:
        wanted: Devices, nodes, strategy.
        root: The folder in which Lightning looks for checkpoints; it need not be there.

    Raises:
        ReportedError: Lightning cannot have what is wanted; or not as many processes were started as it believes, so
            that a part of the corpus would be left out; or there is a checkpoint that it would load over the weights.
    """
    # torchrun works inside a job of SLURM too, and then it is what numbers the processes.
    by_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    try:
        trainer = L.Trainer(
            accelerator=wanted.accelerator,
            devices=wanted.devices,
            num_nodes=wanted.num_nodes,
            strategy=wanted.strategy,
            plugins=[SLURMEnvironment(auto_requeue=False)] if by_slurm else None,
            default_root_dir=root,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        got = ", ".join(f"{name} {value!r}" for name, value in to_plain(wanted).items())
        raise ReportedError(f"trainer: got {got}; {str(error).rstrip('.')}; change what does not fit") from error
    if trainer.world_size != trainer.num_devices * trainer.num_nodes:
        raise ReportedError(_wrong_number(trainer, trainer.world_size))
    if by_slurm and trainer.world_size != (started := int(os.environ.get(STEP_TASKS, 1))):
        raise ReportedError(_wrong_number(trainer, started))  # the job has room for them, but would wait for ever
    for checkpoint in Path(trainer.default_root_dir).glob(CHECKPOINTS):
        raise ReportedError(f"{checkpoint}: Lightning would load it over the models' weights; remove it")
    return trainer


def _wrong_number(trainer: L.Trainer, started: int) -> str:
    return (
        f"trainer: {trainer.num_devices} devices on {trainer.num_nodes} nodes were asked for, but {started} processes "
        "were started; under SLURM start with srun, one task for each device"
    )
