"""The command line: what it runs, what it refuses and in which words, and what it does not import to do so."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
import yaml
from published import PUBLISHED
from tiny_models import CAUSAL_VOCAB, HIDDEN, SENTENCES, save_model

from llm_entropy.commands.cli import _command, main
from llm_entropy.commands.table import COMMANDS, DEFAULT, Command
from llm_entropy.errors import ReportedError
from llm_entropy.outputs.extraction.result import ExtractionResult
from llm_entropy.settings import DEFAULT_METRICS
from llm_entropy.settings.configuration import SHORT_NAMES, to_settings

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "pandas", "pyarrow", "matplotlib", "lightning", "numpy")
HUB_MODELS = {"gpt2": "gpt2", "google-bert/bert-base-uncased": "bert"}
"""The names of the published configuration, and the tiny family that stands behind each here."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF_HOME whose cache holds tiny models under the names of real ones, as a download would leave them."""
    home = tmp_path_factory.mktemp("hf_home")
    for number, (name, family) in enumerate(HUB_MODELS.items()):
        repository = home / "hub" / f"models--{name.replace('/', '--')}"
        commit = f"{number:040x}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        save_model(family, repository / "snapshots" / commit)
    return home


class TouchWhenLoaded:
    """What a pickle must never be allowed to do: loading it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good model and a good corpus, and with everything that can be wrong."""
    room = tmp_path_factory.mktemp("room")
    save_model("gpt2", room / "gpt2")
    transformers.T5Config(d_model=HIDDEN, num_layers=2, num_heads=2).save_pretrained(room / "t5")
    (room / "no-model").mkdir()
    with (room / "corpus.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "n"], *([text, 1] for text in SENTENCES)])
    (room / "header.csv").write_text("text\n")
    (room / "empty.csv").write_text("")
    (room / "blank.csv").write_text('text\n" "\n"\t"\n')
    (room / "two.csv").write_text("prompt,answer\nthe cat,sat\n")
    torch.save(torch.zeros(HIDDEN + 1), room / "wide.pt")
    torch.save(torch.zeros(2, HIDDEN), room / "rows.pt")
    torch.save(torch.full((HIDDEN,), torch.nan), room / "nan.pt")
    torch.save(TouchWhenLoaded(room / "made-by-torch"), room / "code.pt")
    (room / "old.pt").write_bytes(pickle.dumps(TouchWhenLoaded(room / "made-by-pickle")))
    np.save(room / "code.npy", np.array([TouchWhenLoaded(room / "made-by-numpy")]), allow_pickle=True)
    (room / "key.yaml").write_text("analysis: {temprature: 0.7}\n")
    (room / "section.yaml").write_text("analysis: [entropy]\n")
    (room / "broken.yaml").write_text("analysis: {metrics: [entropy\n")
    (room / "words.yaml").write_text("just words\n")
    (room / "model-key.yaml").write_text("models: {gpt2: {nam: gpt2}}\n")
    (room / "model-type.yaml").write_text("models: {gpt2: {name: gpt2, dtype: float23}}\n")
    (room / "no-section.yaml").write_text("outptu: {dir: here}\n")
    (room / "outside.yaml").write_text("num_sentences: 5\n")
    (room / "above.yaml").write_text("analysis: {strengths: [1, 2]}\n")
    (room / "nothing.yaml").touch()
    control = "  control: {operator: add}\n"
    (room / "twice.yaml").write_text(f"analysis:\n{control}  conditions: &a {{b: *a}}\n{control}")
    (room / "type.yaml").write_text("analysis: {top_k: many}\n")
    (room / "taken").mkdir()
    return room


class Bad(NamedTuple):
    """Something wrong on the command line: the options, {room} for the folder, and words of the error."""

    options: tuple[str, ...]
    words: tuple[str, ...]


STEERED = ("--compare-control", "--control-vector")
BAD_INPUT = {
    "an unknown key as an option": Bad(
        ("--analysis.topk", "3"), ("option --analysis.topk,", "nearest", "'--analysis.top_k'")
    ),
    "an unknown section as an option": Bad(("--outputs.dir", "x"), ("--outputs.dir", "nearest", "'--output.dir'")),
    "a short name that is misspelt": Bad(("--num-sentence", "3"), ("--num-sentence,", "nearest", "'--num-sentences'")),
    "an option below a number": Bad(("--seed.first", "3"), ("option --seed.first,", "nearest")),
    "an unknown key in a file": Bad(
        ("--config", "{room}/key.yaml"),
        ("analysis: got the key 'temprature', which is not known; the nearest known key is 'temperature'",),
    ),
    "an unknown section in a file": Bad(
        ("--config", "{room}/no-section.yaml"), ("error: got the key 'outptu'", "nearest known key is 'output'")
    ),
    "an unknown key of a model": Bad(
        ("--config", "{room}/model-key.yaml"), ("models.gpt2: got the key 'nam'", "nearest known key is 'name'")
    ),
    "an unknown key of a model as an option": Bad(
        ("--models.gpt2.nam", "x"), ("models.gpt2: got the key 'nam'", "nearest known key is 'name'")
    ),
    "an unknown key in a section as an option": Bad(
        ("--models", '{{"x": {{"name": "y", "nam": "z"}}}}'), ("models.x: got the key 'nam'", "'name'")
    ),
    "a word too much": Bad(("corpus.csv",), ("unrecognized", "corpus.csv", "as in --data.path FILE")),
    "a model without a key": Bad(("--models", "gpt2"), ("models: got 'gpt2'; expected a mapping, as {key: value}",)),
    "a key outside of its section": Bad(
        ("--config", "{room}/outside.yaml"), ("got the key 'num_sentences'", "it belongs below analysis")
    ),
    "a key outside of a section in a section": Bad(
        ("--config", "{room}/above.yaml"), ("analysis: got the key 'strengths'", "it belongs below analysis.control")
    ),
    "a section twice in a file": Bad(
        ("--config", "{room}/twice.yaml"), ("twice.yaml: got the key 'control' twice, in lines 2 and 4; keep one",)
    ),
    "a model twice as an option": Bad(("--models", "{{a: gpt2, a: bert}}"), ("models: got the key 'a' twice; keep",)),
    "an empty configuration": Bad(
        ("--config", "{room}/nothing.yaml"), ("nothing.yaml: holds nothing; expected keys and values",)
    ),
    "a section that is a list": Bad(("--config", "{room}/section.yaml"), ("analysis: got ['entropy']", "section")),
    "a section that is a list, as an option": Bad(
        ("--analysis.control", "[1]"), ("analysis.control: got [1]; expected a section",)
    ),
    "a section of a file that is missing": Bad(
        ("--analysis.control", "none.yaml"), ("analysis.control: got 'none.yaml'; expected a YAML file",)
    ),
    "malformed YAML": Bad(("--config", "{room}/broken.yaml"), ("config:", "broken.yaml: is not YAML: line 2, column")),
    "a file of words": Bad(("--config", "{room}/words.yaml"), ("words.yaml: holds 'just words", "expected keys")),
    "a configuration that is no text": Bad(("--config", "{room}/wide.pt"), ("config:", "wide.pt: is not UTF-8")),
    "a missing configuration": Bad(("--config", "{room}/none.yaml"), ("config: got", "none.yaml'", "No such file")),
    "an option without its value": Bad(("--analysis.top_k",), ("--analysis.top_k: expected one argument",)),
    "a wrong type in a file": Bad(
        ("--config", "{room}/type.yaml"), ("analysis.top_k: got 'many'; expected a whole number",)
    ),
    "a wrong type of a model in a file": Bad(
        ("--config", "{room}/model-type.yaml"), ("models.gpt2.dtype: got 'float23'; expected one of 'float32'",)
    ),
    "a wrong type of a model as an option": Bad(
        ("--models.gpt2.dtype", "float23"), ("models.gpt2.dtype: got 'float23'; expected one of 'float32'",)
    ),
    "a model that is a number": Bad(("--models", '{{"x": 3}}'), ("models.x: got 3; expected text or a section",)),
    "a list with a word for a vector": Bad(
        (*STEERED, "[0.1, a]"), ("analysis.control.control_vector: got [0.1, 'a']; expected text or a list of numbers",)
    ),
    "a word for a number": Bad(("--analysis.top_k", "many"), ("analysis.top_k: got 'many'", "expected a whole number")),
    "a number for a word": Bad(("--analysis.lens", "3"), ("analysis.lens: got 3", "'logit', 'raw', 'tuned'")),
    "a word for a switch": Bad(("--use-sampling=maybe",), ("analysis.use_sampling: got 'maybe'", "true or false")),
    "a negative seed": Bad(("--seed", "-1"), ("seed: got -1", "at least 0")),
    "no sentences": Bad(("--num-sentences", "0"), ("analysis.num_sentences: got 0", "at least 1", "null")),
    "too many sentences": Bad(("--num-sentences", "9"), ("analysis.num_sentences: got 9", "only 8", "null for all")),
    "a temperature of zero": Bad(("--temperature", "0"), ("analysis.temperature: got 0.0", "above 0")),
    "an order of Rényi's entropy that is Shannon's": Bad(
        ("--analysis.renyi_order", "1"), ("analysis.renyi_order: got 1.0", "above 0, and not within 0.02 of 1")
    ),
    "a negative order of Rényi's entropy": Bad(
        ("--analysis.renyi_order=-2",), ("analysis.renyi_order: got -2.0", "above 0")
    ),
    "an infinite order of Rényi's entropy": Bad(("--analysis.renyi_order", ".inf"), ("analysis.renyi_order: got inf",)),
    "a negative temperature": Bad(("--temperature=-0.5",), ("analysis.temperature: got -0.5", "above 0")),
    "a temperature that is no number": Bad(("--temperature", ".nan"), ("analysis.temperature: got nan", "above 0")),
    "an unknown metric, alone": Bad(
        ("--analysis.metrics", "entropi"), ("analysis.metrics: got 'entropi' (did you mean 'entropy'?)", "margin")
    ),
    "an unknown metric": Bad(("--analysis.metrics", "[entropy, warmth]"), ("analysis.metrics: got 'warmth'", "margin")),
    "no metrics": Bad(("--analysis.metrics", "[]"), ("analysis.metrics", "empty", "margin")),
    "a top_k beyond the vocabulary": Bad(
        ("--analysis.top_k", "1000"), ("analysis.top_k: got 1000", f"{CAUSAL_VOCAB} tokens", "fewer")
    ),
    "layer weights that are not numbers": Bad(
        (*STEERED, "[0.1]", "--analysis.control.layer_weights", "[a, b]"),
        ("analysis.control.layer_weights: got ['a', 'b']", "a list of numbers or null"),
    ),
    "layer weights that are not finite": Bad(
        (*STEERED, "[0.1]", "--analysis.control.layer_weights", "[1.0, .inf]"),
        ("analysis.control.layer_weights: got [1.0, inf]", "finite numbers"),
    ),
    "a comparison without a vector": Bad(("--compare-control",), ("analysis.compare_control", "--control-vector FILE")),
    "control without a vector": Bad(
        ("--analysis.control.enabled", "true"), ("analysis.control.enabled", "--control-vector FILE")
    ),
    "a missing vector": Bad((*STEERED, "{room}/no.pt"), ("analysis.control.control_vector:", "no.pt", "no such file")),
    "a vector of the wrong width": Bad((*STEERED, "{room}/wide.pt"), ("wide.pt", "width 33", "expected width 32")),
    "a vector with too few rows": Bad((*STEERED, "{room}/rows.pt"), ("rows.pt", "2 rows", "expected 3", "or 4")),
    "a vector with NaN": Bad((*STEERED, "{room}/nan.pt"), ("nan.pt", "NaN or infinity in 32 of 32")),
    "a vector that is code": Bad((*STEERED, "{room}/code.pt"), ("code.pt", "control_vector")),
    "a vector that is a bare pickle": Bad((*STEERED, "{room}/old.pt"), ("old.pt", "control_vector")),
    "an array that is code": Bad((*STEERED, "{room}/code.npy"), ("code.npy", "control_vector")),
    "a missing corpus": Bad(("--data.path", "{room}/none.csv"), ("data.path", "no file", "none.csv")),
    "a missing column": Bad(("--data.text_column", "txt"), ("data.text_column", "'txt'", "did you mean 'text'", "n")),
    "two text columns": Bad(("--data.path", "{room}/two.csv"), ("data.text_column", "prompt, answer", "name the one")),
    "a corpus of a header": Bad(("--data.path", "{room}/header.csv"), ("data.path", "header.csv", "no rows")),
    "an empty file": Bad(("--data.path", "{room}/empty.csv"), ("data.path", "empty.csv", "is empty")),
    "a corpus of blank rows": Bad(("--data.path", "{room}/blank.csv"), ("data.path", "no sentences", "2 rows hold no")),
    "a length beyond the model's": Bad(("--data.max_length", "61"), ("data.max_length: got 61", "at most 60", "null")),
    "a model that is neither causal nor masked": Bad(
        ("--models", '{{"t5": "{room}/t5"}}'),
        ("models.t5", "'t5'", "it is an encoder-decoder", "give a causal or masked"),
    ),
    "a folder without a model": Bad(
        ("--models", '{{"x": "{room}/no-model"}}'), ("no-model", "holds no config.json", "model's folder")
    ),
    "a missing model folder": Bad(("--models", '{{"x": "./nowhere"}}'), ("no folder ./nowhere", "builtin:tiny-gpt2")),
    "an unknown built-in model": Bad(("--models", '{{"x": "builtin:big"}}'), ("'big'", "tiny-gpt2, tiny-bert")),
    "a hub model without network": Bad(
        ("--models", '{{"x": "nobody/nothing"}}'), ("'nobody/nothing'", "local folder", "builtin:tiny-gpt2")
    ),
    "a model without a name": Bad(
        ("--models", '{{"x": {{"revision": "v2"}}}}'), ("models.x: got no name; expected models.x.name, text",)
    ),
    "no models": Bad(("--models", "{{}}"), ("models: got none", "at least one")),
    "a model's key that is no file name": Bad(("--models", '{{"a/b": "gpt2"}}'), ("models: the key 'a/b'", "letters")),
    "a path below a file": Bad(("--output.dir", "{room}/corpus.csv/out"), ("output.dir", "cannot write", "another")),
    "a folder that cannot be made": Bad(("--output.dir", "/proc/out"), ("output.dir", "/proc/out", "another folder")),
    "a run that exists": Bad(
        ("--output.dir", "{room}", "--output.run_name", "taken"), ("output.run_name", "taken", "exists already")
    ),
    "a run name with a slash": Bad(("--output.run_name", "a/b"), ("output.run_name: got 'a/b'", "separators")),
    "devices that are no number": Bad(("--trainer.devices", "some"), ("trainer: got", "devices 'some'", "int > 0")),
    "an unknown accelerator": Bad(("--trainer.accelerator", "abacus"), ("trainer: got accelerator 'abacus'", "cpu")),
    "a tuned lens without a folder": Bad(
        ("--analysis.lens", "tuned"), ("analysis.lens_path: got null", "needs the folder")
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(name: str, room: Path, capfd: pytest.CaptureFixture[str]):
    bad = BAD_INPUT[name]
    out = room / "out"
    arguments = ["--models", json.dumps({"gpt2": str(room / "gpt2")}), "--data.path", str(room / "corpus.csv")]
    arguments += ["--num-sentences", "null", "--output.dir", str(out), "--output.plots", "false", "--quiet"]
    if not any("csv" in option or "column" in option for option in bad.options):
        arguments += ["--data.text_column", "text"]
    before = set(room.iterdir())
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*arguments, *(option.format(room=room) for option in bad.options)])
    printed = capfd.readouterr()
    assert end.value.code == 2
    errors = [line for line in printed.err.splitlines() if "repeated to fill" not in line]
    assert len(errors) == 1, printed.err
    assert errors[0].startswith("llm-entropy: error: ")
    for word in bad.words:
        assert word in errors[0]
    assert printed.out == ""
    assert set(room.iterdir()) == before, "something was left behind, or code in a file was run"
    assert list((room / "taken").iterdir()) == []


def test_an_option_of_another_command_is_not_offered(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["extract", "--control-vector", "x.pt"])
    assert capsys.readouterr().err == (
        "llm-entropy: error: got the option --control-vector, which is not known; --help lists the options\n"
    )


def test_merging_what_is_no_run_is_one_line(room: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["merge", str(room)])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"llm-entropy: error: {room}: holds no run.json")


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--help"], ["--config", "config.yaml"]])
@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("merg", "the nearest known command is 'merge'"),
        ("Status", "the nearest known command is 'status'"),
        ("steering", "the known commands are predict, plan, merge, report, status, extract, convert-vector"),
        ("corpus.csv", "the known commands are predict, plan, merge, report, status, extract, convert-vector"),
    ],
)
def test_an_unknown_command_is_an_error_whatever_follows_it(
    word: str, hint: str, more: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as end:
        main([word, *more])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == f"llm-entropy: error: got the command '{word}', which is not known; {hint}\n"
    assert printed.out == ""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_of_the_table_shows_its_own_help(command: Command, capsys: pytest.CaptureFixture[str]):
    for arguments, words in ([command.name, "--help"], f"usage: llm-entropy {command.name} ["), (["-h"], command.help):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [[], ["--config", "x.yaml"], ["-x"]])
def test_without_a_command_it_is_predict(arguments: list[str]):
    assert _command(arguments) == (DEFAULT, arguments)
    assert DEFAULT.name == "predict"


def test_a_command_without_its_folder_says_so(capsys: pytest.CaptureFixture[str]):
    for arguments, words in (["merge"], "required: run_dir"), (["status", "x", "--mising"], "option is '--missing'"):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert capsys.readouterr().err.endswith(f"{words}\n")


@pytest.mark.parametrize(
    ("word", "plots"),
    [
        *[("false", False), ("true", True), ("entropy", ["entropy"])],
        *[("[layer_impact, entropy]", ["layer_impact", "entropy"]), ("[]", [])],
    ],
)
def test_plots_are_true_false_or_a_list_of_words(word: str, plots: object, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(f"output: {{plots: {word}}}")
    command = import_module(DEFAULT.module)
    for arguments in (["--output.plots", word], ["--config", str(tmp_path / "config.yaml")]):
        assert to_settings(command.parser("predict").read(arguments)).output.plots == plots


def test_what_a_run_will_do_is_said_before_anything_heavy_is_imported():
    code = "import sys; sys.modules['torch'] = None; from llm_entropy.commands.cli import main; main(sys.argv[1:])"
    words = ["predict", "--config", "configs/quickstart.yaml", "--output.run_name", "one"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    said, *rest = done.stderr.splitlines()
    assert said == (
        "measuring tiny-gpt2, tiny-bert on the built-in sentences: standard, control_-1, control_+0, control_+1 "
        "and 20 placebos; output: analysis_outputs/one; loading ..."
    )
    assert "import of torch halted" in rest[-1]


@pytest.mark.parametrize(
    ("quiet", "said"),
    [
        (["--quiet"], "runs/tense\n"),
        (
            [],
            "Vectors and their quality: runs/tense/vectors\n"
            "Steer with them: --control-vector 'runs/tense/vectors/{model}.safetensors'\n",
        ),
    ],
)
def test_an_extraction_ends_with_where_its_vectors_are(
    quiet: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ended = ExtractionResult(Path("runs/tense"), ("gpt2",))
    monkeypatch.setattr("llm_entropy.runs.extract.run_extraction", lambda *_, **__: ended)
    main(["extract", "--data.path", "builtin:pairs/tense", *quiet])
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(("option", "rank"), [("--quiet", "0"), ("--seed=0", "1")])
def test_only_the_first_process_says_what_a_run_will_do_unless_it_is_to_be_quiet(
    option: str, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(*_: Any, **__: Any) -> None:
        raise ReportedError("ended")

    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("llm_entropy.runs.run.run", run)
    with pytest.raises(SystemExit):
        main(["predict", option])
    assert capsys.readouterr().err == "llm-entropy: error: ended\n"


# --- what needs no model must be quick ---------------------------------------------------------------------------

_REPORT_IMPORTS = """
import sys
from llm_entropy.commands.cli import main
status = 0
try:
    main(sys.argv[1:])
except SystemExit as end:
    status = end.code or 0
print("imported", *[name for name in {heavy!r} if name in sys.modules], sep=",", file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, ["predict", "merge"]),
        (["predict", "--help"], 0, ["--analysis.temperature", "Every logit is divided by it", "--num-sentences for"]),
        (["merge", "--help"], 0, ["run_dir"]),
        (["--version"], 0, ["llm-entropy 0."]),
        (["predict", "--print_config"], 0, ["tokens_per_batch: auto", "google-bert/bert-base-uncased"]),
        (["predict", "--config", "configs/comparative.yaml", "--print_config"], 0, ["compare_control: true"]),
        (["predict", "--temperature", "0"], 2, []),
        (["predict", "--config", "nowhere.yaml"], 2, []),
        (["merg"], 2, []),
        (["predict", "--analysis.topk", "3"], 2, []),
    ],
)
def test_help_and_errors_of_parsing_import_nothing_heavy(arguments: list[str], status: int, words: list[str]):
    code = _REPORT_IMPORTS.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1] == "imported"
    said = " ".join(done.stdout.split())
    for word in words:
        assert word in said


def test_the_printed_configuration_is_one_that_can_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    with pytest.raises(SystemExit) as end:
        main(["predict", "--print_config"])
    assert end.value.code == 0
    first = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(first)
    with pytest.raises(SystemExit):
        main(["predict", "--config", str(tmp_path / "printed.yaml"), "--print_config"])
    assert capsys.readouterr().out == first


def test_one_key_of_a_model_can_be_changed_and_the_others_stay(capsys: pytest.CaptureFixture[str]):
    for start in ([], ["--config", str(ROOT / "configs" / "comparative.yaml")]):
        with pytest.raises(SystemExit):
            main([*start, "--models.gpt2.revision", "v2", "--models.third", "builtin:tiny-gpt2", "--print_config"])
        models = yaml.safe_load(capsys.readouterr().out)["models"]
        assert list(models) == ["gpt2", "bert", "third"]
        assert (models["gpt2"]["name"], models["gpt2"]["revision"]) == ("gpt2", "v2")
        assert models["third"] == "builtin:tiny-gpt2"


# --- runs --------------------------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """What a command left."""

    out: str
    folder: Path
    config: dict


@pytest.fixture
def predict(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a small analysis in process."""

    def run(*arguments: str) -> Ran:
        models = json.dumps({"gpt2": str(room / "gpt2")})
        where = ["--models", models, "--data.path", str(room / "corpus.csv"), "--output.dir", str(tmp_path / "runs")]
        small = ["--data.text_column=text", "--analysis.metrics", "[entropy]", "--output.plots=false"]
        main([*arguments, *where, *small])
        (folder,) = (tmp_path / "runs").iterdir()
        return Ran(capsys.readouterr().out, folder, yaml.safe_load((folder / "config.yaml").read_text()))

    return run


def test_short_names_stand_for_their_keys(predict):
    ran = predict("--num-sentences", "3", "--temperature=0.7", "--use-sampling", "--control-vector", "[0.1, 0.2]")
    analysis = ran.config["analysis"]
    assert (analysis["num_sentences"], analysis["temperature"], analysis["use_sampling"]) == (3, 0.7, True)
    assert analysis["control"]["control_vector"] == [0.1, 0.2]
    assert json.loads((ran.folder / "run.json").read_text())["mode"] == "control"
    assert set(SHORT_NAMES) == {
        "--num-sentences",
        "--temperature",
        "--use-sampling",
        "--compare-control",
        "--control-vector",
    }


def test_a_switch_alone_is_true_and_with_a_value_what_it_says(predict):
    ran = predict(
        "predict", "--compare-control", "--use-sampling=false", "--control-vector", "[0.1]", "--num-sentences=2"
    )
    assert ran.config["analysis"]["compare_control"] is True
    assert ran.config["analysis"]["use_sampling"] is False
    assert sorted(path.name for path in ran.folder.iterdir() if path.is_dir()) == [
        ".locks",
        "comparative",
        "control",
        "shards",
        "standard",
    ]


def test_a_run_ends_with_a_table_and_with_where_to_look(predict):
    ran = predict("--control-vector", "[0.1]", "--num-sentences", "null", "--compare-control")
    lines = [line.strip() for line in ran.out.splitlines()]
    (folder,) = [line.removeprefix("Tables and plots: ") for line in lines if line.startswith("Tables and plots:")]
    assert Path(folder).is_dir()
    (row,) = [line.split() for line in lines if line.startswith("gpt2")]
    assert row[:3] == ["gpt2", "entropy", "nats"]
    standard, difference, low, to, high, p_value = row[3:]
    assert to == "to"
    assert float(low) <= float(difference) <= float(high)
    assert float(standard) > 0
    assert 0 <= float(p_value) <= 1


@pytest.mark.parametrize(("name", "value"), [("RANK", "abc"), ("SLURM_PROCID", ""), ("LOCAL_RANK", "-1")])
def test_a_rank_that_is_no_number_is_one_line_of_error(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    words = rf"llm-entropy: error: {name}: got '{value}' in the environment; expected the number of this process; unset"
    assert re.fullmatch(f"{words}.*\n", capsys.readouterr().err)


def test_merge_makes_the_tables_again_from_the_command_line(predict, capsys: pytest.CaptureFixture[str]):
    folder = predict("--num-sentences", "3").folder
    table = folder / "standard" / "data" / "gpt2_entropy.csv"
    before = table.read_bytes()
    table.unlink()
    main(["merge", str(folder), "--quiet"])
    assert table.read_bytes() == before
    assert capsys.readouterr().out == f"{folder}\n"


def test_a_vector_file_is_read_from_the_command_line(predict, tmp_path: Path):
    torch.save(torch.ones(HIDDEN), tmp_path / "vector.pt")
    ran = predict("--compare-control", "--control-vector", str(tmp_path / "vector.pt"), "--num-sentences=null")
    table = ran.folder / "comparative" / "data" / "gpt2_entropy_comparative.csv"
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["sentence", "values"]
    assert [row[0] for row in rows[:4]] == [
        f"{SENTENCES[0]} ({what})" for what in ("standard", "control", "difference", "percent_change")
    ]
    assert len(rows) == 4 * len(SENTENCES)
    assert all(len(json.loads(row[1])) == 4 for row in rows)


# --- the published configuration, and those in configs/ ----------------------------------------------------------


@pytest.mark.slow
def test_the_published_configuration_runs_as_it_stands(hub: Path, tmp_path: Path):
    (tmp_path / "published.yaml").write_text(PUBLISHED)
    environment = {**os.environ, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "llm_entropy", "--config", "published.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "UserWarning" not in done.stderr
    (run_dir,) = (tmp_path / "analysis_outputs").iterdir()
    manifest = json.loads((run_dir / "run.json").read_text())
    assert manifest["status"] == "complete"
    assert [model["revision"] for model in manifest["models"].values()] == [f"{0:040x}", f"{1:040x}"]
    assert manifest["corpus"]["num_sentences"] == 10
    for model in ("gpt2", "bert"):
        for metric in DEFAULT_METRICS:
            assert (run_dir / "standard" / "data" / f"{model}_{metric}.csv").is_file()
            assert (run_dir / "comparative" / "plots" / f"{model}_{metric}_comparison.png").is_file()
    log = (run_dir / "run.log").read_text()
    assert "py.warnings" not in log
    assert "3 numbers repeated to fill the hidden size of bert" in log


KEPT = ("seed", "analysis", "models")


def without_sections() -> str:
    """Return the published configuration with its sections data, trainer and output left out."""
    return yaml.safe_dump(
        {key: value for key, value in yaml.safe_load(PUBLISHED).items() if key in KEPT}, sort_keys=False
    )


CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", ["published without sections", *CONFIGS])
def test_every_configuration_runs(
    config: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub / "hub"))
    monkeypatch.chdir(tmp_path)
    if config in CONFIGS:
        text = (ROOT / "configs" / config).read_text()
    else:
        text = without_sections()
        assert tuple(yaml.safe_load(text)) == KEPT
    (tmp_path / "config.yaml").write_text(text)
    command = "extract" if config == "extract.yaml" else "predict"
    main([command, "--config", "config.yaml", "--output.plots", "false", "--quiet"])
    (run_dir,) = (tmp_path / "analysis_outputs").iterdir()
    manifest = json.loads((run_dir / "run.json").read_text())
    assert manifest["status"] == "complete"
    assert list(manifest["models"]) == list(yaml.safe_load(text)["models"])
    modes = {"control.yaml": "control", "default.yaml": "standard", "extract.yaml": "extract"}
    mode = modes.get(config, "comparative")
    assert manifest["mode"] == mode
    assert (run_dir / ("vectors" if mode == "extract" else f"{mode}/data")).is_dir()
    assert capsys.readouterr().out == f"{run_dir.relative_to(tmp_path)}\n"
