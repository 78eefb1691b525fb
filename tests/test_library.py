"""A library: models that are loaded, opened, measured and steered in memory, with the numbers of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import FAMILIES, HIDDEN, SENTENCES, make_model, make_tokenizer, save_model
from transformers import AutoModelForCausalLM, GPT2Model, PreTrainedModel

from llm_entropy import LanguageModel, functional, measure, merge_run, open_model, run_analysis, steer
from llm_entropy.commands.cli import main
from llm_entropy.errors import ReportedError
from llm_entropy.library import COLUMNS
from llm_entropy.models.attention.interface import attention_implementation
from llm_entropy.settings import METRICS, OutputSettings

PAGE = Path(__file__).resolve().parent.parent / "docs/howto/python.md"
VECTOR = torch.linspace(-1.0, 1.5, HIDDEN)
TEXTS = [*SENTENCES[:5], "", SENTENCES[5]]


@pytest.fixture(scope="module", params=["gpt2", "bert", "albert", "llama"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    family = request.param
    return open_model(make_model(family), make_tokenizer(FAMILIES[family].kind), name=family)


@pytest.fixture(scope="module")
def gpt2() -> LanguageModel:
    return open_model(make_model("gpt2"), make_tokenizer("causal"), name="mine")


def output(folder: Path, **more: Any) -> Any:
    return OutputSettings(dir=str(folder), plots=False, csv=False, **more)


# --- open_model ---------------------------------------------------------------------------------------------------


def state_of(model: PreTrainedModel) -> list[Any]:
    """Return what a forward pass of ours might have left changed."""
    modules = [
        (name, type(module), module.training, len(module._forward_hooks)) for name, module in model.named_modules()
    ]
    weights = [(name, weight.data_ptr(), weight.requires_grad) for name, weight in model.named_parameters()]
    return [modules, weights, attention_implementation(model), getattr(model.config, "use_cache", None), model.device]


@pytest.mark.parametrize("family", ["gpt2", "bert", "albert", "llama", "bloom"])
def test_a_model_that_is_loaded_is_left_as_it_was(family: str, tmp_path: Path) -> None:
    model, tokenizer = make_model(family).train(), make_tokenizer(FAMILIES[family].kind)
    next(iter(model.children())).eval()  # not all of it may be training
    before, weights = state_of(model), {name: own.clone() for name, own in model.state_dict().items()}
    lm = open_model(model, tokenizer)
    assert lm.lens_error < 1e-4
    assert lm.name == type(model).__name__
    assert state_of(model) == before
    measure(lm, TEXTS[:2], conditions={"up": VECTOR})
    with steer(lm, VECTOR):
        pass
    lm.states(torch.ones(1, 3, dtype=torch.int64))
    assert state_of(model) == before
    run_analysis({"mine": lm}, sentences=TEXTS[:2], output=output(tmp_path), quiet=True)
    assert state_of(model) == before
    assert all(torch.equal(own, weights[name]) for name, own in model.state_dict().items())


def test_a_model_can_be_given_by_its_name_too() -> None:
    lm = open_model("builtin:tiny-gpt2")
    assert (lm.name, lm.num_layers, lm.model.config.use_cache) == ("tiny-gpt2", 6, True)


@pytest.mark.parametrize(
    ("model", "tokenizer", "error"),
    [
        (torch.nn.Linear(1, 1), None, "models.Linear: got Linear; expected a model of transformers"),
        (
            make_model("gpt2"),
            None,
            r"models.GPT2LMHeadModel: got .* without a tokenizer; expected \(model, tokenizer\)",
        ),
        (make_model("gpt2"), "gpt2", "models.GPT2LMHeadModel: got str as its tokenizer"),
        (GPT2Model(make_model("gpt2").config), None, "got GPT2Model, which has no language-model head; expected what"),
        (make_model("gpt2").double(), None, "got weights of type torch.float64; expected one of float32"),
        ("builtin:tiny-gpt2", make_tokenizer("causal"), "tokenizer: got one beside the name of a model"),
    ],
)
def test_what_cannot_be_opened_is_refused(model: Any, tokenizer: Any, error: str) -> None:
    with pytest.raises(ReportedError, match=error):
        open_model(model, tokenizer)


def test_a_model_that_is_read_wrongly_is_refused() -> None:
    model = make_model("gpt2")
    model.transformer.ln_f.register_forward_hook(
        lambda module, args, states: (
            1.02 * states if states.ndim == 3 and len(states) == 2 and states.shape[1] == 7 else states
        )
    )
    with pytest.raises(ReportedError, match="misses the model's own logits"):
        open_model(model, make_tokenizer("causal"))


def test_a_model_whose_blocks_do_not_prove_themselves_is_refused() -> None:
    model = make_model("gpt2")
    model.transformer.h[1].register_forward_hook(
        lambda block, args, states: states + states.mean(dim=1, keepdim=True)  # later tokens among them
    )
    with pytest.raises(ReportedError, match="a token changes the states of those before it"):
        open_model(model, make_tokenizer("causal"))


# --- measure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_frame_has_the_numbers_of_a_run(family: str, tmp_path: Path) -> None:
    folder = save_model(family, tmp_path / family)
    conditions = {
        "up": {"control_vector": VECTOR, "strengths": [-1, 2]},
        "late": {"control_vector": VECTOR, "blocks": [1]},
    }
    words: dict[str, Any] = {"metrics": list(METRICS), "positions": "all", "conditions": conditions, "temperature": 0.7}
    result = run_analysis(
        {"mine": folder}, sentences=TEXTS, compare_control=True, output=output(tmp_path), quiet=True, **words
    )
    lm = open_model(make_model(family), make_tokenizer(FAMILIES[family].kind), name="mine")
    frame = measure(lm, TEXTS, **words)
    assert list(frame.columns) == list(COLUMNS)
    assert set(frame["condition"]) == {"standard", "up_-1", "up_+2", "late"}
    assert set(frame["model"]) == {"mine"}
    for condition in ("standard", "up_+2", "late"):
        records = result["mine"][condition].records
        for metric in METRICS:
            own = frame[(frame["condition"] == condition) & (frame["metric"] == metric)]
            wide = own.pivot(index=["sentence_id", "position"], columns="layer", values="value")
            assert wide.index.to_list() == list(zip(records["sentence_id"], records["position"], strict=True))
            expected = torch.from_numpy(np.stack(records[metric].tolist()))
            if METRICS[metric].is_per_head:
                expected = expected.unflatten(1, (wide.shape[1], -1)).mean(-1)
            found = torch.tensor(wide.to_numpy())
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        tokens = own.drop_duplicates(["sentence_id", "position"])["token"].tolist()
        assert tokens == records["token"].astype(str).tolist()


def test_without_conditions_there_is_the_standard_run_alone(gpt2: LanguageModel) -> None:
    frame = measure(gpt2, pd.DataFrame({"text": TEXTS}), metrics="entropy", positions="last")
    assert set(frame["condition"]) == {"standard"}
    assert set(frame["metric"]) == {"entropy"}
    assert sorted(set(frame["sentence_id"])) == [0, 1, 2, 3, 4, 6], "numbers of the texts; a blank one has none"
    assert len(frame) == 6 * gpt2.num_layers


def test_measuring_inside_of_a_steer_measures_the_steered_model(gpt2: LanguageModel) -> None:
    inside = {"metrics": ["entropy"], "positions": "all"}
    expected = measure(gpt2, TEXTS, conditions={"up": {"control_vector": VECTOR, "strength": 2.0}}, **inside)
    with steer(gpt2, VECTOR, 2.0):
        found = measure(gpt2, TEXTS, **inside)
    expected = expected[(expected["condition"] == "up") & (expected["metric"] == "entropy")]
    assert found["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"metrics": "entrpy"}, r"analysis\.metrics: got 'entrpy'"),
        (
            {"conditions": {"up": torch.ones(3)}},
            r"analysis\.conditions\.up\.control_vector: .* width 3; expected width",
        ),
        ({"conditions": {"up": {"control_vector": VECTOR, "target_kl": 1.0}}}, r"conditions\.up\.target_kl: got 1\.0"),
        ({"sentences": "one text"}, r"sentences: got str; expected several texts"),
        ({"max_length": 10**6}, r"data\.max_length: got 1000000; mine takes at most"),
    ],
)
def test_what_cannot_be_measured_is_refused(gpt2: LanguageModel, words: dict[str, Any], error: str) -> None:
    with pytest.raises(ReportedError, match=error):
        measure(gpt2, **{"sentences": TEXTS, **words})


# --- states and logits --------------------------------------------------------------------------------------------


def test_logits_of_the_last_layer_are_the_models_own_and_entropies_those_of_the_frame(lm: LanguageModel) -> None:
    is_masked = lm.view.kind == "masked"
    texts = ["the [MASK] sat on a mat", SENTENCES[1]] if is_masked else SENTENCES[:1]
    encoded = lm.tokenizer(texts, return_tensors="pt", padding=is_masked)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    states = lm.states(ids, mask)
    assert states.shape == (lm.num_layers, *ids.shape, HIDDEN)
    with torch.no_grad():
        truth = lm.model(input_ids=ids, attention_mask=mask).logits
    logits = lm.logits_at(states[-1], -1)
    assert not logits.is_inference()
    torch.testing.assert_close(logits[mask.bool()], truth[mask.bool()], rtol=1e-4, atol=1e-4)
    frame = measure(lm, texts[:1], metrics="entropy")
    for layer in range(lm.num_layers):
        own = frame[frame["layer"] == layer]
        place = own["position"].tolist()
        found = functional.entropy(lm.logits_at(states[layer, 0, place], layer))
        assert found.numpy() == pytest.approx(own["value"].to_numpy(), rel=1e-4, abs=1e-5)


def test_states_and_layers_that_do_not_fit_are_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(ReportedError, match=r"layer: got 4; mine has layers 0 to 3"):
        gpt2.logits_at(torch.zeros(HIDDEN), 4)
    with pytest.raises(ReportedError, match=r"states: got \[2, 3\]; expected \[\.\.\., 32\], the width of mine"):
        gpt2.logits_at(torch.zeros(2, 3), 0)
    with pytest.raises(ReportedError, match=r"states: got \[3\]; expected \[batch, seq\]"):
        gpt2.states(torch.ones(3, dtype=torch.int64))


# --- steer --------------------------------------------------------------------------------------------------------


def test_generation_is_steered_as_by_a_hook_of_ones_own(gpt2: LanguageModel) -> None:
    inputs = gpt2.tokenizer(SENTENCES[0], return_tensors="pt")
    words: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def generate() -> tuple[list[int], torch.Tensor]:
        made = gpt2.model.generate(**inputs, **words, output_logits=True, return_dict_in_generate=True)
        return made.sequences[0].tolist(), torch.cat(made.logits)

    plain, plain_logits = generate()
    for use_cache in (True, False):
        words["use_cache"] = use_cache
        with steer(gpt2, VECTOR, strength=2, blocks=[1]):
            steered, logits = generate()
        handle = gpt2.view.blocks[1].register_forward_hook(
            lambda module, args, out: (out[0] + 2 * VECTOR, *out[1:]) if isinstance(out, tuple) else out + 2 * VECTOR
        )
        expected, expected_logits = generate()
        handle.remove()
        assert steered == expected != plain
        torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    del words["use_cache"]
    again, again_logits = generate()
    assert again == plain
    assert torch.equal(again_logits, plain_logits)


def test_a_steer_is_undone_however_it_ends_and_lets_gradients_through(lm: LanguageModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    before = lm.states(ids)
    with pytest.raises(ZeroDivisionError), steer(lm, VECTOR):
        raise ZeroDivisionError
    assert torch.equal(lm.states(ids), before)
    vector = torch.stack([VECTOR * (layer + 1) for layer in range(lm.num_layers)])
    with steer(lm, vector, layer_weights=[1.0] * lm.num_layers):
        steered = lm.states(ids)
        loss = lm.model(input_ids=ids).logits.square().mean()
    torch.testing.assert_close(steered[0], before[0] + VECTOR)
    with torch.enable_grad():
        loss.backward()
    assert all(weight.grad is not None for weight in lm.view.blocks[0].parameters() if weight.requires_grad)
    lm.model.zero_grad()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"vector": torch.ones(3)}, r"vector: got a vector of shape \[3\]: width 3; expected width 32"),
        ({"blocks": [9]}, r"steer\.blocks: got .*9"),
        ({"operator": "cap"}, r"^cap: got null, but operator is cap"),
        ({"strength": float("nan")}, r"^strength: got \[nan\]; expected finite numbers"),
    ],
)
def test_what_cannot_steer_is_refused(gpt2: LanguageModel, words: dict[str, Any], error: str) -> None:
    with pytest.raises(ReportedError, match=error), steer(gpt2, **{"vector": VECTOR, **words}):
        pass


# --- run_analysis of models in memory -----------------------------------------------------------------------------


def test_a_run_of_a_loaded_model_has_the_bytes_of_its_folder_and_is_resumed_by_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model("gpt2", tmp_path / "gpt2")
    model = AutoModelForCausalLM.from_pretrained(folder)
    words: dict[str, Any] = {"sentences": TEXTS, "compare_control": True, "control_vector": VECTOR, "quiet": True}
    saved = run_analysis({"mine": folder}, output=output(tmp_path, run_name="saved"), **words)
    place = output(tmp_path, run_name="memory")
    result = run_analysis({"mine": model}, output=place, **words)
    for condition in ("standard", "control", "comparative"):
        mine, theirs = (one["mine"][condition].records for one in (result, saved))
        assert mine.astype(str).equals(theirs.astype(str))
    about = json.loads((result.run_dir / "run.json").read_text())
    assert about["models"]["mine"]["name"] == "loaded:GPT2LMHeadModel"
    log = (result.run_dir / "run.log").read_text()
    assert "resume with: run_analysis(..., output={'dir':" in log
    assert "llm-entropy predict" not in log

    other = AutoModelForCausalLM.from_pretrained(folder)
    again = run_analysis({"mine": (other, make_tokenizer("causal"))}, output=place, resume=True, **words)
    assert again.run_dir == result.run_dir
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.bias[0] += 1e-6
    with pytest.raises(ReportedError, match=r"another configuration: models\.mine\.content has changed"):
        run_analysis({"mine": (other, make_tokenizer("causal"))}, output=place, resume=True, **words)
    with pytest.raises(SystemExit):
        main(["predict", "--config", str(result.run_dir / "config.yaml"), "--resume", "--output.run_name=memory"])
    assert "was given in memory; only Python can resume such a run" in capsys.readouterr().err
    merged = merge_run(result.run_dir, quiet=True)["mine"]["control"].records
    assert merged.astype(str).equals(result["mine"]["control"].records.astype(str))


def test_several_processes_refuse_a_model_in_memory(tmp_path: Path, gpt2: LanguageModel) -> None:
    with pytest.raises(
        ReportedError, match=r"models\.mine: a model that is loaded is in the memory of one process, and"
    ):
        run_analysis(
            {"mine": gpt2},
            sentences=TEXTS,
            trainer={"devices": 2, "accelerator": "cpu"},
            output=output(tmp_path / "runs"),
            quiet=True,
        )
    assert not (tmp_path / "runs").exists()


# --- documentation ------------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_runs() -> None:
    (example,) = re.findall(
        r"^## In your own program$.*?^```python\n(.*?)^```",
        PAGE.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    names: dict[str, Any] = {}
    exec(compile(example, PAGE.name, "exec"), names)
    assert names["frame"]["value"].notna().any()
    assert names["early"].shape[-1] == names["lm"].view.shape.vocab_size
