"""The benchmarks run, on tiny sizes, and what they compare agrees; nothing is timed here."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import attention, auto_batches, end_to_end, lens, opening, precision, products, report, subjects
from benchmarks.peers import hugging_face, ours, usual_script
from benchmarks.peers.__main__ import measure_peer
from benchmarks.peers.environments import PEERS
from benchmarks.peers.worker import Sentence, Task
from llm_entropy.models.attention.interface import READABLE
from llm_entropy.models.families import view_model

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
SHAPE = lens.Shape(num_slots=3, num_rows=4, width=16, vocab_size=301)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return subjects.save_model(tmp_path_factory.mktemp("subject"), "tiny")


def cells(table: str) -> list[list[str]]:
    """Return the rows of a Markdown table, without its header."""
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]


def test_medians_are_taken_of_every_way_in_turn():
    calls = []
    took = report.medians({name: lambda name=name: calls.append(name) for name in "ab"}, seconds=0.0)
    assert calls == ["a", "b"] * (1 + report.MIN_ROUNDS)
    assert set(took) == {"a", "b"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the memory of Linux")
def test_the_peak_is_what_was_held_not_what_is_left():
    # in a process of its own: what tests before this one have let go of would be used again
    program = "import torch; from benchmarks import report; print(report.peak_bytes(lambda: torch.ones(2**24).sum()))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 64 * 2**20 <= int(ended.stdout) < 96 * 2**20


def test_every_bare_product_runs_over_all_rows_and_tokens(monkeypatch):
    monkeypatch.setattr(products, "TILE_ROWS", 3)
    monkeypatch.setattr(products, "VOCAB_CHUNK", 10)
    states, weight = torch.randn(7, 16), torch.randn(25, 16)
    for way in products.bare_products(states, weight).values():
        way()
    assert products.operations(states, weight) == 2 * 7 * 16 * 25


def test_the_lens_table_has_every_backend_and_errors_as_small_as_float32_allows():
    rows = {row[0]: row for row in cells(lens.measure(SHAPE, torch.float32, seconds=0.0))}
    for name in [lens.LOGITS_KEPT, *(f"backend {backend}" for backend in lens.backends(CPU))]:
        *_, entropy_error, margin_error, _memory = rows[name]
        assert float(entropy_error) < 1e-4
        assert float(margin_error) < 1e-4


def test_others_that_do_not_run_here_are_in_the_lens_table_with_the_reason(monkeypatch):
    def refuse() -> None:
        raise RuntimeError("no such | instruction\nmore of it")

    monkeypatch.setattr(lens, "others_ways", lambda *_, **__: {"others": refuse})
    rows = {row[0]: row for row in cells(lens.measure(SHAPE, torch.float32, seconds=0.0))}
    assert rows["others"][1] == "RuntimeError: no such / instruction"


def test_lens_errors_are_seen():
    states, unembedding = lens.make_numbers(SHAPE, torch.float32)
    truth = lens.read_exactly(states, unembedding)
    wrong = lens.Read(truth.entropy + 0.5, truth.margin)
    assert lens.largest_errors(wrong, truth) == [pytest.approx(0.5), 0.0]


def test_precision_is_compared_record_by_record():
    base, rounded = (precision.read_records(each, 2)["tiny-gpt2"] for each in (precision.BASE, "bf16-true"))
    same, other = (precision.compare(base, {"other": records}) for records in (base, rounded))
    assert "Same prediction: 100.00% (other)" in same
    rows = {row[0]: row for row in cells(same.partition("\n\n")[0])}
    assert [float(number) for number in rows["entropy"][3:]] == [0.0, 0.0, 0.0]
    rows = {row[0]: row for row in cells(other.partition("\n\n")[0])}
    assert 0.0 < float(rows["entropy"][-1]) < 0.5


def test_a_batch_is_timed_alone_and_under_every_condition(folder, monkeypatch):
    monkeypatch.setattr(end_to_end, "BATCH_TOKENS", {"cpu": 100})
    subject = end_to_end.Subject(folder, torch.float32, rate=1e9)
    bare = end_to_end.load_bare(subject)
    rows = end_to_end.measure_case(subject, bare, "short", "all", seconds=0.0)
    assert [row[3] for row in rows] == ["model alone", "standard", *end_to_end.FIRST_STEERED]


def test_the_work_of_a_batch_is_that_of_its_real_tokens(folder):
    subject = end_to_end.Subject(folder, torch.float32, rate=1e9)
    batch = end_to_end.typical_batch(subject, "short", "all")
    modules = end_to_end.make_modules(subject, "all")
    work = end_to_end.count_work(end_to_end.load_bare(subject), modules["standard"], batch)
    sizes = subjects.SIZES["tiny"]
    assert work.lens == 2 * sizes["n_embd"] * sizes["vocab_size"] * int(batch.attention_mask.sum())


def test_a_run_is_taken_apart(folder):
    subject = end_to_end.Subject(folder, torch.float32, rate=1e9)
    took = end_to_end.profile_run(subject, subjects.make_sentences(4))
    assert min(took.values()) > 0
    assert took[end_to_end.FORWARD_KEY] < took[end_to_end.COMPUTED]


@pytest.mark.parametrize("positions", ["last", "all"])
@torch.inference_mode()
def test_peers_that_need_no_environment_give_our_entropies(folder, positions):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sentences = [Sentence(text, tokenizer(text)["input_ids"]) for text in subjects.make_sentences(5)]
    task = Task(folder, positions, CPU, torch.float32)
    truth = ours.load(task)(sentences)
    batched = hugging_face.load(task)(sentences)
    script = usual_script.load(task)
    for sentence, a, b in zip(sentences, truth, batched, strict=True):
        assert a.shape == (3, 1 if positions == "last" else len(sentence.token_ids))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
        torch.testing.assert_close(a, script([sentence])[0], atol=1e-4, rtol=0)


def test_a_peer_without_an_environment_is_in_the_table_with_the_reason(folder, tmp_path):
    peer = next(peer for peer in PEERS if peer.requirements)
    how = {"rounds": 1, "environments": tmp_path}
    row = measure_peer(peer, Path(folder), ["a"], "last", torch.float32, **how)
    assert "--setup" in " ".join(row)


@pytest.mark.slow
def test_a_peer_and_this_program_are_measured_in_turn(folder, tmp_path):
    peer = next(peer for peer in PEERS if peer.module == "hugging_face")
    how = {"rounds": 1, "environments": tmp_path}
    *_, faster, difference = measure_peer(peer, Path(folder), subjects.make_sentences(20), "all", torch.float32, **how)
    assert float(faster.removesuffix("x")) > 0
    assert float(difference) < 1e-4


def test_the_attention_tables_have_every_length_and_choice_of_positions(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation=READABLE)
    tables = [
        attention._table(lambda *case: attention._measure_model(view_model(model), *case, True, 0.0), 16, (3, 8)),
        attention._table(lambda *case: attention._measure_block(torch.float32, *case, 0.0), 16, (3, 8)),
    ]
    for table in tables:
        assert [row[:3] for row in cells(table)] == [
            [length, batch, positions] for length, batch in (("3", "5"), ("8", "2")) for positions in ("last", "all")
        ]


def test_a_report_is_written_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    tables = report.Report("lens", saved=True)
    for count, piece in enumerate(("# Lens\n", "\n| a table |\n"), start=1):
        tables.add(piece)
        (path,) = (tmp_path / "results").iterdir()
        assert path.read_text() == "# Lens\n\n| a table |\n"[: len("# Lens\n") if count == 1 else None]


def test_a_llama_is_measured_like_a_gpt2(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "BATCH_TOKENS", {"cpu": 60})
    folder = subjects.save_model(tmp_path, "tiny-llama")
    assert subjects.read_config(folder).model_type == "llama"
    subject = end_to_end.Subject(folder, torch.float32, rate=1e9)
    rows = end_to_end.measure_case(subject, end_to_end.load_bare(subject), "short", "last", seconds=0.0)
    assert [row[3] for row in rows] == ["model alone", "standard", *end_to_end.FIRST_STEERED]


def test_too_little_memory_is_seen_and_survived(folder, tmp_path):
    run = partial(auto_batches.run_model, folder, subjects.make_sentences(5, "long"), dtype=torch.float32)
    text = auto_batches.measure_little_memory(run, tmp_path)
    assert "- out of memory with a batch of 4 sentences: 2 at a time" in text
    assert float(text.split("at most ")[-1].split()[0]) < 1e-4


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_its_parts_on_a_cpu_and_one_that_fails_stops_no_other(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *benchmarks.lens*) exit 3;; esac\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "PARTS": "lens attention", "WHEELS": str(tmp_path / "none")}
    script = [ROOT / "benchmarks/gpu.sh", "--tiny", tmp_path]
    ended = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "lens: ended with status 3" in ended.stdout
    assert "attention: done" in ended.stdout
    (table,) = tmp_path.glob("attention-*.md")
    assert "The attention of one block" in table.read_text()


@pytest.mark.parametrize(("size", "dtype"), opening.TINY.items())
def test_what_runs_through_a_model_while_it_is_opened_is_counted(size, dtype):
    model = opening.make_model(size, dtype)
    counts = opening.count(model)
    assert counts[opening.FORWARD] == opening.Count(1, 14, 14)
    assert counts["check_parts"].tokens == 5 + 2 + 5 + 2 * 5 + model.config.num_hidden_layers + 1
    parts = [counts[name] for name in counts if name not in (opening.FORWARD, opening.ALL)]
    assert counts[opening.ALL] == pytest.approx([sum(numbers) for numbers in zip(*parts, strict=True)])
    weights = opening.weights_of(view_model(model))
    assert weights.tokens(counts[opening.FORWARD]) == pytest.approx(14)


def test_the_memory_of_opening_is_that_of_tensors_at_the_highest():
    def hold_and_let_go() -> None:
        for _ in range(3):
            torch.ones(2**20)

    assert 2**22 <= opening._peak(hold_and_let_go) < 2**22 + 2**12


def test_a_large_model_is_reckoned_by_its_tokens_and_the_rates_of_a_smaller_one(monkeypatch):
    monkeypatch.setattr(opening, "best_rate", lambda *_, **__: 1e12)
    monkeypatch.setitem(opening.LARGE, "num_hidden_layers", 4)
    model = opening.make_model("tiny-llama", torch.bfloat16)
    costs = {name: opening.Cost(counted, 0.5, 2**20) for name, counted in opening.count(model).items()}
    rows = {row[0]: row for row in cells(opening.costs_table(costs, opening.weights_of(view_model(model))))}
    assert rows[opening.FORWARD][1:5] == ["1", "14", "14", "14.0"]
    table = opening.reckon(costs, opening.Weights(10**9, 10**8), torch.bfloat16).partition("\n\n")[2]
    rows = {row[0]: row for row in cells(table)}
    blocks, decoder = 4 * (4 * 4096**2 + 3 * 4096 * 11_008), 4096 * 32_000
    assert rows[opening.FORWARD][1:5] == ["1", "14.0", "26", "0.03"]  # 14 x 2 x (blocks + decoder) = 26.3e9
    assert float(rows["check_parts"][2]) == pytest.approx((5 + 2 + 5 + 10 + 5) * blocks / (blocks + decoder), abs=0.1)


def test_opening_holds_few_times_what_one_pass_over_its_probe_does():
    parts = opening.parts_of(opening.make_model("tiny", torch.float32))
    held = {name: opening._peak(way) for name, way in parts.items()}
    assert held[opening.ALL] < 3 * held[opening.FORWARD]
