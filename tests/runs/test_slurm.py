"""The scripts in slurm/, on a real SLURM: arrays, kills, requeueing, data-parallel jobs, and the same bytes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher import Launcher
from slurm_cluster import missing_programs, slurm_cluster

from llm_entropy.builtin import read_sentences

REPOSITORY = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("llm-entropy")
OPTIONS = {
    "models": "{gpt2: builtin:tiny-gpt2}",
    "analysis.num_sentences": "null",
    "analysis.metrics": "[entropy, surprisal]",
    "analysis.compare_control": "true",
    "analysis.control.control_vector": "[0.4, -0.9, 0.7]",
    "data.path": "corpus.txt",
    "data.tokens_per_batch": "64",
    "trainer.accelerator": "cpu",
    "output.part_seconds": "0",
    "output.plots": "false",
}
"""Small batches, each a part of its own: so that there is a middle in which a task can be killed."""
WORDS = [f"--{key}={value}" for key, value in OPTIONS.items()]
SECONDS = 300
"""How long a test waits for what must come."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=f"SLURM is not installed: no {', '.join(missing_programs())}"),
    pytest.mark.xdist_group("slurm"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of a cluster."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster(Path(folder)) as environment:
        yield {
            **environment,
            "LLM_ENTROPY": str(PROGRAM),
            "MASTER_ADDR": "127.0.0.1",  # the nodes' names are made up
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }


@pytest.fixture(scope="module")
def room(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a corpus, and `single`: the run of one process."""
    folder = tmp_path_factory.mktemp("room")
    texts = [row["prompt"] for row in read_sentences()]
    lines = [f"{text} {index}\n" for index in range(2) for text in texts]
    (folder / "corpus.txt").write_text("".join(lines), encoding="utf-8")
    # In large parts, which are sooner written: what is merged of them is the same.
    words = [*WORDS, "--output.dir=runs", "--output.run_name=single", "--output.part_seconds=60"]
    ended = launcher.at(folder)(["predict", *words])
    assert ended.status == 0, ended.said
    return folder


def run(command: list[str], folder: Path, environment: dict[str, str], status: int = 0) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def say(launcher: Launcher, room: Path, words: list[str], status: int = 0) -> str:
    """Return what a command says that nobody needs SLURM for, in a fork: it imports nothing anew."""
    ended = launcher.at(room)(words)
    assert ended.status == status, ended.said
    return ended.said


def wait_for(found: Callable[[], Any], what: str, folder: Path, pause: float = 0.05) -> Any:
    end = time.monotonic() + SECONDS
    while not (value := found()):
        if time.monotonic() > end:
            logs = "".join(f"\n== {path.name}\n{path.read_text()[-2000:]}" for path in folder.glob("*.log"))
            raise TimeoutError(f"{what}: not there after {SECONDS} s{logs}")
        time.sleep(pause)
    return value


def wait_for_jobs(room: Path, slurm: dict[str, str], *options: str) -> None:
    """Wait until no job is left in the queue, or none of those that the options of squeue choose."""
    # asking SLURM costs it, and the tasks, more than looking for a file
    wait_for(lambda: not queue(slurm, *options), "an empty queue", room, pause=0.5)


def tables_of(run_dir: Path) -> dict[str, bytes]:
    paths = [
        path for path in run_dir.glob("*/*/*") if path.suffix in (".csv", ".parquet") and "shards" not in path.parts
    ]
    assert len([path for path in paths if path.suffix == ".csv"]) == 2 * 4 + 6
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in paths}


def markers_of(run_dir: Path, task: int) -> list[Path]:
    return sorted(run_dir.glob(f"shards/gpt2/task-{task:05d}-of-*/rank-*/part-*.json"))


def submit(room: Path, slurm: dict[str, str]) -> tuple[str, str]:
    """Submit what is missing of the array of four, and return the jobs of the array and the merge."""
    command = [str(REPOSITORY / "slurm/submit_array.sh"), "4", "runs/array", "--", *WORDS]
    jobs = dict(line.split(":")[0].split() for line in run(command, room, slurm).splitlines())
    return jobs.get("array", ""), jobs["merge"]


def test_an_array_survives_a_kill_and_a_requeue_and_gives_the_bytes_of_one_process(
    room: Path, slurm: dict[str, str], launcher: Launcher
):
    run_dir = room / "runs/array"
    array, merge = submit(room, slurm)

    # One task is killed without warning, another asked to stop, as before its time limit; both in the middle.
    first = wait_for(lambda: markers_of(run_dir, 1), "a part of task 1", room)[0]
    os.kill(json.loads(first.read_text())["process"]["pid"], signal.SIGKILL)
    wait_for(lambda: markers_of(run_dir, 2), "a part of task 2", room)
    run(["scancel", "--signal=USR1", f"{array}_2"], room, slurm)
    log = room / f"array-{array}_2.log"
    log = next(iter(room.glob(f"*-{array}_2.log")), log)
    wait_for(lambda: "stopped by SIGUSR1" in log.read_text(), "task 2 says that it stopped", room)
    before = len(markers_of(run_dir, 2))
    wait_for(lambda: "resuming" in log.read_text(), "task 2 goes on by itself", room)
    wait_for_jobs(room, slurm, f"--job={array}")
    assert len(markers_of(run_dir, 2)) > before

    # The merge does not run behind a task that failed, and the run says what is missing.
    wait_for_jobs(room, slurm, f"--job={merge}")
    assert not (run_dir / "standard").exists()
    words = say(launcher, room, ["merge", "runs/array"], status=2)
    assert "is not complete: gpt2 lacks" in words
    assert "--array=1 " in words
    assert say(launcher, room, ["status", "runs/array", "--missing"], status=1) == "1\n"

    # The same line again runs the one task that was lost, and then the merge.
    kept = {path: path.stat().st_mtime_ns for task in range(4) for path in markers_of(run_dir, task)}
    submit(room, slurm)
    wait_for_jobs(room, slurm)
    assert {path.parents[1].name[5:10] for path in set(run_dir.glob("shards/*/*/*/*.json")) - set(kept)} == {"00001"}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing that was done is done again"
    assert tables_of(run_dir) == tables_of(room / "runs/single")
    about = json.loads((run_dir / "run.json").read_text())
    assert about["status"] == "complete"
    launches = {(process["task"][0], process["slurm_job"]) for process in about["models"]["gpt2"]["processes"]}
    assert [task for task, _ in sorted(launches)] in ([0, 1, 1, 2, 2, 3], [0, 1, 1, 2, 3])
    assert len({process["launch"] for process in about["models"]["gpt2"]["processes"]}) == 6
    assert not list(room.rglob("hpc_ckpt_*")), "Lightning's own requeueing is off"

    # Parts are lost afterwards: what the program prints is pasted as it stands.
    lost = [markers_of(run_dir, 1)[0], markers_of(run_dir, 3)[-1]]
    for marker in lost:
        marker.with_suffix(".parquet").unlink()
        marker.unlink()
    words = say(launcher, room, ["status", "runs/array"], status=1)
    (option,) = re.findall(r"tasks that are not complete, for sbatch: (--array=\S+)", words)
    assert option == "--array=1,3"
    (command,) = re.findall(r"each of them runs: (llm-entropy .*)", words)
    path = os.pathsep.join([str(PROGRAM.parent), slurm["PATH"]])
    job = ["sbatch", option, "--job-name=pasted", "--ntasks-per-node=1", "--wrap", f"srun {command}"]
    run(job, room, {**slurm, "PATH": path})
    wait_for_jobs(room, slurm)
    assert "every record is there" in say(launcher, room, ["status", "runs/array"])
    shutil.rmtree(run_dir / "standard")
    say(launcher, room, ["merge", "runs/array"])
    assert tables_of(run_dir) == tables_of(room / "runs/single")


def queue(slurm: dict[str, str], *options: str) -> str:
    done = subprocess.run(["squeue", "--noheader", *options], env=slurm, capture_output=True, text=True, timeout=30)
    return done.stdout


@pytest.mark.parametrize(
    ("script", "options"),
    [("single_node", ["--ntasks-per-node=2"]), ("multi_node", ["--nodes=2", "--ntasks-per-node=1"])],
)
def test_two_processes_of_a_job_give_the_bytes_of_one(
    room: Path, slurm: dict[str, str], script: str, options: list[str]
):
    name = script.replace("_", "-")
    words = [*WORDS, "--output.dir=runs", f"--output.run_name={name}"]
    run(["sbatch", *options, str(REPOSITORY / f"slurm/{script}.sbatch"), *words], room, slurm)
    wait_for_jobs(room, slurm)
    assert tables_of(room / "runs" / name) == tables_of(room / "runs/single")
    about = json.loads((room / "runs" / name / "run.json").read_text())
    processes = about["models"]["gpt2"]["processes"]
    assert [process["rank"] for process in processes] == [[0, 2], [1, 2]]
    tokens = [process["num_tokens"] for process in processes]
    assert max(tokens) <= 1.05 * min(tokens)


def test_srun_alone_says_how_many_processes_there_are(room: Path, slurm: dict[str, str]):
    words = [*WORDS, "--output.dir=runs", "--output.run_name=counted"]
    command = shlex.join(["srun", "--ntasks=2", str(PROGRAM), "predict", *words])
    run(["sbatch", "--job-name=counted", "--ntasks=2", "--output=counted.log", "--wrap", command], room, slurm)
    wait_for_jobs(room, slurm)
    assert (room / "runs/counted/standard").exists(), (room / "counted.log").read_text()
    assert tables_of(room / "runs/counted") == tables_of(room / "runs/single")
    about = json.loads((room / "runs/counted/run.json").read_text())
    assert [process["rank"] for process in about["models"]["gpt2"]["processes"]] == [[0, 2], [1, 2]]


@pytest.mark.parametrize("option", ["--ntasks=1", "--ntasks-per-node=2"])
def test_a_job_without_srun_is_refused_and_neither_half_done_nor_waits_for_ever(
    room: Path, slurm: dict[str, str], option: str
):
    words = [*WORDS, "--output.dir=runs", "--output.run_name=half", "--trainer.devices=2"]
    command = shlex.join([str(PROGRAM), "predict", *words])
    run(["sbatch", "--job-name=half", option, "--output=half.log", "--wrap", command], room, slurm)
    wait_for_jobs(room, slurm)
    assert (
        "2 devices on 1 nodes were asked for, but 1 processes were started; under SLURM start with srun"
        in (room / "half.log").read_text()
    )
    assert not (room / "runs/half").exists()


def test_torchrun_works_inside_a_job(room: Path, slurm: dict[str, str]):
    words = [*WORDS, "--output.dir=runs", "--output.run_name=torchrun", "--trainer.devices=2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = shlex.join([*torchrun, "-m", "llm_entropy", "predict", *words])
    run(
        ["sbatch", "--job-name=torchrun", "--ntasks-per-node=1", "--output=torchrun.log", "--wrap", command],
        room,
        slurm,
    )
    wait_for_jobs(room, slurm)
    assert (room / "runs/torchrun/standard").exists(), (room / "torchrun.log").read_text()
    assert tables_of(room / "runs/torchrun") == tables_of(room / "runs/single")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["4"], "expected NUM_TASKS RUN_DIR"),
        (["many", "runs/array", "--"], "NUM_TASKS: got 'many'"),
        (["4", "runs/array", "--config", "x.yaml"], "there is no -- before"),
        (["5", "runs/array", "--", *WORDS], "was started with another number of tasks than 5"),
    ],
)
def test_a_wrong_call_is_refused(room: Path, slurm: dict[str, str], words: list[str], complaint: str):
    if complaint.startswith("was started"):
        (room / "runs/begun").mkdir(exist_ok=True)
        shutil.copy(room / "runs/single/run.json", room / "runs/begun/run.json")
        words = [words[0], "runs/begun", *words[2:]]
    assert complaint in run([str(REPOSITORY / "slurm/submit_array.sh"), *words], room, slurm, status=2)
    assert not queue(slurm)
