"""Adapters that peft has trained (LoRA and its like): found, and merged into the model that they belong to."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from llm_entropy.errors import ReportedError
from llm_entropy.models.checkpoints import ADAPTER_CONFIG, ADAPTERS

log = logging.getLogger("llm_entropy")

PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT")
"""Kinds of adapters that add tokens, and cannot be merged into weights."""


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
    kind = _kind_of(folder, name)
    if kind in PROMPTS:
        raise ReportedError(f"{name}: {kind} adds tokens and cannot be merged into weights; give LoRA or its like")
    return folder


def _kind_of(folder: Path, name: str) -> str:
    try:
        return str(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["peft_type"])
    except (ValueError, LookupError, TypeError) as error:
        raise ReportedError(f"{name}: {ADAPTER_CONFIG} does not say its peft_type; save the adapter again") from error


def merge_adapter(model: PreTrainedModel, folder: Path, name: str) -> PreTrainedModel:
    """Return a model with an adapter merged into its weights.

    Args:
        model: In float32, so that nothing is rounded before both are added. Changed in place.
        folder: What `find_adapter` returned.
        name: The model, for messages.

    Raises:
        ReportedError: The adapter belongs to another model.
    """
    import peft

    try:
        with warnings.catch_warnings():
            # peft warns of keys that are missing; they are looked at below
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            adapted: Any = peft.PeftModel(model, config)
            loading = adapted.load_adapter(str(folder), "default", torch_device="cpu")
            merged = adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ReportedError(
            f"{name}: the adapter {folder} cannot be merged into it ({reason}); give its base"
        ) from error
    strangers = sorted(loading.unexpected_keys)
    lacking = sorted(key for key in loading.missing_keys if config.peft_type.lower().split("_")[0] in key.lower())
    if strangers or lacking:
        raise ReportedError(
            f"{name}: the adapter {folder} was trained for another model: {len(strangers)} of its weights have no "
            f"place ({', '.join(strangers[:2])}), and {len(lacking)} places have no weights; give its base"
        )
    log.info(
        "%s: %s adapter %s merged in float32 (trained on %s)",
        name,
        str(config.peft_type.value),
        folder.name,
        config.base_model_name_or_path or "an unknown model",
    )
    assert all(parameter.dtype == torch.float32 for parameter in merged.parameters() if parameter.is_floating_point())
    return merged  # type: ignore[no-any-return]
