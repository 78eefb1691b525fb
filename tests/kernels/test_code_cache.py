"""Compiled loops on the disk: shared by processes and by kinds of processors, damaged, refused."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_entropy.kernels import code_cache

ADD_ONE = "def add_one(values):\n    for j in range(len(values)):\n        values[j] += 1.0\n"
SIGNATURE = "void(float32[::1])"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "loops.py"
    path.write_text(ADD_ONE)
    return path


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where compiled code is kept."""
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def compile_and_add(source: Path) -> Any:
    """Compile the loop, let it add, and return it."""
    names: dict[str, Any] = {"__name__": "loops"}
    exec(compile(source.read_text(), source, "exec"), names)
    add_one = code_cache.compiled(SIGNATURE)(names["add_one"])
    values = np.arange(3, dtype=np.float32)
    add_one(values)
    assert values.tolist() == [1, 2, 3]
    return add_one


def test_what_was_compiled_once_is_read_from_then_on(source: Path, kept: Path) -> None:
    assert sum(compile_and_add(source).stats.cache_misses.values()) == 1
    assert sum(compile_and_add(source).stats.cache_hits.values()) == 1
    assert len(list(kept.rglob("*.nbc"))) == 1


def test_the_setting_of_numba_is_left_as_it_was(source: Path, kept: Path) -> None:
    import numba

    compile_and_add(source)
    assert str(kept) == numba.config.CACHE_DIR


def test_each_processor_and_each_source_has_a_folder_of_its_own(
    source: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [code_cache.cache_folder(source)]
    source.write_text(ADD_ONE + "\n")
    folders.append(code_cache.cache_folder(source))
    codegen = type(code_cache.cpu_target.target_context.codegen())
    for features in ("+avx2", "+avx2,+avx512f"):
        monkeypatch.setattr(codegen, "magic_tuple", lambda self, f=features: ("x86_64-linux", "znver4", f))
        folders.append(code_cache.cache_folder(source))
    monkeypatch.setattr("numba.__version__", "9.9")
    folders.append(code_cache.cache_folder(source))
    assert len(set(folders)) == 5
    for folder in folders:
        assert folder is not None
        assert folder.is_relative_to(kept)


def test_without_a_setting_it_is_the_users_folder_of_caches(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(source.parent / "home"))
    folder = code_cache.cache_folder(source)
    assert folder is not None
    assert folder.is_relative_to(source.parent / "home" / ".cache" / "llm_entropy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(source.parent / "caches"))
    folder = code_cache.cache_folder(source)
    assert folder is not None
    assert folder.is_relative_to(source.parent / "caches" / "llm_entropy")


@pytest.mark.parametrize("where", ["a file stands in the way", "no home"])
def test_without_a_place_loops_are_compiled_each_time(
    where: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "no home":

        def refuse() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr("numba.config.CACHE_DIR", "")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", refuse)
    else:
        monkeypatch.setattr("numba.config.CACHE_DIR", str(source / "kept"))
    assert code_cache.cache_folder(source) is None
    compile_and_add(source)
    assert not list(source.parent.rglob("*.nb?"))


def test_a_disk_that_fills_up_while_loops_are_kept_stops_nobody(
    source: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(self: Any, key: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", fill_up)
    compile_and_add(source)
    assert not list(kept.rglob("*.nb?"))


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x80\x05"])
def test_a_damaged_file_stops_nobody(suffix: str, content: bytes, source: Path, kept: Path) -> None:
    compile_and_add(source)
    (damaged,) = kept.rglob(f"*.{suffix}")
    damaged.write_bytes(content)
    compile_and_add(source)


def test_a_fault_of_the_loop_itself_is_shown(source: Path, kept: Path) -> None:
    source.write_text("def add_one(values):\n    return nothing(values)\n")
    with pytest.raises(Exception, match="nothing"):
        compile_and_add(source)


def test_processes_of_two_kinds_of_processors_compile_at_once(source: Path, tmp_path: Path) -> None:
    """Each in a new cache; those that come later find one code of each kind, and it is right."""
    program = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("code_cache", {code_cache.__file__!r})
        code_cache = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(code_cache)
        import numpy as np
        sys.path.insert(0, {str(source.parent)!r})
        import loops
        print("ready", flush=True)
        sys.stdin.readline()
        add_one = code_cache.compiled("void(float32[::1])")(loops.add_one)
        values = np.arange(3, dtype=np.float32)
        add_one(values)
        assert values.tolist() == [1, 2, 3]
        print(sum(add_one.stats.cache_hits.values()))
    """
    kept = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    other = {**kept, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", textwrap.dedent(program)]

    def together(*environments: dict[str, str]) -> list[int]:
        started = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            for environment in environments
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        outputs = [process.communicate()[0] for process in started]
        assert [process.returncode for process in started] == [0] * len(started)
        return [int(output) for output in outputs]

    together(kept, kept, other)
    assert together(kept, other) == [1, 1]
    codes = list((tmp_path / "kept").rglob("*.nbc"))
    assert len(codes) == 2
    assert len({code.parents[1] for code in codes}) == 2
