"""What a process says of itself, and what depends on the threads that it has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_entropy.corpus.batching import collate
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.attention.interface import READABLE
from llm_entropy.models.families import view_model
from llm_entropy.schema.batches import PREDICTED, Example
from llm_entropy.schema.records import ConditionRecords
from llm_entropy.settings import METRICS, STANDARD, AnalysisSettings
from llm_entropy.store import session
from llm_entropy.store.session import Session
from llm_entropy.store.windows import Task


@pytest.fixture
def threads() -> Iterator[None]:
    """Set the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_process_records_its_threads() -> None:
    for number in (1, 2):
        torch.set_num_threads(number)
        assert Session(Task(), "").describe()["threads"] == number


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes_on_each_system(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        ru_maxrss = 7

    monkeypatch.setattr(session.resource, "getrusage", lambda who: Usage)
    monkeypatch.setattr(session.sys, "platform", platform)
    assert session.peak_memory_bytes() == 7 * unit


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_records_in_their_last_bits_at_most() -> None:
    # a product over 3,072 numbers is long enough for MKL to split it between threads
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 3072, "n_positions": 128}
    config = GPT2Config(vocab_size=600, bos_token_id=0, eos_token_id=0, **sizes)
    torch.manual_seed(0)
    model = GPT2LMHeadModel._from_config(config, attn_implementation=READABLE).eval()
    view = view_model(model)
    module = EntropyModule(view, Lens(view), Asked(AnalysisSettings(metrics=list(METRICS)), {}))
    length = 120
    examples = [
        Example(row, "", torch.randint(600, (length,)).tolist(), [*range(length)], *([n] * length for n in nothing))
        for row in range(4)
        for nothing in [(PREDICTED, -1, -1)]
    ]
    batch = collate(examples, 0, 0)

    def records_with(number: int) -> ConditionRecords:
        torch.set_num_threads(number)
        return module.predict_step(batch).conditions[STANDARD]

    one, two, one_again, two_again = (records_with(number) for number in (1, 2, 1, 2))
    for name, values in one.metrics.items():
        for found, expected in ((values, one_again.metrics[name]), (two.metrics[name], two_again.metrics[name])):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        if name != "target_rank":  # of two tokens that are as likely, either may be ahead
            torch.testing.assert_close(two.metrics[name], values, rtol=1e-5, atol=1e-5, equal_nan=True)
