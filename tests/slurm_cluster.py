"""A real SLURM of two nodes on this machine alone, for as long as a test needs it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
NUM_NODES = 2
LIFETIME = 1800
"""Seconds after which every part of the cluster ends, even if the test that started it was killed."""
SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=2
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
KillWait=5
InactiveLimit=0
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=15 State=UP
"""


def missing_programs() -> list[str]:
    """Return what SLURM needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the cluster, and stop it however the block ends.

    Args:
        folder: For its state and logs; a short path, because a socket lies in it.

    Yields:
        The environment in which SLURM's commands find the cluster.
    """
    for name in ("state", *(f"spool/n{number}" for number in range(NUM_NODES))):
        (folder / name).mkdir(parents=True)
    ports = free_ports(1 + NUM_NODES)
    nodes = "\n".join(
        f"NodeName=n{number} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 State=UNKNOWN"
        for number, port in enumerate(ports[1:])
    )
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(user=getpass.getuser(), port=ports[0], folder=folder, nodes=nodes))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = {**os.environ, "PATH": SEARCH, "SLURM_CONF": str(config)}
    munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")]
    munge[1] = f"--key-file={key}"
    with ExitStack() as daemons:
        daemons.enter_context(_daemon(["munged", "--foreground", "--force", *munge], environment, folder))
        _wait_for("munge's socket", lambda: (folder / "munge.socket").exists())
        daemons.enter_context(_daemon(["slurmctld", "-D", "-c", "-f", str(config)], environment, folder))
        for number in range(NUM_NODES):
            command = ["slurmd", "-D", "-c", "-N", f"n{number}", "-f", str(config)]
            daemons.enter_context(_daemon(command, environment, folder))
        daemons.callback(_cancel_all, environment)
        _wait_for("idle nodes", lambda: _num_idle(environment) == NUM_NODES)
        yield environment


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with ExitStack() as sockets:
        found = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


@contextmanager
def _daemon(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / "daemons.log").open("ab") as log:
        process = subprocess.Popen(
            ["timeout", "--kill-after=10", str(LIFETIME), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cancel_all(environment: dict[str, str]) -> None:
    subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, timeout=20, check=False)
    _wait_for("an empty queue", lambda: not _output(["squeue", "--noheader"], environment))


def _num_idle(environment: dict[str, str]) -> int:
    return len(_output(["sinfo", "--noheader", "-N", "-t", "idle", "-o", "%N"], environment).split())


def _output(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip()


def _wait_for(what: str, is_there, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not there after {seconds} s")
        time.sleep(0.1)
