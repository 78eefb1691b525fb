"""Pull the plug at any moment, run the printed command, and get the same folder."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from launcher import COMMAND_LINE, ENDLESS_BATCH, Launcher, Process

from llm_entropy.store.files import Lock

OPTIONS = {
    "models": "{gpt2: builtin:tiny-gpt2, bert: builtin:tiny-bert}",
    "analysis.num_sentences": "60",
    "analysis.metrics": "[entropy, attention_entropy]",
    "analysis.lens_tokens": "true",
    "analysis.compare_control": "true",
    "analysis.control.control_vector": "[0.4, -0.9, 0.7]",
    "analysis.control.strengths": "[-1, 1]",
    "analysis.control.placebo.random": "1",
    "analysis.conditions": "{mood: {control_vector: [0.2, 0.1], layer_weights: [0, 1], strengths: [0.5, 2]}}",
    "data.tokens_per_batch": "48",
    "trainer.accelerator": "cpu",
    "output.dir": "runs",
    "output.part_seconds": "0",
    "output.plots": "false",
}
WORDS = [f"--{key}={value}" for key, value in OPTIONS.items()]
PARTS = "shards/*/*/*/part-*.json"
OUTPUTS = ("standard", "control", "comparative")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash")


@pytest.fixture(scope="module")
def launch(launcher: Launcher, room: Path) -> Launcher:
    return launcher.at(room)


@pytest.fixture(scope="module")
def whole(room: Path, launch: Launcher) -> dict[str, bytes]:
    """The outputs of an unbroken run."""
    ended = launch(["predict", *WORDS, "--output.run_name=whole"])
    assert ended.status == 0, ended.said
    outputs = outputs_of(room / "runs/whole")
    # of each model: five conditions, four of them compared; the placebo's differences, summary, doses
    assert len(outputs) == 2 * (5 * (2 + 1 + 1 + 1) + 4 * (2 + 2 + 1 + 1) + 3)
    return outputs


@pytest.fixture(scope="module")
def seconds(launch: Launcher, whole: dict[str, bytes]) -> float:
    """What an unbroken run takes, once everything has been read before."""
    return launch(["predict", *WORDS, "--output.run_name=timed"]).seconds


def outputs_of(run_dir: Path) -> dict[str, bytes]:
    files = [path for name in OUTPUTS for path in (run_dir / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def num_parts(run_dir: Path) -> int:
    return len(list(run_dir.glob(PARTS)))


def printed_command(said: str) -> list[str]:
    """Return the arguments of the command that the program said would resume the run."""
    command = re.findall(r"resume with: (llm-entropy .*)", said)[-1]
    return shlex.split(command)[1:]


def wait_for(found: Callable[[], object], seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"not there after {seconds} s"
        time.sleep(0.02)


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_is_killed_four_times_leaves_what_an_unbroken_one_does(
    room: Path, launch: Launcher, whole: dict[str, bytes], seconds: float, seed: int
):
    moments = random.Random(seed)
    run_dir = room / f"runs/killed-{seed}"
    first = command = ["predict", *WORDS, f"--output.run_name=killed-{seed}"]
    num_killed, kept = 0, 0
    while num_killed < 4:
        ended = launch(command, [(moments.uniform(0.1, 0.8) * seconds, signal.SIGKILL)])
        if ended.status == 0:  # it was quicker than its killer: begin anew, under another name
            run_dir = run_dir.with_name(f"{run_dir.name}-again")
            first = command = ["predict", *WORDS, f"--output.run_name={run_dir.name}"]
            kept = 0
            continue
        assert ended.status == -signal.SIGKILL, ended.said
        num_killed += 1
        assert num_parts(run_dir) >= kept
        kept = num_parts(run_dir)
        for name, content in outputs_of(run_dir).items():
            assert content == whole[name], "a file is whole or absent"
        # before the run's folder is there, nothing has been begun
        command = printed_command(ended.said) if "resume with" in ended.said else [*first, "--resume"]
    ended = launch(command)
    assert ended.status == 0, ended.said
    assert outputs_of(run_dir) == whole
    assert not list(run_dir.rglob("*.tmp"))
    assert not list(run_dir.glob(".merge-*"))
    assert json.loads((run_dir / "run.json").read_text())["status"] == "complete"


@pytest.mark.parametrize("seed", range(4))
def test_a_merge_that_is_killed_leaves_whole_files_and_can_be_done_again(
    room: Path, launch: Launcher, whole: dict[str, bytes], seed: int
):
    run_dir = room / "runs/whole"
    for name in outputs_of(run_dir):
        (run_dir / name).unlink()
    took = launch(["merge", "runs/whole"]).seconds
    ended = launch(["merge", "runs/whole"], [(random.Random(seed).uniform(0.2, 1.0) * took, signal.SIGKILL)])
    assert ended.status in (0, -signal.SIGKILL)
    assert outputs_of(run_dir) == whole, "what an earlier merge left stays until it is replaced"
    assert launch(["merge", "runs/whole"]).status == 0
    assert outputs_of(run_dir) == whole
    assert not list(run_dir.glob(".merge-*"))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("quiet", [False, True])
def test_a_signal_stops_after_the_batch_and_the_printed_command_goes_on(
    room: Path, launch: Launcher, whole: dict[str, bytes], signum: signal.Signals, quiet: bool
):
    name = f"{signum.name}-{quiet}"
    run_dir = room / "runs" / name
    command = ["predict", *WORDS, f"--output.run_name={name}", *(["--quiet"] if quiet else [])]
    ended = launch(command, [(0, signum)], after=(f"runs/{name}/{PARTS}", 5))
    assert ended.status == 128 + signum, ended.said
    assert f"stopped by {signum.name}; what was done is kept" in ended.said
    assert "Traceback" not in ended.said
    assert json.loads((run_dir / "run.json").read_text())["status"] == "stopped"
    assert num_parts(run_dir) > 0
    before = {path: path.stat().st_mtime_ns for path in run_dir.glob("shards/*/*/*/*")}
    assert launch(printed_command(ended.said)).status == 0
    assert outputs_of(run_dir) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is done twice"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_before_anything_was_begun_ends_the_program_and_leaves_nothing(
    room: Path, launch: Launcher, signum: signal.Signals
):
    program = (
        "import os; from llm_entropy.runs import run\n"
        f"def plan_model(*_): os.kill(os.getpid(), {signum:d}); raise AssertionError\n"
        f"run.plan_model = plan_model; {COMMAND_LINE}"
    )
    ended = launch(["predict", *WORDS, f"--output.run_name=early-{signum.name}"], program=program)
    assert ended.status == 128 + signum
    assert "Traceback" not in ended.said
    assert not (room / f"runs/early-{signum.name}").exists()


def test_one_interrupt_waits_for_the_batch_and_two_stop_at_once_and_leave_nothing_half_written(
    room: Path, launch: Launcher, whole: dict[str, bytes]
):
    run_dir = room / "runs/twice"
    ended = launch(
        ["predict", *WORDS, "--output.run_name=twice"],
        [(0, signal.SIGINT), (1, signal.SIGINT)],
        after=(f"runs/twice/{PARTS}", 7),
        program=ENDLESS_BATCH.format(number=7) + COMMAND_LINE,
    )
    assert ended.status == 130, ended.said
    assert ended.num_signals == 2, "the first one waits"
    assert "stopped by SIGINT; what was done is kept" in ended.said
    assert "Traceback" not in ended.said
    assert num_parts(run_dir) == 7
    assert not list(run_dir.rglob("*.tmp"))
    assert launch(printed_command(ended.said)).status == 0
    assert outputs_of(run_dir) == whole


def test_a_part_that_a_crash_left_half_written_is_never_read(room: Path, launch: Launcher, whole: dict[str, bytes]):
    run_dir = room / "runs/torn"
    assert launch(["predict", *WORDS, "--output.run_name=torn"]).status == 0
    for name in ("shards/gpt2", "shards/bert"):
        marker = sorted((run_dir / name).glob("*/*/part-*.json"))[2]
        part = marker.with_suffix(".parquet")
        part.write_bytes(part.read_bytes()[:100])
        marker.rename(marker.with_name(f".{marker.name}.host-1.tmp"))
    ended = launch(["predict", *WORDS, "--output.run_name=torn", "--resume"])
    assert ended.status == 0, ended.said
    assert outputs_of(run_dir) == whole
    assert not list(run_dir.rglob("*.tmp"))
    for part in run_dir.glob("shards/*/*/*/*.parquet"):
        pq.read_metadata(part)


def test_a_full_disk_is_one_line_and_what_was_done_is_kept(room: Path, launch: Launcher, whole: dict[str, bytes]):
    # A limit on the size of files gives the same error at the same place as a disk without room, to this process alone.
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); {COMMAND_LINE}"
    )
    words = ["predict", *WORDS, "--output.run_name=full", "--quiet"]
    ended = launch([*words, "--output.part_seconds=60", "--output.part_megabytes=0.02"], program=program)
    assert ended.status == 1, ended.said
    last = ended.said.splitlines()[-1]
    assert "cannot write: File too large; what was done is kept; free some space, then resume with: llm-entropy" in last
    assert "Traceback" not in ended.said
    assert not list((room / "runs/full").rglob("*.tmp"))
    assert launch(printed_command(last)).status == 0
    assert outputs_of(room / "runs/full") == whole


WAIT_FOR_TRACER = """
import ctypes, time
ctypes.CDLL(None).prctl(0x59616d61, -1)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY: whoever wants may trace this process
while "TracerPid:\\t0\\n" in open("/proc/self/status").read():
    time.sleep(0.01)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_output_is_ever_opened_for_writing_each_comes_by_a_rename_after_it_was_synced(room: Path, launch: Launcher):
    words = ["predict", *WORDS, "--output.run_name=traced", "--output.plots=true", "--models={gpt2: builtin:tiny-gpt2}"]
    calls = "openat,open,creat,rename,renameat,renameat2,link,linkat,fsync,fdatasync,truncate,ftruncate"
    process = launch.start(words, program=WAIT_FOR_TRACER + COMMAND_LINE)
    tracer = ["strace", "-f", "-y", "-qq", "-o", "trace", "-e", f"trace={calls}", "-p", str(process.pid)]
    with subprocess.Popen(tracer, cwd=room):
        ended = process.wait()
    assert ended.status == 0, ended.said
    final = re.compile(r"runs/traced/((?:standard|control|comparative|shards)/.*|run\.json|config\.yaml)")
    synced, renamed = set(), set()
    for line in (room / "trace").read_text().splitlines():
        if "resumed>" in line:  # the end of a call of one process that those of another have interrupted
            continue
        quoted = [
            os.path.relpath(text, room) if text.startswith("/") else text for text in re.findall(r'"([^"]*)"', line)
        ]
        if " openat(" in line or " open(" in line or " creat(" in line:
            writes = re.search(r"O_WRONLY|O_RDWR|O_CREAT|creat\(", line) and "O_DIRECTORY" not in line
            assert not (writes and final.fullmatch(quoted[0]) and not Path(quoted[0]).name.startswith(".")), line
        elif "sync(" in line:
            synced |= {os.path.relpath(text, room) for text in re.findall(r"<(/[^>]*)>", line)}
        elif (" rename" in line or " link" in line) and (arrived := final.fullmatch(quoted[1])):
            assert quoted[0] in synced, f"{quoted[0]} was renamed before it was on the disk"
            renamed.add(arrived[1])
    files = [path for path in (room / "runs/traced").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(room / "runs/traced")) for path in files if final.search(str(path))}
    assert renamed == expected
    assert sum(name.endswith(".png") for name in expected) > 10


# --- two processes -----------------------------------------------------------------------------------------------


def start(launch: Launcher, name: str, *words: str) -> Process:
    """Start both processes of a run, as `trainer.devices` does."""
    return launch.start(["predict", *WORDS, f"--output.run_name={name}", "--trainer.devices=2", *words], num_copies=1)


def lock_of(run_dir: Path, rank: int) -> Path:
    return run_dir / f".locks/task-00000-of-00001.rank-{rank:04d}.lock"


def wait_for_parts(run_dir: Path) -> None:
    """Wait until both processes have written a part."""
    wait_for(lambda: all(list(run_dir.glob(f"shards/gpt2/*/rank-000{rank}/*.json")) for rank in (0, 1)))


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_of_two_processes_either_can_be_killed_and_one_after_the_other(
    room: Path, launch: Launcher, whole: dict[str, bytes], ranks: tuple[int, int]
):
    name = "killed-" + "-".join(map(str, ranks))
    run_dir, random_part, printed = room / "runs" / name, random.Random(name), ""
    for rank in ranks:
        before = num_parts(run_dir)
        process = start(launch, name, *(["--resume"] if printed else []))
        wait_for_parts(run_dir)
        wanted = before + random_part.randint(2, 8)
        wait_for(lambda wanted=wanted: num_parts(run_dir) >= wanted)
        os.kill(json.loads(lock_of(run_dir, rank).read_text())["pid"], signal.SIGKILL)
        ended = process.wait()
        assert ended.status != 0
        printed += ended.said
        wait_for(lambda: not any(Lock(lock_of(run_dir, other)).is_held for other in (0, 1)))
    ended = launch([*printed_command(printed), "--trainer.devices=1"])
    assert ended.status == 0, ended.said
    assert outputs_of(run_dir) == whole


@pytest.mark.parametrize("to_group", [False, True])
def test_two_processes_stop_together_and_go_on_together(
    room: Path, launch: Launcher, whole: dict[str, bytes], to_group: bool
):
    name = f"stopped-{to_group}"
    run_dir = room / "runs" / name
    signum = signal.SIGINT if to_group else signal.SIGTERM
    process = start(launch, name)
    wait_for_parts(run_dir)
    (os.killpg if to_group else os.kill)(process.pid, signum)
    ended = process.wait()
    assert ended.status == 128 + signum, ended.said
    assert ended.said.count(f"stopped by {signum.name}; what was done is kept") == 1
    assert not any(Lock(lock_of(run_dir, rank)).is_held for rank in (0, 1)), "no process is left behind"
    ended = start(launch, name, "--resume").wait()
    assert ended.status == 0, ended.said
    assert outputs_of(run_dir) == whole


LOSE_RANK_1 = """
import os
from llm_entropy.runs.writer import ShardWriter
if os.environ.get("LOCAL_RANK") == "1":
    ShardWriter.on_predict_end = lambda *_: os._exit(0)
"""


def test_a_process_that_is_lost_at_the_very_end_is_missed(room: Path, launch: Launcher, whole: dict[str, bytes]):
    words = [*WORDS, "--models={gpt2: builtin:tiny-gpt2}", "--output.run_name=lost", "--output.part_seconds=60"]
    ended = launch(["predict", *words, "--trainer.devices=2"], program=LOSE_RANK_1 + COMMAND_LINE, num_copies=1)
    assert ended.status == 1, ended.said
    assert "records of gpt2 are missing: another process of this run was lost; resume with: llm-entropy" in ended.said
    assert not (room / "runs/lost/standard").exists()
    assert launch([*printed_command(ended.said), "--trainer.devices=1"]).status == 0
    assert outputs_of(room / "runs/lost") == {name: content for name, content in whole.items() if "gpt2" in name}


TOGETHER = """
import os, signal, socket, sys, time
from datetime import timedelta
import torch.distributed
from torch.distributed.distributed_c10d import _set_pg_timeout
import llm_entropy.runs.run
from llm_entropy.commands.cli import main
from llm_entropy.runs.writer import ShardWriter

on_predict_end = ShardWriter.on_predict_end

def end_late_or_never(writer, *arguments):
    on_predict_end(writer, *arguments)
    if writer._model == "gpt2":
        _set_pg_timeout(timedelta(seconds=1), torch.distributed.group.WORLD)
        if os.environ["RANK"] == "1":
            time.sleep(3)
            if sys.argv[1] == "never":
                os.kill(os.getpid(), signal.SIGKILL)

ShardWriter.on_predict_end = end_late_or_never
with socket.socket() as free:
    free.bind(("", 0))
    port = free.getsockname()[1]
started = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
children = []
for rank in ("0", "1"):
    children.append(os.fork())
    if not children[-1]:
        os.environ.update(started, RANK=rank, LOCAL_RANK=rank)
        main(sys.argv[2:])
        sys.exit(0)
print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.parametrize(("comes", "statuses"), [("late", "0 0"), ("never", "1 -9")])
def test_between_two_models_a_process_is_waited_for_as_long_as_it_lives(
    room: Path, launch: Launcher, whole: dict[str, bytes], comes: str, statuses: str
):
    (room / "together.py").write_text(TOGETHER)
    command = [sys.executable, "together.py", comes, "predict", *WORDS, f"--output.run_name={comes}", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=room, env=environment, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines()[-1] == statuses, done.stderr
    if comes == "never":
        assert "runs/never: process 1 of 2 ended before bert; resume with: llm-entropy predict" in done.stderr
        assert launch(printed_command(done.stderr)).status == 0
    assert outputs_of(room / "runs" / comes) == whole


def test_a_second_process_is_refused_as_long_as_the_first_one_lives(
    room: Path, launch: Launcher, whole: dict[str, bytes]
):
    run_dir = room / "runs/busy"
    process = launch.start(["predict", *WORDS, "--output.run_name=busy"])
    wait_for(lambda: num_parts(run_dir))
    os.kill(process.pid, signal.SIGSTOP)
    ended = launch(["predict", *WORDS, "--output.run_name=busy", "--resume"])
    assert ended.status == 2
    assert f"process {process.pid} on " in ended.said
    assert "is at work on it" in ended.said
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert launch(["predict", *WORDS, "--output.run_name=busy", "--resume"]).status == 0
    assert outputs_of(run_dir) == whole
