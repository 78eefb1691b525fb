"""What blocks hand on, read as means over positions, is what the layers are, in every family."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, make_model

from llm_entropy.models.families import run_base, view_model
from llm_entropy.models.layers import read_block_means, read_layers


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_means_over_positions_are_those_of_the_layers(family: str) -> None:
    view = view_model(make_model(family))
    ids = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    rows, positions = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([2, 3, 6, 1, 4])
    told: list[None] = []
    with (
        read_layers(view, rows, positions) as layers,
        read_block_means(view, rows, positions, before=lambda: told.append(None)) as read,
    ):
        run_base(view, ids, mask)
    wanted = layers.stack()[1:]
    assert len(read) == len(wanted) == len(told) == view.shape.num_blocks
    for (states, norms), own in zip(read, wanted, strict=True):
        for row in (0, 1):
            torch.testing.assert_close(states[row], own[rows == row].mean(dim=0))
            torch.testing.assert_close(norms[row], own[rows == row].norm(dim=1).mean())
    with read_block_means(view, rows[[0, 3]], positions[[2, 4]], before=lambda: None) as single:
        run_base(view, ids, mask)
    assert all(torch.equal(states[1], own[4]) for (states, _), own in zip(single, wanted, strict=True))
