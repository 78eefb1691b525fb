"""What every test stands on: no network, a single thread, and Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from launcher import Launcher

# Before transformers is imported: no test may depend on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

# Before triton is imported, which transformers does: its own functions too are made for one of the two.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import datasets
from devices import DEVICE

from llm_entropy.outputs.plots import canvas, drawing

# The models are tiny: threads would cost more than they give, much more on a machine that is busy.
torch.set_num_threads(1)

SMALL_DPI = 40

FIRST = ("test_slurm.py", "test_crash.py", "test_run.py", "test_cli.py", "test_kernels.py", "test_resume.py")
"""The files that take longest, the longest first: begun before the others, they leave no process alone in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        absent = pytest.mark.skip(reason="TEST_DEVICE is cuda, but torch sees no GPU here")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(absent)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts the program quickly; its corpora are cached in a folder of their own."""
    folder = tmp_path_factory.mktemp("launcher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        started = Launcher(folder)
    with started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test leaves anything in the cache of data sets of whoever tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def small_plots() -> Iterator[None]:
    """Draw with few pixels, which take most of the time; how many a user gets is a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "DPI", SMALL_DPI)
        patch.setattr(drawing, "num_processes", lambda: 1)  # other processes would draw as many as a user gets
        yield
