"""What the benchmarks share: interleaved timing, memory, tables of measurements, and what they were measured on."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")
"""Where tables are kept; gpu.sh has them elsewhere."""
PACKAGES = ("torch", "transformers", "lightning", "datasets", "pyarrow")
MIN_ROUNDS, MAX_ROUNDS = 3, 50


def device() -> torch.device:
    """Return what is measured: the first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def medians(ways: Mapping[str, Callable[[], object]], *, seconds: float) -> dict[str, float]:
    """Time several ways of doing something in turn, and return the median seconds of each.

    Whatever else slows the machine down for a while then slows down all of them. Each way runs once before.

    Args:
        ways: By name.
        seconds: About how long all of it may take; at least three rounds are made, at most fifty.
    """
    for way in ways.values():
        way()
    synchronize()
    timer = _gpu_seconds if torch.cuda.is_available() else _cpu_seconds
    took: list[dict[str, float]] = []
    start = time.perf_counter()  # behind the first calls, which compile
    while len(took) < MIN_ROUNDS or (len(took) < MAX_ROUNDS and time.perf_counter() - start < seconds):
        took.append({name: timer(way) for name, way in ways.items()})
    return {name: statistics.median(times[name] for times in took) for name in ways}


def _cpu_seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def _gpu_seconds(way: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    synchronize()
    start.record()
    way()
    end.record()
    synchronize()
    return float(start.elapsed_time(end)) / 1000


def synchronize() -> None:
    """Wait until the GPU, if there is one, has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(way: Callable[[], object]) -> int:
    """Return how much more memory is held, at the highest, while something runs: the GPU's, or resident on Linux.

    Args:
        way: What runs; what it returns is let go.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # What the allocator keeps for later would be used again unseen; and 5 sets the high-water mark back (proc(5)).
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    way()
    return _resident("VmHWM") - before


def resident_peak(way: Callable[[], object]) -> int:
    """Return how much memory is held, at the highest, while something runs: all of the GPU's, or of the process.

    Args:
        way: What runs; what it returns is let go.
    """
    more = peak_bytes(way)
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() + more
    return _resident("VmHWM")


def _resident(field: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    Args:
        header: Its columns.
        rows: Its rows.
    """
    lines = [header, ["---:"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def conditions(dtypes: str = "float32") -> str:
    """Return what the measurements were made on, in one paragraph.

    Args:
        dtypes: What was computed in.
    """
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return f"{time.strftime('%Y-%m-%d')}; {_device_name()}; {dtypes}; Python {platform.python_version()}, {versions}.\n"


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    capability = torch.backends.cpu.get_cpu_capability()
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads ({name}, {capability})"


def megabytes(num_bytes: float) -> str:
    """Return a number of bytes in MiB, for people."""
    return f"{num_bytes / 2**20:,.0f} MiB"


class Report:
    """A report that is printed, and kept if asked, piece by piece: what is cut short leaves what it had.

    Args:
        name: What is measured.
        saved: Whether it is kept among the results.
    """

    def __init__(self, name: str, *, saved: bool) -> None:
        self._name, self._saved, self._text = name, saved, ""

    def add(self, text: str) -> None:
        """Print a piece, and keep it.

        Args:
            text: Markdown.
        """
        self._text += text
        print(text, flush=True)
        if self._saved:
            print(f"written to {save(self._name, self._text)}", file=sys.stderr, flush=True)


def save(name: str, text: str) -> Path:
    """Write a report among the results, and return where it is.

    Args:
        name: What was measured.
        text: The report.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}-{device().type.replace('cuda', 'gpu')}-{time.strftime('%Y-%m-%d')}.md"
    path.write_text(text, encoding="utf-8")
    return path


def show(name: str, text: str, *, saved: bool) -> None:
    """Print a report, and write it among the results if asked.

    Args:
        name: What was measured.
        text: The report.
        saved: Whether it is kept.
    """
    print(text)
    if saved:
        print(f"written to {save(name, text)}")
