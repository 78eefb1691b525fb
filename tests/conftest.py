"""What every test stands on: no network, and a single thread."""

from __future__ import annotations

import os

# Before transformers is imported: no test may depend on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

# The models are tiny: threads would cost more than they give, much more on a machine that is busy.
torch.set_num_threads(1)
