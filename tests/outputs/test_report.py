"""The report: what it says, that nothing in it is markup or goes out, and that it works in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shards
import yaml
from scipy import stats
from shards import SENTENCES, SHAPE

from llm_entropy import run_analysis
from llm_entropy.errors import ReportedError
from llm_entropy.outputs import report
from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.making import report_run
from llm_entropy.outputs.report import REPORT, ReportPage, write_report
from llm_entropy.outputs.report.numbers import MISSING, packed, packed_places, short
from llm_entropy.outputs.report.page import PROGRAM, SENTENCE_BYTES, page_of
from llm_entropy.outputs.report.pieces import pieces
from llm_entropy.outputs.report.sample import MOST_RECORDS, MOST_SENTENCES, SentenceSampler, sentence_hashes
from llm_entropy.outputs.report.sentences import shown_sentences
from llm_entropy.outputs.report.words import shown_words
from llm_entropy.outputs.results import RunResult
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import ALL_METRICS, TEXT_METRICS, AnalysisSettings, ModelSettings, Settings, to_plain

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = '<script>document.title = "run"</script><img src=x onerror=alert(1)> & </script> is text'
TEXTS = [SCRIPT, "مرحبا بالعالم", "a long line " * 2_000, "{{data}} <!-- ]]>", *SENTENCES]
MANY = [f"{SENTENCES[index % len(SENTENCES)]} {index}" for index in range(600)]
METRICS = ["entropy", "perplexity", "attention_entropy", "entropy_change"]


@pytest.fixture(scope="module")
def analysis() -> AnalysisSettings:
    """Five strengths and two placebos."""
    return shards.dose(metrics=METRICS, lens_tokens=True)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, analysis: AnalysisSettings) -> tuple[Path, ModelTables]:
    """A run's report, of sentences that are not easy to show."""
    run_dir = tmp_path_factory.mktemp("reported")
    shards.write(run_dir, "tiny", shards.table(TEXTS, analysis, records=(1, 3)))
    return write(run_dir, analysis)


def write(run_dir: Path, analysis: AnalysisSettings) -> tuple[Path, ModelTables]:
    settings = Settings(analysis=analysis, models={"tiny": ModelSettings("builtin:tiny-gpt2")})
    (run_dir / "config.yaml").write_text(yaml.safe_dump(to_plain(settings)), encoding="utf-8")
    tables = shards.merge(run_dir, "tiny", analysis, report_bytes=SENTENCE_BYTES)
    corpus = {"source": "file <b>.csv", "fingerprint": "f" * 32, "num_rows": 9, "num_sentences": 8, "num_skipped": 1}
    model = {"name": "builtin:tiny", "kind": "causal", "attention": "eager", "lens_error_logits": 1e-6}
    model |= dict.fromkeys(("num_sentences", "num_records", "num_cut", "num_unread", "num_parts"), 3)
    about = {"run": "<i>one</i>", "mode": "comparative", "started": "2026-01-01T00:00:00+0000", "corpus": corpus}
    return write_report(run_dir, settings, {**about, "models": {"tiny": model}}, [tables]), tables


def data_of(page: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(own: dict[str, Any]) -> np.ndarray:
    """What the page makes of packed numbers."""
    codes = np.frombuffer(base64.b64decode(own["codes"]), "<u2").astype(float)
    codes[codes == MISSING] = np.nan
    if own["scale"] == "linear":
        return own["low"] + codes / (MISSING - 1) * (own["high"] - own["low"])
    low, high = np.log([own["low"], own["high"]])
    return np.exp(low + codes / (MISSING - 1) * (high - low))


# --- the page ----------------------------------------------------------------------------------------------------


def test_what_users_wrote_is_never_markup(reported: tuple[Path, ModelTables]):
    page = reported[0].read_text(encoding="utf-8")
    tags = re.findall(r"<(/?\w+)", page)
    assert tags.count("script") == tags.count("/script") == 2
    assert not {"i", "b", "img"} & set(tags)
    assert "<!--" not in page
    assert "<title>&lt;i&gt;one&lt;/i&gt;" in page
    data = data_of(reported[0])
    texts = ["".join(text for text, _ in one["pieces"]) for one in data["models"][0]["sample"]["sentences"]]
    assert texts[0] == SCRIPT
    assert texts[3] == TEXTS[3]
    assert data["run"]["command"].endswith("--config 'analysis_outputs/<i>one</i>/config.yaml' --output.run_name null")
    assert (data["run"]["name"], data["run"]["corpus"]["source"]) == ("<i>one</i>", "file <b>.csv")


def test_the_page_forbids_every_connection_and_all_programs_but_its_own(reported: tuple[Path, ModelTables]):
    page = reported[0].read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    style, program = (re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script"))
    (style,), (program,) = style, program
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (program, style)]
    assert policy.split("; ")[:3] == [
        "default-src 'none'",
        *(f"{kind}-src 'sha256-{own}'" for kind, own in zip(("script", "style"), hashes, strict=True)),
    ]
    outside = re.findall(r"https?://[\w./]+", page.replace(json.dumps(data_of(reported[0])), ""))
    assert set(outside) <= {"http://www.w3.org/2000/svg"}, "the name of SVG, which nobody fetches"
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b|XMLHttpRequest|fetch\(", program)


def test_the_page_has_every_file_of_its_program_once_and_so_does_the_package(reported: tuple[Path, ModelTables]):
    folder = Path(report.__file__).parent / "program"
    assert sorted(PROGRAM) == sorted(path.stem for path in folder.iterdir())
    page = reported[0].read_text(encoding="utf-8")
    assert all(page.count((folder / f"{name}.js").read_text(encoding="utf-8")) == 1 for name in PROGRAM)
    if (git := shutil.which("git")) and (ROOT / ".git").exists():  # a wheel leaves out what git leaves out
        names = [str(path) for path in (*folder.iterdir(), *folder.parent.glob("page.*"))]
        said = subprocess.run([git, "check-ignore", *names], cwd=ROOT, capture_output=True, text=True, check=False)
        assert said.stdout == ""


def test_the_page_says_what_the_merge_found(reported: tuple[Path, ModelTables], analysis: AnalysisSettings):
    data, tables = data_of(reported[0]), reported[1]
    (model,) = data["models"]
    assert [one["name"] for one in data["conditions"]] == [one.name for one in tables.conditions]
    assert [(one["kind"], one["count"], one["strength"]) for one in data["placebos"]] == [
        ("random", 1, 2),
        ("orthogonal", 1, 2),
    ]
    for name, curves in tables.curves.items():
        for metric, curve in curves.items():
            found = np.array(model["curves"][name][metric]["mean"], float)
            np.testing.assert_allclose(found, curve.mean, rtol=1e-4)
            ends = stats.t.interval(0.95, len(TEXTS) - 1, 0, curve.deviation / np.sqrt(len(TEXTS) - 1))
            half = np.array(model["curves"][name][metric]["half"], float)
            np.testing.assert_allclose(half, np.where(curve.deviation == 0, 0, ends[1]), rtol=1e-4)
    summary = tables.summary
    assert summary is not None
    assert set(summary.metric) <= set(data["metrics"]), "the page looks each of them up"
    own = (summary.condition == "control_+2") & (summary.metric == "entropy")
    for name in ("mean_difference", "ci_low", "ci_high", "p_holm", "placebo_p"):
        found = np.array(model["summary"]["control_+2"]["entropy"][name], float)
        np.testing.assert_allclose(found, getattr(summary, name)[own], rtol=1e-4)
    assert len(model["placebos"]["control"]["entropy"]) == 2
    assert len(model["doses"]["control"]["entropy"]["slope"]) == SHAPE.num_layers


def test_sentences_have_the_numbers_of_their_records(reported: tuple[Path, ModelTables]):
    sample = data_of(reported[0])["models"][0]["sample"]
    records = reported[1].sample
    assert records is not None
    table = records.records
    assert "perplexity" not in sample["metrics"], "entropy says the same"
    for metric in ("entropy", "attention_entropy", "kl_from_standard"):
        own = sample["metrics"][metric]
        place = own["conditions"].index("control_+1")
        expected = np.array(table[f"control_+1/{metric}"].to_pylist())
        if metric == "attention_entropy":
            expected = expected.reshape(len(table), SHAPE.num_blocks, -1).mean(axis=2)
        found = unpacked(own).reshape(len(own["conditions"]), *expected.shape)[place]
        # The page has the ends of the scale in five digits.
        budget = (own["high"] - own["low"]) / MISSING + 1e-5 * abs(own["high"])
        np.testing.assert_allclose(found, expected, atol=budget)
    control = sample["conditions"]["control_+1"]
    named = [[sample["names"][token] for token in own] for own in control["tracked"]]
    assert named == table["control_+1/tracked_tokens"].to_pylist()
    expected = np.maximum(np.array(table["control_+1/tracked_probabilities"].to_pylist()).ravel(), 1e-9)
    np.testing.assert_allclose(unpacked(control["probabilities"]), expected, rtol=1e-3)
    own = control["lens_tokens"]
    places = np.frombuffer(base64.b64decode(own["codes"]), f"<u{own['size']}").reshape(-1, SHAPE.num_layers)
    named = [[sample["names"][token] for token in layers] for layers in places]
    assert named == table["control_+1/lens_tokens"].to_pylist()
    expected = np.array(table["control_+1/lens_probabilities"].to_pylist()).ravel()
    np.testing.assert_allclose(unpacked(control["lens_probabilities"]), expected, rtol=1e-3)
    first = sample["metrics"]["entropy_change"]
    assert np.isnan(unpacked(first).reshape(-1, SHAPE.num_layers)[:, 0]).all()


def test_the_same_run_gives_the_same_bytes(
    reported: tuple[Path, ModelTables], tmp_path: Path, analysis: AnalysisSettings
):
    shards.write(tmp_path, "tiny", shards.table(TEXTS, analysis, records=(1, 3)), num_files=2, seed=5)
    assert write(tmp_path, analysis)[0].read_bytes() == reported[0].read_bytes()


def test_a_notebook_shows_the_page_in_a_frame_that_can_reach_nothing(tmp_path: Path):
    (tmp_path / REPORT).write_text('<p title="a">&amp;</p>', encoding="utf-8")
    frame = ReportPage(tmp_path / REPORT)._repr_html_()
    assert 'srcdoc="&lt;p title=&quot;a&quot;&gt;&amp;amp;&lt;/p&gt;"' in frame
    assert 'sandbox="allow-scripts"' in frame


# --- its sentences -----------------------------------------------------------------------------------------------


def test_the_sample_does_not_depend_on_how_the_records_are_cut(tmp_path: Path):
    analysis = AnalysisSettings(metrics=["entropy"])
    whole = shards.write(tmp_path, "tiny", shards.table(MANY, analysis, records=(1, 2)))
    samples = [
        shards.merge(tmp_path, "tiny", analysis, report_bytes=10**6, chunk_bytes=size).sample
        for size in (20_000, 10**8)
    ]
    assert samples[0].records.equals(samples[1].records)
    assert samples[0].num_records == samples[1].num_records
    ids = np.unique(samples[0].records["sentence_id"].to_numpy())
    hashes = sentence_hashes(np.arange(len(MANY)), 0)
    assert ids.tolist() == np.sort(np.argsort(hashes)[:MOST_SENTENCES]).tolist()
    assert samples[0].records["sentence"].to_pylist() == [
        MANY[number] for number in samples[0].records["sentence_id"].to_pylist()
    ]
    kept = np.isin(whole["sentence_id"].to_numpy(), ids)
    assert samples[0].records["standard/entropy"].to_pylist() == whole.filter(kept)["standard/entropy"].to_pylist()
    source = shards.MergeSource("tiny", "builtin:tiny", "causal", SHAPE, shards.ledger_of(tmp_path, "tiny"))
    other = shards.merge(tmp_path, "tiny", analysis, source=replace(source, seed=1), report_bytes=10**6).sample
    assert np.unique(other.records["sentence_id"].to_numpy()).tolist() != ids.tolist()


def test_more_or_longer_sentences_do_not_make_the_page_larger(tmp_path: Path):
    analysis, room, sizes = AnalysisSettings(metrics=["entropy"]), 30_000, []
    for name, texts, records in ("more", MANY[:100], (10,)), ("longer", [SCRIPT * 60] * 8, (2 * MOST_RECORDS,)):
        shards.write(tmp_path / name, "tiny", shards.table(texts, analysis, records=records))
        tables = shards.merge(tmp_path / name, "tiny", analysis, report_bytes=room, csv=False, parquet=False)
        assert 1 < len(tables.sample.num_records) < len(texts)
        shown = short(shown_sentences(tables, tables.sample, analysis.metrics))
        sizes.append(len(json.dumps(shown, ensure_ascii=False)))
    assert tables.sample.num_records[0] == 2 * MOST_RECORDS
    assert shown["sentences"][0]["left"] == MOST_RECORDS
    assert max(sizes) < 1.2 * room
    assert min(sizes) > 0.4 * room


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("The cat", [(3, 7)], [("The", -1), (" cat", 0)]),
        ("a😀b", [(0, 1), (1, 2), (1, 2), (2, 3)], [("a", 0), ("😀", 1), ("", 2), ("b", 3)]),
        ("ab", [(-1, -1), (0, 1)], [("t0", 0), ("a", 1), ("b", -1)]),
        ("x" * 5000 + "y", [(5000, 5001)], [("x" * 150 + " … " + "x" * 500, -1), ("y", 0)]),
        ("y" + "x" * 5000, [(0, 1)], [("y", 0), ("x" * 500 + " … ", -1)]),
    ],
)
def test_a_text_is_cut_at_its_tokens(text: str, spans: list[tuple[int, int]], expected: list[tuple[str, int]]):
    assert list(pieces(text, spans, [f"t{index}" for index in range(len(spans))])) == expected


def test_the_page_says_what_every_metric_means():
    program = (Path(report.__file__).parent / "program" / "meanings.js").read_text(encoding="utf-8")
    table = program.split("MEANINGS = {")[1].split("};")[0]
    assert set(re.findall(r"^  (\w+):", table, re.MULTILINE)) >= set(ALL_METRICS)


def test_numbers_are_short_and_not_finite_ones_are_told_apart():
    given = {"a": [1.23456789, float("nan"), float("inf"), -float("inf")], "b": np.array([2.0]), "c": "text", "d": None}
    assert short(given) == {"a": [1.2346, None, "inf", "-inf"], "b": [2], "c": "text", "d": None}
    values = np.array([[0.5, np.nan], [4.0, np.inf]])
    np.testing.assert_allclose(unpacked(packed(values, "linear")), [0.5, np.nan, 4.0, np.nan])
    np.testing.assert_allclose(unpacked(packed(np.array([1e-3, 0, 1e9]), "logarithmic")), [1e-3, np.nan, 1e9])
    assert set(unpacked(packed(np.full(3, 7.0), "linear"))) == {7.0}
    for places, size in (([0, 65_535], 2), ([65_536, 1], 4), ([], 2)):
        own = packed_places(places)
        assert np.frombuffer(base64.b64decode(own["codes"]), f"<u{own['size']}").tolist() == places
        assert own["size"] == size


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """One whose sentences have answers, and one that writes."""
    folder = tmp_path_factory.mktemp("runs")
    about: dict[str, Any] = {"models": {"gpt2": "builtin:tiny-gpt2"}, "metrics": "entropy", "quiet": True}
    about |= {"compare_control": True, "control_vector": [4.0, -2.0]}
    output = {"dir": str(folder), "plots": False}
    data = {"target_column": "target", "foil_column": "foil"}
    rows = [{"text": text, "kind": f"<b>{index % 2}"} for index, text in enumerate([SCRIPT, *SENTENCES[:3]])]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    grouped = {"path": str(folder / "rows.json"), "text_column": "text", "group_column": "kind"}
    return {
        "answers": run_analysis(
            **about, data=data, num_sentences=30, positions="all", words=True, output={**output, "run_name": "answers"}
        ),
        "written": run_analysis(
            **about,
            data=grouped,
            positions="generated",
            max_new_tokens=3,
            lens_tokens=True,
            output={**output, "run_name": "written"},
        ),
    }


def test_answers_are_on_the_page_as_the_table_has_them(runs: dict[str, RunResult]):
    data, result = data_of(runs["answers"].run_dir / REPORT), runs["answers"]["gpt2"]
    for condition in ("standard", "control"):
        found = data["models"][0]["answers"][condition]
        preference = np.stack(result[condition].answers["preference"])
        assert found["count"] == len(preference) > 2
        np.testing.assert_allclose(found["accuracy"]["mean"], (preference > 0).mean(0), rtol=1e-4)
        np.testing.assert_allclose(found["preference"]["mean"], preference.mean(0), rtol=1e-4)
        low, high = (np.array(found["preference"][end]) for end in ("low", "high"))
        assert (low < preference.mean(0)).all()
        assert (high > preference.mean(0)).all()
        assert sum(found["preferred_from"]) == len(preference)
    assert {"accuracy", "preference"} <= set(data["metrics"])


def test_how_strong_a_condition_is_stands_on_the_page(runs: dict[str, RunResult]):
    run_dir = runs["answers"].run_dir
    found = data_of(run_dir / REPORT)["models"][0]["strengths"]["control"]
    steering = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["models"]["gpt2"]["steering"]["control"]
    (part,) = (run_dir / "shards").rglob("part-*.parquet")
    records = pq.read_table(part)
    records = records.filter(records["token"].is_valid())  # what is left is answers
    norms, kl = (np.stack(records[name].to_pylist()) for name in ("standard/residual_norm", "control/kl_from_standard"))
    expected = np.array(steering["added_norms"][1:]) / norms.mean(axis=0)[1:]
    np.testing.assert_allclose(found["relative_dose"], expected, rtol=1e-4)
    expected = [kl[:, -1].mean(), np.percentile(kl[:, -1], 95)]
    np.testing.assert_allclose([found["kl_mean"], found["kl_p95"]], expected, rtol=1e-3)


def test_words_are_on_the_page_as_the_table_has_them(runs: dict[str, RunResult]):
    result, sample = runs["answers"]["gpt2"], data_of(runs["answers"].run_dir / REPORT)["models"][0]["sample"]
    shown, numbers = sample["words"], [one["number"] for one in sample["sentences"]]
    for place, condition in enumerate(("standard", "control")):
        table = result[condition].words
        table = table[table.sentence_id.isin(numbers)].reset_index(drop=True)
        assert shown["num_tokens"] == table.num_tokens.tolist()
        for name, own in shown["metrics"].items():
            expected = np.array([values if values is not None else [np.nan] * 6 for values in table[name]], float)
            found = unpacked(own).reshape(2, *expected.shape)[place]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-6)
    assert set(shown["metrics"]) == {"surprisal", "corrected_surprisal", "entropy_before"}
    for words, sentence in zip(shown["sentences"], sample["sentences"], strict=True):
        own = [text for text, word in words["pieces"] if word >= 0]
        assert own == table[table.sentence_id == sentence["number"]].word.tolist()
        assert "".join(text for text, _ in words["pieces"]) == "".join(text for text, _ in sentence["pieces"])


def test_groups_are_on_the_page_as_the_table_has_them(runs: dict[str, RunResult]):
    folder = runs["written"].run_dir
    found = data_of(folder / REPORT)["models"][0]["groups"]
    for condition in ("standard", "control"):
        table = pd.read_csv(folder / condition / "data" / "gpt2_groups.csv")
        for (group, metric), rows in table.groupby(["group", "metric"]):
            own = found[condition][group][metric]
            assert own["n"] == rows.n.tolist()
            np.testing.assert_allclose(np.array(own["mean"], float), rows["mean"], rtol=1e-4)
            half = (rows.ci_high - rows.ci_low) / 2
            np.testing.assert_allclose(np.array(own["half"], float), half, rtol=1e-3, atol=1e-6)
        assert set(found[condition]) == {"<b>0", "<b>1"}


def test_a_word_that_may_be_cut_is_not_shown(runs: dict[str, RunResult]):
    (part,) = (runs["answers"].run_dir / "shards").rglob("part-*.parquet")
    whole = pq.read_table(part)
    whole = whole.filter(whole["token"].is_valid())  # what is left is answers
    first = whole.filter(pc.equal(whole["sentence_id"], whole["sentence_id"][0]))
    conditions = shards.comparative().run_conditions
    chunk = Chunk(first.slice(0, len(first) - 1), "causal", SHAPE._replace(num_blocks=5))
    all_shown, cut = (shown_words(chunk, [total], conditions) for total in (len(chunk.table), len(first)))
    texts = [[text for text, word in one["sentences"][0]["pieces"] if word >= 0] for one in (all_shown, cut)]
    assert texts[1] == texts[0][:-1]
    assert len(cut["num_tokens"]) == len(texts[1])


def test_texts_that_were_written_are_on_the_page_cut_where_they_are_long(runs: dict[str, RunResult]):
    model, result = data_of(runs["written"].run_dir / REPORT)["models"][0], runs["written"]["gpt2"]
    for condition in ("standard", "control"):
        assert model["sample"]["written"][condition] == list(result[condition].generations["Continuation"])
        texts = result[condition].records["target"].fillna("").tolist()  # one text ends before the others
        own = model["sample"]["conditions"][condition]["lens_tokens"]
        places = np.frombuffer(base64.b64decode(own["codes"]), f"<u{own['size']}").reshape(len(texts), -1)
        said = [model["sample"]["names"][place] for place in places[:, -1]]
        assert said == texts, "what is written is what the last layer finds most likely"
    assert "text_length" in model["summary"]["control"]
    assert data_of(runs["answers"].run_dir / REPORT)["models"][0]["sample"]["written"] == {}


def test_extracted_vectors_have_no_report(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"mode": "extract", "status": "complete"}', encoding="utf-8")
    with pytest.raises(ReportedError, match="holds extracted vectors, of which there is no report"):
        report_run(tmp_path)


def test_long_texts_leave_room_for_fewer_sentences(runs: dict[str, RunResult]):
    (part,) = (runs["written"].run_dir / "shards").rglob("part-*.parquet")
    table = pq.read_table(part)
    shown = shards.comparative().run_conditions
    sizes = []
    for size in (1, 5_000):
        for one in shown:
            place = table.schema.get_field_index(f"{one.name}/continuation")
            table = table.set_column(place, table.schema.field(place), pa.array(["x" * size] * len(table)))
        sampler = SentenceSampler(shown, table.schema, 0, 9_000)
        sampler.add(Chunk(table, "causal", SHAPE))
        sample = sampler.sample()
        assert sample is not None
        sizes.append(len(sample.num_records))
    assert sizes == [4, 1]


# --- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: the extra `dev` has it"
    )
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium, which shows the report")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def opened(browser: Any) -> Iterator[Any]:
    """A page for what needs no file."""
    with browser.new_context(viewport={"width": 1280, "height": 900}, offline=True) as context:
        yield context.new_page()


@pytest.mark.parametrize(
    ("p", "num_larger", "num_placebos", "kl_larger", "said"),
    [
        (0.01, 0, 20, 0, "✔ {}Yes, this vector does it: it raises {}, and none of 20 placebos does as much."),
        (0.01, 1, 60, 0, "✔ {}Yes, this vector does it: it raises {}, and 1 of 60 placebos does as much."),
        (0.01, 1, 20, 0, "? {}Perhaps: it raises {}, but 1 of 20 placebos changes it at least as much."),
        (0.01, 0, 5, 0, "? {}Probably: it raises {}, and none of 5 placebos does as much."),
        (
            0.01,
            3,
            20,
            0,
            "\u2013 {}Not this vector in particular: it raises {}, but 3 of 20 placebos change it at least as much.",
        ),
        (0.01, 0, 0, 0, "? {}A sure change without a placebo beside it: it raises {}."),
        (0.2, 0, 20, 5, "\u2013 {}No sure change of {}."),
        (
            0.2,
            0,
            20,
            0,
            "? {}No sure change of {}, but it moves the predictions as a whole further than any of 20 placebos.",
        ),
        (None, 0, 20, 0, "\u2013 {}Not tested: steering does not reach entropy."),
    ],
)
def test_the_verdict_is_what_the_numbers_say(
    opened: Any,
    reported: tuple[Path, ModelTables],
    p: float | None,
    num_larger: int,
    num_placebos: int,
    kl_larger: int,
    said: str,
):
    data = data_of(reported[0])
    (model,) = data["models"]
    own = model["summary"]["control_-2"]
    own["entropy"]["mean_difference"][-1], own["entropy"]["p_holm"][-1] = 0.5, p
    for metric, number in (("entropy", num_larger), ("kl_from_standard", kl_larger)):
        model["placebos"]["control"][metric] = [[0.0] * SHAPE.num_layers] * num_placebos
        own[metric]["placebo_p"][-1] = (1 + number) / (1 + num_placebos) if num_placebos else None
    opened.set_content(page_of(data, "judged"))
    headline = opened.locator("#verdict .headline").first.inner_text().replace("\n", " ")
    assert headline == said.format("control_-2 · ", "entropy at the last layer")


def _without_attention(model: dict[str, Any]) -> None:
    empty = [None] * SHAPE.num_blocks
    for own in (*model["curves"].values(), *model["summary"].values()):
        own["attention_entropy"] = dict.fromkeys(own["attention_entropy"], empty)
    own = model["sample"]["metrics"]["attention_entropy"]
    own["codes"] = base64.b64encode(b"\xff" * len(base64.b64decode(own["codes"]))).decode()
    own["low"] = own["high"] = 0


def _without_numbers(model: dict[str, Any]) -> None:
    _without_attention(model)
    for part in ("curves", "summary"):
        for metrics in model[part].values():
            for own in metrics.values():
                own |= {name: [None] * len(values) for name, values in own.items()}
    for own in (one for metrics in model["doses"].values() for one in metrics.values()):
        own |= {name: [None] * len(values) for name, values in own.items()}


def _without_all_that_may_be_missing(model: dict[str, Any]) -> None:
    model |= {name: {} for name in ("summary", "placebos", "doses", "strengths", "untouched", "answers", "groups")}
    model |= {"sample": None, "lens_allowed_logits": None, "attention_error_nats": None, "num_parts": None}


@pytest.mark.parametrize("edit", [_without_attention, _without_numbers, _without_all_that_may_be_missing])
def test_what_is_missing_is_left_out(opened: Any, reported: tuple[Path, ModelTables], edit: Callable[[Any], None]):
    data, said = data_of(reported[0]), []
    (model,) = data["models"]
    edit(model)
    data["files"] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.set_content(page_of(data, "missing"))
    for label in ("Judged by", "Metric", "Colour by"):
        for box in opened.get_by_label(label, exact=True).all():
            if "attention_entropy" in box.locator("option").evaluate_all("all => all.map((one) => one.value)"):
                box.select_option("attention_entropy")
    assert said == []
    text = opened.locator("body").inner_text()
    assert not re.search(r"NaN|undefined|Infinity|\[object", text)
    assert opened.locator("#proofs").count() == 1
    assert opened.locator("#files").count() == 0


def test_a_reader_sorts_filters_picks_a_sentence_and_switches_the_layer(
    browser: Any, reported: tuple[Path, ModelTables]
):
    with browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark", offline=True) as context:
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append("a dialog"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(reported[0].as_uri())
        assert page.title() == "<i>one</i> · llm_entropy"
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is wider than a phone"

        page.locator("#verdict select").select_option("attention_entropy")
        assert "attention entropy at the last block" in page.locator("#verdict .headline").first.inner_text()

        rows = page.locator("#summary tbody tr")
        num_rows = rows.count()
        page.locator("#summary th button", has_text="difference").click()
        cells = page.locator("#summary tbody td:nth-child(6)").all_text_contents()
        numbers = [float(text.replace("\u2212", "-").replace(",", "")) for text in cells if text != "\u2013"]
        assert numbers == sorted(numbers)
        assert page.locator("#summary th[aria-sort=ascending]").inner_text().startswith("difference")
        page.locator("#filter").fill("attention control_-2")
        assert 0 < rows.count() < num_rows

        options = page.locator("#sentences li")
        assert options.count() == len(TEXTS)
        page.locator("#search").fill("quote")
        assert options.count() == 1
        page.locator("#search").fill("")
        options.nth(0).click()
        assert page.locator("#sentence .read").first.inner_text() == SCRIPT
        page.locator("#sentences").press("ArrowDown")
        assert page.locator("#sentences [aria-selected=true]").inner_text().startswith(TEXTS[1])

        chips = page.locator("#sentence .read").first.locator(".token")
        colours = "chips => chips.map((chip) => getComputedStyle(chip).backgroundColor)"
        before = chips.evaluate_all(colours)
        page.locator("#layer").fill("1")
        assert chips.evaluate_all(colours) != before
        assert page.locator("#sentence .lens th.chosen[scope=row]").first.inner_text() == "1"

        assert_lens_grid(page, reported[1])
        cells = page.locator("#impact tbody tr").first.locator("td")
        cells.first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert page.locator("#tip").inner_text().startswith("Perplexity, layer 1\ndifference ")
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()
        page.locator("#sentence .lens").first.locator("td").nth(1).hover()
        assert page.locator("#tip").inner_text().startswith("Layer 4, token ")
        page.locator("#sentence .lens").first.locator("td").first.focus()
        page.keyboard.press("ArrowDown")
        assert page.locator("#tip").inner_text().startswith("Layer 3, token ")
        page.keyboard.press("Enter")
        assert page.locator("#sentence .lens td:focus").count() == 1, "the focus stays where it was"

        assert page.locator("#sentence .scale.both").count() == 0
        page.locator("#text .controls select").first.select_option("entropy_change")
        assert page.locator("#sentence .scale.both").count() == 1, "what may be negative has two colours"
        page.locator("#text").scroll_into_view_if_needed()
        page.wait_for_selector(".bar a[aria-current]")

        page.locator("#curves fieldset input").first.uncheck()
        assert page.locator("#curves fieldset input").first.is_checked() is False
        copy = page.locator("#what .command button")
        copy.click()
        page.locator("#what .command button:not(:text-is('Copy'))").wait_for()
        if copy.inner_text() != "Copied":  # what may not be written to the clipboard is selected
            assert page.evaluate("getSelection().toString()") == data_of(reported[0])["run"]["command"]
        page.locator("#theme").click()
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [reported[0].as_uri()]


def assert_lens_grid(page: Any, tables: ModelTables) -> None:
    """Fail unless each cell of the second sentence's grid has the most likely token of its layer, the last one on top.

    Each panel is a condition's.
    """
    assert tables.sample is not None
    table = tables.sample.records
    assert table["sentence_id"].to_pylist()[:4] == [0, 1, 1, 1], "the second sentence has three records"
    name = page.locator("#sentence .panels h3").nth(1).inner_text()
    for panel, condition in enumerate(("standard", name)):
        cells = page.locator("#sentence .lens").nth(panel).locator("tbody td bdi").all_text_contents()
        shown = np.array(cells).reshape(SHAPE.num_layers, 3).T[:, ::-1].tolist()
        signs = str.maketrans({"\n": "\u21b5", " ": "\u2423"})
        tokens = table[f"{condition}/lens_tokens"].to_pylist()[1:4]
        assert shown == [[token.translate(signs) for token in layers] for layers in tokens]
    assert "the most likely token of each layer" in page.locator("#sentence > .note").first.inner_text()


def test_a_reader_finds_answers_and_texts(browser: Any, runs: dict[str, RunResult]):
    with browser.new_context(viewport={"width": 390, "height": 800}, offline=True) as context:
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((runs["answers"].run_dir / REPORT).as_uri())
        assert page.locator("#answers svg[role=img]").count() == 2
        note = page.locator("#sentence > .note").first.inner_text()
        assert "of the tokens that the last layer ranks highest" in note
        assert "analysis.lens_tokens: true" in note
        (strength,) = page.locator("#strengths tbody tr").all_inner_texts()
        assert re.fullmatch(r"control\t1\t[\d.]+ at block \d\t[\d.]+\t[\d.]+", strength)
        counts = page.locator("#counts tbody tr").all_inner_texts()
        about = json.loads((runs["answers"].run_dir / "run.json").read_text(encoding="utf-8"))
        assert counts[0] == f"Rows in the corpus\t{about['corpus']['num_rows']}"
        assert f"Positions read (records), once each\t{about['models']['gpt2']['num_records']}" in counts
        proof = page.locator("#proofs li").first.inner_text()
        assert re.match(r"Lens: largest error [\d.e\u2212]+ logits, [\d.]+ allowed\.", proof)
        assert page.locator("#generated").count() == 0
        assert page.locator("#words").count() == 1
        page.locator("#words select").first.select_option(index=2)
        shown = data_of(runs["answers"].run_dir / REPORT)["models"][0]["sample"]
        text = "".join(piece for piece, _ in shown["sentences"][2]["pieces"])
        assert page.locator("#words .read").first.inner_text() == text
        assert page.locator("#sentence .read").first.inner_text() == text, "both sections show the same sentence"
        assert (
            page.locator("#word-table tbody tr").count() == page.locator("#words .read").first.locator(".word").count()
        )
        page.locator("#words .word").first.focus()
        page.keyboard.press("ArrowRight")
        second = page.locator("#words .word").nth(1).inner_text()
        assert page.locator("#tip").inner_text().startswith(f"{second}\nstandard, layer 5\nSurprisal ")
        page.goto((runs["written"].run_dir / REPORT).as_uri())
        assert page.locator("#words").count() == 0
        assert page.locator("#answers").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is wider than a phone"
        rows = page.locator("#generated .texts tbody tr")
        written = [runs["written"]["gpt2"][name].generations["Continuation"] for name in ("standard", "control")]
        assert rows.nth(0).locator("th, td").all_text_contents() == [SCRIPT, *(own[0] for own in written)]
        swatches = page.locator("#groups .keys span").all_inner_texts()
        assert [text.strip() for text in swatches] == ["<b>0 (2 sentences)", "<b>1 (2 sentences)"]
        page.locator("#search-texts").fill("onerror")
        assert rows.count() == 1
        metrics = page.locator("#text-metrics tbody th").all_text_contents()
        assert metrics[0] == "Surprisal under the standard model (nats)"
        assert len(metrics) == len(TEXT_METRICS) + 1
        assert said == []


def test_the_policy_stops_what_would_run_or_go_out(browser: Any, tmp_path: Path):
    path = tmp_path / REPORT
    text = page_of({"models": []}, "empty").replace(
        "<main", '<img src="http://127.0.0.1:9/x"><script>go()</script><main'
    )
    path.write_text(text, encoding="utf-8")
    with browser.new_context() as context:
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        assert sum("Content Security Policy" in line for line in said) == 2
