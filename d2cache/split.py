"""A model over several devices: its layers' weights are spread, all else stays on the first.

Rows travel to a layer's weights and back, 2 x (R,d) per product; keys, values and whatever policies
keep never leave the first device, so no policy, decoder or probe has to handle the others.
"""

from __future__ import annotations

from functools import wraps
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from d2cache.model import Block, Model, ModelConfig


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor, or each tensor of nested tuples, on a device; None stays None."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_moved(one, device) for one in value)
    return value.to(device)


def _at_weights(piece: Any) -> Any:
    """A piece of a layer, computed on the device of its weights."""

    @wraps(piece)
    def remote(self: Block, x: Tensor, *rest: Any) -> Any:
        device = self.out_proj.weight.device
        return _moved(piece(self, *_moved((x, *rest), device)), x.device)

    return remote


class RemoteBlock(Block):
    """A layer whose weights may be on another device than the rows it is given."""

    qkv, query, key_value, value = map(
        _at_weights, (Block.qkv, Block.query, Block.key_value, Block.value)
    )
    project_out, mlp = _at_weights(Block.project_out), _at_weights(Block.mlp)


def spread(config: ModelConfig, shares: list[int]) -> tuple[Model, dict[str, int]]:
    """A model on the meta device, and for each of its parameters the number of its device.

    shares: how much each device should hold, in any unit. Embedding, norm and LM head stay on the
    first; the layers go to the devices in order, so that each holds about its share of the bytes.
    """
    with torch.device("meta"):
        model = Model(config)
        size = sum(p.numel() for p in model.blocks[0].parameters())
        whole = sum(p.numel() for p in model.parameters())
        done = whole - size * config.layers  # what is on the first already
        ends = [whole * held / sum(shares) for held in accumulate(shares)]
        places = {name: 0 for name, _ in model.named_parameters()}
        for i in range(config.layers):
            middle = done + size * (i + 0.5)
            at = sum(middle > end for end in ends[:-1])
            if at:
                model.blocks[i] = RemoteBlock(config)
                names = (name for name, _ in model.blocks[i].named_parameters())
                places |= {f"blocks.{i}.{name}": at for name in names}
    return model, places
