"""Fast-dLLM's prefix cache: what lies left of the open block."""

from dataclasses import dataclass

import torch

from d2cache.canvas import Plan, Why
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob


@dataclass
class PrefixCache(CachePolicy, key="prefix"):
    """Fast-dLLM prefix cache (arXiv 2505.22618): reuse everything left of the open block.

    A full pass opens each block and writes its first tokens; until the block is written, it and
    all that follows it are recomputed. No further pass is made for a block that the full pass
    finished. Made for blocks: with a single one only the prompt is reused.

    `as_shipped` matters for models whose logits are shifted (Dream): the public code recomputes
    the rows that predict the window and not the window, so the last row keeps what the full pass
    left.
    """

    for_blocks = True
    as_shipped: bool = knob(False, None, None, "with shifted logits, shift the recomputed rows too")

    def begin(self, model, canvas):
        super().begin(model, canvas)
        self.opened = torch.full_like(canvas.start, -1)
        self.shift = model.config.shift

    def plan(self, canvas):
        full, window = super().plan(canvas), self.window(canvas)
        first = self.block_start(canvas)
        opens = (first != self.opened)[:, None]
        self.opened = first
        back = self.shift * self.as_shipped
        near = canvas.block * int(Why.BLOCK) + (window & ~canvas.block) * int(Why.WINDOW)
        why = torch.where(opens, full.why, near.byte().roll(-back, 1))
        refresh = torch.where(opens, full.refresh, window.roll(-back, 1))
        return Plan(canvas.masked & (opens | window), refresh, why)

    def block_start(self, canvas):
        """(B,) first position of each row's open block."""
        return torch.where(canvas.block, canvas.position, canvas.tokens.shape[1]).amin(1)

    def window(self, canvas):
        """(B,T) bool: positions recomputed while a block is open."""
        return canvas.position >= self.block_start(canvas)[:, None]
