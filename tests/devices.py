"""The device that tests with the marker `gpu` use: the CPU, unless the variable TEST_DEVICE names another."""

from __future__ import annotations

import os

import torch

from llm_entropy.measuring.module import EntropyModule
from llm_entropy.schema.batches import Batch
from llm_entropy.schema.records import Records

DEVICE = torch.device(os.environ.get("TEST_DEVICE") or "cpu")


def predict(module: EntropyModule, batch: Batch) -> Records:
    """Return what a module, which is moved there, gives on the device, once it has arrived on the CPU."""
    records = module.to(DEVICE).predict_step(batch.to(DEVICE), 0)
    if records.wait is not None:
        records.wait()
    return records
