"""Adapters that peft has trained (LoRA and its like): found, and merged into the model that they belong to."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_entropy.errors import ReportedError
from llm_entropy.models.checkpoints import ADAPTER_CONFIG, ADAPTERS, UNREADABLE

log = logging.getLogger("llm_entropy")

PROMPTS = (
    "PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
)
"""Kinds of adapters that add tokens, and cannot be merged into weights."""
ROUTED = ("XLORA", "POLY", "LILY", "SHADOW")
"""Kinds that compute something of their own from each text."""
UNMERGED = {
    "alora_invocation_tokens": "it acts only behind certain tokens of a text (aLoRA)",
    "arrow_config": "it chooses among several adapters for each token (Arrow)",
    "layer_replication": "it repeats blocks of the model",
}
"""Settings of a LoRA adapter with which it is more than a change of weights, and why."""
TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""Tasks of peft that are not those of a language model."""
TASK_CLASSES = re.compile(r"(Classification|QuestionAnswering|MultipleChoice)$")
"""Classes of transformers for such tasks; peft writes the class where it was told no task."""
SIZES = re.compile(r"size mismatch for (\S+): .*?Size\(\[([\d, ]*)\]\).*?Size\(\[([\d, ]*)\]\)")
"""How torch reports a weight of another size: its name, what was found, what was expected."""
MISFITS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)
"""What peft and torch raise where an adapter and a model do not belong together."""
TOKENIZER = "tokenizer.json"


def find_adapter(key: str, adapter: str) -> Path:
    """Return the folder of an adapter, which is fetched if it lies on the hub.

    Args:
        key: The model's name in the settings.
        adapter: A folder, or a hub name.

    Raises:
        ReportedError: peft is not installed, there is no such adapter, or it cannot be merged.
    """
    name = f"models.{key}.adapter: {adapter}"
    if importlib.util.find_spec("peft") is None:
        raise ReportedError(f"{name} needs the package peft; run: pip install 'llm-entropy[peft]'")
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(adapter, allow_patterns=["adapter_*"]))
        except (OSError, ValueError) as error:
            raise ReportedError(f"{name} is no folder, and cannot be had from the hub; give a folder") from error
    if not (folder / ADAPTER_CONFIG).is_file() or not any((folder / file).is_file() for file in ADAPTERS):
        raise ReportedError(
            f"{name} holds no adapter; expected {ADAPTER_CONFIG} and {ADAPTERS[0]}, as save_pretrained of peft writes "
            "them"
        )
    _check_config(_read_config(folder, name), name)
    return folder


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        about = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        about["peft_type"] = str(about["peft_type"])
    except (ValueError, LookupError, TypeError) as error:
        raise ReportedError(f"{name}: {ADAPTER_CONFIG} does not say its peft_type; save the adapter again") from error
    return about  # type: ignore[no-any-return]


def _check_config(about: dict[str, Any], name: str) -> None:
    """Refuse an adapter whose configuration shows that it cannot be merged into a language model."""
    import peft

    kind, task = about["peft_type"], about.get("task_type")
    if kind in PROMPTS:
        raise ReportedError(f"{name}: {kind} adds tokens and cannot be merged into weights; give LoRA or its like")
    if kind in ROUTED:
        raise ReportedError(
            f"{name}: {kind} computes something for each text and cannot be merged into weights; give LoRA or its like"
        )
    if kind not in {known.value for known in peft.PeftType}:
        raise ReportedError(f"{name}: peft {peft.__version__} does not know the kind {kind}; install a newer peft")
    for setting, reason in UNMERGED.items():
        if about.get(setting):
            raise ReportedError(
                f"{name} has {setting}: {reason}, so it cannot be merged into weights; give an adapter without it"
            )
    trained = str((about.get("auto_mapping") or {}).get("base_model_class", ""))
    if task in TASKS or TASK_CLASSES.search(trained):
        raise ReportedError(
            f"{name} was trained for {task or trained}, and not as a language model; give an adapter of a language "
            "model"
        )


def check_adapter(
    skeleton: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, adapter: str, name: str
) -> None:
    """Make sure that an adapter fits a model, from the names and sizes of its weights.

    A few kinds cannot be made without numbers; `merge_adapter` checks these.

    Args:
        skeleton: The model on the meta device. Changed in place.
        tokenizer: The model's.
        folder: What `find_adapter` returned.
        adapter: The adapter as it is given, for messages.
        name: The model, for messages.

    Raises:
        ReportedError: The adapter was trained for another model, or its weights cannot be read.
    """
    try:
        weights = _meta_weights(folder)
    except UNREADABLE as error:
        raise ReportedError(
            f"{adapter}: its weights cannot be read ({error}); save or fetch the adapter again"
        ) from error
    try:
        config = _peft_config(folder)
    except MISFITS as error:
        raise ReportedError(
            f"{adapter}: {ADAPTER_CONFIG} is not what peft writes ({_first_line(error)}); save the adapter again"
        ) from error
    num_tokens = _num_tokens(skeleton)
    if (most := _most_token(config)) >= num_tokens:
        raise ReportedError(_more_tokens(adapter, f"at least {most + 1}", name, num_tokens))
    try:
        adapted, loading = _fill_skeleton(skeleton, config, weights)
    except NotImplementedError:
        pass
    except MISFITS as error:
        raise _misfit(adapter, name, error, num_tokens) from error
    else:
        _check_keys(adapted, loading, adapter, name)
    _warn_of_tokens(folder, tokenizer, adapter)
    _warn_of_settings(folder, config, adapter)


def _fill_skeleton(skeleton: PreTrainedModel, config: Any, weights: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    """Put an adapter into a model without numbers.

    Returns:
        The model of peft, and which keys are missing or unexpected.

    Raises:
        NotImplementedError: This kind is made from numbers.
    """
    import peft

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            adapted = peft.PeftModel(skeleton, config)
        except RuntimeError as error:  # some operations on the meta device raise this one
            raise NotImplementedError from error
        return adapted, peft.set_peft_model_state_dict(adapted, weights)


def _meta_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of an adapter without their numbers."""
    path = next(folder / file for file in ADAPTERS if (folder / file).is_file())
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="meta", weights_only=True)  # type: ignore[no-any-return]
    with safe_open(path, framework="pt") as weights:
        return {key: torch.empty(weights.get_slice(key).get_shape(), device="meta") for key in weights.keys()}  # noqa: SIM118


def _peft_config(folder: Path) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that it does not know; `check_adapter` lists them
        config = peft.PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    return config


def _num_tokens(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]


def _most_token(config: Any) -> int:
    """Return the last token whose embedding an adapter holds by itself; -1: there is none."""
    chosen = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    groups = chosen.values() if isinstance(chosen, dict) else [chosen]
    return max((int(token) for group in groups for token in group), default=-1)


def _more_tokens(adapter: str, found: str, name: str, expected: int) -> str:
    return (
        f"{adapter} was trained with {found} tokens, and {name} has {expected}; in Python, resize the model's "
        f"embeddings to the adapter's tokenizer, merge the adapter (merge_and_unload), save the result with that "
        "tokenizer, and give its folder as the model"
    )


def _misfit(adapter: str, name: str, error: Exception, num_tokens: int) -> ReportedError:
    """Say why peft cannot put an adapter into a model."""
    sizes = [
        (weight, [int(size) for size in found.split(",")], [int(size) for size in expected.split(",")])
        for weight, found, expected in SIZES.findall(str(error))
    ]
    for weight, found, expected in sizes:
        if not _is_of_tokens(found, expected, num_tokens):
            place = weight.removeprefix("base_model.model.").replace(".default", "")
            return ReportedError(
                f"{adapter} was trained for another model than {name}: {place} is {found} in the adapter, and "
                f"{expected} would fit ({len(sizes)} weights have other sizes); give its base"
            )
    if sizes:
        _, found, expected = sizes[0]
        return ReportedError(_more_tokens(adapter, str(max(set(found) - set(expected))), name, num_tokens))
    reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else _first_line(error)
    return ReportedError(f"{adapter} does not fit {name} ({reason}); give its base")


def _is_of_tokens(found: list[int], expected: list[int], num_tokens: int) -> bool:
    """Say whether two sizes of a weight differ in the number of tokens alone."""
    if len(found) != len(expected):
        return False
    return [want for have, want in zip(found, expected, strict=True) if have != want] == [num_tokens]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _check_keys(adapted: Any, loading: Any, adapter: str, name: str) -> None:
    """Refuse an adapter with weights that have no place in the model, or places that have no weights."""
    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    missing = set(loading.missing_keys)
    filled = {id(parameter) for key, parameter in parameters.items() if key not in missing}  # some have several names
    lacking = [
        key for key in sorted(missing) if adapted.base_model.prefix in key and id(parameters.get(key)) not in filled
    ]
    strangers = sorted(loading.unexpected_keys)
    if strangers or lacking:
        raise ReportedError(
            f"{adapter} was trained for another model than {name}: {len(strangers)} of its weights have no place, and "
            f"{len(lacking)} places have no weights ({', '.join([*strangers, *lacking][:2])}); give its base"
        )


def _warn_of_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase, adapter: str) -> None:
    """Warn of tokens that were added for an adapter: texts are read by the tokenizer of the model."""
    try:
        about = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
        added = [str(token["content"]) for token in about.get("added_tokens", ())]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # it is the tokenizer of nobody
    known = tokenizer.get_vocab()
    if unknown := [token for token in added if token not in known]:
        log.warning(
            "%s: its tokenizer has %d tokens that the model's has not (%s); where they are in texts, they are split: "
            "merge the adapter in Python, save the result with its tokenizer, and give its folder as the model",
            adapter,
            len(unknown),
            ", ".join(unknown[:3]),
        )


def _warn_of_settings(folder: Path, config: Any, adapter: str) -> None:
    """Warn of what a newer peft has written, and this one ignores."""
    import peft

    known = {field.name for field in dataclasses.fields(config)} | {"peft_version"}
    given = {key for key, value in _read_config(folder, adapter).items() if value}
    if unknown := sorted(given - known):
        log.warning("%s: peft %s ignores its %s; install a newer peft", adapter, peft.__version__, ", ".join(unknown))


def merge_adapter(model: PreTrainedModel, folder: Path, adapter: str, name: str) -> PreTrainedModel:
    """Return a model with an adapter merged into its weights.

    Args:
        model: In float32, so that nothing is rounded before both are added. Changed in place.
        folder: What `find_adapter` returned.
        adapter: The adapter as it is given, for messages.
        name: The model, for messages.

    Raises:
        ReportedError: The adapter belongs to another model, or cannot be merged.
    """
    import peft

    config = _peft_config(folder)
    with warnings.catch_warnings():
        # peft warns of keys that are missing, which are looked at below, and of tied weights, which are untied
        warnings.simplefilter("ignore")
        try:
            adapted: Any = peft.PeftModel(model, config)
            loading = adapted.load_adapter(str(folder), "default", torch_device="cpu")
        except MISFITS as error:
            raise _misfit(adapter, name, error, _num_tokens(model)) from error
        _check_keys(adapted, loading, adapter, name)
        _make_room_(adapted)
        try:
            merged = adapted.merge_and_unload(safe_merge=True)
        except MISFITS as error:
            raise ReportedError(
                f"{adapter}: peft {peft.__version__} cannot merge it into {name} ({_first_line(error)}); give "
                "an adapter that can be merged, or a folder of weights in which it is merged"
            ) from error
    log.info(
        "%s merged into %s in float32 (%s, trained on %s)",
        adapter,
        name,
        config.peft_type.value,
        config.base_model_name_or_path or "an unknown model",
    )
    assert all(parameter.dtype == torch.float32 for parameter in merged.parameters() if parameter.is_floating_point())
    return merged  # type: ignore[no-any-return]


def _make_room_(adapted: Any) -> None:
    """Give each adapted layer weights of its own, and a bias where the adapter has one.

    An adapter of tied embeddings was trained on one of their two uses; merged into both it would be another model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = adapted.peft_config["default"]
    has_bias = getattr(config, "lora_bias", False) or config.peft_type.value == "BEFT"
    uses = Counter(id(weight) for _, weight in adapted.named_parameters(remove_duplicate=False))
    for layer in adapted.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        base: Any = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and uses[id(weight)] > 1:
            uses[id(weight)] -= 1
            base.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
        if has_bias and isinstance(base, torch.nn.Linear) and getattr(base, "bias", None) is None:
            base.bias = torch.nn.Parameter(torch.zeros(base.out_features), requires_grad=False)
