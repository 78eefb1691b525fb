"""Models whose code lies beside their weights: run when it is allowed, measured rightly, and part of what a run is."""

from __future__ import annotations

import fcntl
import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import HIDDEN, SENTENCES, make_model, make_tokenizer, save_model
from torch import Tensor
from transformers import dynamic_module_utils

from llm_entropy import measure, open_model, run_analysis
from llm_entropy.errors import ReportedError
from llm_entropy.models.attention.interface import attention_implementation
from llm_entropy.models.finding import find_model, load_skeleton
from llm_entropy.models.loaded import loaded_source
from llm_entropy.models.loading import load_model
from llm_entropy.models.own_code import LOCK
from llm_entropy.runs import opening
from llm_entropy.runs.identity import model_identity
from llm_entropy.runs.plan import plan_model
from llm_entropy.settings import AnalysisSettings, ModelSettings, OutputSettings, Settings

CONFIGURATION = """
from transformers import PretrainedConfig

class MineConfig(PretrainedConfig):
    model_type = "mine_of_a_folder"

    def __init__(self, vocab_size=331, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, **more):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.sharpness, self.max_position_embeddings = num_attention_heads, 3.0, 64
        super().__init__(**more)
"""
MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from .configuration_mine import MineConfig

class Attention(nn.Module):
    # by the angle between query and key, sharpened; no interface of transformers knows it
    def __init__(self, config):
        super().__init__()
        self.heads, self.sharpness = config.num_attention_heads, config.sharpness
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, stream, allowed):
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(stream).chunk(3, dim=-1)
        )
        query, key = nn.functional.normalize(query, dim=-1), nn.functional.normalize(key, dim=-1)
        scores = self.sharpness * query @ key.transpose(-1, -2)
        weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2)), weights

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(config.hidden_size), Attention(config)

    def forward(self, stream, allowed):
        attended, weights = self.attention(self.norm(stream), allowed)
        return (torch.add(stream, attended), weights)

class MineModel(PreTrainedModel):
    config_class, base_model_prefix = MineConfig, "body"

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.stack = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.last = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        length = input_ids.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        allowed = allowed & attention_mask[:, None, None, :].bool()
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=input_ids.device)
        stream = self.words(input_ids)
        for block in self.stack:
            stream, _ = block(stream, allowed)
        return self.last(stream)

class MineForCausalLM(PreTrainedModel):
    config_class, base_model_prefix = MineConfig, "body"

    def __init__(self, config):
        super().__init__(config)
        self.body = MineModel(config)
        self.scores = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.body.words

    def get_output_embeddings(self):
        return self.scores

    def forward(self, input_ids, attention_mask):
        return CausalLMOutput(logits=self.scores(self.body(input_ids, attention_mask)))
"""
TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class MineTokenizerFast(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
VECTOR = torch.linspace(-1.0, 1.5, HIDDEN)
METRICS = ["entropy", "surprisal", "attention_entropy"]


@pytest.fixture(autouse=True, scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of modules of its own: what else was imported from another one is not there, and comes back."""
    kept = {name: own for name, own in sys.modules.items() if name.partition(".")[0] == "transformers_modules"}
    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        for name in kept:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules" and name not in kept]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> Path:
    """A folder with a model of a family of its own, with configuration, model and tokenizer made by its code."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "configuration_mine.py").write_text(CONFIGURATION)
    (folder / "modeling_mine.py").write_text(MODELING)
    (folder / "tokenization_mine.py").write_text(TOKENIZER)
    about = {"model_type": "mine_of_a_folder", "auto_map": AUTO_MAP, "architectures": ["MineForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(about))
    make_tokenizer("causal").save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    own = {
        "tokenizer_class": "MineTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_mine.MineTokenizerFast"]},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def settings(folder: Path) -> dict[str, Any]:
    return {"name": str(folder), "trust_remote_code": True}


def copy_of(mine: Path, folder: Path, changes: dict[str, str]) -> Path:
    """Copy the model, with words of its modeling_mine.py replaced."""
    shutil.copytree(mine, folder / mine.name)
    path = folder / mine.name / "modeling_mine.py"
    code = path.read_text()
    for before, after in changes.items():
        assert before in code
        code = code.replace(before, after)
    path.write_text(code)
    return folder / mine.name


def find(folder: Path, trust_remote_code: bool = True):
    return find_model("mine", ModelSettings(str(folder), trust_remote_code=trust_remote_code))


# --- measured rightly --------------------------------------------------------------------------------------------


def forward(folder: Path, ids: list[int], vector: Any = None) -> dict[str, np.ndarray]:
    """Return the metrics of the last token, written out in float64: what the code of the model says it does."""
    weights = {name: weight.double() for name, weight in load_file(folder / "model.safetensors").items()}

    def norm(stream: Tensor, name: str) -> Tensor:
        return torch.nn.functional.layer_norm(stream, (HIDDEN,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    stream = weights["body.words.weight"][ids]
    layers, attention = [stream], []
    for block in range(3):
        name = f"body.stack.{block}"
        qkv = norm(stream, f"{name}.norm") @ weights[f"{name}.attention.qkv.weight"].T
        query, key, value = (qkv + weights[f"{name}.attention.qkv.bias"]).unflatten(1, (3, 4, -1)).unbind(1)
        unit = [part / part.norm(dim=-1, keepdim=True) for part in (query, key)]
        scores = 3.0 * torch.einsum("ihw,jhw->hij", *unit)
        scores = scores.masked_fill(~torch.ones(scores.shape, dtype=torch.bool).tril(), -torch.inf)
        maps = scores.softmax(-1)
        attended = torch.einsum("hij,jhw->ihw", maps, value).flatten(1)
        stream = stream + attended @ weights[f"{name}.attention.out.weight"].T
        if vector is not None:
            stream = stream + vector.double()
        layers.append(stream)
        attention.append(torch.special.entr(maps[:, -1]).sum(-1).mean())
    log_p = (norm(torch.stack(layers)[:, -1], "body.last") @ weights["scores.weight"].T).log_softmax(-1)
    return {
        "entropy": -(log_p.exp() * log_p).sum(-1).numpy(),
        "surprisal": -log_p[:, log_p[-1].argmax()].numpy(),
        "attention_entropy": torch.stack(attention).numpy(),
    }


def test_a_run_measures_it_standard_and_steered_as_its_own_forward_pass_in_float64(mine: Path, tmp_path: Path) -> None:
    result = run_analysis(
        {"mine": settings(mine)},
        sentences=SENTENCES,
        metrics=METRICS,
        compare_control=True,
        control_vector=VECTOR,
        output=OutputSettings(dir=str(tmp_path), plots=False, report=False),
        quiet=True,
    )
    tokenizer = make_tokenizer("causal")
    for condition, vector in (("standard", None), ("control", VECTOR)):
        for number, sentence in enumerate(SENTENCES):
            expected = forward(mine, tokenizer(sentence).input_ids, vector)
            for metric in METRICS:
                found = result["mine"][condition][metric].to_numpy()[number]
                np.testing.assert_allclose(
                    found, expected[metric], rtol=2e-4, atol=2e-5, err_msg=f"{condition} {metric}"
                )


def test_the_library_opens_it_by_name_and_loaded(mine: Path) -> None:
    source = find(mine)
    assert type(source.tokenizer).__name__ == "MineTokenizerFast"
    model = load_model(source, precision="32-true", needs_attention=False)
    tables = []
    for lm in (open_model(settings(mine), name="mine"), open_model(model, source.tokenizer, name="mine")):
        frame = measure(lm, SENTENCES[2:4], metrics=["entropy", "attention_entropy"], positions="last")
        tables.append(frame["value"].to_numpy())
        for number in (0, 1):
            own = frame[frame["sentence_id"] == number]
            expected = forward(mine, source.tokenizer(SENTENCES[2 + number]).input_ids)
            for metric in ("entropy", "attention_entropy"):
                found = own[own["metric"] == metric]["value"].to_numpy()
                np.testing.assert_allclose(found, expected[metric], rtol=2e-4, atol=2e-5)
    assert np.array_equal(*tables)


SAYS_SDPA = {
    f"class {name}(PreTrainedModel):": f"class {name}(PreTrainedModel):\n    _supports_sdpa = True"
    for name in ("MineForCausalLM", "MineModel")
}
OUTER_ALONE = dict([*SAYS_SDPA.items()][:1]) | {
    "# by the angle": "# ALL_ATTENTION_FUNCTIONS.get_interface( by the angle"
}
INTERFACE = {
    "import torch\n": "import torch\nfrom transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS\n",
    "self.heads, self": "self.config = config; self.heads, self",
    "        scores = self.sharpness * query @ key.transpose(-1, -2)\n": "",
    "        weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)\n": """
        def eager(module, query, key, value, mask, scaling):
            scores = scaling * query @ key.transpose(-1, -2)
            weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
            return (weights @ value).transpose(1, 2), weights
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)
        attended, weights = attend(self, query, key, value, allowed, scaling=self.sharpness)
""",
    "self.out((weights @ value).transpose(1, 2).flatten(2)), weights": "self.out(attended.flatten(2)), weights",
}


@pytest.mark.parametrize(
    ("changes", "attention"),
    [(SAYS_SDPA, "eager"), (OUTER_ALONE, "eager"), ({**SAYS_SDPA, **INTERFACE}, "sdpa_and_entropy")],
    ids=["without the interface", "refused by a part of it", "through the interface"],
)
def test_its_attention_is_read_through_the_interface_where_its_code_uses_that(
    changes: dict[str, str], attention: str, mine: Path, tmp_path: Path
) -> None:
    folder = copy_of(mine, tmp_path, changes)
    model = load_model(find(folder), precision="32-true", needs_attention=True)
    assert attention_implementation(model) == attention
    frame = measure(open_model(settings(folder)), SENTENCES[2:3], metrics=METRICS, positions="last")
    expected = forward(folder, make_tokenizer("causal")(SENTENCES[2]).input_ids)
    for metric in METRICS:
        found = frame[frame["metric"] == metric]["value"].to_numpy()
        np.testing.assert_allclose(found, expected[metric], rtol=2e-4, atol=2e-5, err_msg=metric)


def test_without_a_cache_of_what_was_read_it_writes_no_texts(mine: Path) -> None:
    analysis = AnalysisSettings(positions="generated", metrics=["entropy"])
    plan = plan_model("mine", ModelSettings(**settings(mine)), Settings(analysis=analysis))
    with pytest.raises(ReportedError, match=r"models\.mine: .*: MineModel takes no cache or past_key_values"):
        opening.open_model(plan, analysis)


# --- permission --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("config.json", AUTO_MAP),
        ("config.json", {"AutoModelForCausalLM": AUTO_MAP["AutoModelForCausalLM"]}),  # of a family without a head
        ("tokenizer_config.json", {"AutoTokenizer": [None, "tokenization_mine.MineTokenizerFast"]}),
    ],
    ids=["all", "model", "tokenizer"],
)
def test_code_is_run_with_permission_alone_and_the_error_says_where_it_lies(
    file: str, auto_map: dict[str, Any], mine: Path, tmp_path: Path
) -> None:
    folder = save_model("llama", tmp_path / "llama")
    for name in ("configuration_mine.py", "modeling_mine.py", "tokenization_mine.py"):
        (folder / name).write_text("raise AssertionError('run without permission')")
    about = json.loads((folder / file).read_text()) | {"auto_map": auto_map}
    if file == "tokenizer_config.json":
        about["tokenizer_class"] = "MineTokenizer"
    else:
        about["model_type"] = "mine_of_a_folder" if "AutoConfig" in auto_map else "vit"
    (folder / file).write_text(json.dumps(about))
    with pytest.raises(ReportedError) as caught:
        find(folder, trust_remote_code=False)
    assert str(caught.value) == (
        f"models.mine: {folder} needs code of its own; its code lies in {folder}; it is run only with "
        "models.mine.trust_remote_code: true, so read it first"
    )


def test_a_permission_that_is_not_needed_changes_nothing(tmp_path: Path) -> None:
    folder = str(save_model("gpt2", tmp_path / "gpt2"))
    identities = [
        model_identity(plan_model("mine", ModelSettings(folder, trust_remote_code=trust), Settings()))
        for trust in (False, True)
    ]
    assert identities[0] == identities[1]


def test_a_loaded_model_is_not_asked_to_run_the_code_of_its_tokenizer(mine: Path) -> None:
    model = load_model(find(mine), precision="32-true", needs_attention=False)
    with pytest.raises(ReportedError, match=r"without a tokenizer; expected \(model, tokenizer\)"):
        open_model(model, name="mine")


# --- what it is made of ------------------------------------------------------------------------------------------


def test_the_bytes_of_its_code_are_part_of_what_a_run_is(mine: Path, tmp_path: Path) -> None:
    def identity(folder: Path) -> dict[str, Any]:
        return model_identity(plan_model("mine", ModelSettings(**settings(folder)), Settings()))

    same, other = copy_of(mine, tmp_path / "a", {}), copy_of(mine, tmp_path / "b", {"torch.add(": "torch.sub("})
    assert identity(same) == identity(mine) | {"name": str(same)}
    assert identity(other)["code"] != identity(mine)["code"]
    code = other / "configuration_mine.py"
    before = identity(other)["code"]
    code.write_text(code.read_text() + "# a word")
    assert identity(other)["code"] != before


def test_a_run_is_not_resumed_with_other_code(mine: Path, tmp_path: Path) -> None:
    folder = copy_of(mine, tmp_path, {})
    options: dict[str, Any] = {"sentences": SENTENCES[:2], "metrics": ["entropy"], "quiet": True}
    output = OutputSettings(dir=str(tmp_path), run_name="run", plots=False, report=False)
    run_analysis({"mine": settings(folder)}, output=output, **options)
    modeling = folder / "modeling_mine.py"
    modeling.write_text(modeling.read_text().replace("torch.add(", "torch.sub("))
    with pytest.raises(ReportedError, match=r"models\.mine\.code has changed; resume it with"):
        run_analysis({"mine": settings(folder)}, output=output, resume=True, **options)


def test_code_that_has_changed_since_it_was_loaded_is_run_as_it_is_now(mine: Path, tmp_path: Path) -> None:
    def last_layer(folder: Path) -> Tensor:
        model = load_model(find(folder), precision="32-true", needs_attention=False)
        with torch.inference_mode():
            return model(torch.arange(5)[None], torch.ones(1, 5, dtype=torch.int64)).logits

    folder = copy_of(mine, tmp_path, {})
    before = last_layer(folder)
    modeling = folder / "modeling_mine.py"
    modeling.write_text(modeling.read_text().replace("torch.add(", "torch.sub("))
    assert (last_layer(folder) - before).abs().max() > 0.1


def test_its_skeleton_is_made_without_weights(mine: Path) -> None:
    skeleton = load_skeleton(find(mine))
    assert type(skeleton).__name__ == "MineForCausalLM"
    assert {weight.device.type for weight in skeleton.parameters()} == {"meta"}


def test_the_code_of_a_hub_model_is_that_of_its_commit(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--some--mine"
    for commit, change in (("a" * 40, {}), ("b" * 40, {"torch.add(": "torch.sub("})):
        copy_of(mine, repository / "snapshots", change).rename(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ReportedError, match="its code lies in the hub repository some/mine; it is run only with"):
        find_model("mine", ModelSettings("some/mine"))
    source = find_model("mine", ModelSettings("some/mine", trust_remote_code=True))
    assert (source.revision, source.code) == ("a" * 40, find(mine).code)
    (repository / "refs/main").write_text("b" * 40)
    model = load_model(source, precision="32-true", needs_attention=False)
    assert "torch.add(" in inspect.getsource(type(model.body.stack[0]))
    later = find_model("mine", ModelSettings("some/mine", trust_remote_code=True))
    assert (later.revision, later.code == source.code) == ("b" * 40, False)


def test_the_code_of_a_model_that_is_loaded_counts_too(mine: Path) -> None:
    source = find(mine)
    model = load_model(source, precision="32-true", needs_attention=False)
    assert loaded_source("mine", model, source.tokenizer).code == source.code
    assert loaded_source("gpt2", make_model("gpt2"), make_tokenizer("causal")).code is None


# --- copying it --------------------------------------------------------------------------------------------------


def test_one_process_at_a_time_copies_code(
    mine: Path, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    copy = shutil.copyfile

    def copy_alone(source: Any, target: Any, **options: Any) -> Any:
        if not str(target).startswith(str(modules)):
            return copy(source, target, **options)
        with (modules / LOCK).open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copied.append(Path(target).name)
        return copy(source, target)

    monkeypatch.setattr(dynamic_module_utils.shutil, "copyfile", copy_alone)
    source = find(copy_of(mine, tmp_path, {"class Block": "# another\nclass Block"}))
    assert "modeling_mine.py" in copied
    copied.clear()
    load_model(source, precision="32-true", needs_attention=False)
    assert not copied
    with (modules / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_code_needs_and_does_not_find_is_one_error(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = rf"packages that were not found .*gone_package.*in the place of transformers {transformers.__version__}"
    with pytest.raises(ReportedError, match=message):
        find(copy_of(mine, tmp_path, {"import torch\n": "import torch\nimport gone_package\n"}))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "file"))
    with pytest.raises(ReportedError, match="set HF_MODULES_CACHE to a folder that can be written to"):
        find(mine)
