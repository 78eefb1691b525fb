"""What a run shows: on terminals that are closed, lack letters or are narrow, and how often."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest

from llm_entropy.commands.cli import main
from llm_entropy.commands.report import show
from llm_entropy.commands.summary import print_summary
from llm_entropy.commands.terminal import _patient
from llm_entropy.outputs.results import ModelResult, RunResult
from llm_entropy.outputs.summaries import EffectRow, SummaryRow
from llm_entropy.settings import AnalysisSettings
from llm_entropy.store.log import run_log

# --- streams -----------------------------------------------------------------------------------------------------


def test_what_nobody_reads_is_dropped_and_nothing_stops():
    reader, writer = os.pipe()
    os.close(reader)
    stream = _patient(writer, None)
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)
    assert os.write(writer, b"by others too") == 13
    os.close(writer)


def test_letters_that_a_terminal_lacks_are_written_as_numbers(tmp_path: Path):
    with (tmp_path / "out").open("w", encoding="ascii") as before:
        stream = _patient(before.fileno(), before)
        print("le café 冬", file=stream, flush=True)
    assert (tmp_path / "out").read_text() == "le caf\\xe9 \\u51ac\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_without_room_is_an_error_for_those_who_read_what_is_printed():
    with Path("/dev/full").open("w") as before:
        stream = _patient(before.fileno(), before)
        with pytest.raises(OSError, match="No space left"):
            print("3,7-9", file=stream, flush=True)
        with pytest.raises(OSError, match="No space left"):
            stream.close()


@pytest.mark.parametrize("tail", ["| true", "| head -1", ">&-", "2>&-", ">&- 2>&- <&-"])
def test_the_program_ends_as_it_would_with_a_terminal(tail: str):
    command = f"{shlex.join([sys.executable, '-m', 'llm_entropy', '--help'])} {tail}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_is_opened_does_not_become_a_closed_standard_output(tmp_path: Path):
    script = "from llm_entropy.commands.terminal import patient_terminal\n"
    script += "with patient_terminal(), open('log', 'w'): print('out')"
    command = f"{shlex.join([sys.executable, '-c', script])} >&-"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend"])
def test_the_backend_that_a_notebook_hands_on_does_not_matter(backend: str):
    script = (
        "from llm_entropy.commands.cli import main\n"
        "try: main(['--version'])\n"
        "finally: import matplotlib; print(matplotlib.get_backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "MPLBACKEND": backend}
    )
    assert done.stdout.split()[-1].lower() == "agg", done.stderr


# --- the log -----------------------------------------------------------------------------------------------------


def test_a_warning_that_holds_for_all_models_is_shown_and_written_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    log = logging.getLogger("llm_entropy")
    with run_log(quiet=False) as messages:
        messages.open(tmp_path / "run.log")
        for model in ("gpt2", "bert"):
            log.warning("layer_weights: %d numbers interpolated over %d blocks", 3, 12)
            log.warning("%s: its vector is repeated", model)
            log.info("this process took a while")
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("a library's", stacklevel=1)
    for said in (capsys.readouterr().err, (tmp_path / "run.log").read_text()):
        assert said.count("3 numbers interpolated over 12 blocks") == 1
        assert said.count("its vector is repeated") == 2
        assert said.count("this process took a while") == 2
    assert (tmp_path / "run.log").read_text().count("UserWarning: a library's") == 1
    with run_log(quiet=False):
        log.warning("layer_weights: 3 numbers interpolated over 12 blocks")
    assert "interpolated" in capsys.readouterr().err, "once in each run"


# --- the table at the end ----------------------------------------------------------------------------------------

KEY = "meta-llama_Llama-3.1-8B-Instruct-steered"
NUMBERS = ("1.235e+15", "+0.01235", "+0.011 to +0.022", "< 0.001", "beyond all 20")
METRIC_NAMES = ("attention_entropy", "perplexity")


def effect_of(condition: str, metric: str, **columns: Any) -> EffectRow:
    usual = {"condition": condition, "metric": metric, "mean_difference": 0.012345, "ci_low": 0.0111, "ci_high": 0.0222}
    usual |= {"p_holm": 1e-5, "placebo_p": 1 / 21}
    return EffectRow("last", 1.0, 20, {**usual, **columns})


def result_of(
    *keys: str, others: tuple[str, ...] = ("control",), baselines: tuple[str, ...] = ("standard",), **columns: Any
) -> RunResult:
    models = {
        key: ModelResult(
            Path(),
            key,
            AnalysisSettings(),
            [
                SummaryRow(key, name, "nats", baseline, -3.1416e-5, 1.23456e15)
                for baseline in baselines
                for name in METRIC_NAMES
            ],
            [effect_of(other, name, **columns) for other in others for name in METRIC_NAMES],
        )
        for key in keys
    }
    return RunResult(Path("runs/one"), "comparative", models)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Return what prints the result of one model, and returns the lines, without rules and repeated spaces."""
    monkeypatch.setenv("COLUMNS", "250")

    def printed(**about: Any) -> list[str]:
        print_summary(result_of("bert", **about))
        said = [" ".join(line.split()) for line in capsys.readouterr().out.split("\n")]
        return [line for line in said if line.strip("─- ")]

    return printed


def test_a_comparison_shows_the_difference_its_interval_its_test_and_its_placebos(printed: Callable[..., list[str]]):
    about, *lines = printed()
    assert about.startswith(
        "Means over the sentences, at the last layer. difference: condition minus standard. p (Holm)"
    )
    assert lines == [
        "model metric unit standard difference 95 % interval p (Holm) placebos",
        "bert attention_entropy nats 1.235e+15 +0.01235 +0.011 to +0.022 < 0.001 beyond all 20",
        "bert perplexity nats 1.235e+15 +0.01235 +0.011 to +0.022 < 0.001 beyond all 20",
        "Tables and plots: runs/one",
    ]


@pytest.mark.parametrize(
    ("columns", "end"),
    [
        ({"placebo_p": 8 / 21}, "< 0.001 within (7 of 20)"),
        ({"placebo_p": nan}, "< 0.001"),
        ({"p_holm": 0.0314}, "0.031 beyond all 20"),
        ({"p_holm": nan, "placebo_p": 1.0}, "not tested within (20 of 20)"),
        ({"ci_low": nan, "ci_high": nan, "p_holm": 1.0}, "+0.01235 1.000 beyond all 20"),
        ({"ci_low": 38.6, "ci_high": 131.2}, "+39 to +131 < 0.001 beyond all 20"),
        ({"ci_low": 4.981, "ci_high": 5.049}, "+4.981 to +5.049 < 0.001 beyond all 20"),
        ({"ci_low": -2.5e7, "ci_high": 1e-9}, "-2.5e+07 to +1e-09 < 0.001 beyond all 20"),
        ({"ci_low": 0.5, "ci_high": 0.5}, "+0.5 to +0.5 < 0.001 beyond all 20"),
    ],
)
def test_what_is_not_known_is_left_out(printed: Callable[..., list[str]], columns: dict[str, float], end: str):
    assert printed(**columns)[2].endswith(end)


def test_several_steered_conditions_have_a_row_each(printed: Callable[..., list[str]]):
    lines = printed(others=("a", "b"))
    assert lines[1:4] == [
        "model metric unit condition standard difference 95 % interval p (Holm) placebos",
        "bert attention_entropy nats a 1.235e+15 +0.01235 +0.011 to +0.022 < 0.001 beyond all 20",
        "bert attention_entropy nats b 1.235e+15 +0.01235 +0.011 to +0.022 < 0.001 beyond all 20",
    ]
    assert len(lines) == 2 + 2 * 2 + 1


def test_conditions_that_are_compared_with_nothing_have_rows_of_their_own(printed: Callable[..., list[str]]):
    assert printed(others=())[:2] == [
        "Means over the sentences",
        "model metric unit first layer last layer",
    ]
    assert printed(others=(), baselines=("bible", "tense")) == [
        "Means over the sentences",
        "model metric unit condition first layer last layer",
        "bert attention_entropy nats bible -3.142e-05 1.235e+15",
        "bert perplexity nats bible -3.142e-05 1.235e+15",
        "bert attention_entropy nats tense -3.142e-05 1.235e+15",
        "bert perplexity nats tense -3.142e-05 1.235e+15",
        "Tables and plots: runs/one",
    ]


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_no_number_of_the_closing_table_is_cut_in_a_log(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", columns)
    print_summary(result_of(KEY, "bert"))
    said = capsys.readouterr().out
    assert "…" not in said
    for key in (KEY, "bert"):
        for name in ("attention_entropy", "perplexity"):
            assert re.search(rf"{re.escape(key)} +{name} +nats +{' +'.join(map(re.escape, NUMBERS))}\s*\n", said)


def test_on_a_terminal_the_keys_are_folded_and_the_numbers_are_not(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "112")
    monkeypatch.setenv("TERM", "dumb")
    print_summary(result_of(KEY))
    lines = terminal.getvalue().split("\n")
    assert max(map(len, lines)) <= 112
    assert "…" not in terminal.getvalue()
    assert sum(all(number in line for number in NUMBERS) for line in lines) == 2
    folded = "".join(cell[1] for line in lines if (cell := re.match(r" (\S+)", line)))
    assert folded.count(KEY) == 2


def test_a_terminal_without_letters_for_lines_gets_a_table_of_ascii(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print_summary(result_of(KEY))
    assert (tmp_path / "out").read_text().isascii()


# --- the report --------------------------------------------------------------------------------------------------


def test_the_report_is_named_where_there_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = RunResult(tmp_path, "comparative", result_of("gpt2").models)
    print_summary(result)
    assert "Report:" not in capsys.readouterr().out
    (tmp_path / "report.html").touch()
    print_summary(result)
    assert capsys.readouterr().out.endswith(f"Report: {tmp_path / 'report.html'}\n")


def test_a_report_opens_in_the_browser_or_its_place_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda url: not asked.append(url))
    show(Path("run +1/report.html"))
    assert asked == [f"{tmp_path.as_uri()}/run%20%2B1/report.html"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    show(Path("report.html"))
    assert capsys.readouterr().err == f"--open: found no browser; open it yourself: {tmp_path / 'report.html'}\n"


def test_a_run_without_a_report_cannot_open_one(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["predict", "--open", "--output.report=false"])
    assert end.value.code == 2
    assert "--open: got output.report: false" in capsys.readouterr().err
